"""Readers of the forms in which public data sets come. Each error names file, line and what to do.

    path = find("FinancialPhraseBank-v1.0", "Sentences_50Agree.txt")
    for number, line in lines(path, "latin-1"): ...

lines   text, csv, arff and CoNLL; unpacked on the way if the file is .bz2, .xz or .gz
rows    json lines, a json list or a parquet file: [(where, dict)]
"""

import bz2
import csv
import gzip
import json
import lzma
import re
import zlib
from contextlib import contextmanager
from pathlib import Path

from config import UserError
from jsonl import check_fields, finite, read_jsonl, unique

OPENERS = {".bz2": bz2.open, ".xz": lzma.open, ".gz": gzip.open}


class NotFound(UserError):
    """A file that a set needs is not in the folder."""


# Files of a folder ---------------------------------------------------------------------------


def find_all(source, *patterns):
    """Files at any depth of a folder that fit the first pattern with any, shallow ones first."""
    source = Path(source)
    for pattern in patterns:
        found = [path for path in source.glob(f"**/{pattern}") if path.is_file()]
        if found:
            return sorted(found, key=lambda path: (len(path.parts), path))
    return []


def find(source, *patterns):
    """The file SOURCE itself, or the first file of the folder SOURCE that fits a pattern."""
    source = Path(source)
    if source.is_file():
        return source
    if found := find_all(source, *patterns):
        return found[0]
    raise NotFound(f"{source}: no file {' or '.join(patterns)} in it; give the folder that has it")


def find_more(source, *patterns):
    """A file that may be missing, such as the training half: None if it is, or SOURCE is a file."""
    found = find_all(source, *patterns) if Path(source).is_dir() else []
    return found[0] if found else None


def both(source, test, train):
    """("test", path) and ("train", path or None): each pattern, or tuple of them, is one file."""
    test, train = ((names,) if isinstance(names, str) else names for names in (test, train))
    return [("test", find(source, *test)), ("train", find_more(source, *train))]


def row_files(source):
    """The files of a folder that can hold rows, parquet before jsonl before json."""
    endings = ("parquet", "jsonl", "json")
    return [path for ending in endings for path in find_all(source, f"*.{ending}")]


# Text ----------------------------------------------------------------------------------------


@contextmanager
def open_text(path, encoding="utf-8"):
    """A file to read texts from, unpacked by its ending.

    UserError, also while it is being read: cannot be opened, is damaged, is not encoded so.
    """
    try:
        with OPENERS.get(Path(path).suffix, open)(path, "rt", encoding=encoding, newline="") as f:
            yield f
    except UnicodeDecodeError as e:
        reason = f"is not {encoding} at byte {e.start}"
        raise UserError(f"{path}: {reason}; get it as published") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as e:  # zlib's: a damaged .gz
        raise UserError(f"{path}: cannot be read: {e}; get it again") from None


def read_text(path, encoding="utf-8"):
    """The whole text of a file; Windows line ends come as \\n."""
    with open_text(path, encoding) as f:
        return f.read().replace("\r\n", "\n")


def lines(path, encoding="utf-8"):
    """(line number from 1, line) of the lines that are not empty; only \\n ends one."""
    found = enumerate(read_text(path, encoding).split("\n"), 1)
    return [(number, line) for number, line in found if line.strip()]


def csv_rows(path, columns, encoding="utf-8"):
    """(number of its last line, [values]) of each csv row. UserError if it has not so many."""
    found = []
    with open_text(path, encoding) as f:
        reader = csv.reader(f)
        try:
            for values in filter(None, reader):
                if len(values) != columns:
                    raise UserError(f"{path}:{reader.line_num}: row: has {len(values)} columns, "
                                    f"not {columns}; get the file as published")  # fmt: skip
                found.append((reader.line_num, values))
        except csv.Error as e:
            raise UserError(f"{path}:{reader.line_num}: row: not csv: {e}; get it again") from None
    return found


def read_arff(path):
    """An arff file -> (attribute names, [(line, values)]): texts as they stand, None for `?`."""
    names, rows, data = [], [], False
    for line, text in lines(path):
        text = text.strip()
        if text.startswith("%"):
            continue
        if data:
            values = [value.strip() for value in next(csv.reader([text], quotechar="'"))]
            if len(values) != len(names):
                raise UserError(f"{path}:{line}: row: has {len(values)} values for {len(names)} "
                                "attributes; get the file as published")  # fmt: skip
            rows.append((line, [None if value == "?" else value for value in values]))
        elif found := re.match(r"@attribute\s+('[^']*'|\"[^\"]*\"|\S+)", text, re.I):
            names.append(found[1].strip("'\""))
        data = data or text.lower().startswith("@data")
    if not names or not rows:
        what = "@data and rows" if names else "@attribute"
        raise UserError(f"{path}:1: {what}: missing; get the arff file as published")
    return names, rows


def read_conll(path):
    """(line number, words, tags) of each sentence; an empty line or -DOCSTART- ends one."""
    sentences, last = [], 0
    for number, line in lines(path):
        columns = line.split()
        if len(columns) < 2 or not re.fullmatch(r"O|[BI]-\w+", columns[-1]):
            raise UserError(f"{path}:{number}: tag: {columns[-1]!r} is not O, B-TYPE or I-TYPE; "
                            "a line is a word, further columns, and a tag")  # fmt: skip
        if columns[0] == "-DOCSTART-":
            continue
        if number != last + 1 or not sentences:
            sentences.append((number, [], []))
        sentences[-1][1].append(columns[0])
        sentences[-1][2].append(columns[-1])
        last = number
    return sentences


# Rows ----------------------------------------------------------------------------------------


def read_json(path, kind):
    """A json file that holds a list or a dict."""
    try:
        value = json.loads(read_text(path), object_pairs_hook=unique, parse_float=finite,
                           parse_constant=finite)  # fmt: skip
    except (ValueError, RecursionError) as e:
        line = getattr(e, "lineno", 1)
        raise UserError(f"{path}:{line}: not valid json: {e}; get it as published") from None
    if not isinstance(value, kind):
        form = {list: "list", dict: "object"}[kind]
        raise UserError(f"{path}:1: must hold a json {form}; get it as published")
    return value


def read_parquet(path):
    """The rows of a parquet file as dicts of plain values."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow: pip install pyarrow") from None
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as e:  # pyarrow's errors are of these classes
        first = str(e).splitlines()[0][:100]
        raise UserError(f"{path}: not a readable parquet file ({first}); get it again") from None
    # Dates and the like become texts and NaN null: json has none of them
    return json.loads(json.dumps(rows, default=str), parse_constant=lambda _: None)


def form_of(path):
    """ "parquet", "list" (json), "lines" (jsonl) or "" by a file's first bytes."""
    try:
        with open(path, "rb") as f:
            head = f.read(4096).lstrip()
    except OSError as e:
        raise UserError(f"{path}: {e.strerror.lower()}") from None
    signs = {b"PAR1": "parquet", b"[": "list", b"{": "lines"}
    return next((form for sign, form in signs.items() if head.startswith(sign)), "")


def rows_of(path, fields=None):
    """(where, dict) of each row of a json lines, json list or parquet file.

    fields: as in jsonl.read_jsonl. UserError on the first row that does not have them.
    """
    form = form_of(path)
    if form == "lines":
        return [(f"{path}:{line}", row) for line, row in read_jsonl(path, fields or {})]
    if not form:
        raise UserError(f"{path}:1: is neither json lines, a json list nor parquet")
    found = []
    rows = read_parquet(path) if form == "parquet" else read_json(path, list)
    for number, row in enumerate(rows):
        where = f"{path}: row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: must be an object; get the file as published")
        check_fields(row, fields or {}, where)
        found.append((where, row))
    return found
