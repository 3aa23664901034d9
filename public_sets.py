"""Public forms of FinEval's finance sets of sentences -> FLARE rows. One function per data set:

    function(source) -> (test rows, training rows, {reason: rows left out})

    rows of fpb     {"id", "query", "answer", "text", "choices": [..], "gold": 0}

A file in another form than the published one is an error that names file and line.
"""

import hashlib
import re

from config import UserError
from jsonl import check_fields, read_jsonl
from sources import both, find, find_more, lines, read_conll, read_json
from tasks import TASKS

FPB_TEST = 970  # as many as FinEval has; which ones is not published
FIQA_NEUTRAL = 0.1  # |score| below it is neutral: the border between FinEval's labels


def choice_row(name, number, choices, gold, text, **parts):
    """A FLARE row with choices; parts fill the places of the task's prompt beside {text}."""
    query = TASKS[name].prompt.format(text=text, **parts)
    return {"id": f"{name}{number}", "query": query, "answer": choices[gold], "text": text,
            "choices": list(choices), "gold": gold}  # fmt: skip


def letters(text):
    """What makes two sentences the same: letters and digits, in lower case."""
    return re.sub(r"[\W_]+", "", text.lower())


def prepare_fpb(source):
    """Lines `sentence@label` in latin-1. A fifth is the test half: the smallest hashes, so that the
    split depends on the sentences alone, neither on their order nor on a random generator."""
    labels, rows = TASKS["fpb"].labels, []
    path = find(source, "Sentences_50Agree.txt")
    for number, line in lines(path, "latin-1"):
        text, at, label = line.rpartition("@")
        if not at or label.strip() not in labels:
            raise UserError(f"{path}:{number}: label: line does not end in @{', @'.join(labels)}")
        gold = labels.index(label.strip())
        rows.append(choice_row("fpb", number, labels, gold, text.strip()))
    # Equal sentences have equal hashes and stay in one half
    rows.sort(key=lambda row: hashlib.sha256(letters(row["text"]).encode()).hexdigest())
    return rows[:FPB_TEST], rows[FPB_TEST:], {}


FINLORA = re.compile(r".*?sentiment of this (news|tweet)\?.*?\nInput: (.*)\nAnswer: ?", re.S)


def prepare_fiqa_sa(source):
    """Test: FinLoRA's 235 prompts, re-worded. Train: the official files, one row per sentence."""
    labels = TASKS["fiqa_sa"].labels
    test, train, mixed = [], [], 0
    path = find(source, "*fiqa_test*.jsonl")
    for line, row in read_jsonl(path, {"context": str, "target": str}):
        found = FINLORA.fullmatch(row["context"])
        if not found or row["target"] not in labels:
            raise UserError(f"{path}:{line}: context: not a FinLoRA prompt with {'/'.join(labels)}")
        gold = labels.index(row["target"])
        category = {"news": "headline", "tweet": "post"}[found[1]]
        test.append(choice_row("fiqa_sa", line, labels, gold, found[2].strip(), category=category))
    for category in ("headline", "post"):
        path = find_more(source, f"task1_{category}_ABSA_train.json")
        for key, entry in read_json(path, dict).items() if path else ():
            where = f"{path}: entry {key}"
            if not isinstance(entry, dict):
                raise UserError(f"{where}: must be an object; get the file as published")
            check_fields(entry, {"sentence": str, "info": list}, where)
            try:
                scores = [float(info["sentiment_score"]) for info in entry["info"]]
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{where}: info: needs a sentiment_score in each; get the file as "
                                "published") from None  # fmt: skip
            signs = {(s > FIQA_NEUTRAL) - (s < -FIQA_NEUTRAL) for s in scores}
            if len(signs) > 1:  # such a sentence has no one label
                mixed += 1
                continue
            gold = {1: 0, -1: 1, 0: 2}[signs.pop()]
            text = entry["sentence"].strip()
            number = f"_{category}{key}"  # both files may use a key
            train.append(choice_row("fiqa_sa", number, labels, gold, text, category=category))
    return test, train, {"sentences with opposite labels for two companies": mixed}


def prepare_fomc(source):
    """jsonl rows {"sentence", "label"}: 0 dovish, 1 hawkish, 2 neutral."""
    labels, halves = TASKS["fomc"].labels, []
    form = "lab-manual-split-combine-{}-5768.jsonl"
    for half, path in both(source, form.format("test"), form.format("train")):
        rows = []
        for line, row in read_jsonl(path, {"sentence": str, "label": int}) if path else ():
            if not 0 <= row["label"] < len(labels):
                raise UserError(f"{path}:{line}: label: {row['label']} is not 0, 1 or 2")
            number = f"_{half}{line}"
            rows.append(choice_row("fomc", number, labels, row["label"], row["sentence"].strip()))
        halves.append(rows)
    return *halves, {}


def prepare_ner(source):
    """CoNLL columns, word first and IOB tag last. Sentences without an entity are left out."""
    halves, empty = [], 0
    for _, path in both(source, "FIN3.txt", "FIN5.txt"):
        rows = []
        for number, words, tags in read_conll(path) if path else ():
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
            rows.append({"id": f"ner_{path.name[:4].lower()}_{number}", "answer": listed,
                         "query": TASKS["ner"].prompt.format(text=text), "text": text,
                         "label": spans})  # fmt: skip
        halves.append(rows)
    return *halves, {"sentences without an entity": empty}


PREPARE = {
    "fpb": prepare_fpb,
    "fiqa_sa": prepare_fiqa_sa,
    "fomc": prepare_fomc,
    "ner": prepare_ner,
}
