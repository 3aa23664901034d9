"""What is in a corpus: documents, tokens, lengths, copies, sources, licences, as a page to look at.

    python curate.py stats --data out/clean.jsonl --tokenizer CHECKPOINT --out out/clean_stats.jsonl

OUT.jsonl        per row its file, source, licence, language, kind, length in characters, words and
                 tokens, and a hash of what makes copies equal (dedup.py)
OUT.stats.json   the numbers of the page
OUT.stats.html   the page, OUT.stats.png in it (with matplotlib)

Tokens are those of the texts alone, without a chat's control tokens. A source is what stands before
the first ":", without a last word that holds a date or number: the chapters of a book, the speeches
of a bank are one source.
"""

import json
import re
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from board_page import OWN_STYLE, wide
from config import UserError
from contamination import training_text
from corpus import Pass, Rows, beside
from decontaminate import file_of, read_lines
from dedup import normal
from figures import FAINT, INK, finish
from jsonl import sha, write_text
from overlap import words
from page import STYLE, picture, text
from tokenizer import Tokenizer

LISTED, DRAWN = 20, 10  # largest groups of a table, largest sources of the picture
LONG = 100_000  # words: a row like that is a whole book, or rows that were joined by mistake
GREY, BLUE = "#a3acb8", "#3b78b5"  # rows, tokens
COPIES, ONE_SOURCE = 0.01, 0.5  # shares of rows and of tokens above which the page warns
GROUPS = {"source": "Sources", "file": "Files", "licence": "Licences", "language": "Languages",
          "kind": "Kinds of rows"}  # fmt: skip
UNSAID = "not said"
SIZES = ("characters", "words", "tokens")
PAGE_STYLE = """
main { max-width: 60rem } figure img { max-width: min(100%, 44rem) }
.lead, .warning { overflow-wrap: anywhere } table { width: auto; min-width: min(100%, 34rem) }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 8rem }
td.bar { background: linear-gradient(to right, #dbe7f3 var(--share), transparent var(--share)) }
@media (max-width: 40rem) { th, td { padding: .4rem .45rem } table { font-size: .82rem } }
"""


@dataclass
class Stats(Rows):
    tokenizer: str = ""  # checkpoint folder; empty = words are counted, not tokens


# Rows -------------------------------------------------------------------------------------------


def kind_of(row):
    """What a row trains: a text, a chat, a pair of replies, a prompt with its completion."""
    kinds = {"messages": "chat", "chosen": "pair", "prompt": "prompt", "query": "prompt"}
    return next((kind for key, kind in kinds.items() if row.get(key)), "text")


def source_of(row, file):
    """The group of a row's source: a site of addresses, a name without chapter or date."""
    source = " ".join(str(row.get("source") or "").split())
    if site := re.match(r"\w+://(?:www\.)?([^/?#:]+)", source, re.I):
        return site[1].lower()
    return re.sub(r"(\s\S*|[_-])\d{4,}\w*$", "", source.split(":")[0].strip()) or Path(file).name


def measure(where, row, said, tokens):
    """The record of one row. tokens: how many, or None."""
    found, file, licence = words(said), file_of(where), row.get("licence") or row.get("license")
    return {
        "file": file,
        "source": source_of(row, file),
        "licence": str(licence) if licence else None,
        "language": str(row["language"]) if row.get("language") else None,
        "kind": kind_of(row),
        **dict(zip(SIZES, (len(said), len(found), tokens), strict=True)),
        "sha": sha(normal(said))[:16],
    }


def count_tokens(tokenizer, texts):
    """How many tokens each text has; None without a tokenizer."""
    encode = tokenizer and tokenizer.encoder.encode_batch_fast
    return map(len, encode(texts, add_special_tokens=False)) if encode else [None] * len(texts)


def stats(cfg):
    """Measure every row, then write the numbers, the picture and the page."""
    tokenizer = Tokenizer(cfg.tokenizer) if cfg.tokenizer else None
    todo = Pass(cfg, [Path(cfg.tokenizer) / "tokenizer.json"] if tokenizer else [])
    for block in todo.blocks():
        rows = []
        for where, row in block:
            try:
                rows.append((where, row, training_text(row, where)))
            except UserError as e:  # a row of no kind that is trained on
                todo.unreadable(where, e)
        counts = count_tokens(tokenizer, [said for *_, said in rows])
        for (where, row, said), count in zip(rows, counts, strict=True):
            todo.keep(measure(where, row, said, count))
    if not todo.counts["used"]:
        raise UserError(f"{todo.out}: no row could be read; the reasons: {todo.dropped}")
    bad = todo.counts["dropped"].get("unreadable", 0)
    result = summarise(read_lines(todo.out), bool(tokenizer), bad)
    drawn, page = beside(todo.out, ".stats.png"), beside(todo.out, ".stats.html")
    write_text(page, html(result, draw(result, drawn), cfg.data))
    write_text(beside(todo.out, ".stats.json"), json.dumps(result, indent=1) + "\n")
    print_stats(result, page)


# Numbers ----------------------------------------------------------------------------------------


def quantiles(lengths):
    """Median, 90%, 99% and maximum: each the length of a row that is there."""
    cuts = {"median": 0.5, "90%": 0.9, "99%": 0.99, "max": 1.0}
    found = np.quantile(lengths, [*cuts.values()], method="inverted_cdf").tolist()
    return dict(zip(cuts, found, strict=True)) | {"mean": round(float(np.mean(lengths)), 1)}


def histogram(lengths):
    """[lower edge, rows, their summed length] per bin: four bins to each doubling of the length.

    Rows without length stand in a bin of their own, with the edge 0.
    """
    place = np.floor(4 * np.log2(np.maximum(lengths, 1))).astype(np.int64)
    place[lengths == 0] = -1
    found = np.arange(-1 if (lengths == 0).any() else place.min(), place.max() + 1)
    return [[0 if k < 0 else round(2 ** (k / 4), 3), int((place == k).sum()),
             int(lengths[place == k].sum())] for k in found.tolist()]  # fmt: skip


def largest(rows, sizes, all_rows, all_sizes):
    """{name: {rows, size, share of rows, share of size}} of the LISTED largest, and "others"."""
    order = sorted(rows, key=lambda name: (-sizes[name], -rows[name], name or ""))
    groups = {name or UNSAID: (rows[name], sizes[name]) for name in order[:LISTED]}
    if rest := order[LISTED:]:
        label = f"{len(rest):,} others"
        groups[label] = sum(rows[n] for n in rest), sum(sizes[n] for n in rest)
    return {name: {"rows": n, "size": size, "rows %": round(100 * n / all_rows, 2),
                   "size %": round(100 * size / max(1, all_sizes), 2)}
            for name, (n, size) in groups.items()}  # fmt: skip


def summarise(records, with_tokens, unreadable):
    """The numbers of the page, out of the records of all rows, at least one."""
    lengths = {name: array("q") for name in SIZES[: 2 + with_tokens]}
    unit, hashes = [*lengths][-1], array("Q")
    rows, sizes = {name: Counter() for name in GROUPS}, {name: Counter() for name in GROUPS}
    for record in records:
        for name, column in lengths.items():
            column.append(record[name])
        hashes.append(int(record["sha"], 16))
        for name in GROUPS:
            rows[name][record[name]] += 1
            sizes[name][record[name]] += record[unit]
    lengths = {name: np.frombuffer(column, np.int64) for name, column in lengths.items()}
    result = {"rows": len(hashes), **{name: int(x.sum()) for name, x in lengths.items()}}
    result |= {"unit": unit, "lengths": {name: quantiles(x) for name, x in lengths.items()}}
    result |= {"histogram": histogram(lengths[unit]), "unreadable": unreadable}
    result["copies"] = len(hashes) - len(np.unique(hashes))
    for name in GROUPS:
        result[name] = largest(rows[name], sizes[name], result["rows"], result[unit])
    lost = int((lengths["words"] > LONG).sum()), int((lengths["words"] == 0).sum())
    result["warnings"] = warnings(result, *lost, rows["licence"][None], sizes["source"])
    return result


def warnings(result, long, empty, bare, sizes):
    """Sentences on what needs a person's eyes."""
    rows, unit, total = result["rows"], result["unit"], result[result["unit"]]
    bad, copies, [(name, most)] = result["unreadable"], result["copies"], sizes.most_common(1)
    found = (
        (bad, f"Rows that could not be read and are not counted: {bad:,}."),
        (copies > COPIES * rows, f"Copies of another row, word for word: {copies:,} "
         f"({percent(copies, rows)}). python curate.py dedup drops them."),
        (long, f"Rows of more than {LONG:,} words: {long:,}. Whole books, or joined by mistake?"),
        (empty, f"Rows without a word: {empty:,}."),
        (0 < bare < rows, f"Rows without a licence, while others have one: {bare:,} "
         f"({percent(bare, rows)})."),
        (len(sizes) > 1 and most > ONE_SOURCE * total,
         f"One source holds {percent(most, total)} of all {unit}: {name}."),
    )  # fmt: skip
    return [sentence for applies, sentence in found if applies]


def percent(part, whole):
    return f"{100 * part / max(1, whole):.1f}%"


def facts(result):
    return ", ".join(f"{result[name]:,} {name}" for name in ("rows", *result["lengths"]))


def print_stats(result, page):
    unit, found = result["unit"], result["lengths"][result["unit"]]
    print(f"{facts(result)}; {result['copies']:,} copies")
    print(f"{unit} of a row: " + ", ".join(f"{name} {n:,}" for name, n in found.items()))
    for name, group in [*result["source"].items()][:5]:
        print(f"  {group['size %']:5.1f}% of {unit}, {group['rows %']:5.1f}% of rows: {name}")
    for sentence in result["warnings"]:
        print(f"  look: {sentence}")
    print(page)


# The page ---------------------------------------------------------------------------------------


def draw(result, path):
    """Histogram of lengths and bars of sources as a png, or None without matplotlib."""
    try:
        import matplotlib
        from matplotlib import pyplot
    except ImportError:
        print("note: no figure; it needs: pip install matplotlib")
        path.unlink(missing_ok=True)
        return None
    matplotlib.use("Agg")
    style = {
        "axes.grid": True, "grid.color": FAINT, "axes.edgecolor": FAINT, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
        "text.color": INK, "savefig.dpi": 200, "figure.constrained_layout.use": True}  # fmt: skip
    temporary, sources = path.with_suffix(".tmp.png"), [*result["source"].items()][:DRAWN]
    heights = [2.5, 0.3 + 0.42 * len(sources)]  # inches
    with matplotlib.rc_context(style):
        figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(5.2, sum(heights) + 1),
                                                 height_ratios=heights)  # fmt: skip
        draw_lengths(upper, result)
        draw_sources(lower, sources)
        finish(figure, temporary)
    temporary.replace(path)
    return path


def draw_lengths(axis, result):
    """Rows by length, on a log axis, and where the tokens are."""
    bins, unit = [entry for entry in result["histogram"] if entry[0]], result["unit"]
    edges = [edge for edge, *_ in bins] + [2**0.25 * edge for edge, *_ in bins[-1:]]
    for at, label, look in ((1, "rows", {"color": GREY, "fill": True}),
                            (2, unit, {"color": BLUE, "linewidth": 1.5})):  # fmt: skip
        share = np.array([entry[at] for entry in bins])
        axis.stairs(100 * share / share.sum(), edges or [1], label=label, **look)
    axis.set(xscale="log", ylim=(0, None), xlabel=f"{unit} of a row", ylabel="% of all")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.legend(ncols=2, loc="lower right", bbox_to_anchor=(1, 1))


def draw_sources(axis, sources):
    """Shares of rows and of tokens by source, its name above the bars."""
    for i, (name, group) in enumerate(sources):
        axis.barh([i + 0.14, i + 0.36], [group["rows %"], group["size %"]], 0.2, color=[GREY, BLUE])
        name = name.replace("$", r"\$")  # which would start a formula
        axis.text(0, i - 0.06, name if len(name) < 60 else f"{name[:59]}\u2026", fontsize=9)
    axis.set(yticks=[], ylim=(len(sources) - 0.35, -0.45), xlabel="% of all")


def html(result, drawn, data):
    """The whole page as one string; drawn: the picture, or None."""
    unit = result["unit"]
    looks = "".join(f'<p class="warning">{text(line)}</p>' for line in result["warnings"])
    sections = [
        f'<h1>What is in the corpus</h1><p class="lead">{text(data)}: {facts(result)}. '
        f"{result['copies']:,} rows ({percent(result['copies'], result['rows'])}) are copies of "
        "another one, compared word by word without case and punctuation.</p>"
        + (looks or "<p>Nothing stands out.</p>")
    ]
    columns = result["lengths"].values()
    heads = [f"<th>{name}</th>" for name in ("of a row", *result["lengths"])]
    rows = [f"<tr><td>{key}</td>{''.join(f'<td>{found[key]:,}</td>' for found in columns)}</tr>"
            for key in next(iter(columns))]  # fmt: skip
    caption = f"Shares of rows and of {unit}: by the length of a row, and of the largest sources."
    shown = picture("Lengths and sources", drawn, caption) if drawn else ""
    sections.append(f"<h2>Lengths</h2>{wide(heads, rows)}{shown}")
    for name, title in GROUPS.items():
        table = wide([f"<th>{head}</th>" for head in (name, "rows", unit)], lines(result[name]))
        known = [*result[name]] != [UNSAID]
        sections.append(f"<h2>{title}</h2>{table if known else '<p>No row says it.</p>'}")
    body = "".join(f"<section>{section}</section>" for section in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>minfin corpus</title><style>{STYLE}{OWN_STYLE}{PAGE_STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def lines(groups):
    """Lines of a table: name, rows and tokens with their shares."""
    line = '<td class="bar" style="--share:{1}%">{0:,}<small>{1:.1f}%</small></td>'
    for name, group in groups.items():
        cells = (line.format(group[key], group[f"{key} %"]) for key in ("rows", "size"))
        yield f"<tr><td>{text(name)}</td>{''.join(cells)}</tr>"
