"""How good a text is for a student of finance: a judge's score from 0 to 5, one point a criterion.

    python curate.py score --data out/books.jsonl --out out/good.jsonl --base_url URL --model NAME

    text -> excerpt (beginning, middle, end) -> {"Justification", "Score"} -> row + "quality"

FinDAP's filter of books (arXiv:2501.04961, appendix D) keeps 4 and 5. All replies stand in
OUT.verdicts.jsonl, keyed by what was asked: a stopped run asks nothing again, and equal texts are
asked about once. Rows below --min_score are in OUT.dropped.jsonl with their score.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from config import UserError, check_range
from contamination import training_text
from corpus import Pass, Rows, beside
from jsonl import sha
from judge import BROKEN, decide
from verdicts import Asking, asking, check_judge, complain

BOOKS = 64 * 2**20  # bytes of a block: books are large, and many are to be asked about at once
GAP = "\n[...]\n"  # between the parts of an excerpt
SHORTEST = 100  # characters of an excerpt of three parts
HOPELESS = 8  # texts refused by a judge that has never replied: it would refuse all others, too
REFUSED = "refused by the judge"


@dataclass
class Reading(Asking, Rows):
    """Rows that a judge reads: the settings of both."""

    @property
    def verdicts(self):
        return beside(Path(self.out), ".verdicts.jsonl")


@dataclass
class Score(Reading):
    min_score: int = 4  # lowest score that is kept
    excerpt: int = 6000  # characters of a text that the judge is shown


# ---- a judge that reads texts, shared with exercises.py -----------------------------------------


def check_reading(cfg):
    """UserError for settings that cannot be."""
    check_judge(cfg)
    if cfg.judge == "exact":
        raise UserError("--judge exact compares final answers: texts are read by http or local")


def plain(text):
    """A text with blanks in place of control characters: a page break, what OCR leaves."""
    return BROKEN.sub(lambda found: found[0] if found[0] > "\x7f" else " ", text)


def readable(text):
    """A text as the judge is shown it: without what is no text, or reads like a control token."""
    return BROKEN.sub("?", plain(text)).replace("<|", "< |")


def open_judge(cfg, todo, kind):
    """A context whose value is read(texts); a pass that is done needs no judge."""
    return contextlib.nullcontext() if todo.done else reading(cfg, kind)


@contextlib.contextmanager
def reading(cfg, kind):
    """read(texts) -> {text: the verdict that counts}: `parsed` is what the reply says, null where
    none is valid, for `reason`. UserError for texts that should get a reply another time."""
    turned_away = {}  # the verdicts on refused texts, which no log has
    with asking(cfg, cfg.verdicts, leave=False) as (name, logged, complete):
        for verdict in logged.values():
            asked = verdict.get("settings") or {}
            first = asked.get("seed", -1) - verdict["attempts"] + 1
            if [verdict.get("judge"), asked.get("max_tokens"), first] != [
                name, cfg.max_tokens, cfg.seed
            ]:  # fmt: skip
                raise UserError(f"{cfg.verdicts}: holds the verdicts of another judge, or with "
                                "other settings; delete it, or take another --out")  # fmt: skip

        def read(texts):
            records = {text_id(text): record_of(text, kind) for text in texts}
            records = {key: record for key, record in records.items() if key not in turned_away}
            lost, refused, _ = complete(records)
            for key, why in refused.items():
                turned_away[key] = {"parsed": None, "reason": REFUSED, "detail": why}
            if len(lost) > len(refused):
                complain(cfg, logged, lost, refused, "texts")
            if not logged and len(turned_away) >= HOPELESS:
                words = {key: verdict["detail"] for key, verdict in turned_away.items()}
                complain(cfg, logged, words, words, "texts")
            return {text: verdict_on(cfg, text_id(text), kind, logged, turned_away)
                    for text in texts}  # fmt: skip

        yield read


def text_id(text):
    return sha(text)[:16]


def record_of(text, kind):
    """A text in the form of a trajectory, which is what a judge reads."""
    return {"id": text_id(text), "kinds": [kind], "prompt": [{"role": "user", "content": ""}],
            "text": readable(text), "finish": "stop"}  # fmt: skip


def verdict_on(cfg, key, kind, logged, turned_away):
    """The verdict that counts on a text: of a log that holds more votes, as many as are wanted."""
    seen = []
    for attempt in range(1, cfg.votes * cfg.asks + 1):
        verdict = logged.get(f"{key}/{kind}/{attempt}")
        if verdict is None or sum(bool(v["parsed"]) for v in seen) == cfg.votes:
            break
        seen.append(verdict)
    found = decide(seen) if seen else None
    if key in turned_away and not (found and found["parsed"]):
        return turned_away[key]
    return found


# ---- the score ----------------------------------------------------------------------------------


def excerpt_of(text, most):
    """A text of at most so many characters: all of it, or its beginning, middle and end in equal
    parts, cut at white space where there is some."""
    text = text.strip()
    if len(text) <= most:
        return text
    third = (most - 2 * len(GAP)) // 3
    start = (len(text) - third) // 2
    inner = text[start : start + third]
    head, tail = without_end(text[:third]), without_start(text[-third:])
    return GAP.join([head, without_end(without_start(inner)), tail])


def without_end(part):
    """A part without the word that its end may cut."""
    return part.rsplit(None, 1)[0] if len(part.split(None, 1)) > 1 else part


def without_start(part):
    """A part without the word that its beginning may cut."""
    return part.split(None, 1)[1] if len(part.split(None, 1)) > 1 else part


def score(cfg):
    """Keep the rows whose text the judge gives at least --min_score."""
    check_reading(cfg)
    check_range(cfg, (), ("min_score",))
    if cfg.min_score > 5:
        raise UserError("--min_score: a score is at most 5")
    if cfg.excerpt < SHORTEST:
        raise UserError(f"--excerpt must be at least {SHORTEST} characters")
    todo = Pass(cfg)
    todo.block_bytes = BOOKS
    with open_judge(cfg, todo, "quality") as read:
        for block in todo.blocks():
            shown = [shown_of(row, where, cfg.excerpt) for where, row in block]
            verdicts = read(dict.fromkeys(text for text, _ in shown if text))
            for (where, row), (text, error) in zip(block, shown, strict=True):
                if error:
                    todo.unreadable(where, error)
                else:
                    put(todo, where, row, verdicts.get(text), cfg.min_score)


def shown_of(row, where, most):
    """(what the judge is shown of a row, None), or (None, why it is none that is trained on)."""
    try:
        return excerpt_of(readable(training_text(row, where)), most), None
    except UserError as e:
        return None, e


def put(todo, where, row, verdict, least):
    """Keep or drop a row by the verdict on its text, None if there is no text."""
    if verdict is None:
        todo.drop(where, "empty")
    elif "detail" in verdict:
        todo.drop(where, verdict["reason"], detail=verdict["detail"])
    elif not verdict["parsed"]:
        todo.drop(where, "no valid score", detail=verdict["reason"])
    elif (quality := verdict["parsed"]["Score"]) < least:
        todo.drop(where, "scored below --min_score", score=quality)
    else:
        todo.keep(row | {"quality": quality})
