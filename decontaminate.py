"""Training rows that hold what the evaluation asks are dropped, as contamination.py finds them.

    python curate.py decontaminate --data web.jsonl --eval_data out/data --out out/clean.jsonl
    python evaluate.py contamination --train out/clean.jsonl --data out/data      finds none then

A row is dropped, as "contaminated", if it shares ten words in a row with an item of the tasks and
covers more than the threshold of its characters. Less than that is common in honest text (a phrase
that filings copy, a table's head): such a row is kept and listed. Questions of under ten words are
found with their answers only.

OUT.dropped.jsonl        "matches": the items that the row contaminates, the worst first;
                         "below": items that it only touches
OUT.matches.jsonl        {"where", "below"} of the kept rows that touch an item
OUT.contamination.json   per task its items, how many are touched and contaminated and the rows this
                         costs; per file its rows; the worst of the rows that are kept

While it runs, OUT.matches.partial.jsonl has a record per block of rows. Those that a stopped run
wrote behind its last note of progress are cut off, as in corpus.py.
"""

import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import UserError, check_range, read_json
from contamination import read_items, training_text
from corpus import Pass, Rows, beside
from jsonl import write_text
from overlap import GRAM, find, longest, make_index, words

STRETCHES = 10  # matches of a row whose shared words are written out; a table can touch thousands
SHOWN = 10  # worst rows that are printed, of the dropped and of the kept


@dataclass
class Decontaminate(Rows):
    eval_data: str = "out/data"  # directory of TASK.jsonl files
    tasks: str = ""  # names with commas; empty = all that have data
    threshold: float = 50.0  # percent of an item's characters above which a row is dropped


def file_of(where):
    """The file of a row's place: "a.jsonl:7", "a.json: row 7", or the file itself."""
    return re.sub(r":(\d+| row \d+)$", "", where)


# The search -------------------------------------------------------------------------------------


def match_texts(items, index, texts, threshold):
    """Per text the items that it shares GRAM words with: [(covered beyond the threshold, others)].

    Both are lists of {task, id, overlap in percent, ...}, the worst first; threshold: a fraction.
    """
    pairs, found = find(index, texts), [([], []) for _ in texts]
    overlap = np.maximum(pairs.question, pairs.answered)
    for i in np.argsort(-overlap, kind="stable").tolist():
        task, name, question, answer = items[pairs.item[i]]
        matches = found[pairs.row[i]][int(overlap[i] <= threshold)]
        match = {"task": task, "id": name, "overlap": round(100 * float(overlap[i]), 2)}
        if len(matches) < STRETCHES or pairs.question[i] == 1:
            match["exact"], stretch = longest(index, pairs, i)
        if len(matches) < STRETCHES:
            match["stretch"] = " ".join((words(question) + words(answer))[slice(*stretch)])
        matches.append(match)
    return found


def cut_back(record, progress):
    """Remove from the record of blocks what a stopped run wrote behind its last note."""
    rows = read_json(progress)["counts"]["rows"] if progress.exists() else 0
    size = 0
    with open(record, "ab+") as file:
        file.seek(0)
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["behind"] > rows:
                break
            size += len(line)
        file.truncate(size)


def search(todo, items, record):
    """Keep or drop every row; a line per block says what the kept ones touch."""
    index, fresh = None, not (todo.done or todo.progress.exists())
    for block in todo.blocks():
        if not index:  # only now is it certain that no other run writes here
            cut_back(record, todo.progress)
            index = make_index([item[2:] for item in items], [name for name, *_ in items])
        texts, unreadable, touched = [], {}, []
        for where, row in block:
            try:
                texts.append(training_text(row, where))
            except UserError as e:  # a row of no kind that is trained on
                texts.append("")
                unreadable[where] = e
        matched = match_texts(items, index, texts, todo.cfg.threshold / 100)
        for (where, row), (matches, below) in zip(block, matched, strict=True):
            if where in unreadable:
                todo.unreadable(where, unreadable[where])
            elif matches:
                more = {"below": below} if below else {}
                todo.drop(where, "contaminated", matches=matches, **more)
            else:
                todo.keep(row)
                touched += [{"where": where, "below": below}] if below else []
        read = len(block) - len(unreadable)
        line = {"behind": todo.counts["rows"], "file": file_of(block[0][0]), "rows": read}
        with open(record, "ab") as file:  # on the disk before the pass notes the block as done
            file.write(json.dumps(line | {"kept": touched}, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    if fresh and not index:  # no row could be searched: what lies there is another run's
        record.unlink(missing_ok=True)


def decontaminate(cfg):
    """Drop the rows that contaminate the tasks, then say what matched where."""
    check_range(cfg, ("threshold",))
    if cfg.threshold < 1:
        raise UserError(f"--threshold {cfg.threshold:g}: is in percent; half is 50")
    if cfg.threshold >= 100:
        raise UserError(f"--threshold {cfg.threshold:g}: no row covers more than all of an item")
    items = read_items(cfg.eval_data, cfg.tasks, "--eval_data")
    tasks = Counter(name for name, *_ in items)
    todo = Pass(cfg, [Path(cfg.eval_data) / f"{name}.jsonl" for name in tasks])
    record = beside(todo.out, ".matches.partial.jsonl")
    report = beside(todo.out, ".contamination.json")
    search(todo, items, record)
    searched = todo.counts["used"] + todo.counts["dropped"].get("contaminated", 0)
    if record.exists() or not searched:
        write_report(todo, tasks, record, report)
    elif not report.exists():
        raise UserError(f"{report} is gone; delete {todo.counts_file} to search once more")
    print_report(read_json(report), report)


# The report -------------------------------------------------------------------------------------


def read_lines(path):
    """Records of a file that this run wrote: with thousands of matches they may be long."""
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def worst(rows, found):
    """The rows so far and one more, only the SHOWN with the largest overlaps."""
    return sorted([*rows, found], key=lambda row: -row["overlap"])[:SHOWN]


def write_report(todo, tasks, record, report):
    """OUT.matches.jsonl and OUT.contamination.json out of what the search left on the disk."""
    files = {str(path): Counter(rows=0, touched=0, contaminated=0) for path in todo.files}
    costs, touched, contaminated, exact = Counter(), set(), set(), set()
    dropped, kept, kept_rows = [], [], 0
    matches_file = beside(todo.out, ".matches.jsonl")
    temporary = Path(f"{matches_file}.tmp")
    with open(temporary, "w", encoding="utf-8") as out:
        for block in read_lines(record) if record.exists() else ():
            files[block["file"]]["rows"] += block["rows"]
            files[block["file"]]["touched"] += len(block["kept"])
            kept_rows += len(block["kept"])
            for row in block["kept"]:
                touched |= {(match["task"], match["id"]) for match in row["below"]}
                kept = worst(kept, {"where": row["where"], **row["below"][0]})
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
    for row in read_lines(todo.dropped):
        if row["reason"] == "contaminated":
            files[file_of(row["where"])]["contaminated"] += 1
            here = {(match["task"], match["id"]) for match in row["matches"]}
            contaminated |= here
            exact |= {(m["task"], m["id"]) for m in row["matches"] if m.get("exact")}
            touched |= here | {(match["task"], match["id"]) for match in row.get("below", ())}
            costs.update({task for task, _ in here})
            dropped = worst(dropped, {"where": row["where"], **row["matches"][0]})
    counts = [Counter(task for task, _ in found) for found in (touched, exact, contaminated)]
    table = {
        task: dict(zip(("items", "exact", "matched", "contaminated", "rows_dropped"),
                       (n, counts[1][task], counts[0][task], counts[2][task], costs[task]),
                       strict=True))
        for task, n in tasks.items()
    }  # fmt: skip
    result = {"gram": GRAM, "threshold": todo.cfg.threshold, "tasks": table, "files": files,
              "dropped": {"rows": todo.counts["dropped"].get("contaminated", 0), "worst": dropped},
              "kept with a match": {"rows": kept_rows, "worst": kept}}  # fmt: skip
    temporary.replace(matches_file)
    write_text(report, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    record.unlink(missing_ok=True)


def print_report(result, path):
    """Tasks that something matched, files, the worst rows."""
    line = "{:<22}{:>9}{:>8}{:>10}{:>14}{:>14}"
    print(line.format("task", "items", "exact", "10-gram", "contaminated", "rows dropped"))
    for task, count in result["tasks"].items():
        if count["matched"]:
            print(line.format(task, *(f"{n:,}" for n in count.values())))
    if none := [task for task, count in result["tasks"].items() if not count["matched"]]:
        print(f"no match with: {', '.join(none)}")
    for name, count in result["files"].items():
        share = f"{100 * count['contaminated'] / max(1, count['rows']):.3f}%"
        print(f"{name}: {count['rows']:,} rows, {count['contaminated']:,} ({share}) contaminate an "
              f"item and are dropped, {count['touched']:,} touch one and are kept")  # fmt: skip
    for kind in ("dropped", "kept with a match"):
        if found := result[kind]["worst"]:
            rows = result[kind]["rows"]
            print(f"{kind}, {'the worst' if rows > len(found) else 'all'} of {rows:,}:")
        for row in found:
            exact = ", all in one piece" if row["exact"] else ""
            print(f"  {row['where']}: {row['overlap']}% of {row['task']} {row['id']}{exact}")
    print(path)
