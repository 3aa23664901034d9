"""FLARE rows as they are published: most finance sets on the hub have this form.

    {"id", "query", "answer", "text", "choices": [..], "gold": 0}    parquet, json lines, json list

They are told by their columns, and their task by what the queries say: names are wrong at times.
German, CCFraud and TravelInsurance have query and answer alone, flare-cfa has no id.
"""

import re
from pathlib import Path

import rows as checks
from config import UserError
from jsonl import read_jsonl
from question_sets import FINANCE_SUBJECTS
from sources import form_of, rows_of
from tasks import TASKS


def is_flare(path):
    """Does the file hold FLARE rows, judged by the columns of its first?"""
    try:
        form = form_of(path)
        if form == "lines":  # the first row is enough, and the file may be large
            _, row = next(iter(read_jsonl(path, {})), (0, {}))
        else:
            _, row = next(iter(rows_of(path) if form else ()), (0, {}))
    except UserError:
        if form_of(path) == "parquet":
            raise
        return False
    return "query" in row and bool({"answer", "gold", "summary", "label_text"} & row.keys())


def half_of(path):
    """ "test", "train" or "" by the name of a file or its folder, as the hub names them."""
    for name in (Path(path).name, Path(path).parent.name):
        if found := re.findall(r"test|train|valid|dev", name.lower()):
            return "test" if found[-1] == "test" else "train"
    return ""


def by_half(paths):
    """(test files, training files). Where none is a test file all are: FinEval has a set of which
    the one file is called train."""
    test = [path for path in paths if half_of(path) != "train"]
    return (test, [path for path in paths if path not in test]) if test else (paths, [])


def told_by_content(rows):
    """The task that most of these rows belong to by their queries, or None."""
    queries = [row["query"] for row in rows if isinstance(row.get("query"), str)]
    for name, task in TASKS.items():
        if queries and task.sign and checks.reads_like(task, queries):
            if name == "mmlu" and {str(row.get("subject")).replace(" ", "_") for row in rows} <= {
                *FINANCE_SUBJECTS
            }:
                return "mmlu_finance"
            return name
    return None


def check_own(name, source, rows):
    """UserError if the rows are another task's: published collections have wrong names."""
    task = TASKS[name]
    if checks.holds(task, [row["query"] for row in rows if isinstance(row.get("query"), str)]):
        return
    if other := told_by_content(rows):
        known = (name, other) == ("financebench", "lendingclub")
        why = " (Salesforce/FinEval has them under FinanceBench)" if known else ""
        raise UserError(f"{source}: these are {other} rows{why}; run: python evaluate.py prepare "
                        f"{other} {source}")  # fmt: skip
    lists = [row["choices"] for row in rows if isinstance(row.get("choices"), list)]
    odd = [choices for choices in lists if choices and not checks.own_choices(task, choices)]
    if 2 * len(odd) > len(rows):
        wanted = ", ".join(task.labels) or "others"
        raise UserError(f"{source}: choices: {', '.join(map(str, odd[0]))[:60]}; {name} has "
                        f"{wanted}; give {name}'s own file: {task.source}")  # fmt: skip


def asked_text(query):
    """What a query asks about: the part between its last `Text:` and `Answer:`."""
    found = re.findall(r"(?:Text|Context|Input): *(.*?)\s*(?:\nAnswer:)?\s*\Z", query, re.S)
    return re.split(r"\n(?:Text|Context|Input): *", found[0])[-1] if found else query


def flare_row(name, row, place):
    """A published FLARE row with what it lacks: id, text, choices, gold."""
    task, row = TASKS[name], {key: value for key, value in row.items() if value is not None}
    if row.get("id", "") == "":  # flare-cfa has none
        row["id"] = f"{name}_{place}"
    row["id"] = str(row["id"])
    if task.answer == "summary":
        # ECTSUM's answer is a list of 0 and 1; its summary is in a column of its own
        row["answer"] = row.get("summary") or row.get("label_text") or row.get("answer")
        marks = row.get("label")
        if isinstance(marks, list):
            row["label"] = [int(m) if str(m) in ("0", "1") else m for m in marks]
        if "list of 0 and 1" in str(row.get("query")) and isinstance(row.get("text"), str):
            row["query"] = task.prompt.format(text=row["text"])
    if not str(row.get("text", "")).strip() and isinstance(row.get("query"), str):
        row["text"] = asked_text(row["query"])
    if task.answer in ("label", "letter"):
        choices = row.get("choices") or list(task.labels) or ["A", "B", "C"]
        if not isinstance(choices, list):  # left out when the rows are checked
            return row
        answer = str(row.get("answer", "")).strip().lower()
        known = [str(choice).strip().lower() for choice in choices]
        gold = row.get("gold", known.index(answer) if answer in known else -1)
        row |= {"choices": choices, "gold": gold}
        if "answer" not in row and isinstance(gold, int) and 0 <= gold < len(choices):
            row["answer"] = choices[gold]
    return row


def read_flare(name, test, train):
    """Files with FLARE rows -> (test rows, training rows, {})."""
    halves = []
    for half, paths in (("test", test), ("train", train)):
        found = [row for path in paths for _, row in rows_of(path)]
        if found:
            check_own(name, paths[0], found)
        halves.append([flare_row(name, row, f"{half}{i}") for i, row in enumerate(found)])
    return *halves, {}
