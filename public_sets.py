"""Sets of texts, questions and conversations in their authors' files -> rows.

    source (a folder, or its file) -> Found(test, train, left_out)

No FLARE rows in here (flare.py), no questions with options (choice_sets.py), no tables
(credit_sets.py).
"""

import hashlib
import re
from pathlib import Path

from choice_sets import choice_row
from config import UserError
from flare import option
from jsonl import check_fields
from sources import (
    Found,
    conll_sentences,
    find,
    find_more,
    numbered_lines,
    place,
    read_json,
    read_records,
    rows_of,
)
from tasks import TASKS

FPB_TEST = 970  # as many as FinEval has; which ones is not published
FIQA_NEUTRAL = 0.1  # |score| below it is neutral: the border between FinEval's labels


def letters(text):
    """What makes two texts the same: letters and digits, in lower case."""
    return re.sub(r"[\W_]+", "", text.lower())


def smallest_hashes(rows, count):
    """(count rows, the rest). The choice depends on the texts alone, neither on their order nor on
    a random generator. Equal texts have equal hashes and stay together but for the last ones."""

    def place(row):
        return hashlib.sha256(letters(row["text"]).encode()).hexdigest(), row["text"], row["answer"]

    rows = sorted(rows, key=place)
    return rows[:count], rows[count:]


# Sentiment, stance, entities -----------------------------------------------------------------


def prepare_fpb(source):
    """Lines `sentence@label` in latin-1. A fifth is the test half."""
    labels, found = TASKS["fpb"].labels, Found([])
    path = find(source, "Sentences_50Agree.txt", "**/Sentences_50Agree.txt")

    def row(where, line):
        text, at, label = line.rpartition("@")
        if not at or label.strip() not in labels:
            raise UserError(f"{where}: label: line does not end in @{', @'.join(labels)}")
        gold = labels.index(label.strip())
        return choice_row("fpb", place(where), labels, gold, text.strip())

    lines = [(f"{path}:{number}", line) for number, line in numbered_lines(path, "latin-1")]
    rows = rows_of(lines, row, found.left_out)
    found.test, found.train = smallest_hashes(rows, FPB_TEST)
    found.note = f"of {len(rows)} sentences a fixed fifth is the test half: the smallest hashes"
    return found


def prepare_fiqa_sa(source):
    """Test: FinLoRA's 235 prompts, re-worded. Train: the official files, one row per sentence."""
    labels, found = TASKS["fiqa_sa"].labels, Found([])

    def test_row(where, record):
        check_fields(record, {"context": str, "target": str}, where)
        said = re.search(
            r"sentiment of this (news|tweet)\?.*?\nInput: (.*)\nAnswer:", record["context"], re.S
        )
        if not said:
            raise UserError(f"{where}: context: not a FinLoRA prompt")
        gold = option(where, "target", labels, record["target"])
        category = {"news": "headline", "tweet": "post"}[said[1]]
        return choice_row("fiqa_sa", place(where), labels, gold, said[2].strip(), category=category)

    path = find(source, "*fiqa_test*.jsonl")
    found.test = rows_of(read_records(path), test_row, found.left_out)
    for category in ("headline", "post"):
        path = find_more(source, f"task1_{category}_ABSA_train.json")
        entries = read_json(path, dict).items() if path else ()

        def train_row(where, entry, category=category):
            check_fields(entry, {"sentence": str, "info": list}, where)
            try:
                scores = [float(info["sentiment_score"]) for info in entry["info"]]
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{where}: info: needs a sentiment_score in each") from None
            signs = {(s > FIQA_NEUTRAL) - (s < -FIQA_NEUTRAL) for s in scores}
            if len(signs) > 1:  # such a sentence has no one label
                raise UserError(f"{where}: info: opposite labels for two companies")
            gold, key = {1: 0, -1: 1, 0: 2}[signs.pop()], where.rpartition(" ")[2]
            text = entry["sentence"].strip()
            return choice_row("fiqa_sa", key, labels, gold, text, category=category)

        entries = [(f"{path}: entry {key}", entry) for key, entry in entries]
        found.train += rows_of(entries, train_row, found.left_out)
    return found


def prepare_fomc(source):
    """jsonl rows {"sentence", "label"}: 0 dovish, 1 hawkish, 2 neutral."""
    labels, found = TASKS["fomc"].labels, Found([])
    for half, look in (("test", find), ("train", find_more)):
        path = look(source, f"lab-manual-split-combine-{half}-5768.jsonl")

        def row(where, record, half=half):
            check_fields(record, {"sentence": str, "label": int}, where)
            gold = option(where, "label", (0, 1, 2), record["label"])
            number = f"_{half}{place(where)}"
            return choice_row("fomc", number, labels, gold, record["sentence"].strip())

        rows = rows_of(read_records(path), row, found.left_out) if path else []
        setattr(found, half, rows)
    return found


def prepare_ner(source):
    """CoNLL columns, word first and IOB tag last. Sentences without an entity are left out."""
    found = Found([])
    for half, name, look in (("test", "FIN3.txt", find), ("train", "FIN5.txt", find_more)):
        path = look(source, name)
        read = conll_sentences(path) if path else ()
        sentences = [(f"{path}:{number}", (words, tags)) for number, words, tags in read]
        setattr(found, half, rows_of(sentences, ner_row, found.left_out))
    return found


def ner_row(where, sentence):
    words, tags = sentence
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
        raise UserError(f"{where}: tag: sentence without an entity")
    text, name = " ".join(words), Path(where.rpartition(":")[0]).stem.lower()
    listed = "\n".join(f"{' '.join(entity)}, {kind}" for kind, entity in answer)
    return {"id": f"ner_{name}_{place(where)}", "query": TASKS["ner"].prompt.format(text=text),
            "answer": listed, "text": text, "label": spans}  # fmt: skip


# Questions -----------------------------------------------------------------------------------


def nq_open_row(where, record):
    """{"question", "answer": [any of these]}."""
    check_fields(record, {"question": str, "answer": list}, where)
    text, answers = record["question"], record["answer"]
    return {"id": f"nq_{place(where)}", "query": TASKS["nq_open"].prompt.format(text=text),
            "text": text, "answers": answers, "answer": answers[0]}  # fmt: skip


def prepare_tatqa(source):
    """A list of contexts, each a table, paragraphs and questions."""
    path = find(source, "tatqa_dataset_dev.json", "*dev*.json", "*.json")
    found, questions = Found([]), []
    for number, context in enumerate(read_json(path, list)):
        where = f"{path}: row {number}"
        check_fields(context, {"table": dict, "paragraphs": list, "questions": list}, where)
        table = "\n".join(" | ".join(map(str, line)) for line in context["table"]["table"])
        paragraphs = sorted(context["paragraphs"], key=lambda p: p["order"])
        text = "\n".join(paragraph["text"] for paragraph in paragraphs)
        for question in context["questions"]:
            questions.append((f"{where}: question {question.get('order', '?')}",
                              question | {"context": (table, text)}))  # fmt: skip
    found.test = rows_of(questions, tatqa_row, found.left_out)
    return found


def tatqa_row(where, question):
    fields = {"question": str, "answer_type": str, "scale?": str, "uid": str}
    check_fields(question, fields | {"answer": (list, str, int, float)}, where)
    given, scale = question["answer"], question.get("scale") or ""
    answers = [str(answer) for answer in (given if isinstance(given, list) else [given])]
    if question["answer_type"] == "multi-span":
        said = "; ".join(answers) + (f" (in {scale})" if scale else "")
    else:
        said = f"{answers[0]}%" if scale == "percent" else f"{answers[0]} {scale}".strip()
    (table, text), asked = question["context"], question["question"].strip()
    query = TASKS["tatqa"].prompt.format(table=table, text=text, question=asked)
    return {"id": question["uid"], "query": query, "answer": said, "text": f"{table}\n{text}",
            "answers": answers, "answer_type": question["answer_type"], "scale": scale}  # fmt: skip


def financebench_row(where, record):
    """The question with the pages' parts that hold its evidence."""
    fields = {"financebench_id": str, "question": str, "answer": str, "evidence": list}
    check_fields(record, fields, where)
    texts = [part.get("evidence_text") for part in record["evidence"] if isinstance(part, dict)]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: evidence: needs an evidence_text in each")
    # Tables out of a pdf: a cell a line, and many lines of blanks between
    lines = (line.strip() for text in texts for line in text.splitlines())
    evidence = "\n".join(filter(None, lines))
    question = record["question"].strip()
    query = TASKS["financebench"].prompt.format(evidence=evidence, question=question)
    return {"id": record["financebench_id"], "query": query, "answer": record["answer"],
            "text": evidence}  # fmt: skip


def mt_bench_row(where, record):
    """FastChat's {"question_id", "category", "turns"}, or the hub's {"prompt_id", "prompt"}."""
    turns = record.get("turns") or record.get("prompt")
    references = record.get("reference") or record.get("references")
    check_fields(record | {"turns": turns}, {"turns": list, "category": str}, where)
    number = record.get("question_id", record.get("prompt_id", place(where)))
    return {"id": f"mt_bench_{number}", "query": turns[0], "turns": turns, "text": turns[0],
            "answer": "", "category": record["category"]
            } | ({"references": references} if references else {})  # fmt: skip


def prepare_mt_bench(source):
    """question.jsonl; where reference_answer/gpt-4.jsonl lies beside it, its answers go along."""
    path = find(source, "question.jsonl", "**/question.jsonl", "**/*.parquet", "**/*.jsonl")
    found, records, references = Found([]), read_records(path), {}
    beside = (path.parent / "reference_answer" / "gpt-4.jsonl", path.parent / "gpt-4.jsonl")
    for where, record in next((read_records(p) for p in beside if p.exists()), ()):
        check_fields(record, {"question_id": int, "choices": list}, where)
        references[record["question_id"]] = record["choices"][0]["turns"]
    for _, record in records:
        if record.get("question_id") in references:
            record["reference"] = references[record["question_id"]]
    found.test = rows_of(records, mt_bench_row, found.left_out)
    held = sum("references" in row for row in found.test)
    found.note = f"{held} rows have reference answers (math, reasoning and coding need them)"
    return found


MAKERS = {"nq_open": nq_open_row, "financebench": financebench_row}
