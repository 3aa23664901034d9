"""Training files -> token ids with spans -> families, ready to be packed (packing.py).

    python data.py show sample/data/sft.jsonl --tokenizer sample/base --row 3
    python data.py show out/demo/reward/pairs.jsonl --tokenizer out/demo/cpt_it

    text  {"text"}: BOS + text + end of text, all of it trained
    chat  {"messages": [{"role", "content", "weight"?}]}: assistant words and turn ends trained
    pair  {"prompt", "chosen", "rejected", "prefix"?, "ends_turn"?}: chosen and rejected trained

Every row is checked (jsonl.py), encoded so that no text becomes a control token (tokenizer.py), and
either used or skipped and counted: rows in = used + skipped by reason, always printed.
"""

import os
import sys
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from tqdm import tqdm

import parallel
from config import UserError, check_range, parse
from jsonl import check_fields, check_messages, read_jsonl
from packing import IGNORE, check_bos, collate, document, family, size, targets
from tokenizer import Beginning, Tokenizer


@dataclass
class Counts:
    """rows = used + skipped by reason; tokens and trained tokens of what is used."""

    name: str
    rows: int = 0
    used: int = 0
    tokens: int = 0
    trained: int = 0
    skipped: dict = field(default_factory=dict)  # reason -> ["file:line", ...]

    def __str__(self):
        lost = sum(map(len, self.skipped.values()))
        assert self.rows == self.used + lost, (self.rows, self.used, lost)
        text = f"{self.name}: {self.rows:,} rows = {self.used:,} used + {lost:,} skipped"
        for reason, places in self.skipped.items():
            more = ", ..." if len(places) > 5 else ""
            text += f" [{len(places):,} {reason}: {', '.join(places[:5])}{more}]"
        return f"{text}; {self.tokens:,} tokens, {self.trained:,} trained"


def text_parts(row, where, tokenizer):
    return [tokenizer.text_parts(row["text"])]


def text_families(sequences, bos_id, max_length):
    """A document, cut into chunks where it is longer than a row; each token is trained once.

    Each chunk opens with BOS (without one: with the last token of the chunk before), and the end
    token follows the true end only: else texts would seem to stop at multiples of max_length.
    """
    ((ids, _),) = sequences
    cuts = list(range(1, len(ids), max_length))
    if len(ids) - cuts[-1] == 1 and len(cuts) > 1:
        cuts[-1] -= 1  # a chunk of the end token alone would teach that a text ends at once
    ends = [*cuts[1:], len(ids)]
    first = [[ids[a - 1] if bos_id is None else bos_id] for a in cuts]
    return [document(b + ids[a:z]) for b, a, z in zip(first, cuts, ends, strict=True)]


def chat_parts(row, where, tokenizer):
    check_messages(row["messages"], where, last="assistant")
    return [tokenizer.chat_parts(row["messages"])]


def chat_families(sequences, bos_id, max_length):
    """A whole conversation as one document, or the reason why it is skipped: never cut."""
    ((ids, trained),) = sequences
    if len(ids) - 1 > max_length:
        return f"longer than {max_length} tokens"
    if not any(trained[1:]):
        return "without a trained token"
    return [document(ids, trained)]


def assistant_text(value, where, name):
    """The text of a chosen or rejected reply: a string, or a list of one assistant message."""
    if isinstance(value, str):
        return value
    if len(value) != 1:
        raise UserError(f"{where}: {name}: must hold one assistant message, not {len(value)}")
    check_messages([{"role": "user", "content": "?"}, *value], where, "assistant", name)
    return value[0]["content"]


def pair_parts(row, where, tokenizer):
    """[prompt, chosen, rejected] of a preference row: canonical (FAP, SCP) or TRL's explicit form.

    Without prefix the replies are whole assistant turns; with one they go on from it, mid-turn.
    Joined on ids: encoding prompt and reply as one text may merge tokens across the cut.
    ends_turn {"chosen": bool, "rejected": bool}: one step of a solution does not end the turn.
    """
    prompt, prefix, ends = row["prompt"], row.get("prefix") or "", row.get("ends_turn")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    check_messages(prompt, where, last="user", name="prompt")
    if ends is None and prefix:
        raise UserError(f"{where}: ends_turn: missing; a reply that continues a prefix must say it")
    ends = {"chosen": True, "rejected": True} if ends is None else ends
    header = tokenizer.chat_parts(prompt, add_generation_prompt=True)
    parts = [[*header, (Beginning(prefix), False)]]
    for name in ("chosen", "rejected"):
        if type(ends.get(name)) is not bool:
            raise UserError(f"{where}: ends_turn: {name} must be true or false")
        text = assistant_text(row[name], where, name)
        reply = tokenizer.reply_parts(text, trim=not prefix)
        parts.append(reply if ends[name] else reply[:-1])
    return parts


def pair_families(sequences, bos_id, max_length):
    """[prompt, chosen, rejected] as one family, or the reason why it is skipped: never cut.

    max_length counts prompt, chosen and rejected together, since they share a packed row; FinDAP's
    2,048 is for each of the two sequences.
    """
    prompt, chosen, rejected = (ids for ids, _ in sequences)
    if chosen == rejected:  # two words that the vocabulary lacks may both be <unk>
        return "with chosen and rejected of the same tokens"
    if len(prompt) - 1 + len(chosen) + len(rejected) > max_length:
        return f"longer than {max_length} tokens"
    return [family(prompt, [chosen, rejected])]


# kind of row: fields, row -> parts of its sequences, ids of these -> families or reason to skip
TEXT = {"text": str}, text_parts, text_families
CHAT = {"messages": list}, chat_parts, chat_families
PAIR = ({"prompt": (str, list), "prefix?": str, "chosen": (str, list), "rejected": (str, list),
         "ends_turn?": dict}, pair_parts, pair_families)  # fmt: skip


def row_families(kind, rows, tokenizer, max_length):
    """[(where, row)] -> per row its families or the reason to skip it, in one encoder call."""
    _, parts_of, families_of = kind
    parts = [parts_of(row, where, tokenizer) for where, row in rows]
    joined = iter(tokenizer.join([sequence for row in parts for sequence in row]))
    found = []
    for (where, _), row in zip(rows, parts, strict=True):
        try:
            sequences = list(islice(joined, len(row)))
            found.append(families_of(sequences, tokenizer.bos_id, max_length))
        except UserError as e:
            raise UserError(f"{where}: {e}") from None
    return found


def load(kind, paths, tokenizer, max_length, max_skipped=0.05):
    """Files (comma separated, or a list) -> (families, Counts), counts printed and BOS checked.

    UserError on a bad row, if there is none, or if more than max_skipped of them are left out.
    """
    paths = paths.split(",") if isinstance(paths, str) else map(str, paths)
    paths = [path.strip() for path in paths if path.strip()]
    if not paths:
        raise UserError("the list of training files is empty: name one, or several with commas")
    counts, families = Counts(", ".join(map(str, paths))), []
    rows = ((f"{path}:{line}", row) for path in paths for line, row in read_jsonl(path, kind[0]))
    quiet = True if os.environ.get("RANK", "0") != "0" else None  # None: bar on terminals only
    rows = iter(tqdm(rows, "tokenising", unit=" rows", delay=5, disable=quiet, leave=False))
    while block := list(islice(rows, 256)):
        counts.rows += len(block)
        first = len(families)
        for (where, _), found in zip(
            block, row_families(kind, block, tokenizer, max_length), strict=True
        ):
            if isinstance(found, str):
                counts.skipped.setdefault(found, []).append(where)
            else:
                counts.used += 1
                families += found
        if len(families) > first:
            check_bos(collate(families[first:]), tokenizer.bos_id)
    counts.tokens, counts.trained = sum(map(size, families)), sum(map(targets, families))
    parallel.print0(counts)
    if not counts.rows:
        raise UserError(f"{counts.name}: holds no rows")
    lost = counts.rows - counts.used
    if not counts.used or lost > max_skipped * counts.rows:
        raise UserError(f"{counts.name}: {lost} of {counts.rows} rows cannot be used; at most "
                        f"{max_skipped:.0%} may be skipped")  # fmt: skip
    return families, counts


def load_text(paths, tokenizer, max_length, max_skipped=0.05):
    """{"text"} rows; one family per document, or per chunk of a long one."""
    return load(TEXT, paths, tokenizer, max_length, max_skipped)


def load_chat(paths, tokenizer, max_length, max_skipped=0.05):
    """{"messages"} rows; one family per conversation."""
    return load(CHAT, paths, tokenizer, max_length, max_skipped)


def load_pairs(paths, tokenizer, max_length, max_skipped=0.05):
    """Preference rows; one family [prompt, chosen, rejected], max_length tokens at most, a pair."""
    return load(PAIR, paths, tokenizer, max_length, max_skipped)


SOURCES = ("text", "chat")


def mix(text_families, chat_families, how, seed):
    """CPT text joined with instruction rows: (families, source of each as an index into SOURCES).

    how: "tokens" samples the text down to the tokens of the chat rows (FinDAP's 50:50), "rows" to
    their number (its released code: chunks against conversations), "all" keeps everything. Text is
    never repeated. Prints both shares.
    """
    if how not in ("tokens", "rows", "all"):
        raise UserError(f"mix: {how!r} is not tokens, rows or all")
    order = np.random.default_rng(seed).permutation(len(text_families)).tolist()
    if how == "tokens":
        total = np.cumsum([size(text_families[i]) for i in order])
        order = order[: int(np.searchsorted(total, sum(map(size, chat_families)), side="right"))]
    elif how == "rows":
        order = order[: len(chat_families)]
    text = [text_families[i] for i in sorted(order)]
    rows = [(len(f), sum(map(size, f)), sum(map(targets, f))) for f in (text, chat_families)]
    tokens, trained = (max(1, sum(column)) for column in list(zip(*rows, strict=True))[1:])
    parallel.print0(f"mix by {how}: {len(text):,} of {len(text_families):,} text chunks kept")
    parallel.print0(f"{'source':<8}{'rows':>10}{'tokens':>14}{'':>8}{'trained':>14}")
    for name, (n, t, k) in zip(SOURCES, rows, strict=True):
        parallel.print0(f"{name:<8}{n:>10,}{t:>14,}{t / tokens:>8.1%}{k:>14,}{k / trained:>8.1%}")
    return text + list(chat_families), [0] * len(text) + [1] * len(chat_families)


# ---- python data.py show -------------------------------------------------------------------------


def marked(ids, trained, tokenizer, colour):
    """Decoded ids with control tokens visible; trained stretches green, or in brackets."""
    open_mark, close_mark = ("\033[32m", "\033[0m") if colour else ("⟦", "⟧")
    text, start = "", 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or trained[i] != trained[start]:
            piece = tokenizer.decode(ids[start:i], skip_special=False)
            text += f"{open_mark}{piece}{close_mark}" if trained[start] else piece
            start = i
    return text


def sequences_of(members):
    """A family as the sequences a model sees: (ids, trained) of each segment without children."""
    parents = {s.parent for s in members}
    for segment in (s for i, s in enumerate(members) if i not in parents):
        before = members[segment.parent].input_ids.tolist() if segment.parent >= 0 else []
        labels = segment.labels.tolist()
        following = [*segment.input_ids.tolist()[1:], None]
        ids = [n if label == IGNORE else label for n, label in zip(following, labels, strict=True)]
        ids = [*before, int(segment.input_ids[0]), *ids]
        trained = [False] * (len(before) + 1) + [label != IGNORE for label in labels]
        yield (ids, trained) if ids[-1] is not None else (ids[:-1], trained[:-1])


@dataclass
class Show:
    tokenizer: str = "sample/base"  # checkpoint folder whose tokenizer and chat format are used
    row: int = 1  # line of the file
    max_length: int = 8192  # tokens per packed row: longer texts are cut into chunks


def show(path, cfg):
    """Print one row as training sees it."""
    check_range(cfg, ("max_length",))
    tokenizer = Tokenizer(cfg.tokenizer)
    row = next((row for line, row in read_jsonl(path, {}) if line == cfg.row), None)
    if row is None:
        raise UserError(f"{path}: has no row on line {cfg.row}")
    kind = CHAT if "messages" in row else PAIR if "chosen" in row else TEXT
    check_fields(row, kind[0], where := f"{path}:{cfg.row}")
    (found,) = row_families(kind, [(where, row)], tokenizer, cfg.max_length)
    if isinstance(found, str):
        return print(f"{where}: skipped, {found}")
    for i, (ids, trained) in enumerate(s for members in found for s in sequences_of(members)):
        name = ("chosen", "rejected")[i] if kind is PAIR else f"document {i + 1}"
        ends = [k for k, token in enumerate(ids) if token == tokenizer.turn_end_id]
        bos = [k for k, token in enumerate(ids) if token == tokenizer.bos_id]
        print(f"{where} {name}: {len(ids)} ids, {sum(trained)} trained; BOS at {bos};", end=" ")
        print(f"turn ends at {ends}, trained {[k for k in ends if trained[k]]}")
        print(marked(ids, trained, tokenizer, colour=sys.stdout.isatty()) + "\n")


def main(words):
    if {"-h", "--help"} & {*words}:
        parse(Show, ["--help"])
    if len(words) < 2 or words[0] != "show":
        raise UserError("usage: python data.py show FILE --tokenizer DIR --row LINE; see --help")
    show(words[1], parse(Show, words[2:]))


if __name__ == "__main__":
    with parallel.clean_exit():
        main(sys.argv[1:])
