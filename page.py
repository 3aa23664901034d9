"""The report as one html file that needs nothing beside it: pictures are inlined, no scripts."""

import base64
import html as escape
import json
from dataclasses import dataclass
from pathlib import Path

from figures import COLORS, NAMES


@dataclass
class Parts:
    report: dict  # as in report.json
    findings: list  # sentences
    scores: list  # rows of the main table
    comparisons: list  # rows of the table of differences
    figures: dict  # title -> Path of a png
    answers: list  # (title, {checkpoint: sample})
    preference: dict  # {"counts": {...}, "examples": {kind: pair}} or {}
    runs: dict  # checkpoint -> {"run", "environment"}


STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #52606d; --line: #e1e6eb; --wash: #f5f7f9;
        --accent: #d9572b; --good: #2f7d4f; --bad: #b3372c; }
* { box-sizing: border-box }
body { font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
       margin: 0; background: #fff }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem }
h2 { font-size: 1.3rem; margin: 3rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem }
p, li { max-width: 46rem } .lead, .note { color: var(--soft) } .note { font-size: .9rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; width: 100%;
        font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .4rem .7rem; white-space: nowrap;
         border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600 } th:first-child, td:first-child { text-align: left }
td small { color: var(--soft); margin-left: .35rem }
tr.part td { color: var(--soft); border-bottom-style: dashed }
tr.part td:first-child { padding-left: 1.8rem }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .4em }
.up { color: var(--good) } .down { color: var(--bad) } .none { color: var(--soft) }
figure { margin: 1.4rem 0 } figure img { max-width: 100%; height: auto; display: block }
figcaption { color: var(--soft); font-size: .9rem; max-width: 46rem }
ul.findings { padding-left: 1.1rem } ul.findings li { margin: .3rem 0 }
ol.stages { padding-left: 1.2rem } ol.stages li { margin: .7rem 0 }
.card { background: var(--wash); border-radius: 8px; padding: .9rem 1.1rem; margin: .8rem 0 }
.card .who { font-weight: 600; font-size: .85rem } .card p { margin: .2rem 0; max-width: none }
.mark { font-size: .78rem; font-weight: 600; margin-left: .5rem }
.text { font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
        white-space: pre-wrap; overflow-wrap: anywhere }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr } }
.chosen { border-left: 3px solid var(--good); padding-left: .7rem }
.rejected { border-left: 3px solid var(--bad); padding-left: .7rem }
pre { background: var(--wash); padding: .9rem 1.1rem; border-radius: 8px; font-size: .82rem;
      white-space: pre-wrap; overflow-wrap: anywhere }
"""

STAGES = """
<ol class="stages">
<li><b>Base.</b> A small model that follows instructions and knows general things, and nothing of
the new domain.</li>
<li><b>Continual pretraining joined with instruction tuning (CPT + IT).</b> Finance text teaches the
facts and formulas; instructions keep the model able to answer. Text alone destroys that ability,
one after the other forgets, so both run in one stream.</li>
<li><b>Preference data.</b> The CPT + IT model solves exam exercises several times. A judge that has
the reference answer marks the final answers, and in wrong solutions names and corrects the first
wrong step. That gives two kinds of pairs: a right against a wrong solution (FAP, by outcome), and
the corrected against the wrong step (SCP, by process).</li>
<li><b>Alignment (DPO + NLL).</b> The model learns to prefer the chosen side over the rejected one
relative to where it started; the NLL term keeps the chosen texts likely.</li>
<li><b>Control.</b> Plain fine-tuning (SFT) on the chosen texts alone, from the same CPT + IT model.
What alignment shows beyond it is due to the rejected side, and not to having seen good
solutions.</li>
</ol>
"""


def text(value):
    """Model output and data are shown, never interpreted."""
    return escape.escape(str(value))


def cell(value):
    """ "64.2 [60.0, 68.4]" with the interval in small print."""
    score, space, interval = value.partition(" ")
    return f"<td>{text(score)}{f'<small>{text(interval)}</small>' if space else ''}</td>"


def swatch(checkpoint):
    """The checkpoint's name behind a square of its colour."""
    color, name = COLORS[checkpoint], text(NAMES[checkpoint])
    return f'<span class="swatch" style="background:{color}"></span>{name}'


def score_table(parts):
    """Capabilities by checkpoints; "every step right" stands under the exam as a part of it."""
    heads = "".join(f"<th>{swatch(c)}</th>" for c in parts.report["checkpoints"])
    rows = ""
    for name, n, *cells in parts.scores:
        kind = ' class="part"' if name.startswith(" ") else ""
        rows += f"<tr{kind}><td>{text(name)}</td><td>{n}</td>{''.join(map(cell, cells))}</tr>"
    return f'<div class="wide"><table><tr><th></th><th>n</th>{heads}</tr>{rows}</table></div>'


def comparison_table(parts):
    """Paired differences, green or red only where the interval excludes 0."""
    rows, before = "", None
    for key, points, interval, n in parts.comparisons:
        found = parts.report["comparisons"][key]
        kind = "up" if found["low"] > 0 else "down" if found["high"] < 0 else "none"
        what, _, pair = key.partition(": ")
        new, old = (NAMES[c] for c in pair.split(" - "))
        first = "" if what == before else text(what.replace("_", " "))
        before = what
        cells = f"<td>{first}</td><td>{text(new)} &minus; {text(old)}</td>"
        cells += f'<td class="{kind}"><b>{points}</b></td><td>{interval}</td><td>{n}</td>'
        rows += f"<tr>{cells}</tr>"
    heads = "<th></th><th>difference</th><th>points</th><th>95% interval</th><th>n</th>"
    return f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>'


def picture(title, path, caption):
    """A figure with the png inside: the page can be mailed."""
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return (f'<figure><img alt="{text(title)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>")  # fmt: skip


def card(body, kind="", who=""):
    """A box with a line of who speaks (html) above a text (escaped here)."""
    who = f'<p class="who">{who}</p>' if who else ""
    return f'<div class="card {kind}">{who}<p class="text">{text(body)}</p></div>'


def answer_cards(parts):
    """Exam questions with every checkpoint's own solution."""
    out = ""
    for title, samples in parts.answers:
        doc = next(iter(samples.values()))["doc"]
        out += f"<h3>{text(title)}</h3>{card(doc['query'])}"
        for checkpoint, sample in samples.items():
            good, steps = sample["acc"], sample.get("process", sample["acc"])
            mark = "right" if steps else "right answer, wrong step" if good else "wrong"
            kind = "up" if steps else "down"
            who = f"{swatch(checkpoint)}<span class='mark {kind}'>{mark}</span>"
            out += card(sample["resps"][0][0] or "(no text)", who=who)
        out += card(doc.get("solution", doc["answer"]), who="reference")
    return out


def pair_cards(parts):
    """The counts of the preference data and one pair of each kind."""
    rows = "".join(
        f"<tr><td>{text(name)}</td><td>{count:,}</td></tr>"
        for name, count in parts.preference["counts"].items()
    )
    out = f'<div class="wide" style="max-width:30rem"><table>{rows}</table></div>'
    titles = {"fap": "By outcome (FAP): two whole solutions",
              "scp": "By process (SCP): one step, after the same accepted steps"}  # fmt: skip
    for kind, pair in parts.preference["examples"].items():
        asked = pair["prompt"] if isinstance(pair["prompt"], str) else pair["prompt"][-1]["content"]
        asked = "\n".join(filter(None, [asked, pair.get("prefix", "")]))
        chosen, rejected = pair["chosen"].strip(), pair["rejected"].strip()
        sides = card(chosen, "chosen", "chosen") + card(rejected, "rejected", "rejected")
        out += f'<h3>{titles[kind]}</h3>{card(asked)}<div class="pair">{sides}</div>'
    return out


def reproduction(parts):
    """Where each checkpoint comes from: command, commit, machine."""
    rows, settings = "", ""
    for checkpoint, folder in parts.report["checkpoints"].items():
        run = parts.runs.get(checkpoint, {})
        about = run.get("environment", {})
        command = " ".join(["python", *map(str, about.get("command", []))])
        rows += (f"<tr><td>{text(NAMES[checkpoint])}</td><td>{text(folder)}</td>"
                 f"<td>{text(str(about.get('git_commit', ''))[:10])}</td>"
                 f"<td>{text(about.get('cores', ''))}</td>"
                 f"<td>{text(about.get('ranks', ''))}</td></tr>")  # fmt: skip
        if "run" in run:
            settings += f"\n# {NAMES[checkpoint]}\n{command}\n{json.dumps(run['run'])}\n"
    heads = "<th></th><th>checkpoint</th><th>commit</th><th>cores</th><th>ranks</th>"
    table = f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>'
    return table + (f"<h3>Commands and resolved settings</h3><pre>{text(settings.strip())}</pre>"
                    if settings else "")  # fmt: skip


CAPTIONS = {
    "Scores by capability": "Bars are scores, thin lines their 95% intervals over the questions.",
    "The exam by answer and by process": "A solution can reach the right number by a wrong step. "
    "Hatched bars count only exams in which every step is right too.",
    "Training": "Thin lines are single steps, thick lines running means. Held-out rows are never "
    "trained on. DPO starts where both rewards are 0; what counts is that chosen stays above "
    "rejected, and that chosen does not sink.",
}


def html(parts):
    """The whole page as one string."""
    figures = {t: picture(t, p, CAPTIONS.get(t, "")) for t, p in parts.figures.items()}
    training_figure = figures.pop("Training", "")
    findings = "".join(f"<li>{text(sentence)}</li>" for sentence in parts.findings)
    sections = [
        "<h1>From a base model to an aligned finance model</h1>"
        '<p class="lead">Every stage of the FinDAP recipe (arXiv 2501.04961), measured on the four '
        "capabilities it is meant to give and on what it must not destroy.</p>"
        f'<ul class="findings">{findings}</ul>',
        f"<h2>Scores</h2>{score_table(parts)}"
        '<p class="note">Points from 0 to 100 with 95% bootstrap intervals over the questions '
        "(1,000 resamples). They say what another set of questions would give, not what another "
        "training seed would. An interval without width: every question got the same mark. Replies "
        "are greedy.</p>" + "".join(figures.values()),
        "<h2>Differences</h2><p>On the same questions, with a paired bootstrap. Coloured where the "
        f"interval excludes 0.</p>{comparison_table(parts)}",
        f"<h2>The stages</h2>{STAGES}{training_figure}",
    ]
    if parts.preference:
        sections.append(f"<h2>The preference data</h2>{pair_cards(parts)}")
    if parts.answers:
        sections.append(f"<h2>One question, every checkpoint</h2>{answer_cards(parts)}")
    sections.append(
        "<h2>How to reproduce it</h2><p><code>./run.sh --fresh</code> repeats the sample world "
        "from the beginning; each stage is a script that runs alone, and <code>--config "
        f"DIR/run.json</code> repeats one of these runs.</p>{reproduction(parts)}"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>minfin report</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(f'<section>{s}</section>' for s in sections)}</main></body></html>\n"
    )
