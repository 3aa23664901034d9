"""Strict json lines: a bad row stops the run with one line that says where and why.

    for line, row in read_jsonl("sft.jsonl", {"messages": list}):
        check_messages(row["messages"], f"sft.jsonl:{line}", last="assistant")

Refused: bytes that are not UTF-8, a byte order mark, NUL, a key given twice, NaN and Infinity, half
of a surrogate pair, nesting beyond 32 levels, lines over 16 MB, compressed files; missing, empty or
mistyped fields. Windows line ends and blank lines are fine.
"""

import functools
import hashlib
import json
import math
import os
import sys
from pathlib import Path

from config import UserError, unique

LINE_CAP = 16 * 2**20  # bytes
MAX_DEPTH = 32
MAGIC = {b"\xef\xbb\xbf": "starts with a byte order mark; save it as plain UTF-8",
         b"\xff\xfe": "is UTF-16; save it as UTF-8", b"PAR1": "is a parquet file, not json lines",
         b"\x1f\x8b": "is compressed; unpack it", b"PK\x03\x04": "is compressed; unpack it",
         b"\x28\xb5\x2f\xfd": "is compressed; unpack it", b"BZh": "is compressed; unpack it",
         b"\xfd7zXZ": "is compressed; unpack it"}  # fmt: skip
TYPES = {str: "a string", list: "a list", dict: "an object", bool: "true or false",
         int: "an integer", float: "a number", type(None): "null"}  # fmt: skip


@functools.cache  # once per message
def notice(message):
    """One line on stderr, from rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"notice: {message}", file=sys.stderr)


def finite(text):
    """json's parse_float and parse_constant: NaN, Infinity and 1e999 are refused."""
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not a number json knows")
    return value


def flaw(value, depth=1):
    """Why a parsed value is refused, or None."""
    if depth > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    if isinstance(value, str):
        if "\0" in value:
            return "holds a NUL character"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "holds a lone surrogate (half of a \\u pair)"
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return next(filter(None, (flaw(child, depth + 1) for child in value)), None)


def check_fields(row, fields, where):
    """UserError where a field is missing, of another type, or empty though not optional."""
    for name, value in row.items():
        if reason := flaw([name, value]):
            raise UserError(f"{where}: {ascii(name)[1:-1]}: {reason}")
    for name, kinds in fields.items():
        optional, name = name.endswith("?"), name.removesuffix("?")
        value, kinds = row.get(name), kinds if isinstance(kinds, tuple) else (kinds,)
        if value is None and optional:
            continue
        if name not in row:
            raise UserError(
                f"{where}: {name}: missing; the row has {', '.join(list(row)[:8]) or 'no keys'}"
            )
        number = type(value) is int and float in kinds
        if not number and type(value) not in kinds:
            want = " or ".join(TYPES[kind] for kind in kinds)
            raise UserError(f"{where}: {name}: must be {want}, not {TYPES[type(value)]}")
        if not optional and (value in ([], {}) or isinstance(value, str) and not value.strip()):
            raise UserError(f"{where}: {name}: is empty")


def open_lines(path):
    """A json-lines file, open at its start. UserError if it is none or cannot be read."""
    try:
        file = open(path, "rb")
    except OSError as e:
        raise UserError(f"{path}: {e.strerror.lower()}") from None
    head = file.peek(8)
    for magic, reason in MAGIC.items():
        if head.startswith(magic):
            file.close()
            raise UserError(f"{path}:1: the file {reason}")
    return file


def parse_line(raw, fields, where):
    """The row that a line's bytes hold, checked. UserError "where: field: reason" otherwise."""
    if len(raw) > LINE_CAP:
        raise UserError(f"{where}: longer than {LINE_CAP >> 20} MB; split the document")
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=unique,
                         parse_float=finite, parse_constant=finite)  # fmt: skip
    except UnicodeDecodeError as e:
        raise UserError(f"{where}: not UTF-8 at byte {e.start + 1}; save it as UTF-8") from None
    except json.JSONDecodeError as e:
        raise UserError(f"{where}: not json: {e}") from None
    except (ValueError, RecursionError) as e:
        deep = isinstance(e, RecursionError)
        raise UserError(f"{where}: {'nested too deep' if deep else e}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: must be an object, not {TYPES[type(row)]}")
    check_fields(row, fields, where)
    return row


def torn(raw):
    """Is this last line one whose writer was stopped: no newline, and no json?"""
    if raw.endswith(b"\n"):
        return False
    try:
        json.loads(raw.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return True
    except (ValueError, RecursionError):
        pass
    return False


def ends_torn(path):
    """Is the last line of a file torn?"""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        if file.read(1) in (b"", b"\n"):
            return False
        file.seek(max(0, size - LINE_CAP))
        return torn(file.read().rpartition(b"\n")[2])


def read_jsonl(path, fields):
    """Rows of a json-lines file as (line number, dict); blank lines are passed over.

    fields {"text": str, "prompt": (str, list), "answer?": str}: name -> type; "?" = may be missing,
    null or empty; other keys are let through. UserError "file:line: field: reason" on the first bad
    row. Only a last line that is no json and has no newline (its writer was stopped) is dropped,
    with a notice.
    """
    with open_lines(path) as file:
        number = 0
        while raw := file.readline(LINE_CAP + 1):
            number += 1
            where = f"{path}:{number}"
            if not raw.strip():
                continue
            if len(raw) <= LINE_CAP and torn(raw):
                notice(f"{where}: incomplete last line, dropped")
                return
            yield number, parse_line(raw, fields, where)


def write_text(path, text):
    """All or nothing, by a renamed file: a stopped run leaves no half file that looks whole."""
    temporary = Path(f"{path}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as e:  # a full disk does not say of which file
        raise OSError(e.errno, e.strerror, e.filename or str(path)) from None


def write_jsonl(path, rows):
    """A file of one json object per row, all or nothing."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def sha(value):
    """sha256 of a string, or of any other value as json."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha_of_file(path):
    """sha256 of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def check_messages(messages, where, last, name="messages"):
    """UserError unless system is first or absent, user and assistant alternate, `last` ends it."""
    for i, message in enumerate(messages):
        at = f"{where}: {name}[{i}]"
        if not isinstance(message, dict):
            raise UserError(f"{at}: must be an object, not {TYPES[type(message)]}")
        check_fields(message, {"role": str, "content": str}, at)
        if odd := message.keys() - {"role", "content", "weight"}:
            raise UserError(f"{at}: {min(odd)}: not supported; a message has role, content, weight")
        role, system = message["role"], messages[0].get("role") == "system"
        expected = "system" if system and i == 0 else ("user", "assistant")[(i - system) % 2]
        if role != expected:
            raise UserError(f"{at}: role: {role!r} where {expected!r} is due")
        if "weight" in message and (role != "assistant" or message["weight"] not in (0, 1)):
            raise UserError(f"{at}: weight: 0 or 1, on assistant turns only")
    if not messages or messages[-1]["role"] != last:
        raise UserError(f"{where}: {name}: must end with a turn of the {last}")
