"""What is trained on, in which shares: a mixture file, or text and chats in one of three ways.

    {"unit": "tokens",
     "groups": [{"total": 3840000000,
                 "sources": [{"name": "web", "kind": "text", "files": ["$DATA/web.jsonl"],
                              "share": 0.5, "repeats": 1},
                             {"name": "chat", "kind": "chat", "files": ["$DATA/chat.jsonl"],
                              "share": 0.5, "repeats": 2}]}]}

unit     what shares and totals count: tokens, or rows (a text longer than a packed row is several)
groups   of a curriculum, trained one after the other; usually one
total    tokens or rows of the group; without it, as many as the scarcest source allows
share    of the group, all of its sources together 1; no source has one: everything is taken
repeats  how often a source may be passed over at most, 1 if not said
note     anything, anywhere: for the reader

What a source is too large for is left out by chance (of the seed); what it is too small for is
repeated in whole passes and a part of one. Shares that cannot be met so are an error, never bent.
"""

import math
import os
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np

from config import UserError, read_json
from data import Families, load, load_chat, load_text
from jsonl import TYPES
from parallel import print0

SOURCES = ("text", "chat")
NUMBER = (int, float)
# key: (types, must it be there)
FILE = {"unit": ((str,), False), "groups": ((list,), True), "note": ((str,), False)}
GROUP = {"total": (NUMBER, False), "sources": ((list,), True), "note": ((str,), False)}
SOURCE = {"name": ((str,), True), "kind": ((str,), True), "files": ((list,), True)}
SOURCE |= {"share": (NUMBER, False), "repeats": (NUMBER, False), "note": ((str,), False)}
NEAR = 0.01  # of a group's total, or a fifth of the share: how far it may be missed by whole rows


class Mixed(NamedTuple):
    """What is trained on: F families, of which one may be there several times."""

    families: Families
    sources: np.ndarray  # (F,) index into names
    names: list  # of the sources, as they are logged
    groups: list  # families of each group of the curriculum, in their order: their number
    passes: list  # {name: how often its families are passed over} of each group


# ---- a mixture file -----------------------------------------------------------------------------


def check_keys(value, keys, where):
    """UserError for a key that is missing, unknown, empty or of another type."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be an object, not {TYPES[type(value)]}")
    for name in value:
        if name not in keys:
            near = get_close_matches(name, keys, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(keys)}"
            raise UserError(f"{where}: unknown key {name!r}; {hint}")
    for name, (types, needed) in keys.items():
        if name not in value:
            if needed:
                raise UserError(f"{where}: {name}: missing")
        elif type(value[name]) not in types:
            want = TYPES[types[-1]]
            raise UserError(f"{where}: {name}: must be {want}, not {TYPES[type(value[name])]}")
        elif value[name] in ("", []):
            raise UserError(f"{where}: {name}: is empty")


def read_mixture(path):
    """The checked content of a mixture file, paths with $NAMES of the environment filled in."""
    mixture = read_json(path)
    check_keys(mixture, FILE, path)
    unit = mixture.setdefault("unit", "tokens")
    if unit not in ("tokens", "rows"):
        raise UserError(f"{path}: unit: {unit!r} is not tokens or rows")
    kinds = {}
    for g, group in enumerate(mixture["groups"]):
        at = f"{path}: groups[{g}]"
        check_keys(group, GROUP, at)
        if not 0 < group.get("total", 1) < math.inf:
            raise UserError(f"{at}: total: must be above 0, not {group['total']}")
        for s, source in enumerate(group["sources"]):
            check_source(source, f"{at}.sources[{s}]")
            if kinds.setdefault(source["name"], source["kind"]) != source["kind"]:
                raise UserError(f"{at}.sources[{s}]: name: {source['name']} is of another kind too")
        names = [source["name"] for source in group["sources"]]
        if len(set(names)) < len(names):
            raise UserError(f"{at}: sources: a name is there twice")
        shares = [source.get("share") for source in group["sources"]]
        if None in shares and set(shares) != {None}:
            missing = names[shares.index(None)]
            raise UserError(f"{at}: share: {missing} has none; give one to all sources, or to none")
        if None not in shares and abs(sum(shares) - 1) > 1e-3:
            raise UserError(f"{at}: share: together {sum(shares):g}, must be 1")
        if None in shares and "total" in group:
            raise UserError(f"{at}: total: needs shares, or it is what the sources hold")
    return mixture


def check_source(source, where):
    check_keys(source, SOURCE, where)
    if source["kind"] not in SOURCES:
        raise UserError(f"{where}: kind: {source['kind']!r} is not {' or '.join(SOURCES)}")
    for name in ("share", "repeats"):
        if not 0 < source.get(name, 1) < math.inf:
            raise UserError(f"{where}: {name}: must be above 0, not {source[name]}")
    files = source["files"]
    for i, file in enumerate(files):
        if not isinstance(file, str) or not file:
            raise UserError(f"{where}: files[{i}]: must be the path of a file")
        files[i] = os.path.expandvars(file)
        if "$" in files[i]:
            raise UserError(f"{where}: files[{i}]: {file}: is not set in the environment; "
                            "export it, or write the path")  # fmt: skip
    if len(set(files)) < len(files):
        raise UserError(f"{where}: files: one is there twice; repeats says how often to pass")


def files_of(mixture):
    """Every training file of a mixture, once."""
    sources = [source for group in mixture["groups"] for source in group["sources"]]
    return list(dict.fromkeys(file for source in sources for file in source["files"]))


def choose(amounts, passes, rng):
    """Indices of families, `passes` times over: whole passes, and by chance a part of one.

    amounts (F,): what each family counts, in the unit of the mixture.
    """
    whole = math.floor(passes)
    order = rng.permutation(len(amounts))
    budget = (passes - whole) * amounts.sum()
    part = order[: np.searchsorted(np.cumsum(amounts[order]), budget + 1e-6, side="right")]
    return np.concatenate([np.tile(np.arange(len(amounts)), whole), np.sort(part)])


def passes_of(group, amounts, unit, where):
    """How often each source of a group is passed over; amounts [(F,) of each source].

    UserError if the group's total is beyond what a source holds.
    """
    repeats = [source.get("repeats", 1) for source in group["sources"]]
    held = [float(amount.sum()) for amount in amounts]
    shares = [source.get("share") for source in group["sources"]]
    if None in shares:
        return repeats
    most = [n * r / share for n, r, share in zip(held, repeats, shares, strict=True)]
    total = group.get("total", min(most))
    for s, source in enumerate(group["sources"]):
        if total > most[s] * (1 + 1e-9):
            need = total * shares[s]
            raise UserError(
                f"{where}.sources[{s}]: share: {shares[s]:g} of {total:,.0f} {unit} are "
                f"{need:,.0f}, but {source['name']} holds {held[s]:,.0f}: set its repeats to "
                f"{math.ceil(need / held[s])}, or total to {math.floor(min(most))}"
            )
    return [share * total / n for share, n in zip(shares, held, strict=True)]


def load_mixture(path, tokenizer, max_length, max_skipped, token_cache, seed):
    """A mixture file -> Mixed; prints what it holds. UserError where shares cannot be met."""
    mixture = read_mixture(path)
    names, groups, passes, which, sources = [], [], [], [], []
    loaded, everything = {}, Families([])  # of each source and group, one behind the other
    for g, group in enumerate(mixture["groups"]):
        where, members = f"{path}: groups[{g}]", group["sources"]
        for source in members:
            key = source["kind"], *source["files"]
            if key not in loaded:
                loaded[key] = load(
                    *key[:1], key[1:], tokenizer, max_length, max_skipped, token_cache
                )
        families = [loaded[source["kind"], *source["files"]][0] for source in members]
        by_rows = mixture["unit"] == "rows"
        amounts = [np.ones(len(f), dtype=int) if by_rows else f.sizes for f in families]
        times = passes_of(group, amounts, mixture["unit"], where)
        chosen = [
            choose(amount, often, np.random.default_rng([seed, g, s]))
            for s, (amount, often) in enumerate(zip(amounts, times, strict=True))
        ]
        check_shares(group, [a[c].sum() for a, c in zip(amounts, chosen, strict=True)], where)
        for source, part, indices in zip(members, families, chosen, strict=True):
            if source["name"] not in names:
                names.append(source["name"])
            which.append(indices + len(everything))
            sources.append(np.full(len(indices), names.index(source["name"])))
            everything += part
        groups.append(sum(map(len, chosen)))
        passes.append(dict(zip((source["name"] for source in members), times, strict=True)))
    families = everything.take(np.concatenate(which))
    return Mixed(families, np.concatenate(sources), names, groups, passes)


def check_shares(group, amounts, where):
    """UserError where a source's rows are too long to meet its share."""
    for s, (source, amount) in enumerate(zip(group["sources"], amounts, strict=True)):
        share, got = source.get("share"), amount / max(1, sum(amounts))
        if share is not None and abs(got - share) > min(NEAR, share / 5):
            raise UserError(
                f"{where}.sources[{s}]: share: {source['name']} would be {got:.1%}, not {share:.1%}"
                ": the mixture is too small for its rows; raise repeats, or total"
            )


# ---- text and chats -----------------------------------------------------------------------------


def mix(text, chat, how, seed):
    """CPT text joined with instruction rows -> Mixed. Text is never repeated, chats are all kept.

    how: "tokens" samples the text down to the tokens of the chat rows (FinDAP's 50:50), "rows" to
    their number (its released code: chunks against conversations), "all" keeps everything.
    """
    if how not in ("tokens", "rows", "all"):
        raise UserError(f"mix: {how!r} is not tokens, rows or all")
    order = np.random.default_rng(seed).permutation(len(text))
    if how == "tokens":
        total = np.cumsum(text.sizes[order])
        order = order[: np.searchsorted(total, chat.sizes.sum(), side="right")]
    elif how == "rows":
        order = order[: len(chat)]
    families = text.take(np.sort(order)) + chat
    sources = np.repeat([0, 1], [len(order), len(chat)])
    passes = {"text": len(order) / max(1, len(text)), "chat": 1}
    return Mixed(families, sources, list(SOURCES), [len(families)], [passes])


def load_mixed(cfg, tokenizer):
    """What the settings of train_cpt.py say -> Mixed, printed as a table."""
    settings = tokenizer, cfg.max_length, cfg.max_skipped, cfg.token_cache
    if cfg.mixture:
        mixed = load_mixture(cfg.mixture, *settings, cfg.seed)
    else:
        text = load_text(cfg.text, *settings)[0] if cfg.text else Families([])
        chat = load_chat(cfg.chat, *settings)[0] if cfg.chat else Families([])
        mixed = mix(text, chat, cfg.mix if cfg.text and cfg.chat else "all", cfg.seed)
    print_mixed(mixed)
    return mixed


def print_mixed(mixed):
    """The table of a mixture: passes, rows, tokens, trained tokens of each source and group."""
    print0(f"{'group':<6}{'source':<18}{'passes':>7}{'rows':>12}{'':>7}{'tokens':>16}{'':>7}"
           f"{'trained':>16}{'':>7}")  # fmt: skip
    end = 0
    for g, (count, passes) in enumerate(zip(mixed.groups, mixed.passes, strict=True), 1):
        here = slice(end, end := end + count)
        columns = np.ones(count, int), mixed.families.sizes[here], mixed.families.targets[here]
        for name, often in passes.items():
            mine = mixed.sources[here] == mixed.names.index(name)
            parts = [(column[mine].sum(), max(1, column.sum())) for column in columns]
            cells = [f"{n:>16,}{n / total:>7.1%}" for n, total in parts]
            print0(f"{g:<6}{name:<18}{often:>7.3g}{cells[0][4:]}{cells[1]}{cells[2]}")
