"""Evaluation rows, checked before anything is asked.

    {"id": "7", "query": "Text: ..\\nAnswer:", "answer": "good", "text": "..",
     "choices": ["good", "bad"], "gold": 0}

    rows, left_out = load_rows("german", "out/data/german.jsonl")

A row that is no question is left out, with the reason, and never scored as a wrong answer. A file
that cannot be read, or that holds another task's rows, stops the run.
"""

import re

from config import UserError
from jsonl import check_fields, read_jsonl
from tasks import TASKS

CHOSEN = ("label", "letter", "text", "blank")  # kinds of answers that are one of the row's choices
FREE = ("entities", "summary", "number", "short", "free", "chat")  # rows of these have no choices
LETTERS = "ABCDEFGHIJ"
SCALES = ("", "thousand", "million", "billion", "percent")
NUMBER_TYPES = ("span", "multi-span", "arithmetic", "count")
BIO = re.compile(r"O|[BI]-\S+")
NUMERAL = re.compile(r"[-+]?\$?\(?(?:\d[\d,]*\.?\d*|\.\d+)%?\)?")


def load_rows(name, path):
    """(rows, left_out) of a task's file: checked dicts, and "file:line: field: reason" of the rest.

    Extra keys stay. A row without id gets its place in the file, from 0 (flare-cfa has no ids).
    UserError for a file that cannot be read, holds no usable row, or another task's.
    """
    task, found = TASKS[name], list(read_jsonl(path, {}))
    if not found:
        raise UserError(f"{path}: no rows")
    check_name(name, path, [row for _, row in found])
    rows, left_out, seen = [], [], set()
    for place, (line, row) in enumerate(found):
        where = f"{path}:{line}"
        try:
            check_fields(row, fields_of(task), where)
        except UserError as e:
            left_out.append(str(e))
            continue
        row["id"] = str(place if row.get("id") in (None, "") else row["id"])
        problem = row_problem(task, row)
        if not problem and row["id"] in seen:
            problem = f"id: {row['id']!r} occurs twice"
        if problem:
            left_out.append(f"{where}: {problem}")
            continue
        seen.add(row["id"])
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: none of its {len(found)} rows can be used; the first: "
                        f"{left_out[0]}")  # fmt: skip
    return rows, left_out


# Another task's rows -------------------------------------------------------------------------


def check_name(name, path, rows):
    """UserError if most rows are another task's, by their choices or their queries.

    The published collections have such files: FinEval's FinanceBench holds LendingClub's rows.
    """
    task = TASKS[name]
    queries = [row["query"] for row in rows if isinstance(row.get("query"), str)]
    chosen = [row["choices"] for row in rows if isinstance(row.get("choices"), list)]
    odd = [choices for choices in chosen if choices and not own_choices(task, choices)]
    if not holds(task, queries):
        for other, candidate in TASKS.items():
            if candidate.sign and reads_like(candidate, queries):
                raise UserError(f"{path}: holds rows of {other}, not of {name}: its queries read "
                                f"so; rename it to {other}.jsonl")  # fmt: skip
    if len(odd) * 2 > len(rows):
        listed = ", ".join(map(str, odd[0]))[:60]
        expected = f"{name} has {', '.join(task.labels) or 'none'}"
        if task.answer == "letter":
            expected = f"{name} has the letters A, B, C"
        raise UserError(f"{path}: holds rows of another task, not of {name}: choices: {listed} in "
                        f"{len(odd)} of {len(rows)} rows, but {expected}; prepare it from: "
                        f"{task.source}")  # fmt: skip


def holds(task, queries):
    """Does any query hold the task's sign?"""
    return bool(task.sign) and any(re.search(task.sign, query, re.I) for query in queries)


def reads_like(task, queries):
    """Do most queries hold the task's sign?"""
    return 2 * sum(bool(re.search(task.sign, query, re.I)) for query in queries) > len(queries)


def own_choices(task, choices):
    """Can these be a task's choices? Texts and blanks may have any, an exact answer may list some.

    Labels are compared in any order and case: published files differ in both.
    """
    if task.answer in FREE:
        return False
    if task.answer == "letter":
        return [str(choice).strip().upper() for choice in choices] == [*LETTERS[: len(choices)]]
    if task.labels:
        given = {str(choice).strip().lower() for choice in choices}
        return given == {label.lower() for label in task.labels}
    return True


# One row -------------------------------------------------------------------------------------


def fields_of(task):
    """{field: type} that a row must have, for jsonl.check_fields."""
    fields = {"query": str, "answer": str, "id?": (str, int), "text?": str}
    if task.answer == "chat":  # what a good reply says is open, or in references
        del fields["answer"]
    if task.answer in ("text", "blank", "entities", "summary"):
        fields["text"] = str
    if task.answer in CHOSEN:
        fields |= {"choices": list, "gold": int}
    if "{subject}" in task.description:
        fields["subject"] = str
    return fields | {
        "entities": {"label": list},
        "summary": {"label?": list},
        "number": {"answers": list, "answer_type": str},
        "short": {"answers": list},
        "chat": {"turns": list, "category": str, "references?": list},
        "exam": {"solution": str},
    }.get(task.answer, {})


def row_problem(task, row):
    """What is wrong with a row whose types are right, as "field: reason"; None if nothing is."""
    checks = {
        "label": choices_problem,
        "letter": choices_problem,
        "text": choices_problem,
        "blank": choices_problem,
        "entities": entities_problem,
        "summary": summary_problem,
        "number": number_problem,
        "short": answers_problem,
        "chat": chat_problem,
    }
    return checks[task.answer](task, row) if task.answer in checks else None


def texts(values, least=1):
    """Is it a list of at least so many texts that are not empty?"""
    return len(values) >= least and all(isinstance(v, str) and v.strip() for v in values)


def choices_problem(task, row):
    choices = row["choices"]
    if not texts(choices, 2):
        return "choices: needs at least two texts"
    if len({choice.strip() for choice in choices}) < len(choices):
        return "choices: two of them are equal"
    if not own_choices(task, choices):
        wanted = ", ".join(task.labels) or "letters from A on"
        return f"choices: {', '.join(choices)} where the task has {wanted}"
    if not 0 <= row["gold"] < len(choices):
        return f"gold: {row['gold']} is outside the {len(choices)} choices"
    if row["answer"].strip().lower() != choices[row["gold"]].strip().lower():
        return f"answer: {row['answer']!r} is not choices[{row['gold']}]"
    if task.answer == "blank" and row["query"].count("_") != 1:
        return f"query: needs one _ to fill, has {row['query'].count('_')}"
    return None


def entities_problem(task, row):
    words, tags = row["text"].split(), row["label"]
    if len(words) != len(tags):
        return f"label: needs one tag per word of text ({len(tags)} for {len(words)} words)"
    odd = [tag for tag in tags if not isinstance(tag, str) or not BIO.fullmatch(tag)]
    return f"label: {odd[0]!r} is not O, B-TYPE or I-TYPE" if odd else None


def summary_problem(task, row):
    odd = [mark for mark in row.get("label") or [] if type(mark) is not int or mark not in (0, 1)]
    return f"label: {odd[0]!r} is not 0 or 1" if odd else None


def answers_problem(task, row):
    if not texts(row["answers"]):
        return "answers: needs a list of texts"
    if task.answer == "short" and row["answer"] != row["answers"][0]:
        return f"answer: {row['answer']!r} is not answers[0]"
    return None


def number_problem(task, row):
    kind, answers = row["answer_type"], row["answers"]
    if kind not in NUMBER_TYPES:
        return f"answer_type: {kind!r} is not one of {', '.join(NUMBER_TYPES)}"
    if row.get("scale") not in SCALES:
        return f"scale: {row.get('scale')!r} is not one of {', '.join(SCALES[1:])} or empty"
    if problem := answers_problem(task, row):
        return problem
    if kind != "multi-span" and len(answers) > 1:
        return f"answers: {kind} has one answer, not {len(answers)}"
    if kind in ("arithmetic", "count") and not NUMERAL.fullmatch(answers[0].strip()):
        return f"answers: {answers[0]!r} is no number, but the answer_type is {kind}"
    return None


def chat_problem(task, row):
    if not isinstance(row.get("answer"), str):
        return "answer: must be a text, which may be empty"
    if len(row["turns"]) != 2 or not texts(row["turns"]):
        return "turns: needs two texts"
    if row["query"] != row["turns"][0]:
        return "query: is not turns[0]"
    if not all(isinstance(text, str) for text in row.get("references") or []):
        return "references: must be texts"
    return None
