"""Public forms of the finance data sets -> FLARE rows for evaluate.py, chat rows for training.

    SOURCE (csv, jsonl, CoNLL) -> OUT/fpb.jsonl        {"id", "query", "answer", "choices", ...}
                               -> OUT/fpb_train.jsonl  {"messages": [user query, answer]}

No sentence of the test rows is in the training rows: compared by letters and digits alone.

    python prepare.py fpb path/to/FinancialPhraseBank out/data
    python evaluate.py --tasks fpb --data out/data --init_from out/smollm2 --out_dir out/fpb
"""

import csv
import hashlib
import json
import re
import sys
from pathlib import Path

import parallel
from config import UserError
from jsonl import read_jsonl, write_jsonl
from rows import load_rows
from tasks import TASKS

FPB_TEST = 970  # as many as FinEval has; which ones is not published
FIQA_NEUTRAL = 0.1  # |score| below it is neutral: the border between FinEval's labels
# MMLU-Finance is undocumented; these subjects have 1,461 questions where FinEval counts 1,460.
FINANCE_SUBJECTS = (
    "business_ethics econometrics high_school_macroeconomics high_school_microeconomics "
    "professional_accounting management marketing"
).split()


def choice_row(name, number, choices, gold, text, **parts):
    """A FLARE row with choices; parts fill the places of the task's prompt beside {text}."""
    query = TASKS[name].prompt.format(text=text, **parts)
    answer = choices[gold]
    return {"id": f"{name}{number}", "query": query, "answer": answer, "text": text,
            "choices": list(choices), "gold": gold}  # fmt: skip


def letters(text):
    """What makes two sentences the same: letters and digits, in lower case."""
    return re.sub(r"[\W_]+", "", text.lower())


# One function per data set: source -> (test rows, train rows, {reason: rows left out}) ----------


def prepare_fpb(source):
    """Lines `sentence@label` in latin-1. A fifth is the test half: the smallest hashes, so that the
    split depends on the sentences alone, neither on their order nor on a random generator."""
    labels = ("positive", "negative", "neutral")
    rows = []
    path = find(source, "Sentences_50Agree.txt")
    for number, line in numbered_lines(path, "latin-1"):
        text, at, label = line.rpartition("@")
        if not at or label.strip() not in labels:
            raise UserError(f"{path}:{number}: label: line does not end in @{', @'.join(labels)}")
        gold = labels.index(label.strip())
        rows.append(choice_row("fpb", number, labels, gold, text.strip()))
    # Equal sentences have equal hashes and stay in one half
    rows.sort(key=lambda row: hashlib.sha256(letters(row["text"]).encode()).hexdigest())
    return rows[:FPB_TEST], rows[FPB_TEST:], {}


def prepare_fiqa_sa(source):
    """Test: FinLoRA's 235 prompts, re-worded. Train: the official files, one row per sentence."""
    labels = ("positive", "negative", "neutral")
    test, train, mixed = [], [], 0
    path = find(source, "*fiqa_test*.jsonl")
    for line, row in read_jsonl(path, {"context": str, "target": str}):
        found = re.search(
            r"sentiment of this (\w+)\?.*?\nInput: (.*)\nAnswer:", row["context"], re.S
        )
        if not found or row["target"] not in labels:
            raise UserError(f"{path}:{line}: context: not a FinLoRA prompt with {'/'.join(labels)}")
        gold, category = (
            labels.index(row["target"]),
            {"news": "headline", "tweet": "post"}[found[1]],
        )
        test.append(choice_row("fiqa_sa", line, labels, gold, found[2].strip(), category=category))
    for category in ("headline", "post"):
        path = find(source, f"task1_{category}_ABSA_train.json")
        for key, entry in read_json(path, dict).items():
            scores = [float(info["sentiment_score"]) for info in entry["info"]]
            signs = {(s > FIQA_NEUTRAL) - (s < -FIQA_NEUTRAL) for s in scores}
            if len(signs) > 1:  # such a sentence has no one label
                mixed += 1
                continue
            gold = {1: 0, -1: 1, 0: 2}[signs.pop()]
            text = entry["sentence"].strip()
            train.append(choice_row("fiqa_sa", key, labels, gold, text, category=category))
    return test, train, {"sentences with opposite labels for two companies": mixed}


def prepare_fomc(source):
    """jsonl rows {"sentence", "label"}: 0 dovish, 1 hawkish, 2 neutral."""
    labels = ("dovish", "hawkish", "neutral")
    halves = []
    for half in ("test", "train"):
        path = find(source, f"lab-manual-split-combine-{half}-5768.jsonl")
        rows = []
        for line, row in read_jsonl(path, {"sentence": str, "label": int}):
            if not 0 <= row["label"] < len(labels):
                raise UserError(f"{path}:{line}: label: {row['label']} is not 0, 1 or 2")
            number = f"_{half}{line}"
            rows.append(choice_row("fomc", number, labels, row["label"], row["sentence"].strip()))
        halves.append(rows)
    return *halves, {}


def prepare_ner(source):
    """CoNLL columns, word first and IOB tag last. Sentences without an entity are left out."""
    halves, empty = [], 0
    for name in ("FIN3.txt", "FIN5.txt"):
        rows = []
        for number, words, tags in conll_sentences(find(source, name)):
            spans, answer = [], []
            # MISC, seven words in all, is not asked for
            kinds = [tag[2:] if tag[2:] in ("PER", "ORG", "LOC") else "" for tag in tags]
            for i, kind in enumerate(kinds):
                # IOB's B- only parts two neighbours of one type; in BIO every entity begins with it
                opens = kind and (i == 0 or kinds[i - 1] != kind or tags[i].startswith("B"))
                spans.append(f"{'B' if opens else 'I'}-{kind}" if kind else "O")
                if opens:
                    answer.append((kind, [words[i]]))
                elif kind:
                    answer[-1][1].append(words[i])
            if not answer:
                empty += 1
                continue
            text = " ".join(words)
            listed = "\n".join(f"{' '.join(entity)}, {kind}" for kind, entity in answer)
            query = TASKS["ner"].prompt.format(text=text)
            rows.append({"id": f"ner_{name[:4].lower()}_{number}", "query": query,
                         "answer": listed, "text": text, "label": spans})  # fmt: skip
        halves.append(rows)
    return *halves, {"sentences without an entity": empty}


def prepare_mmlu_finance(source):
    """csv without header: question, four options, letter. No training half: dev is for few-shot."""
    folder, rows = Path(source), []
    for subject in FINANCE_SUBJECTS:
        path = find(folder, f"test/{subject}_test.csv", f"{subject}_test.csv")
        with open(path, encoding="utf-8", newline="") as f:
            reader = csv.reader(f)
            for number, row in enumerate(reader):
                if len(row) != 6 or row[5] not in ("A", "B", "C", "D"):
                    raise UserError(f"{path}:{reader.line_num}: needs question, 4 options, letter")
                options = dict(zip("abcd", row[1:5], strict=True))
                name = subject.replace("_", " ")
                rows.append(choice_row("mmlu_finance", f"_{subject}_{number}", "ABCD",
                                       "ABCD".index(row[5]), row[0].strip(), subject=name,
                                       **options))  # fmt: skip
    return rows, [], {}


ARC_FORM = re.compile(
    r"Please choose the correct answer to the question: (.*?)\s*\n\nAnswer1: (.*?)\n\n"
    r"Answer format: (\S+)",
    re.S,
)


def prepare_arc(source):
    """LLM-Adapters json: the question and its options are one text, the answer is "answer3"."""
    halves = []
    for half in ("test", "train"):
        rows = []
        for level in ("Easy", "Challenge"):
            path = find(source, f"ARC-{level}_{half}.json", f"ARC-{level}/{half}.json")
            for number, row in enumerate(read_json(path, list)):
                found = ARC_FORM.fullmatch(row["instruction"].strip())
                if not found:
                    raise UserError(f"{path}: row {number}: instruction: not LLM-Adapters' form")
                question, options, names = found.groups()
                choices = re.split(r" Answer\d: ", options)
                names = names.split("/")
                if len(choices) != len(names) or row["answer"] not in names:
                    raise UserError(f"{path}: row {number}: answer: options do not fit {names}")
                choices, gold = [choice.strip() for choice in choices], names.index(row["answer"])
                number = f"_{level.lower()}_{half}{number}"
                rows.append(choice_row("arc", number, choices, gold, question.strip()))
        halves.append(rows)
    return *halves, {}


def prepare_cfa(source):
    """flare-cfa has FLARE rows already, but no id."""
    path = find(source, "*cfa*.jsonl")
    return load_rows("cfa", path), [], {}


PREPARE = {
    "fpb": prepare_fpb,
    "fiqa_sa": prepare_fiqa_sa,
    "fomc": prepare_fomc,
    "ner": prepare_ner,
    "mmlu_finance": prepare_mmlu_finance,
    "arc": prepare_arc,
    "cfa": prepare_cfa,
}


# Files ---------------------------------------------------------------------------------------


def find(source, *patterns):
    """The file SOURCE itself, or the first file of the folder SOURCE that fits a pattern."""
    source = Path(source)
    if source.is_file():
        return source
    for pattern in patterns:
        found = sorted(source.glob(pattern)) if source.is_dir() else []
        if found:
            return found[0]
    raise UserError(f"{source}: no file {' or '.join(patterns)} in it")


def numbered_lines(path, encoding):
    """(line number from 1, line) of the lines that are not empty. UserError: not that encoding."""
    try:
        lines = path.read_text(encoding=encoding).splitlines()
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: is not {encoding}: {e}") from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def conll_sentences(path):
    """(line number, words, tags) of each sentence; an empty line or -DOCSTART- ends one."""
    sentences, last = [], 0
    for number, line in numbered_lines(path, "utf-8"):
        columns = line.split()
        if len(columns) < 2 or not re.fullmatch(r"O|[BI]-\w+", columns[-1]):
            raise UserError(f"{path}:{number}: tag: {columns[-1]!r} is not O, B-TYPE or I-TYPE")
        if columns[0] == "-DOCSTART-":
            continue
        if number != last + 1 or not sentences:
            sentences.append((number, [], []))
        sentences[-1][1].append(columns[0])
        sentences[-1][2].append(columns[-1])
        last = number
    return sentences


def read_json(path, kind):
    """A json file that holds a list or a dict. UserError names file and line."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise UserError(f"{path}:{getattr(e, 'lineno', 1)}: not valid json: {e}") from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: must hold a json {kind.__name__}")
    return value


def chat_row(row):
    """A training row: the same query as in the evaluation, answered."""
    roles = (("user", row["query"]), ("assistant", row["answer"]))
    return {"messages": [{"role": role, "content": text} for role, text in roles]}


def main(words):
    if len(words) != 3 or words[0] not in PREPARE:
        raise UserError(f"usage: python prepare.py {'|'.join(PREPARE)} SOURCE OUT")
    name, source, out = words[0], Path(words[1]), Path(words[2])
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; needed: {TASKS[name].source}")
    test, train, skipped = PREPARE[name](source)
    held = {letters(row.get("text", row["query"])) for row in test}
    kept = [row for row in train if letters(row["text"]) not in held]
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(out / f"{name}.jsonl", test)
    load_rows(name, out / f"{name}.jsonl")  # what is written must pass the evaluation's own checks
    print(f"{out / name}.jsonl: {len(test)} test rows")
    if train:
        write_jsonl(out / f"{name}_train.jsonl", [chat_row(row) for row in kept])
        print(f"{out / name}_train.jsonl: {len(kept)} training rows")
        skipped["training rows whose text is in the test rows"] = len(train) - len(kept)
    used = len(test) + len(kept)
    reasons = "".join(f" + {count} {reason}" for reason, count in skipped.items())
    print(f"{used + sum(skipped.values())} rows in = {used} used{reasons}")


if __name__ == "__main__":
    with parallel.clean_exit():
        main(sys.argv[1:])
