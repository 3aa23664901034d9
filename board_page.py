"""The scoreboard as one html file that needs nothing beside it: pictures inlined, no scripts."""

import json

import board_text
from board_figures import looks
from page import STYLE, card, cell, picture, text

OWN_STYLE = """
main { max-width: 90rem }
td.why { white-space: normal; min-width: 14rem; color: var(--soft); font-size: .82rem;
         text-align: left; overflow-wrap: anywhere }
td.left, th.left { text-align: left } th { white-space: normal }
td.bad { color: var(--bad); font-weight: 600 }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: #fff }
tr.all td { font-weight: 600 }
tr.group td { padding-top: 1.1rem; color: var(--soft); font-weight: 600 }
.warning { border-left: 3px solid var(--accent); padding: .2rem 0 .2rem .9rem }
.outside { background: var(--wash); border-radius: 8px; padding: .3rem 1.1rem .8rem }
.outside td:first-child, .outside th:first-child { background: var(--wash) }
details { margin: .5rem 0 } summary { cursor: pointer; font-weight: 600 }
"""
LEFT, WORDS = ' class="left"', ("metric", "asked by")  # columns of words, not of numbers
PROMPT_SHOWN, REPLY_SHOWN = 1500, 2500  # characters of a question and of a reply
CAPTIONS = {
    "Means": "Bars are means over the tasks that every checkpoint has, thin lines their 95% "
    "intervals; below, how many of the suite's tasks that is. Similar and novel: to training "
    "tasks.",
    "Every task": "Dots are scores, lines their 95% intervals over the questions. The tick is what "
    "always giving the most frequent answer scores. The hollow mark is the paper's Llama-Fin, "
    "where its metric is the same; it was asked with other prompts.",
    "Differences": "On the same rows, with paired 95% intervals. A hollow dot: the interval holds "
    "0.",
}


def swatch(checkpoint, board):
    """The checkpoint's name behind a square of its colour."""
    color = looks(board["checkpoints"])[checkpoint][0]
    return f'<span class="swatch" style="background:{color}"></span>{text(checkpoint)}'


def wide(heads, rows):
    """A table that scrolls on its own; heads and rows are html."""
    return f'<div class="wide"><table><tr>{"".join(heads)}</tr>{"".join(rows)}</table></div>'


def heads_of(board, *names):
    """<th> of some names, then of scores and of differences to the first checkpoint."""
    heads = [f"<th{LEFT if name in WORDS else ''}>{text(name)}</th>" for name in names]
    heads += [f"<th>{swatch(c, board)}</th>" for c in board["checkpoints"]]
    return heads + [f"<th>&Delta; {swatch(c, board)}</th>" for c in [*board["checkpoints"]][1:]]


def change(shown, found):
    """A difference, green or red only where its interval excludes 0; or why there is none."""
    kind = board_text.direction(found)
    if kind == "why":
        return f'<td class="why">{text(shown)}</td>'
    points, _, rest = shown.partition(" ")
    return f'<td class="{kind}"><b>{points}</b><small>{text(rest)}</small></td>'


def changes(shown, differences):
    pairs = zip(shown, differences.values(), strict=True)
    return "".join(change(cell, found) for cell, found in pairs)


def mean_table(board):
    rows, count = [], len(board["checkpoints"])
    for row, view in zip(board_text.mean_rows(board), board["means"].values(), strict=True):
        name, coverage, n, *cells = row
        body = f"<td>{text(name)}</td><td>{coverage} tasks</td><td>{n}</td>"
        body += "".join(map(cell, cells[:count])) + changes(cells[count:], view["differences"])
        rows.append(f"<tr{' class=all' if name == 'all tasks' else ''}>{body}</tr>")
    return wide(heads_of(board, "mean over", "tasks", "n"), rows)


def task_table(board):
    """Tasks under their capabilities, in FinEval's order within each."""
    count, groups = len(board["checkpoints"]), {}
    for row, entry in zip(board_text.task_rows(board), board["tasks"].values(), strict=True):
        name, n, metric, way, majority, *cells = row
        body = f'<td title="{text(entry["title"])}">{text(name)}</td><td>{n}</td>'
        body += (
            f'<td class="left">{metric}</td><td class="left">{text(way)}</td><td>{majority}</td>'
        )
        for shown, found in zip(cells[:count], entry["scores"].values(), strict=True):
            beside = board_text.beside(found, entry["metric"])
            body += cell(shown).replace(
                "</td>", f"{beside and f'<br><small>{beside}</small>'}</td>"
            )
        body += changes(cells[count:], entry["differences"])
        groups.setdefault(entry["capability"], []).append(f"<tr>{body}</tr>")
    heads = heads_of(board, "task", "n", "metric", "asked by", "majority")
    rows = [f'<tr class="group"><td colspan="{len(heads)}">{text(name.replace("_", " "))}</td></tr>'
            + "".join(members) for name, members in groups.items()]  # fmt: skip
    return wide(heads, rows)


def metric_table(board):
    """Folded: every metric of every task, with the most frequent answer's value."""
    rows = []
    for name, metric, majority, *cells in board_text.metric_rows(board):
        body = f'<td>{text(name)}</td><td class="left">{text(metric)}</td><td>{majority}</td>'
        rows.append(f"<tr>{body}{''.join(map(cell, cells))}</tr>")
    heads = ["<th>task</th>", '<th class="left">metric</th>', "<th>majority</th>"]
    heads += [f"<th>{swatch(c, board)}</th>" for c in board["checkpoints"]]
    return f"<details><summary>Every metric</summary>{wide(heads, rows)}</details>"


def outside_table(board):
    rows = [f'<tr><td>{text(name)}</td><td class="why">{text(why)}</td></tr>'
            for name, why in board["outside"].items()]  # fmt: skip
    heads = ["<th>task</th>", '<th class="left">why</th>']
    return f'<div class="outside">{wide(heads, rows)}</div>' if rows else "<p>None.</p>"


def reply_table(board):
    """Tasks by checkpoints: what is no answer, was cut, or left out."""
    rows = []
    for row, entry in zip(board_text.reply_rows(board), board["tasks"].values(), strict=True):
        name, left_out, *cells = row
        body = f'<td>{text(name)}</td><td class="left">{text(left_out)}</td>'
        for shown, found in zip(cells, entry["scores"].values(), strict=True):
            bad = ' class="bad"' if found["missing"] > board_text.MISSING_WARN else ""
            body += f"<td{bad}>{shown}</td>"
        rows.append(f"<tr>{body}</tr>")
    heads = ["<th>task</th>", '<th class="left">rows left out</th>']
    return wide(heads + [f"<th>{swatch(c, board)}</th>" for c in board["checkpoints"]], rows)


def paper_table(board):
    rows, count = [], len(board["checkpoints"])
    for name, *cells in board_text.paper_rows(board):
        scores, other, values = cells[:count], cells[count], cells[count + 1 :]
        body = f"<td>{text(name)}</td>" + "".join(f"<td><b>{score}</b></td>" for score in scores)
        body += f'<td class="left down">{f"&ne; {other}" if other else ""}</td>'
        rows.append(f"<tr>{body}{''.join(f'<td>{value}</td>' for value in values)}</tr>")
    if not rows:
        return ""
    heads = [f"<th>{swatch(c, board)}</th>" for c in board["checkpoints"]]
    heads = ["<th>task</th>", *heads, '<th class="left">differs in kind</th>']
    heads += [f"<th>{head}</th>" for head in board_text.PAPER_HEADS]
    return (f'<h2>Beside the paper</h2><p class="warning">{board_text.PAPER_WARNING}</p>'
            + wide(heads, rows))  # fmt: skip


# Replies -------------------------------------------------------------------------------------


def shortened(value, limit):
    """Head and tail of a long text: a question stands at its end."""
    if len(value) <= limit:
        return value
    cut = len(value) - limit
    return f"{value[: limit // 2]}\n[... {cut:,} characters ...]\n{value[-limit // 2 :]}"


def reply_of(sample):
    """What a model said, or the log-probs that it gave the choices."""
    replies = [pair[0] for pair in sample["resps"]]
    if all(isinstance(reply, str) for reply in replies):
        return "\n\n".join(replies) or "(no text)"
    pairs = zip(sample["doc"].get("choices", []), replies, strict=False)
    return "\n".join(f"{value[0]:9.2f}  {choice}" for choice, value in pairs)


def mark(metric, sample):
    """What a reply earned, in words."""
    if sample.get("missing"):
        return "down", "no answer"
    value = sample.get(metric, sample.get("acc"))
    if value in (0, 1):
        return ("up", "right") if value else ("down", "wrong")
    return "none", metric if value is None else f"{metric} {100 * value:.0f}"


def example_cards(board, examples):
    """Per task a fold with its example rows, each with the reply of every checkpoint."""
    out = ""
    for name, found in examples.items():
        metric, body = board["tasks"][name]["metric"], ""
        for title, samples in found.items():
            doc = next(iter(samples.values()))["doc"]
            asked = "\n\n".join(doc.get("turns") or [doc["query"]])
            body += f"<h3>{title}</h3>{card(shortened(asked, PROMPT_SHOWN), who='question')}"
            for checkpoint, sample in samples.items():
                kind, words = mark(metric, sample)
                read = sample.get("prediction")
                words += f"; read as {shortened(str(read), 80)!r}" if read is not None else ""
                who = f'{swatch(checkpoint, board)}<span class="mark {kind}">{text(words)}</span>'
                body += card(shortened(reply_of(sample), REPLY_SHOWN), who=who)
            body += card(shortened(str(doc.get("answer", "")), 600), who="reference")
        title = text(board["tasks"][name]["title"])
        out += f"<details><summary>{text(name)}: {title}</summary>{body}</details>"
    return out


# How it was made -----------------------------------------------------------------------------


def origins(board):
    """What each checkpoint is, what it was run with, and which data each task had."""
    keys = ("init_from", "folder", "dtype", "limit", "scorer", "tokenizer_sha")
    rows, commands = [], ""
    for checkpoint, about in board["checkpoints"].items():
        environment = about.get("environment", {})
        values = [about.get(key) for key in keys] + [environment.get("git_commit")]
        values[3] = values[3] or "all rows"
        values[-2:] = [str(value or "")[:10] for value in values[-2:]]
        cells = "".join(f'<td class="left">{text(v if v else "")}</td>' for v in values)
        rows.append(f"<tr><td>{swatch(checkpoint, board)}</td>{cells}</tr>")
        if environment.get("command"):
            command = " ".join(["python", *map(str, environment["command"])])
            commands += f"\n# {checkpoint}\n{command}\n{json.dumps(about.get('run', {}))}\n"
    heads = ("checkpoint", "init_from", "evaluation", "dtype", "rows per task", "scorer",
             "tokenizer", "commit")  # fmt: skip
    made = wide([f'<th class="left">{head}</th>' for head in heads], rows)
    data = []
    for name, entry in board["tasks"].items():
        sums = [str(cell["data_sha"] or "")[:10] for cell in entry["scores"].values()]
        kind = ' class="bad"' if len(set(sums)) > 1 else ""
        data.append(f"<tr><td>{text(name)}</td>{''.join(f'<td{kind}>{s}</td>' for s in sums)}</tr>")
    heads = ["<th>task</th>", *(f"<th>{swatch(c, board)}</th>" for c in board["checkpoints"])]
    made += (f"<details><summary>SHA-256 of every task's rows, first ten digits</summary>"
             f"{wide(heads, data)}</details>")  # fmt: skip
    return made + (f"<h3>Commands and settings</h3><pre>{text(commands.strip())}</pre>"
                   if commands else "")  # fmt: skip


def html(board, drawn, examples):
    """The whole page as one string."""
    first, total = next(iter(board["checkpoints"])), board["means"]["all tasks"]
    figures = {name: picture(name, path, CAPTIONS[name]) for name, path in drawn.items()}
    notes = "".join(f"<li>{text(note)}</li>" for note in board["notes"])
    sections = [
        f"<h1>Scoreboard: {text(board['suite'])}</h1>"
        f'<p class="lead">{", ".join(swatch(c, board) for c in board["checkpoints"])}: '
        f"{board_text.coverage(total)} tasks. Points from 0 to 100 (MCC from -100) with 95% "
        "bootstrap intervals over the questions. They say what other questions would give, not "
        "what another training seed would.</p>" + (f"<ul>{notes}</ul>" if notes else ""),
        "<h2>Capabilities</h2><p>A mean holds the tasks that every checkpoint has a score for, "
        f"each with the same weight. Differences (&Delta;) are to {text(first)}, paired on the "
        f"same rows, and coloured where the interval excludes 0.</p>{mean_table(board)}"
        + figures.get("Means", ""),
        f"<h2>Tasks</h2>{task_table(board)}{metric_table(board)}{figures.get('Every task', '')}"
        f"{figures.get('Differences', '')}",
        f"<h2>Outside the means</h2>{outside_table(board)}",
        "<h2>What the scores hide</h2><p>Replies without an answer count as wrong; above "
        f"{board_text.MISSING_WARN:.0f}% a score says more about the form of the replies than "
        f"about what the model knows. In each cell: replies without an answer / prompts "
        f"cut to fit the context / replies cut by the length limit.</p>{reply_table(board)}",
        paper_table(board),
        f"<h2>Replies</h2>{example_cards(board, examples)}",
        f"<h2>How it was made</h2>{origins(board)}",
    ]
    body = "".join(f"<section>{section}</section>" for section in sections if section)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>minfin scoreboard</title><style>{STYLE}{OWN_STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
