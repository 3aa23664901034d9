"""FinTrain: raw text and foreign files -> clean training rows (FinDAP, arXiv:2501.04961).

    convert        other tools' rows (alpaca, sharegpt, OpenAI, TRL, plain text, ...) -> ours
    select         rows of finance sites or with finance keywords, of a language, of some length
    dedup          drops copies and near copies (MinHash)
    score          a judge marks educational quality from 0 to 5; rows below a mark are dropped
    exercises      a judge takes exercises out of book text, word for word
    decontaminate  drops rows that hold what the evaluation asks
    stats          documents, tokens, lengths, sources, licences: a page to look at

    python curate.py select --data web.parquet --out out/web.jsonl --sites recipes/finance_sites.txt
    python curate.py dedup --data out/web.jsonl --out out/web_once.jsonl

Each reads json lines, json lists, parquet or plain text and writes OUT.jsonl; every row that is not
in it stands in OUT.dropped.jsonl with the reason. A stopped step goes on with the same command and
ends with the same bytes (corpus.py).
"""

import re
import sys
from dataclasses import dataclass
from urllib.parse import urlsplit

import parallel
from config import UserError, check_range, parse
from contamination import training_text
from corpus import Pass, Rows
from corpus_stats import Stats, stats
from decontaminate import Decontaminate, decontaminate
from dedup import Dedup, dedup
from exercises import Exercises, exercises
from overlap import words
from quality import Score, score
from shapes import Convert, convert
from sources import numbered_lines

# Words that make up a third of any English text, and are words of few other languages
COMMON = frozenset("the of and to that for it with on be this by from or have not which you they "
                   "but all were their has more its been than other".split())  # fmt: skip
ENGLISH = 0.08  # share of common words from which a text counts as English


@dataclass
class Select(Rows):
    sites: str = ""  # file of sites, one a line, with or without path: sec.gov, reuters.com/markets
    keywords: str = ""  # file of words and phrases, one a line; a row of a site needs none
    min_keywords: int = 3  # different keywords that a row must hold
    language: str = ""  # as in the rows' `language`; rows without are read: for en only
    min_words: int = 0  # shortest text
    max_words: int = 0  # longest text; 0 = any


def listed(path):
    """Lines of a list file, without comments. UserError if there is none."""
    lines = (line.split("#")[0].strip().lower() for _, line in numbered_lines(path))
    if not (found := [line for line in lines if line]):
        raise UserError(f"{path}: holds no line")
    return found


def on_site(url, sites):
    """Is a page of one of the sites {host: [beginnings of paths]}, or of a host below it?"""
    try:
        parts = urlsplit(url if "//" in url else f"//{url}")
        host = (parts.hostname or "").split(".")
    except ValueError:  # half an IPv6 address
        return False
    below = [".".join(host[i:]) for i in range(len(host))]  # a.b.c, b.c, c
    path = f"{parts.path.lower().rstrip('/')}/"
    return any(path.startswith(first) for name in below for first in sites.get(name, ()))


def is_english(found):
    return sum(word in COMMON for word in found) >= ENGLISH * max(1, len(found))


def unwanted(row, where, cfg, sites, keywords):
    """Why a row is not selected, or None."""
    found = words(training_text(row, where))
    if len(found) < cfg.min_words:
        return "shorter than --min_words"
    if cfg.max_words and len(found) > cfg.max_words:
        return "longer than --max_words"
    if cfg.language:
        said = row.get("language")
        if said and str(said).lower() != cfg.language.lower():
            return "of another language"
        english = cfg.language.lower() == "en"
        if not said and not (english and is_english(found)):
            return "of another language by its words" if english else "of no language"
    if sites and on_site(str(row.get("url") or ""), sites):
        return None
    if keywords:
        text = f" {' '.join(found)} "
        held = sum(keyword in text for keyword in keywords)
        return None if held >= cfg.min_keywords else "not of a site, too few keywords"
    return "not of a site" if sites else None


def select(cfg):
    """Keep what is of finance, in one language, neither too short nor too long."""
    check_range(cfg, ("min_keywords",), ("min_words", "max_words"))
    lists = [path for path in (cfg.sites, cfg.keywords) if path]
    todo, sites = Pass(cfg, lists), {}
    for line in listed(cfg.sites) if cfg.sites else ():
        host, _, path = re.sub(r"^(\w+://)?(www\.)?", "", line).partition("/")
        sites.setdefault(host, []).append(f"/{path.strip('/')}/" if path.strip("/") else "/")
    lines = listed(cfg.keywords) if cfg.keywords else []
    keywords = [f" {' '.join(words(line))} " for line in lines]
    for block in todo.blocks():
        for where, row in block:
            try:
                reason = unwanted(row, where, cfg, sites, keywords)
            except UserError as e:  # a row of no kind that is trained on
                todo.unreadable(where, e)
                continue
            todo.drop(where, reason) if reason else todo.keep(row)


STAGES = {
    "convert": (Convert, convert),
    "select": (Select, select),
    "dedup": (Dedup, dedup),
    "score": (Score, score),
    "exercises": (Exercises, exercises),
    "decontaminate": (Decontaminate, decontaminate),
    "stats": (Stats, stats),
}


def main(argv):
    usage = f"usage: python curate.py {'|'.join(STAGES)} [--help] [flags]"
    if argv[:1] in (["-h"], ["--help"]):
        return print(f"{__doc__}\n{usage}")
    if not argv or argv[0] not in STAGES:
        raise UserError(usage)
    config, run = STAGES[argv[0]]
    run(parse(config, argv[1:]))


if __name__ == "__main__":
    with parallel.clean_exit():
        main(sys.argv[1:])
