"""Public forms of FinEval's data sets -> FLARE rows for evaluate.py, chat rows for training.

    SOURCE (csv, jsonl, CoNLL, arff, parquet)
        -> OUT/fpb.jsonl        {"id", "query", "answer", "text", "choices", "gold"}  test rows
        -> OUT/fpb_shots.jsonl  the same, of the training half: examples for --fewshot
        -> OUT/fpb_train.jsonl  {"messages": [user query, answer]}

No text of the test rows is in the other two files: compared by letters and digits alone.

    python evaluate.py prepare fpb path/to/FinancialPhraseBank out/data
    python evaluate.py prepare fineval path/to/snapshot-of-the-hub out/data
"""

import difflib
import os
import re
from collections import Counter
from pathlib import Path

import rows as checks
from config import UserError
from credit_sets import PREPARE as CREDIT
from flare import by_half, is_flare, read_flare, told_by_content
from jsonl import check_fields, write_jsonl
from public_sets import PREPARE as FINANCE
from public_sets import letters
from question_sets import PREPARE as QUESTIONS
from sources import NotFound, row_files, rows_of
from tasks import FINEVAL, TASKS

READERS = FINANCE | QUESTIONS | CREDIT
SHOTS = 16  # examples kept, per subject where the rows have subjects
EXAMPLES_ONLY = ("mmlu", "mmlu_finance")  # their second half is there for few-shot prompts alone

# What is written -----------------------------------------------------------------------------


def sound(name, rows):
    """(rows that the evaluation takes, {reason: count of the others})."""
    task, kept, seen, skipped = TASKS[name], [], set(), Counter()
    for row in rows:
        try:
            check_fields(row, checks.fields_of(task), "row")
            problem = checks.row_problem(task, row)
        except UserError as e:
            problem = str(e).removeprefix("row: ")
        if not problem and row["id"] in seen:
            problem = "id: occurs twice"
        if problem:  # without the row's own words, so that equal reasons are counted together
            skipped[re.sub(r"'.*'|-?\b\d+\b", "..", problem)] += 1
            continue
        seen.add(row["id"])
        kept.append(row)
    return kept, skipped


def chat_row(row):
    """A training row: the same query as in the evaluation, answered."""
    roles = (("user", row["query"]), ("assistant", row["answer"].strip()))
    return {"messages": [{"role": role, "content": text} for role, text in roles]}


def compared(name, row):
    """What must not be in both halves: the text. For MMLU the question with its options, since many
    read "Which of the following is true?", and within a subject: examples go before its own alone.
    """
    if name in EXAMPLES_ONLY:
        return letters(f"{row['subject']} {row['query']}")
    return letters(row.get("text", row["query"]))


def first_shots(rows):
    """The first rows, of each subject where the rows have subjects."""
    counts, kept = Counter(), []
    for row in rows:
        counts[row.get("subject")] += 1
        if counts[row.get("subject")] <= SHOTS:
            kept.append(row)
    return kept


def write(name, test, train, skipped, out):
    """The files of a task, and what became of each row."""
    total = len(test) + len(train) + sum(skipped.values())
    (test, bad), (train, also_bad) = sound(name, test), sound(name, train)
    skipped = Counter(skipped) + bad + also_bad
    if not test:
        listed = "; ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise UserError(f"{name}: no usable test row in the source ({listed or 'it is empty'}); "
                        f"needed: {TASKS[name].source}")  # fmt: skip
    held = {compared(name, row) for row in test}
    kept = [row for row in train if compared(name, row) not in held]
    skipped["training rows whose text is in the test rows"] = len(train) - len(kept)
    path, shots, chats = (out / f"{name}{end}.jsonl" for end in ("", "_shots", "_train"))
    chosen = first_shots(kept)
    out.mkdir(parents=True, exist_ok=True)
    for file, content, what in (
        (path, test, "test rows"),
        (shots, chosen, "examples"),
        (chats, [chat_row(r) for r in kept if name not in EXAMPLES_ONLY], "training rows"),
    ):
        file.unlink(missing_ok=True)  # an older one may hold what are test rows now
        if content:
            write_jsonl(file, content)
            print(f"{file}: {len(content)} {what}")
    for file in (path, shots):  # what is written passes the evaluation's own checks
        if file.exists() and (left_out := checks.load_rows(name, file)[1]):
            raise UserError(left_out[0])
    reasons = "".join(f" + {count} {reason}" for reason, count in skipped.items() if count)
    print(f"{name}: {total} rows in = {len(test) + len(kept)} used{reasons}")


# Command -------------------------------------------------------------------------------------


def read(name, source):
    """(test rows, training rows, {reason: count}) from the set's own form or from FLARE rows."""
    if source.is_file() and is_flare(source):
        return read_flare(name, [source], [])
    needed = f"{source}: holds no FLARE rows of {name}; needed: {TASKS[name].source}"
    if name not in READERS and source.is_file():
        raise UserError(needed)
    try:
        if name in READERS:
            return READERS[name](source)
        raise NotFound(needed)
    except UserError:  # also of a reader that took FLARE rows for its set's own file
        files = [path for path in row_files(source) if is_flare(path)]
        if not files:
            raise
    return read_flare(name, *by_half(files))


# Columns by which the sets are told that are no FLARE rows on the hub
COLUMNS = {
    "openbookqa": {"question_stem", "choices"},
    "arc": {"question", "choices", "answerKey"},
    "piqa": {"goal", "sol1", "sol2"},
    "hellaswag": {"ctx_a", "endings"},
    "mathqa": {"Problem", "options"},
    "social_iqa": {"context", "answerA"},
    "winogrande": {"sentence", "option1"},
    "tatqa": {"table", "paragraphs"},
    "financebench": {"financebench_id"},
    "mt_bench": {"question_id", "turns"},
}


def told_by_columns(row):
    return next((name for name, columns in COLUMNS.items() if columns <= row.keys()), None)


def prepare_all(source, out):
    """Every file of a hub snapshot, told by its content, whatever its folder is called."""
    flare, other = {}, {}
    for path in row_files(source):
        try:
            rows = [row for _, row in rows_of(path)]
            held = flare if is_flare(path) else other
            name = told_by_content(rows) if held is flare else rows and told_by_columns(rows[0])
            reason = "rows of no task that is known"
        except UserError as e:
            name, reason = None, str(e).removeprefix(f"{path}:").strip()
        if name:
            held.setdefault(name, []).append(path)
        else:
            print(f"{path}: left out: {reason}")
    if not flare and not other:
        raise UserError(f"{source}: no file with rows of a task in it; give the folder of a "
                        "snapshot of Salesforce/FinEval")  # fmt: skip
    for name in [name for name in FINEVAL if name in flare or name in other]:
        try:
            if name in flare:
                found = read_flare(name, *by_half(flare[name]))
            else:
                found = READERS[name](Path(os.path.commonpath([p.parent for p in other[name]])))
            write(name, *found, out)
        except UserError as e:
            print(f"{name}: left out: {e}")


def main(words):
    names = ("fineval", *FINEVAL)
    if len(words) not in (2, 3):
        listed = "|".join(names)
        raise UserError(f"usage: python evaluate.py prepare {listed} SOURCE [OUT]")
    if words[0] not in names:
        near = difflib.get_close_matches(words[0], names, n=3, cutoff=0.5) or names
        raise UserError(f"prepare: {words[0]!r}: no such data set; did you mean "
                        f"{' or '.join(near)}?")  # fmt: skip
    name, source = words[0], Path(words[1])
    out = Path(words[2] if len(words) == 3 else "out/data")
    if not source.exists():
        needed = TASKS[name].source if name in TASKS else "a snapshot of Salesforce/FinEval"
        raise UserError(f"{source}: no such file or folder; needed: {needed}")
    if name == "fineval":
        prepare_all(source, out)
    else:
        write(name, *read(name, source), out)
