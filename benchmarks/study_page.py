"""The study as one html file that needs nothing beside it: pictures inlined, no scripts."""

import re

import study_text
from study_forest import look
from study_rows import ARMS, MARGIN, METRICS

from page import STYLE, picture, text

# A finding is a card on a phone and a line of a table on a wide screen: the same html
OWN_STYLE = """
main { max-width: 66rem } a { color: #2f6ba3 } .small { max-width: 34rem }
.summary { border-left: 3px solid var(--accent); padding: .2rem 0 .2rem .9rem; font-weight: 600 }
figure { overflow-x: auto } figure img { width: 100%; min-width: 36rem }
figcaption { position: sticky; left: 0 }
nav { columns: 2; max-width: 46rem; font-size: .92rem } nav a { display: block; padding: .15rem 0 }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: #fff }
.rows { table-layout: fixed } .rows td, .rows th { white-space: normal; text-align: left;
  vertical-align: top; padding-right: .5rem }
.rows small { display: inline-block; margin: 0 0 0 .2rem } .rows small.arms { display: block;
  margin: 0 }
.rows .why { color: var(--soft); font-size: .86rem; padding-top: 0 }
tr.noted td { border-bottom: 0; padding-bottom: .1rem }
.badge { font-size: .82rem; font-weight: 600 } .badge i { display: inline-block; width: .75em;
  height: .75em; margin-right: .4em; border: 2px solid; border-radius: 50% }
.strip, .hint { display: none }
@media (max-width: 48rem) {
  main { padding: 1.5rem 1rem 4rem } h1 { font-size: 1.6rem } nav { columns: 1 }
  figcaption { max-width: calc(100vw - 2rem) } figure.forest, .rows tr.head { display: none }
  .hint { display: block } .wide td:first-child { white-space: normal; min-width: 7.5rem }
  .wide th, .wide td { padding-left: .4rem; padding-right: .4rem }
  .rows, .rows tbody, .rows tr, .rows td { display: block; width: 100% }
  .rows tr { display: flex; flex-direction: column; padding: .7rem 0 .8rem;
    border-bottom: 1px solid var(--line) }
  .rows tr.noted { border-bottom: 0; padding-bottom: 0 } .rows tr.note { padding-top: .2rem }
  .rows td { border: 0; padding: .1rem 0; order: 2 }
  .rows td.finding { order: 0; font-weight: 600 } .rows td.verdict { order: 1 }
  .rows td[data-name]:before { content: attr(data-name) " "; color: var(--soft);
    font-size: .82rem }
  .strip { display: block; position: relative; height: 1.4rem; margin: .3rem 0;
    background: var(--wash); border-radius: 3px }
  .strip span { position: absolute; top: 0; bottom: 0 } .strip .margin { background: #dde4eb }
  .strip .zero { border-left: 1px solid var(--ink) }
  .strip .line { top: calc(50% - 1.5px); height: 3px; bottom: auto; min-width: 2px }
  .strip .dot { width: .8rem; height: .8rem; top: .3rem; margin-left: -.4rem; border: 2px solid;
    border-radius: 50% }
}
"""
WIDTHS = ("25%", "17%", "21%", "15%", "7%", "15%")
REAL_WIDTHS = ("32%", "21%", "18%", "8%", "7%", "14%")


def words(value):
    """A sentence with `code`, **bold** and [links](...) in markdown, as html."""
    value = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text(value))
    value = re.sub(r"`(.+?)`", r"<code>\1</code>", value)
    # Links into the repository lead nowhere from a page that lies elsewhere
    return re.sub(r"\[(.+?)\]\((.+?)\)", lambda m: f'<a href="{m[2]}">{m[1]}</a>'
                  if m[2].startswith("https:") else m[1], value)  # fmt: skip


def badge(verdict):
    """A verdict behind a mark in its colour; hollow where nothing is decided."""
    color, _, filled = look(verdict)
    fill = color if filled else "transparent"
    return (f'<span class="badge"><i style="border-color:{color};background:{fill}"></i>'
            f"{text(verdict)}</span>")  # fmt: skip


def two(value):
    """ "+1.2 [+0.3, +2.1]" with the interval in small print."""
    first, _, rest = value.partition(" ")
    return f"<b>{text(first)}</b> <small>{text(rest)}</small>"


def strip(row, rows):
    """A row of the forest plot in html, on the scale of all rows with its unit: for phones."""
    unit = METRICS[row["metric"]][1]
    same = [r for r in rows if METRICS[r["metric"]][1] == unit]
    ends = [r[end] for r in same for end in ("low", "high", "difference") if r[end] is not None]
    low, high = min(ends + [-1.5 * MARGIN[unit]]), max(ends + [1.5 * MARGIN[unit]])

    def at(value):  # percent of the width; a dot at either end keeps inside
        return 3 + 94 * (value - low) / (high - low)

    def part(name, begin, end, style=""):
        width = f";width:{at(end) - at(begin):.1f}%" if end is not None else ""
        return f'<span class="{name}" style="left:{at(begin):.1f}%{width}{style}"></span>'

    color, _, filled = look(row["verdict"])
    out = part("margin", -MARGIN[unit], MARGIN[unit]) + part("zero", 0, None)
    if row["low"] is not None:
        out += part("line", row["low"], row["high"], f";background:{color}")
    fill = color if filled else "#fff"
    out += part("dot", row["difference"], None, f";border-color:{color};background:{fill}")
    return f'<div class="strip">{out}</div>'


def findings(rows):
    """Rows of the study: a table that becomes cards where it is narrow."""
    heads = ("finding", "the paper", "a − b", "metric", "seeds", "verdict")
    widths = zip(heads, WIDTHS, strict=True)
    body = "".join(f'<th style="width:{width}">{head}</th>' for head, width in widths)
    out = f'<tr class="head">{body}</tr>'
    for row in rows:
        arms = f"{text(ARMS[row['a']])} <i>against</i> {text(ARMS[row['b']])}"
        metric, noted = METRICS[row["metric"]][0], ' class="noted"' if row["why"] else ""
        out += (
            f'<tr{noted}><td class="finding">{text(row["finding"])}</td>'
            f'<td data-name="the paper:">{text(row["paper"])}</td>'
            f'<td>{strip(row, rows)}{two(study_text.change(row))}<small class="arms">{arms}</small>'
            f'</td><td data-name="metric:">{text(metric)}</td>'
            f'<td data-name="seeds:">{row["seeds"]}</td>'
            f'<td class="verdict">{badge(row["verdict"])}</td></tr>'
        )
        if row["why"]:
            out += f'<tr class="note"><td class="why" colspan="6">{words(row["why"])}</td></tr>'
    return f'<table class="rows">{out}</table>'


def real_findings(rows):
    """Rows of the real model's study, in the same form."""
    widths = zip(study_text.REAL_HEADS, REAL_WIDTHS, strict=True)
    heads = "".join(f'<th style="width:{width}">{head}</th>' for head, width in widths)
    out = f'<tr class="head">{heads}</tr>'
    for row in rows:
        finding, metric, change, n, seeds, verdict = map(text, study_text.real_cells(row))
        out += (
            f'<tr><td class="finding">{finding}</td><td data-name="metric:">{metric}</td>'
            f'<td>{two(change)}</td><td data-name="n:">{n}</td><td data-name="seeds:">{seeds}</td>'
            f'<td class="verdict"><span class="badge">{verdict}</span></td></tr>'
        )
    return f'<table class="rows">{out}</table>'


def wide(heads, rows, kind=""):
    """A table of numbers that scrolls on its own; intervals in small print."""
    body = "".join(f"<th>{text(head)}</th>" for head in heads)
    out = f"<tr>{body}</tr>"
    for first, *values in rows:
        shown = "".join(f"<td>{two(value) if '[' in value else text(value)}</td>"
                        for value in values)  # fmt: skip
        out += f"<tr><td>{text(first)}</td>{shown}</tr>"
    return f'<div class="wide {kind}"><table>{out}</table></div>'


def html(result, drawn, real):
    """The whole page as one string. drawn: {title: path}; real: the real model's rows or None."""

    def figure(title):
        caption = text(study_text.CAPTIONS.get(title, study_text.FOREST))
        if title not in drawn:
            return ""
        kind = "stage" if title in study_text.CAPTIONS else "forest"
        return picture(title, drawn[title], caption).replace(
            "<figure", f'<figure class="{kind}"', 1
        )

    groups = study_text.groups(result)
    reading = "".join(f"<p>{words(paragraph)}</p>" for paragraph in study_text.READING)
    sections = {
        group: f"{figure(group)}{findings(rows)}" for group, rows in groups.items()
    }  # fmt: skip
    titles = list(study_text.CAPTIONS)
    scores = study_text.stage_table(result, study_text.SCORES)
    kept = study_text.stage_table(result, ("general", "if", *study_text.LOSSES))
    sections["By stage"] = (
        f"<p>Points; means and 95% intervals.</p>{wide(*scores)}"
        f"<p>What is forgotten: general retention, and held-out losses in nats.</p>{wide(*kept)}"
        + "".join(map(figure, titles[1:3]))
    )
    sections["Inside the alignment"] = "".join(map(figure, titles[3:]))
    if real:
        about = f"<p>{words(real['about'])}</p>" if real.get("about") else ""
        sections["A real model"] = (
            f"<p>{words(study_text.REAL)}</p>{about}{real_findings(real['rows'])}"
        )
    pairs, times = study_text.pair_rows(result), study_text.time_rows(result)
    if pairs:
        sections["How many pairs"] = wide(["pairs", "mean", "in a seed"], pairs, "small")
    sections["Core time"] = (
        f"<p>Minutes of one core, for a seed.</p>{wide(['stage', 'minutes'], times, 'small')}"
    )
    sections = {title: body for title, body in sections.items() if body}
    links = "".join(f'<a href="#s{i}">{text(title)}</a>' for i, title in enumerate(sections))
    again = study_text.AGAIN.format(minutes=study_text.minutes_of(result))
    body = (
        f"<h1>{text(study_text.TITLE)}</h1>"
        f'<p class="lead">{words(study_text.ABOUT.format(seeds=study_text.seeds_of(result)))}</p>'
        f'<p class="summary">{text(study_text.summary(result))}</p>'
        f'{figure(titles[0])}<p class="note hint">Wide pictures and tables scroll sideways.</p>'
        f"<nav>{links}</nav>"
        f"<h2>Reading the verdicts</h2>{reading}<p>{words(study_text.LIMITS)}</p>"
        f"<h2>Making it again</h2><pre>recipes/study.sh</pre><p>{words(again)}</p>"
    )
    for i, (title, content) in enumerate(sections.items()):
        body += f'<section><h2 id="s{i}">{text(title)}</h2>{content}</section>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>minfin: the study</title><style>{STYLE}{OWN_STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
