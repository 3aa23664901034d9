"""A flat dataclass becomes a command line.

    @dataclass
    class Config:
        lr: float = 5e-6  # peak learning rate

gives `--lr 1e-5`; the comment is its --help. Later wins: defaults < `--config run.json` < flags.
Every run directory holds the resolved run.json: `--config out/x/run.json --out_dir out/y` repeats
a run.
"""

import dataclasses
import difflib
import inspect
import json
import math
import re
import sys

SWITCH = {"true": True, "false": False}


class UserError(Exception):
    """One clear line for the person at the terminal: what is wrong, where, what to do."""


def flag_comments(cls):
    """{field: its trailing comment in the source of the dataclass}."""
    # A long default may go on in deeper lines, the comment then stands in one of these
    field = r"^    (\w+):[^#\n]*(?:\n {8}[^#\n]*)*#\s*(.+)$"
    classes = [base for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    found = (re.findall(field, inspect.getsource(base), re.M) for base in classes)
    return {name: comment for pairs in found for name, comment in pairs}


def print_help(cls):
    doc = (inspect.getdoc(inspect.getmodule(cls)) or "").strip()
    print(f"{doc}\n\nflags (default):")
    comments = flag_comments(cls)
    for field in dataclasses.fields(cls):
        name = f"--{field.name}" + (f" / --no-{field.name}" if field.type is bool else "")
        print(f"  {name:<34} {comments.get(field.name, '')} ({field.default!r})")
    print(f"  {'--config FILE':<34} json file of flags; the command line wins over it")


def type_of(cls, name, where):
    """The type of a setting. UserError if there is none of that name."""
    types = {field.name: field.type for field in dataclasses.fields(cls)}
    if name not in types:
        near = difflib.get_close_matches(name, types, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "see --help"
        raise UserError(f"{where}: unknown setting {name!r}; {hint}")
    return types[name]


def convert(cls, name, value, where):
    """A field's value, from a flag's string or a json value. UserError if it does not fit."""
    want = type_of(cls, name, where)
    if isinstance(value, str) and want is bool and value.lower() in SWITCH:
        return SWITCH[value.lower()]
    try:
        if want is bool and not isinstance(value, bool):
            raise ValueError
        if want is int and (isinstance(value, bool) or float(value) != int(float(value))):
            raise ValueError
        if want is float and (isinstance(value, bool) or not math.isfinite(float(value))):
            raise ValueError
        if want is str and not isinstance(value, str):  # str() takes anything: "None", "[1]"
            raise ValueError
        return want(float(value)) if want is int else want(value)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f"{where}: {name} takes a {want.__name__}, not {value!r}") from None


def unique(pairs):
    """json's object_pairs_hook: a dict, or ValueError for a key given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)}: the key is there twice")
    return found


def check_range(cfg, positive=(), not_negative=()):
    """UserError for a setting of cfg that is not above 0, or below 0."""
    for names, allowed, word in (
        (positive, lambda value: value > 0, "above 0"),
        (not_negative, lambda value: value >= 0, "0 or more"),
    ):
        for name in names:
            if not allowed(getattr(cfg, name)):
                raise UserError(f"--{name} must be {word}, not {getattr(cfg, name)}")


def check_choice(cfg, **choices):
    """UserError for a setting of cfg that is none of its choices: check_choice(cfg, mix=(...))."""
    for name, allowed in choices.items():
        if getattr(cfg, name) not in allowed:
            words = ", ".join(allowed)
            raise UserError(f"--{name} must be one of {words}, not {getattr(cfg, name)!r}")


def read_json(path):
    """A json object. UserError names file and line."""
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f, object_pairs_hook=unique)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read: {e}") from None
    except json.JSONDecodeError as e:
        raise UserError(f"{path}:{e.lineno}: not valid json: {e.msg}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deep") from None
    except ValueError as e:  # a key twice, a number of thousands of digits
        raise UserError(f"{path}: {e}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a json object, not a {type(value).__name__}")
    return value


def parse(cls, argv=None):
    """Flags (sys.argv[1:] by default) -> an instance of the dataclass. UserError on the odd."""
    words = list(sys.argv[1:] if argv is None else argv)
    flags, values = {}, {}
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            print_help(cls)
            sys.exit(0)
        if not word.startswith("--"):
            raise UserError(f"{word!r} is not a flag; flags start with --, see --help")
        name, eq, value = word[2:].partition("=")
        name = name.replace("-", "_")
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        if name.startswith("no_") and fields.get(name[3:]) is bool and not eq:
            name, value = name[3:], False
        elif fields.get(name) is bool and not eq:
            value = True
        elif not eq:
            if name != "config":
                type_of(cls, name, "command line")
            if not words or (words[0].startswith("--") and len(words[0]) > 2):
                raise UserError(f"command line: --{name} needs a value")
            value = words.pop(0)
        if name in flags:
            raise UserError(f"command line: --{name} is given twice")
        flags[name] = value
    if "config" in flags:
        path = flags.pop("config")
        for name, value in read_json(path).items():
            values[name] = convert(cls, name, value, path)
    for name, value in flags.items():
        values[name] = convert(cls, name, value, "command line")
    return cls(**values)
