"""What the tests of prepare.py and its readers share."""

import json

import prepare
from jsonl import read_jsonl


def lines(path, rows):
    """A json-lines file of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def flare(name, query, answers, choices=None, **more):
    """FLARE rows of a task, one per answer; each query has its number in it."""
    rows = []
    for i, answer in enumerate(answers):
        row = {"id": f"{name}{i}", "query": query.replace("#", str(i)), "answer": answer} | more
        if choices:
            row |= {"choices": list(choices), "gold": list(choices).index(answer)}
        rows.append(row)
    return rows


def run(name, source, out):
    """(test rows, examples, training chats) that prepare writes."""
    prepare.main([name, str(source), str(out)])
    found = []
    for end in ("", "_shots", "_train"):
        path = out / f"{name}{end}.jsonl"
        found.append([row for _, row in read_jsonl(path, {})] if path.exists() else [])
    return found
