"""Readers of the forms that public data sets come in, told apart by what is in the file.

    json lines, a json list, parquet (with pyarrow), csv -> records (where, {column: value})
    arff, CoNLL columns, plain lines; xz, bz2 and gzip of these three

`where` is "file:line" of json lines and csv, "file: row 7" of the others (rows from 0). A file that
cannot be read stops with one line; a bad row is the business of whoever makes rows of the records.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from config import UserError, unique
from jsonl import finite, read_jsonl

OPENERS = {b"BZh": bz2.open, b"\xfd7zXZ": lzma.open, b"\x1f\x8b": gzip.open}
UNPACKED_CAP = 512 * 2**20  # bytes that a compressed file may unfold to
TABLES = (".parquet", ".jsonl", ".json", ".csv")  # endings of files that hold records
SPLITS = {"test": ("test",), "dev": ("dev",), "validation": ("validation", "valid", "val"),
          "train": ("train",)}  # fmt: skip


@dataclass
class Found:
    """What a source holds: rows, each with the key "where", its place in the source."""

    test: list
    train: list = field(default_factory=list)
    shots: list | None = None  # few-shot examples; None: the first training rows
    left_out: list = field(default_factory=list)  # "file:line: field: reason", one per row
    note: str = ""  # what a person should know of these rows


# Files ---------------------------------------------------------------------------------------


def find(source, *patterns):
    """The file SOURCE itself, or the first file of the folder SOURCE that fits a pattern."""
    source = Path(source)
    if source.is_file():
        return source
    for pattern in patterns:
        if found := sorted(source.glob(pattern)):
            return found[0]
    raise UserError(f"{source}: no file {' or '.join(patterns)} in it")


def find_more(source, *patterns):
    """The same beside another file: None where there is none, or SOURCE is a single file."""
    try:
        return None if Path(source).is_file() else find(source, *patterns)
    except UserError:
        return None


def find_splits(source):
    """{split: [files]} of SOURCE, by the words in file names; a hub snapshot has, for example,
    data/test-00000-of-00001.parquet. Of several forms of one split the first of TABLES is taken.

    A single file, or a folder's only one, is the test half whatever its name says.
    """
    source = Path(source)
    files = [source] if source.is_file() else table_files(source)
    splits = {name: [] for name in SPLITS}
    if len(files) == 1:
        return splits | {"test": files}
    for path in files:
        if split := split_of(path.relative_to(source)):
            splits[split].append(path)
    for name, paths in splits.items():
        form = next((end for end in TABLES if any(p.suffix == end for p in paths)), "")
        splits[name] = [path for path in paths if path.suffix == form]
    return splits


def split_of(path):
    """The split that a path's last telling word names, "" if none does."""
    said = re.split(r"[^a-z]+", str(path).lower())
    named = (s for word in reversed(said) for s, words in SPLITS.items() if word in words)
    return next(named, "")


def table_files(folder):
    """Files below a folder that may hold records, hidden ones and descriptions apart."""
    return sorted(
        path for path in Path(folder).rglob("*")
        if path.is_file() and path.suffix in TABLES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.name not in ("dataset_info.json", "dataset_infos.json")
    )  # fmt: skip


def read_text(path, encoding="utf-8"):
    """The text of a plain or compressed file. UserError: unreadable, too large, other encoding."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
        opener = next((o for magic, o in OPENERS.items() if head.startswith(magic)), open)
        with opener(path, "rb") as file:
            raw = file.read(UNPACKED_CAP + 1)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as e:
        raise UserError(f"{path}: {(getattr(e, 'strerror', None) or str(e)).lower()}") from None
    if len(raw) > UNPACKED_CAP:
        raise UserError(f"{path}: unpacks to more than {UNPACKED_CAP >> 20} MB")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise UserError(f"{path}:{line}: is not {encoding} at byte {e.start + 1}; "
                        f"save it as {encoding}") from None  # fmt: skip


def numbered_lines(path, encoding="utf-8"):
    """(line number from 1, line) of the lines that are not empty."""
    lines = read_text(path, encoding).split("\n")
    return [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]


# Records -------------------------------------------------------------------------------------


def form_of(path):
    """The form of records: "parquet", "list" or "lines" (json), "csv" if it is FLARE's; or ""."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
    except OSError as e:
        raise UserError(f"{path}: {(e.strerror or str(e)).lower()}") from None
    columns = set(re.split(rb'[,"\r]+', head.split(b"\n")[0]))
    signs = {b"PAR1": "parquet", b"[": "list", b"{": "lines"}
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()  # a mark that the readers refuse
    form = next((form for sign, form in signs.items() if head.startswith(sign)), "")
    return form or ("csv" if {b"query", b"answer"} <= columns else "")


def read_records(path):
    """[(where, {column: value})] of json lines, a json list, parquet, or csv with a header.

    Labels in a file of their own, X-labels.lst beside X.jsonl, are put into the column `label`.
    """
    path, form = Path(path), form_of(path)
    if form == "parquet":
        return read_parquet(path)
    if form == "list":
        return [(f"{path}: row {i}", row) for i, row in enumerate(read_json(path, list))]
    if form == "lines":
        records = [(f"{path}:{line}", row) for line, row in read_jsonl(path, {})]
        return with_labels(path, records)
    return read_csv(path)


def with_labels(path, records):
    """PIQA and Social-IQA have their labels, one per line, in a file of their own."""
    beside = path.with_name(f"{path.stem}-labels.lst")
    if not beside.exists():
        return records
    labels = [line.strip() for _, line in numbered_lines(beside)]
    if len(labels) != len(records):
        raise UserError(f"{path}: {len(records)} rows, but {len(labels)} labels in {beside.name}; "
                        "get both as published")  # fmt: skip
    return [(where, record | {"label": label})
            for (where, record), label in zip(records, labels, strict=True)]  # fmt: skip


def read_parquet(path):
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow; run: pip install pyarrow, or save "
                        "the rows as json lines") from None  # fmt: skip
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except Exception as e:  # pyarrow has its own family of errors for every layer of the format
        raise UserError(f"{path}: not readable as parquet: {str(e).splitlines()[0]}") from None
    return [(f"{path}: row {i}", row) for i, row in enumerate(rows)]


def read_json(path, kind):
    """A json file that holds a list or a dict. UserError names file and line."""
    text = read_text(path)
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_float=finite,
                           parse_constant=finite)  # fmt: skip
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}:{getattr(e, 'lineno', 1)}: not valid json: {e}") from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: must hold a json {kind.__name__}")
    if kind is list and not all(isinstance(row, dict) for row in value):
        raise UserError(f"{path}: must hold a list of objects")
    return value


def csv_rows(path):
    """[(line number of its end, [cells])] of a csv file."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        for cells in reader:
            if cells:
                rows.append((reader.line_num, cells))
    except csv.Error as e:
        raise UserError(f"{path}:{reader.line_num}: not valid csv: {e}") from None
    return rows


def read_csv(path):
    """Records of a csv file whose first line names the columns."""
    rows = csv_rows(path)
    if not rows:
        raise UserError(f"{path}: no rows")
    names = [name.strip() for name in rows[0][1]]
    records = []
    for line, cells in rows[1:]:
        if len(cells) != len(names):
            raise UserError(f"{path}:{line}: {len(cells)} cells, but the first line names "
                            f"{len(names)} columns")  # fmt: skip
        records.append((f"{path}:{line}", dict(zip(names, cells, strict=True))))
    return records


def place(where):
    """The number in a record's place, "x.jsonl:7" or "x.json: row 7"."""
    return re.search(r"(\d+)$", where)[1]


def rows_of(records, make, left_out):
    """make(where, record) of each record, with "where"; what it refuses goes to left_out."""
    rows = []
    for where, record in records:
        try:
            rows.append(make(where, record) | {"where": where})
        except UserError as e:
            left_out.append(str(e))
    return rows


# Other forms ---------------------------------------------------------------------------------


def conll_sentences(path):
    """(line number, words, tags) of each sentence; an empty line or -DOCSTART- ends one."""
    sentences, last = [], 0
    for number, line in numbered_lines(path):
        columns = line.split()
        if len(columns) < 2 or not re.fullmatch(r"O|[BI]-\w+", columns[-1]):
            raise UserError(f"{path}:{number}: tag: {columns[-1]!r} is not O, B-TYPE or I-TYPE")
        if columns[0] == "-DOCSTART-":
            continue
        if number != last + 1 or not sentences:
            sentences.append((number, [], []))
        sentences[-1][1].append(columns[0])
        sentences[-1][2].append(columns[-1])
        last = number
    return sentences


def read_arff(path):
    """An arff file -> (attribute names, [(where, [cells])]); `?` stands for missing."""
    names, rows, inside = [], [], False
    for number, line in numbered_lines(path):
        line = line.strip()
        if inside and not line.startswith("%"):
            cells = [cell.strip() for cell in line.split(",")]
            if len(cells) != len(names):
                raise UserError(f"{path}:{number}: {len(cells)} values for {len(names)} attributes")
            rows.append((f"{path}:{number}", cells))
        elif said := re.match(r"@attribute\s+('[^']*'|\"[^\"]*\"|\S+)", line, re.I):
            names.append(said[1].strip("'\""))
        inside = inside or line.lower() == "@data"
    if not inside:
        raise UserError(f"{path}: no @data line; an arff file is needed")
    return names, rows
