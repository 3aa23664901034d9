"""Public forms of FinEval's data sets -> rows for evaluate.py, examples, and chats for training.

    SOURCE (file or folder) -> OUT/NAME.jsonl        test rows {"id", "query", "answer", ...}
                            -> OUT/NAME_shots.jsonl  few-shot examples, the same fields
                            -> OUT/NAME_train.jsonl  {"messages": [user query, answer]}

    python evaluate.py prepare fpb path/to/FinancialPhraseBank out/data
    python evaluate.py prepare fineval path/to/FinEval out/data     all files of a hub snapshot

SOURCE is what `evaluate.py --list` names, or FLARE rows as parquet, json lines or a json list; what
a file holds is told by its content. No text of the test rows is in examples or training rows. Rows
that cannot be used are counted by reason and listed, one line each, in OUT/NAME_left_out.txt.
"""

import re
from collections import Counter
from functools import partial
from pathlib import Path

import choice_sets
import credit_sets
import public_sets
import stock_sets
from config import UserError
from flare import FINANCE_SUBJECTS, flare_row, is_flare, refuse_others, task_of
from jsonl import check_fields, sha, write_jsonl, write_text
from public_sets import letters
from rows import check_name, fields_of, load_rows, row_problem
from sources import (
    Found,
    find_splits,
    form_of,
    read_records,
    rows_of,
    split_of,
    table_files,
)
from tasks import FINEVAL, TASKS

SHOTS = 16  # few-shot examples kept per task; of MMLU all of dev, five per subject
SHOWN = 3  # left-out rows that are printed; all of them are in a file

# Sets whose authors publish something else than one record per question
FOLDERS = {
    "fpb": public_sets.prepare_fpb,
    "fiqa_sa": public_sets.prepare_fiqa_sa,
    "fomc": public_sets.prepare_fomc,
    "ner": public_sets.prepare_ner,
    "tatqa": public_sets.prepare_tatqa,
    "mt_bench": public_sets.prepare_mt_bench,
    "mmlu": choice_sets.prepare_mmlu,
    "mmlu_finance": choice_sets.prepare_mmlu_finance,
    "hellaswag": choice_sets.prepare_hellaswag,
    "lendingclub": credit_sets.prepare_lendingclub,
    "polish": credit_sets.prepare_polish,
    "sm_acl": stock_sets.prepare_sm_acl,
}
# One record -> one row; FLARE rows need none of these
MAKERS = choice_sets.MAKERS | public_sets.MAKERS | credit_sets.MAKERS
# Their test halves have no public labels: everybody measures on the validation half
ON_VALIDATION = ("hellaswag", "nq_open", "piqa", "social_iqa", "winogrande")


# Reading -------------------------------------------------------------------------------------


def read_set(name, source):
    """The Found of a task: FLARE rows or records by their columns, else its authors' own files."""
    splits = find_splits(source)
    if not any(splits.values()):  # no file name says what half it is
        splits["test"] = [path for path in table_files(source) if holds_flare(name, path)]
    halves = choose_halves(name, splits)
    records = first_records(halves["test"])
    refuse_others(name, source, records)
    if is_flare(records) or name in MAKERS and is_known(records):
        return read_tables(name, halves)
    if name in FOLDERS:
        return FOLDERS[name](source)
    raise UserError(f"{source}: no rows of {name} in it; needed: {TASKS[name].source}")


def choose_halves(name, splits):
    """{"test", "train", "shots": [files]}: what is measured, trained on, and shown as examples."""
    order = ("test", "validation", "dev", "train")  # FinEval's MMLU-finance has only a `train`
    if name in ON_VALIDATION:
        order = ("validation", "dev", "test", "train")
    tested = next((split for split in order if splits[split]), "test")
    if name == "arc":  # Easy, then Challenge
        splits = {split: sorted(p, key=lambda path: "Challenge" in str(path))
                  for split, p in splits.items()}  # fmt: skip
    spare = {split: [] if split == tested else paths for split, paths in splits.items()}
    if name in ("mmlu", "mmlu_finance"):  # its examples are dev's, of the question's own subject
        return {"test": splits[tested], "train": [], "shots": spare["dev"]}
    shots = [] if spare["train"] else spare["validation"] or spare["dev"]
    return {"test": splits[tested], "train": spare["train"], "shots": shots}


def first_records(paths):
    """The records of the first of some files; none where it holds something else, or codes."""
    return read_records(paths[0]) if paths and form_of(paths[0]) else []


def is_known(records):
    """Do records have the columns of a set, or LLM-Adapters' form of one?"""
    return bool(records) and bool(task_of(records) or "instruction" in records[0][1])


def holds_flare(name, path):
    try:
        records = first_records([path])
    except UserError:
        return False
    return is_flare(records) and task_of(records) in (name, "")


def read_tables(name, halves):
    """The Found of files with one record per row: {half: [files]}."""
    found = Found([])
    found.test = read_rows(name, halves["test"], found.left_out)
    found.train = read_rows(name, halves["train"], found.left_out)
    if halves["shots"]:
        found.shots = read_rows(name, halves["shots"], found.left_out)
    if name == "mmlu_finance" and (part := finance_rows(found.test)):  # else it has other subjects
        found.note = f"{len(found.test) - len(part)} rows of other subjects passed over"
        found.test, found.shots = part, finance_rows(found.shots or [])
    return found


def finance_rows(rows):
    return [row for row in rows if row["subject"].replace(" ", "_") in FINANCE_SUBJECTS]


def read_rows(name, paths, left_out):
    rows = []
    for path in paths:
        if path.suffix == ".csv" and name in credit_sets.CODED:
            rows += credit_sets.coded_rows(name, path, left_out)
            continue
        make = partial(row_of, name)
        made = rows_of(read_records(path), make, left_out)
        for row in made if len(paths) > 1 else ():  # many forms count their rows anew in each file
            row["id"] = f"{path.stem}_{row['id']}"
        rows += made
    return rows


def row_of(name, where, record):
    if "query" in record:
        return flare_row(name, where, record)
    if name not in MAKERS:
        raise UserError(f"{where}: query: missing; the row has {', '.join(list(record)[:8])}")
    return MAKERS[name](where, record)


# Checking and writing ------------------------------------------------------------------------


def sound(name, rows, left_out):
    """The rows that the evaluation accepts; of the others left_out gets the reasons."""
    task, kept, seen = TASKS[name], [], set()
    for row in rows:
        where = row.pop("where")
        try:
            check_fields(row, fields_of(task), where)
            problem = row_problem(task, row)
            if not problem and row["id"] in seen:
                problem = f"id: {row['id']!r} occurs twice"
            if problem:
                raise UserError(f"{where}: {problem}")
        except UserError as e:
            left_out.append(str(e))
            continue
        seen.add(row["id"])
        kept.append(row)
    return kept


def identity(name, row):
    """What must not be in both halves: the text. Where options are lettered it is the question with
    its options, since many read "Which of the following is true?"; and within its subject, because
    examples go before questions of their own subject alone."""
    if TASKS[name].answer == "letter":
        return letters(f"{row.get('subject', '')} {row['query']}")
    return letters(row.get("text", ""))


def chat_row(row):
    """A training row: the same query as in the evaluation, answered."""
    roles = (("user", row["query"]), ("assistant", row["answer"]))
    return {"messages": [{"role": role, "content": text} for role, text in roles]}


def write_set(name, source, found, out):
    """Write the files of a task and print what was used and what was left out."""
    rows_in = len(found.test) + len(found.train) + len(found.shots or ()) + len(found.left_out)
    check_name(name, source, found.test)
    test = sound(name, found.test, found.left_out)
    if not test:
        first = f"; the first: {found.left_out[0]}" if found.left_out else ""
        raise UserError(f"{source}: none of its {rows_in} rows can be used for {name}{first}")
    train, spare = (sound(name, rows or [], found.left_out) for rows in (found.train, found.shots))
    held = {identity(name, row) for row in test}
    kept, spare_kept = (
        [r for r in rows if identity(name, r) not in held] for rows in (train, spare)
    )
    repeated = len(train) + len(spare) - len(kept) - len(spare_kept)
    every_subject = "{subject}" in TASKS[name].description
    shots = (spare_kept or kept)[: None if every_subject else SHOTS]

    out.mkdir(parents=True, exist_ok=True)
    files = {f"{name}.jsonl": test, f"{name}_shots.jsonl": shots,
             f"{name}_train.jsonl": [chat_row(row) for row in kept]}  # fmt: skip
    for file, rows in files.items():
        if rows:
            write_jsonl(out / file, rows)
            print(f"{out / file}: {len(rows)} rows")
        else:  # what an earlier run left must not pass for this one's
            (out / file).unlink(missing_ok=True)
    for file in (f"{name}.jsonl", f"{name}_shots.jsonl"):
        if (out / file).exists() and (refused := load_rows(name, out / file)[1]):
            raise UserError(refused[0])  # what is written passes the evaluation's own checks
    if found.note:
        print(f"note: {found.note}")
    spared = Counter(map(reason, found.left_out))
    spared["text is in the test rows"] = repeated
    spared["examples not needed"] = len(spare_kept) - min(len(shots), len(spare_kept))
    report(name, out, rows_in, len(test) + len(kept) + (len(shots) if spare_kept else 0), spared,
           found.left_out)  # fmt: skip


def reason(line):
    """ "file:7: gold: 5 is outside the 4 choices" -> "gold: # is outside the # choices"."""
    said = re.sub(r"^.*?(?::\d+|: row \d+|: entry \S+)(?:: question \S+)?: (?=\S)", "", line)
    return re.sub(r"'[^']*'|\d+", "#", said)[:80]


def report(name, out, rows_in, used, spared, left_out):
    reasons = "".join(f" + {count} left out ({why})" for why, count in spared.items() if count)
    print(f"{name}: {rows_in} rows in = {used} used{reasons}")
    path = out / f"{name}_left_out.txt"
    if left_out:
        write_text(path, "".join(f"{line}\n" for line in left_out))
        for line in left_out[:SHOWN]:
            print(f"  left out: {line}")
        if len(left_out) > SHOWN:
            print(f"  and {len(left_out) - SHOWN} more: {path}")
    else:
        path.unlink(missing_ok=True)


# A whole snapshot ----------------------------------------------------------------------------


def prepare_snapshot(folder, out):
    """Recognise every file of a hub snapshot of Salesforce/FinEval, and write each task found."""
    tasks, seen = {}, {}
    for path in table_files(folder):
        try:
            records = first_records([path])
        except UserError as e:
            print(f"{path}: not read: {e}")
            continue
        name = task_of(records)
        if not name:
            columns = f"columns {', '.join(list(records[0][1])[:8])}" if records else "no records"
            print(f"{path}: not recognised ({columns})")
            continue
        content = sha([record.get("query", record) for _, record in records])
        if content in seen:
            print(f"{path}: {name}, the same {len(records)} rows as {seen[content]}")
            continue
        seen[content] = path
        print(f"{path}: {len(records)} rows of {name}")
        splits = tasks.setdefault(name, {split: [] for split in find_splits(path)})
        splits[split_of(path.relative_to(folder)) or "test"].append(path)
    if not tasks:
        raise UserError(f"{folder}: no rows of a task in it")
    written = []
    for name, splits in tasks.items():
        halves = choose_halves(name, splits)
        try:
            plain = is_flare(first_records(halves["test"])) or name in MAKERS
            found = read_tables(name, halves) if plain else FOLDERS[name](halves["test"][0])
            write_set(name, folder, found, out)
            written.append(name)
        except UserError as e:
            print(f"{name}: not written: {e}")
    print(f"{len(written)} tasks written to {out}; not in this folder: "
          f"{', '.join(name for name in FINEVAL if name not in tasks)}")  # fmt: skip


def main(words):
    """prepare NAME SOURCE [OUT]"""
    if len(words) not in (2, 3) or words[0] not in (*FINEVAL, "fineval"):
        raise UserError("usage: python evaluate.py prepare NAME SOURCE [OUT], NAME one of fineval, "
                        f"{', '.join(FINEVAL)}")  # fmt: skip
    name, source, out = words[0], Path(words[1]), Path([*words, "out/data"][2])
    if not source.exists():
        needed = "a hub snapshot of Salesforce/FinEval" if name == "fineval" else TASKS[name].source
        raise UserError(f"{source}: no such file or folder; needed: {needed}")
    if name == "fineval":
        prepare_snapshot(source, out)
    else:
        write_set(name, source, read_set(name, source), out)
