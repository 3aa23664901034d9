"""Rows of files of any form, one at a time, from any place on: what a pass over a corpus reads.

    for where, row, reason, place, done in read_rows(Path("web.parquet"), None): ...

json lines and parquet are streamed; json lists and csv are read as a whole, a text file is one row.
A row that cannot be read, or that json could not hold, comes as its reason and stops nothing.
"""

import datetime
import decimal
import json
import math
from collections import Counter
from pathlib import Path

from config import UserError
from jsonl import LINE_CAP, check_fields, notice, open_lines, parse_line, torn
from sources import form_of, read_csv, read_json, read_text

ENDINGS = (
    ".jsonl",
    ".ndjson",
    ".json",
    ".parquet",
    ".csv",
    ".txt",
    ".md",
)  # that a folder is searched for
PLAIN = (".txt", ".md")  # a whole file is one text
ABOUT = (
    "readme",
    "license",
    "licence",
    "dataset_info",
    "dataset_infos",
)  # of a folder, not its data
COUNTS = ".counts.json"  # of a result of curate.py (corpus.py)
BATCH = 256  # rows of parquet that are unpacked at a time


def input_files(data):
    """Paths of a comma separated list of files and folders, in a fixed order. UserError if none.

    What curate.py wrote beside its results (counts, dropped rows, ...) and what describes a folder
    is left out; other files of a folder that are no rows are named.
    """
    found = []
    for name in (part.strip() for part in data.split(",")):
        path = Path(name)
        if name and path.is_dir():
            found += inside(path)
        elif name and path.is_file():
            found.append(path)
        elif name:
            raise UserError(f"--data {name}: no such file or folder")
    if not found:
        raise UserError("--data: name a file or folder, or several with commas")
    if twice := [path for path, count in Counter(found).items() if count > 1]:
        raise UserError(f"--data: {twice[0]} is there twice")
    return found


def inside(folder):
    """The files of a folder that hold rows."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [p for p in files if not any(q[0] == "." for q in p.relative_to(folder).parts)]
    files = [p for p in files if p.stem.lower() not in ABOUT]
    results = [str(p)[: -len(COUNTS)] for p in files if p.name.endswith(COUNTS)]
    beside, main = tuple(f"{out}." for out in results), {f"{out}.jsonl" for out in results}
    files = [p for p in files if str(p) in main or not str(p).startswith(beside)]
    rows = [p for p in files if p.suffix.lower() in ENDINGS]
    if not rows:
        raise UserError(f"--data {folder}: the folder holds no {', '.join(ENDINGS)} file")
    if others := [p.name for p in files if p.suffix.lower() not in ENDINGS]:
        more = ", ..." if len(others) > 5 else ""
        notice(f"--data {folder}: passed over: {', '.join(others[:5])}{more}")
    return rows


def read_rows(path, place):
    """Rows behind a place: (where, row, None, ...) or (where, None, why it cannot be read, ...).

    Both go on with: the place behind the row, to go on from another time (None = the start of the
    file), and about how many of the file's bytes lie before it.
    """
    if path.suffix.lower() in PLAIN:
        return read_plain(path, place)
    form = form_of(path)
    if form == "parquet":
        return read_parquet(path, place)
    if form == "list" or path.suffix.lower() == ".csv":
        return read_whole(path, place)
    return read_lines(path, place)


def read_lines(path, place):
    """Json lines; a line of more than LINE_CAP is passed over without being held in memory."""
    offset, number = place or (0, 0)
    with open_lines(path) as file:
        file.seek(offset)
        while raw := file.readline(LINE_CAP + 1):
            offset, number, part = offset + len(raw), number + 1, raw
            while len(part) > LINE_CAP and not part.endswith(b"\n"):
                offset += len(part := file.readline(LINE_CAP + 1))
            if not raw.strip():
                continue
            where, row, reason = f"{path}:{number}", None, None
            if len(raw) <= LINE_CAP and torn(raw):
                reason = "incomplete last line: was its writer stopped?"
            else:
                try:
                    row = parse_line(raw, {}, where)
                except UserError as e:
                    reason = str(e).removeprefix(f"{where}: ")
            yield where, row, reason, [offset, number], offset


def read_plain(path, place):
    """A whole file as one text."""
    size = path.stat().st_size
    if place is None and size:
        row, reason = None, f"longer than {LINE_CAP >> 20} MB; split the document"
        if size <= LINE_CAP:
            try:
                row, reason = {"text": read_text(path), "source": path.name}, None
            except UserError as e:
                reason = str(e).removeprefix(f"{path}: ").removeprefix(f"{path}:")
        yield (str(path), *checked(row, reason), 1, size)


def read_whole(path, place):
    """A json list, or csv with a header: read as a whole."""
    if path.suffix.lower() == ".csv":
        records = read_csv(path)
    else:
        records = [(f"{path}: row {i}", row) for i, row in enumerate(read_json(path, list))]
    for i, (where, row) in enumerate(records[place or 0 :], place or 0):
        yield where, *checked(row), i + 1, path.stat().st_size * (i + 1) // len(records)


def read_parquet(path, place):
    """Rows of a parquet file, a row group at a time; groups that are done are not read."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow; run: pip install pyarrow, or save "
                        "the rows as json lines") from None  # fmt: skip
    size, start, i = path.stat().st_size, place or 0, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            total = file.metadata.num_rows
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if i + rows <= start:
                    i += rows
                    continue
                for batch in file.iter_batches(BATCH, row_groups=[group]):
                    for row, reason in unpacked(batch):
                        i += 1
                        if i > start:
                            done = size * i // total
                            yield f"{path}: row {i - 1}", *checked(row, reason), i, done
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"{path}: not readable as parquet: {str(e).splitlines()[0]}") from None


def unpacked(batch):
    """[(row, None) or (None, why it has no value in Python)] of a batch of parquet."""
    import pyarrow

    for i, field in enumerate(batch.schema):
        if pyarrow.types.is_timestamp(field.type) and field.type.unit == "ns":
            column = batch.column(i).cast(pyarrow.timestamp("us", field.type.tz), safe=False)
            batch = batch.set_column(i, field.name, column)
    try:
        return [(plain(row), None) for row in batch.to_pylist()]
    except (ValueError, OverflowError) as e:
        if len(batch) == 1:
            return [(None, str(e))]
    return [one for i in range(len(batch)) for one in unpacked(batch.slice(i, 1))]


def plain(value):
    """A value of parquet as json has it: dates as text, NaN and Infinity as null."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        value = float(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def checked(row, reason=None):
    """(row, None), or (None, why it is refused): what a json line could not hold either."""
    if row is None:
        return None, reason
    try:
        check_fields(row, {}, "")
        if len(json.dumps(row, ensure_ascii=False, allow_nan=False).encode()) > LINE_CAP:
            return None, f"longer than {LINE_CAP >> 20} MB; split the document"
    except UserError as e:
        return None, str(e).removeprefix(": ")
    except (TypeError, ValueError) as e:
        return None, f"holds what json cannot: {e}"
    return row, None
