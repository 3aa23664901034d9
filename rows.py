"""Evaluation rows, checked before anything is asked."""

from config import UserError
from jsonl import read_jsonl
from tasks import TASKS


def load_rows(name, path):
    """FLARE rows of a task, checked: [{"id": str, "query", "answer", ...}]. UserError on a bad one.

    Choices are needed where a choice is made: distinct, with `gold` inside and `answer` equal to
    choices[gold]. Extra keys stay. A row without id gets its row number (flare-cfa has none).
    """
    task = TASKS[name]
    fields = {"query": str, "answer": str}
    if task.answer in ("label", "letter", "text"):
        fields |= {"choices": list, "gold": int}
    if task.answer == "entities":
        fields |= {"text": str, "label": list}
    if task.answer == "exam":
        fields |= {"solution": str}
    rows, seen = [], set()
    for line, row in read_jsonl(path, fields):
        problem = row_problem(task, row)
        row["id"] = str(row.get("id", len(rows)))
        if not problem and row["id"] in seen:
            problem = f"id: {row['id']!r} occurs twice"
        if problem:
            raise UserError(f"{path}:{line}: {problem}")
        seen.add(row["id"])
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def row_problem(task, row):
    """What is wrong with a row whose types are right, as "field: reason"; None if nothing is."""
    if not row["query"].strip():
        return "query: is empty"
    if not row["answer"].strip():
        return "answer: is empty"
    if task.answer == "entities":
        words, tags = row["text"].split(), row["label"]
        if len(words) != len(tags) or not all(isinstance(tag, str) for tag in tags):
            return f"label: needs one tag per word of text ({len(tags)} for {len(words)} words)"
    if task.answer not in ("label", "letter", "text"):
        return None
    choices = row["choices"]
    if len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        return "choices: needs at least two texts"
    if len({c.strip() for c in choices}) < len(choices):
        return "choices: two of them are equal"
    if not 0 <= row["gold"] < len(choices):
        return f"gold: {row['gold']} is outside the {len(choices)} choices"
    if row["answer"].strip().lower() != choices[row["gold"]].strip().lower():
        return f"answer: {row['answer']!r} is not choices[{row['gold']}]"
    return None
