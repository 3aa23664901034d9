"""Tables, prices, filings and chats -> evaluation rows: the sets whose prompt has to be built.

    prepare_SET(source) -> (test rows, training rows, {reason: rows left out})

One function per set, as in public_sets.py. FLARE rows of the same sets need none of these:
prepare.py takes them as they are. Where a source holds more rows than FinEval lists, those with the
smallest hashes are the test half, so that the choice depends on the rows alone.
"""

import csv
import hashlib
from collections import defaultdict

from config import UserError
from jsonl import read_jsonl
from paper import PAPER
from sources import find, open_text, read_arff, read_json
from tasks import TASKS

DAYS = 10  # of prices that a stock question shows
TWEETS = 10  # at most, the latest first
PRICES = ["ticker", "date", "open_norm", "high_norm", "low_norm", "close_norm", "movement_pct"]


def label_row(name, key, text, answer, **parts):
    """A FLARE row of a task with fixed labels."""
    labels = TASKS[name].labels
    return {"id": key, "query": TASKS[name].prompt.format(text=text, **parts), "answer": answer,
            "text": text, "choices": list(labels), "gold": labels.index(answer)}  # fmt: skip


def attributes(pairs):
    """[(name, value)] -> one sentence; an empty value is unknown."""
    shown = (f"{name}: {'unknown' if value in (None, '') else value}" for name, value in pairs)
    return f"The client has attributes: {', '.join(shown)}."


def halves(name, rows):
    """(the rows with the smallest hashes, as many as the paper lists; the others)."""
    rows.sort(key=lambda row: hashlib.sha256(row["text"].encode()).hexdigest())
    size = PAPER[name].n
    return rows[:size], rows[size:], {}


def table(path, needed):
    """(line, {column: value}) of a csv file whose first line names the columns."""
    with open_text(path) as f:
        reader = csv.DictReader(f)
        header = reader.fieldnames or []
        if missing := [name for name in needed if name not in header]:
            raise UserError(f"{path}:1: {missing[0]}: no such column; it has "
                            f"{', '.join(header[:8])}")  # fmt: skip
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{path}:{reader.line_num}: not {len(header)} columns")
            yield reader.line_num, row


# Credit and bankruptcy -------------------------------------------------------------------------


def prepare_australian(source):
    """jsonl rows {"A1" .. "A14", "answer"}: the split that CALM documents."""
    found = []
    for half in ("test", "train"):
        rows, path = [], find(source, f"*{half}*.jsonl")
        for line, row in read_jsonl(path, {"answer": str}):
            names = [f"A{k}" for k in range(1, 15)]
            absent = [key for key in names if key not in row]
            if absent or row["answer"] not in TASKS["australian"].labels:
                field = absent[0] if absent else "answer"
                raise UserError(f"{path}:{line}: {field}: needs A1 to A14 and good or bad")
            text = attributes((key, row[key]) for key in names)
            rows.append(label_row("australian", f"australian_{half}{line}", text, row["answer"]))
        found.append(rows)
    return *found, {}


def prepare_lendingclub(source):
    """csv with a header, the label (good, bad) in its last column, Class."""
    path, rows = find(source, "lending_club.csv", "*.csv"), []
    for line, row in table(path, ["Class"]):
        if row["Class"] not in TASKS["lendingclub"].labels:
            raise UserError(f"{path}:{line}: Class: {row['Class']!r} is not good or bad")
        named = ((key.replace("_", " "), v) for key, v in row.items() if key != "Class")
        text = attributes(named)
        rows.append(label_row("lendingclub", f"lendingclub{line}", text, row["Class"]))
    return halves("lendingclub", rows)


# UCI 365, Attr1 to Attr64
RATIOS = """
net profit / total assets; total liabilities / total assets; working capital / total assets; current
assets / short-term liabilities; (cash + short-term securities + receivables - short-term
liabilities) / (operating expenses - depreciation) * 365; retained earnings / total assets; EBIT /
total assets; book value of equity / total liabilities; sales / total assets; equity / total assets;
(gross profit + extraordinary items + financial expenses) / total assets; gross profit / short-term
liabilities; (gross profit + depreciation) / sales; (gross profit + interest) / total assets; (total
liabilities * 365) / (gross profit + depreciation); (gross profit + depreciation) / total
liabilities; total assets / total liabilities; gross profit / total assets; gross profit / sales;
(inventory * 365) / sales; sales (n) / sales (n-1); profit on operating activities / total assets;
net profit / sales; gross profit (in 3 years) / total assets; (equity - share capital) / total
assets; (net profit + depreciation) / total liabilities; profit on operating activities / financial
expenses; working capital / fixed assets; logarithm of total assets; (total liabilities - cash) /
sales; (gross profit + interest) / sales; (current liabilities * 365) / cost of products sold;
operating expenses / short-term liabilities; operating expenses / total liabilities; profit on sales
/ total assets; total sales / total assets; (current assets - inventories) / long-term liabilities;
constant capital / total assets; profit on sales / sales; (current assets - inventory - receivables)
/ short-term liabilities; total liabilities / ((profit on operating activities + depreciation) *
(12/365)); profit on operating activities / sales; rotation receivables + inventory turnover in
days; (receivables * 365) / sales; net profit / inventory; (current assets - inventory) / short-term
liabilities; (inventory * 365) / cost of products sold; EBITDA / total assets; EBITDA / sales;
current assets / total liabilities; short-term liabilities / total assets; (short-term liabilities *
365) / cost of products sold; equity / fixed assets; constant capital / fixed assets; working
capital; (sales - cost of products sold) / sales; (current assets - inventory - short-term
liabilities) / (sales - gross profit - depreciation); total costs / total sales; long-term
liabilities / equity; sales / inventory; sales / receivables; (short-term liabilities * 365) /
sales; sales / short-term liabilities; sales / fixed assets
"""


def prepare_polish(source):
    """arff of UCI 365, year 5: Attr1 to Attr64, then class 0 or 1; `?` is unknown."""
    names = [" ".join(name.split()) for name in RATIOS.split(";")]
    path, rows = find(source, "5year.arff*", "*.arff*"), []
    columns, records = read_arff(path)
    if len(columns) != len(names) + 1 or columns[-1].lower() != "class":
        raise UserError(f"{path}: needs Attr1 to Attr64 and class, has {len(columns)} columns")
    for line, values in records:
        if values[-1] not in ("0", "1"):
            raise UserError(f"{path}:{line}: class: {values[-1]!r} is not 0 or 1")
        text = attributes(zip(names, values[:-1], strict=True))
        answer = TASKS["polish"].labels[int(values[-1])]
        rows.append(label_row("polish", f"polish{line}", text, answer))
    return halves("polish", rows)


# Stock movement --------------------------------------------------------------------------------


def prepare_sm_acl(source):
    """stocknet: prices.csv, tweets.jsonl, test_samples.jsonl {"ticker", "date", "label"}.

    Shown are prices and tweets of the days before the one asked about, nothing of that day itself.
    """
    prices, tweets = defaultdict(list), defaultdict(list)
    path = find(source, "prices.csv")
    for _, row in table(path, PRICES):
        prices[row["ticker"]].append(row)
    for _, row in read_jsonl(find(source, "tweets.jsonl"), {"ticker": str, "date": str}):
        tweets[row["ticker"]].append((row["date"], row.get("tweets") or []))
    rows, short = [], 0
    fields = {"ticker": str, "date": str, "label": str}
    path = find(source, "test_samples.jsonl")
    for line, sample in read_jsonl(path, fields):
        ticker, day = sample["ticker"], sample["date"]
        if sample["label"] not in TASKS["sm_acl"].labels:
            raise UserError(f"{path}:{line}: label: {sample['label']!r} is not Rise or Fall")
        before = sorted((r for r in prices[ticker] if r["date"] < day), key=lambda r: r["date"])
        if len(before) < DAYS:
            short += 1
            continue
        shown = ["date,open,high,low,close,movement"]
        shown += [",".join(r[key] for key in PRICES[1:]) for r in before[-DAYS:]]
        said = [f"{date}: {tweet}" for date, texts in sorted(tweets[ticker], reverse=True)
                for tweet in texts if date < day][:TWEETS]  # fmt: skip
        text = f"closing price of ${ticker.lower()} at {day}\n" + "\n".join(shown + said)
        rows.append(label_row("sm_acl", f"sm_acl{line}", text, sample["label"]))
    return rows, [], {f"with fewer than {DAYS} days of prices before": short}


# Filings and chats -----------------------------------------------------------------------------


def amount(value, scale):
    """A gold answer of TAT-QA with its scale, as a reader would write it."""
    return f"{value}%" if scale == "percent" else f"{value} {scale}".strip()


def prepare_tatqa(source):
    """json list of contexts: a table, paragraphs, questions."""
    path, rows = find(source, "tatqa_dataset_dev.json", "*.json"), []
    for number, entry in enumerate(read_json(path, list)):
        try:
            grid = "\n".join(" | ".join(cells) for cells in entry["table"]["table"])
            parts = sorted(entry["paragraphs"], key=lambda part: part["order"])
            text = "\n".join(part["text"] for part in parts)
            for question in entry["questions"]:
                found, scale = question["answer"], question["scale"]
                answers = [str(a) for a in (found if isinstance(found, list) else [found])]
                if question["answer_type"] == "multi-span":
                    shown = "; ".join(answers) + (f" (in {scale})" if scale else "")
                else:
                    shown = amount(answers[0], scale)
                query = TASKS["tatqa"].prompt.format(
                    table=grid, text=text, question=question["question"].strip()
                )
                rows.append({
                    "id": question["uid"], "query": query, "answer": shown,
                    "text": f"{grid}\n{text}", "answers": answers, "scale": scale,
                    "answer_type": question["answer_type"],
                })  # fmt: skip
        except (KeyError, TypeError, AttributeError) as e:
            raise UserError(f"{path}: entry {number}: {e}: not TAT-QA's form") from None
    return rows, [], {}


def prepare_financebench(source):
    """jsonl {"question", "answer", "evidence": [{"evidence_text"}]}."""
    path, rows = find(source, "financebench_open_source.jsonl", "*.jsonl"), []
    fields = {"financebench_id": str, "question": str, "answer": str, "evidence": list}
    for line, row in read_jsonl(path, fields):
        texts = [part.get("evidence_text") for part in row["evidence"] if isinstance(part, dict)]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{path}:{line}: evidence: needs an evidence_text in each")
        # Tables out of a pdf: a cell a line, and many lines of blanks between
        lines = (line.strip() for text in texts for line in text.splitlines())
        evidence = "\n".join(filter(None, lines))
        question = row["question"].strip()
        query = TASKS["financebench"].prompt.format(evidence=evidence, question=question)
        rows.append({"id": row["financebench_id"], "query": query, "answer": row["answer"],
                     "text": evidence})  # fmt: skip
    return rows, [], {}


def prepare_mt_bench(source):
    """jsonl {"question_id", "category", "turns"}, references inside or in gpt-4.jsonl beside it."""
    path, rows, answers = find(source, "question.jsonl", "*.jsonl"), [], {}
    beside = [p for p in path.parent.rglob("gpt-4.jsonl") if p != path]
    if beside:
        for line, row in read_jsonl(beside[0], {"question_id": int, "choices": list}):
            try:
                answers[row["question_id"]] = row["choices"][0]["turns"]
            except (KeyError, TypeError, IndexError):
                raise UserError(f"{beside[0]}:{line}: choices: needs turns in its first") from None
    fields = {"question_id": int, "category": str, "turns": list, "reference?": list}
    for line, row in read_jsonl(path, fields):
        turns = row["turns"]
        if len(turns) != 2 or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise UserError(f"{path}:{line}: turns: needs two texts")
        references = row.get("reference") or answers.get(row["question_id"])
        rows.append({"id": f"mt_bench{row['question_id']}", "query": turns[0], "text": turns[0],
                     "answer": "", "turns": turns, "category": row["category"]}
                    | ({"references": references} if references else {}))  # fmt: skip
    return rows, [], {}


PREPARE = {
    "australian": prepare_australian,
    "lendingclub": prepare_lendingclub,
    "polish": prepare_polish,
    "sm_acl": prepare_sm_acl,
    "tatqa": prepare_tatqa,
    "financebench": prepare_financebench,
    "mt_bench": prepare_mt_bench,
}
