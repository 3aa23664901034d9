"""The study as words: STUDY.md, and the rows of the tables that study_page.py shows as well."""

import os
from pathlib import Path

import study_figures
from study_forest import interval
from study_rows import ARMS, CEILING, MARGIN, METRICS, STAGES

from board_text import table
from config import read_json
from jsonl import write_text

TITLE = "The study: FinDAP's findings on the sample world"
ABOUT = (
    "The paper behind minfin ([arXiv:2501.04961](https://arxiv.org/abs/2501.04961)) says what each "
    "stage of its recipe brings and which choices matter. It reports one seed, no intervals, and "
    "some findings only as bars. Here each finding is the difference of two checkpoints on the "
    "[sample world](sample/README.md), over {seeds}, and so is each question that the paper leaves "
    "open."
)
LIMITS = (
    "The model has 0.8 million parameters and 521 tokens. What is reproduced here needs no "
    "size; what is not may still hold at the paper's. No row says anything about real finance."
)
AGAIN = (
    "It takes about {minutes} core minutes a seed and goes on where it was stopped. "
    '`recipes/study.sh "0 1 2 3 4 5 6"` adds seeds; a second run only writes this page again.'
)
READING = [
    "A row is a − b of one metric. A seed is one run of everything: another finance world for the "
    "same base, another order of the data, other samples. Within a seed both checkpoints have the "
    "same data, exam and start, so the difference is taken there; over the seeds we give its mean "
    "and the 95% interval of Student's t.",
    "The interval alone decides. **Reproduced**: it lies on the side that the paper claims or, "
    f"where the paper claims no effect, within {MARGIN['points']:g} points ({MARGIN['nats']:g} "
    "nats) of 0. **Not reproduced**: it lies on the other side, or that near to 0 where an effect "
    "is claimed, or beyond 0 where none is. **Not decidable at this size**: neither, or both "
    f"checkpoints score {CEILING:g} and more, so that none could show an effect.",
    "Where the paper claims nothing, a is **higher**, **lower**, there is **no difference**, or it "
    "is not decidable. No row is decided by fewer than 5 seeds. With sixty intervals of 95%, three "
    "would miss the truth by chance.",
]
CAPTIONS = {
    "Capabilities by stage": "What a model can do after each stage. Facts, by choices: the true "
    "sentence is the likeliest of four, with no chat around it. Facts only read: asked in a chat, "
    "trained on as text only. Instructions and general: what the base can do, and still should.",
    "What is forgotten": "What the base knew, after each stage. Numbers are means; lines, where "
    "they can be seen beside the mark, are 95% intervals.",
    "Losses by source": "Held-out loss of what is new (finance) and of what the base knew "
    "(general), as text and as chats.",
    "DPO, step by step": "Rewards are log-probs against the start, times beta. Lines are means of "
    "the seeds, bands their range. Below: the same log-probs, not relative to the start.",
    "Gain in the exam": "Each arm minus the CPT + IT checkpoint that it is aligned from (with 85% "
    "mistakes: its own one). Pale dots are seeds, lines 95% intervals; an arrow: far below.",
    "With and without the rejected side": "The same chosen texts, by DPO and by plain SFT. Lines "
    "up and down are 95% intervals.",
}
FOREST = (
    "Marks are means over the seeds, lines their 95% intervals. A difference within the shading "
    "is none."
)
HEADS = ["finding", "the paper", "metric", "a", "b", "a − b", "seeds", "verdict"]
REAL_HEADS = ["finding", "metric", "difference", "n", "seeds", "verdict"]
REAL = (
    "The same skeleton on SmolLM2-135M-Instruct with real text, instructions and exercises: "
    "`recipes/smollm2_study.sh`. With one seed an interval is over the questions: it does not say "
    "what another seed would give, so it decides nothing."
)
SCORES = ("knows", "concepts", "read", "tasks", "exam", "process", "if", "general")
LOSSES = tuple(metric for metric, (_, unit) in METRICS.items() if unit == "nats")
SHORT = {
    "knows": "facts, by choices",
    "concepts": "facts, asked",
    "read": "facts only read",
    "process": "exam, every step",
    "sampled": "exam, sampled",
    "if": "instructions",
}


# ---- rows of words -------------------------------------------------------------------------------


def seeds_of(result):
    """ "5 seeds": the most that any row has."""
    count = max((row["seeds"] for row in result["rows"]), default=0)
    return f"{count} seed{'s' * (count != 1)}"


def minutes_of(result):
    return round(sum(result["core_seconds_a_seed"].values()) / 60)


def groups(result):
    """{group: its rows}, in the order of study_rows.py."""
    found = {}
    for row in result["rows"]:
        found.setdefault(row["group"], []).append(row)
    return found


def change(row):
    """A difference with its interval; the unit only where it is not points."""
    unit = METRICS[row["metric"]][1]
    return interval(row, unit, "difference") + (" nats" if unit == "nats" else "")


def cells(row):
    """A row of the study, as HEADS has it."""
    return [row["finding"], row["paper"], SHORT.get(row["metric"], row["metric"]), ARMS[row["a"]],
            ARMS[row["b"]], change(row), str(row["seeds"]), row["verdict"]]  # fmt: skip


def real_cells(row):
    """A row of the real model's study, as REAL_HEADS has it."""
    found = {key: row[key] for key in ("difference", "low", "high")}
    return [row["finding"], row["metric"], interval(found, "points", "difference"),
            f"{row['n']:,}", str(row["seeds"]), row["verdict"]]  # fmt: skip


def metric_rows(result):
    """[metric, what it is] of those that a row needs."""
    needed = {row["metric"] for row in result["rows"]}
    return [[SHORT.get(m, m), what] for m, (what, _) in METRICS.items() if m in needed]


def summary(result):
    """Two sentences that count the verdicts."""
    sentences = []
    for claims, words in ((True, "{} rows are claims of the paper"), (False, "{} are open in it")):
        rows = [row for row in result["rows"] if bool(row["claim"]) == claims]
        order = ["reproduced", "not reproduced", "higher", "lower", "no difference"]
        kinds = [*order, *sorted({row["verdict"] for row in rows} - set(order))]
        counts = [(sum(row["verdict"] == kind for row in rows), kind) for kind in kinds]
        told = ", ".join(f"{count} {kind}" for count, kind in counts if count)
        if rows:
            sentences.append(f"{words.format(len(rows))}: {told}.")
    return " ".join(sentences)


def stage_table(result, metrics):
    """(heads, rows): stages by metrics, with intervals."""
    scores = result["scores"]
    metrics = [m for m in metrics if any(m in scores.get(stage, {}) for stage in STAGES)]
    rows = []
    for stage in [stage for stage in STAGES if stage in scores]:
        found = [(scores[stage].get(metric), METRICS[metric][1]) for metric in metrics]
        rows.append([ARMS[stage], *(interval(row, unit, sign=False) if row else ""
                                    for row, unit in found)])  # fmt: skip
    return ["", *(SHORT.get(metric, metric) for metric in metrics)], rows


def pair_rows(result):
    """[file of pairs, mean number, from the fewest to the most of a seed]."""
    rows, order = [], list(ARMS)
    pairs = result["pairs"].items()
    for name, counts in sorted(pairs, key=lambda pair: [*order, pair[0]].index(pair[0])):
        low, high = min(counts), max(counts)
        name = "FAP + SCP, 85% mistakes" if name == "mistaken_both" else ARMS.get(name, name)
        spread = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        rows.append([name, f"{sum(counts) / len(counts):,.0f}", spread])
    return rows


def time_rows(result):
    """[kind of stage, its core minutes a seed], the longest first."""
    times = sorted(result["core_seconds_a_seed"].items(), key=lambda item: (-item[1], item[0]))
    return [[stage, f"{seconds / 60:.1f}"] for stage, seconds in times]


# ---- STUDY.md ------------------------------------------------------------------------------------


def markdown(result, drawn, real, folder):
    """STUDY.md. drawn: {title: path}; real: the real model's rows or None; folder: STUDY.md's."""

    def picture(title):
        if title not in drawn:
            return []
        path = Path(os.path.relpath(drawn[title], folder)).as_posix()
        return [f"![{title}]({path})", "", f"*{CAPTIONS.get(title, FOREST)}*", ""]

    lines = [f"# {TITLE}", "", ABOUT.format(seeds=seeds_of(result)), "", LIMITS, ""]
    lines += [f"**{summary(result)}**", "", *picture("Capabilities by stage")]
    lines += ["## Making it again", "", "```", "recipes/study.sh", "```", ""]
    lines += [AGAIN.format(minutes=minutes_of(result)), "", "## Reading the verdicts", ""]
    for paragraph in READING:
        lines += [paragraph, ""]
    lines += table(["metric", "what it is"], metric_rows(result))
    for group, rows in groups(result).items():
        lines += [f"## {group}", "", *picture(group), *table(HEADS, map(cells, rows))]
        lines += [f"- **{row['finding']}**: {row['why']}" for row in rows if row["why"]]
        lines += [""] if lines[-1] else []
    lines += ["## By stage", "", "Points; means and 95% intervals.", ""]
    lines += table(*stage_table(result, SCORES))
    lines += ["What is forgotten: general retention, and held-out losses in nats.", ""]
    lines += table(*stage_table(result, ("general", "if", *LOSSES)))
    for title in list(CAPTIONS)[1:]:
        lines += picture(title)
    if real:
        lines += [
            "## A real model",
            "",
            REAL,
            "",
            *([real["about"], ""] if real.get("about") else []),
        ]
        lines += table(REAL_HEADS, map(real_cells, real["rows"]))
    if result["pairs"]:
        lines += ["## How many pairs", ""]
        lines += table(["pairs", "mean", "in a seed"], pair_rows(result))
    lines += ["## Core time", "", "Minutes of one core, for a seed.", ""]
    lines += table(["stage", "minutes"], time_rows(result))
    return "\n".join(lines).rstrip() + "\n"


def write(result, results, study_md, out):
    """The pictures in RESULTS/study, STUDY.md, and OUT/study.html; the same bytes each time.

    The real model's rows come from RESULTS/smollm2_study.json, if it is there.
    """
    import study_page  # here, as it shows this file's rows

    path = results / "smollm2_study.json"
    real = read_json(path) if path.exists() else None
    drawn = study_figures.draw(result, results / "study")
    write_text(study_md, markdown(result, drawn, real, study_md.parent))
    write_text(out / "study.html", study_page.html(result, drawn, real))
    print(f"{summary(result)}\n{study_md}\n{out / 'study.html'}")
