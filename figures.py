"""The pictures of the report: scores with intervals, the exam, training curves."""

from metrics import read_metrics

NAMES = {
    "base": "base",
    "cpt_it": "CPT + IT",
    "aligned": "aligned (DPO)",
    "sft_control": "control (SFT)",
}
COLORS = {"base": "#a3acb8", "cpt_it": "#3b78b5", "aligned": "#d9572b", "sft_control": "#e9b44c"}
INK, FAINT = "#1f2933", "#d5dbe1"


def draw(report, folder):
    """Draw the figures: {title: path}. Without matplotlib there are none, and a line says so."""
    try:
        import matplotlib
    except ImportError:
        print("note: no figures; they need: pip install matplotlib")
        return {}
    matplotlib.use("Agg")
    matplotlib.rcParams.update({
        "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK,
        "ytick.color": INK, "axes.edgecolor": FAINT, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
        "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True,
        "legend.frameon": False, "savefig.dpi": 160, "figure.constrained_layout.use": True,
    })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"Scores by capability": bars(report, folder / "capabilities.png")}
    if report["process"]:
        figures["The exam by answer and by process"] = exam(report, folder / "exam.png")
    curves = training(report, folder / "training.png")
    if curves:
        figures["Training"] = curves
    return figures


def interval_bars(axis, places, entries, **style):
    """Bars with their intervals and the score above; entries are {score, low, high}."""
    scores = [e["score"] for e in entries]
    # An interval is not centred on its score: two arms. Far off-centre it may not even hold it.
    spread = [
        [max(0, e["score"] - e["low"]) for e in entries],
        [max(0, e["high"] - e["score"]) for e in entries],
    ]
    error = {"elinewidth": 1.1, "ecolor": INK, "capsize": 2.5, "capthick": 1.1}
    axis.bar(places, scores, yerr=spread, error_kw=error, **style)
    for place, entry in zip(places, entries, strict=True):
        axis.annotate(f"{entry['score']:.0f}", (place, entry["high"]), (0, 3),
                      textcoords="offset points", ha="center", fontsize=8)  # fmt: skip


def finish(figure, path):
    """Write and close a figure (open ones are kept alive by pyplot)."""
    from matplotlib import pyplot

    figure.savefig(path)
    pyplot.close(figure)
    return path


def bars(report, path):
    """Grouped bars: capabilities side by side, one colour per checkpoint."""
    from matplotlib import pyplot

    scores, checkpoints = report["scores"], list(report["checkpoints"])
    figure, axis = pyplot.subplots(figsize=(9.6, 3.8))
    width = 0.8 / len(checkpoints)
    for i, checkpoint in enumerate(checkpoints):
        places = [x + (i - (len(checkpoints) - 1) / 2) * width for x in range(len(scores))]
        entries = [cells[checkpoint] for cells in scores.values()]
        interval_bars(axis, places, entries, width=0.92 * width, label=NAMES[checkpoint],
                      color=COLORS[checkpoint])  # fmt: skip
    axis.set_xticks(range(len(scores)), [c.replace("_", "\n") for c in scores])
    axis.tick_params(axis="x", length=0)
    axis.set_ylim(0, 112)  # room for the number above a bar of 100
    axis.set_yticks(range(0, 101, 25))
    axis.set_ylabel("points")
    axis.legend(ncols=len(checkpoints), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return finish(figure, path)


def exam(report, path):
    """The exam per checkpoint: final answer right, and every step right too."""
    from matplotlib import pyplot

    checkpoints = list(report["checkpoints"])
    figure, axis = pyplot.subplots(figsize=(9.6, 3.4))
    answers = [report["scores"]["reasoning"][c] for c in checkpoints]
    steps = [report["process"][c] for c in checkpoints]
    colors = [COLORS[c] for c in checkpoints]
    middle = range(len(checkpoints))
    interval_bars(axis, [x - 0.2 for x in middle], answers, width=0.36, color=colors)
    interval_bars(axis, [x + 0.2 for x in middle], steps, width=0.36, color="white",
                  edgecolor=colors, hatch="////", linewidth=1.2)  # fmt: skip
    axis.set_xticks(middle, [NAMES[c] for c in checkpoints])
    axis.tick_params(axis="x", length=0)
    axis.set_ylim(0, 112)
    axis.set_yticks(range(0, 101, 25))
    axis.set_ylabel("points")
    solid = pyplot.Rectangle((0, 0), 1, 1, color="#7b8794")
    hatched = pyplot.Rectangle((0, 0), 1, 1, facecolor="white", edgecolor="#7b8794", hatch="////")
    axis.legend([solid, hatched], ["answer right", "every step right too"], ncols=2,
                loc="lower center", bbox_to_anchor=(0.5, 1.0))  # fmt: skip
    return finish(figure, path)


# checkpoint, title, y axis, series of metrics.jsonl: (name, label, colour)
PANELS = (
    ("cpt_it", "CPT + IT: loss by source", "nats per token",
     (("loss/text", "text", "#3b78b5"), ("loss/chat", "chat", "#5aa469"),
      ("heldout/text", "held out text", "#1d3f60"),
      ("heldout/chat", "held out chat", "#2c5535"))),
    ("sft_control", "Control: SFT loss", "nats per token", (("loss", "chosen texts", "#c58d1e"),)),
    ("aligned", "DPO: rewards", "beta x log-ratio",
     (("rewards/chosen", "chosen", "#d9572b"), ("rewards/rejected", "rejected", "#7b8794"))),
    ("aligned", "DPO: chosen preferred", "share of pairs",
     (("rewards/accuracies", "chosen above rejected", "#d9572b"),)),
)  # fmt: skip


def training(report, path):
    """Curves of each training run whose metrics.jsonl is there; None if there is none."""
    from matplotlib import pyplot

    panels = []
    for checkpoint, title, unit, series in PANELS:
        rows = read_metrics(report["checkpoints"].get(checkpoint, "missing"))
        lines = [(label, color, [(row["step"], row[name]) for row in rows if name in row])
                 for name, label, color in series]  # fmt: skip
        if any(line for _, _, line in lines):
            panels.append((title, unit, lines))
    if not panels:
        return None
    columns, lines = min(2, len(panels)), -(-len(panels) // 2)
    size = (4.8 * columns, 2.7 * lines)
    figure, axes = pyplot.subplots(lines, columns, squeeze=False, figsize=size)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, unit, lines) in zip(axes.flat, panels, strict=False):
        for label, color, line in lines:
            if not line:
                continue
            steps, values = zip(*line, strict=True)
            if "held out" in label:
                axis.plot(steps, values, "o--", color=color, label=label, markersize=4, linewidth=1)
            else:
                axis.plot(steps, values, color=color, alpha=0.22, linewidth=0.8)
                axis.plot(steps, smooth(values), color=color, label=label, linewidth=1.6)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("step")
        axis.set_ylabel(unit)
        if len(lines) > 1:
            axis.legend(fontsize=8)
    return finish(figure, path)


def smooth(values):
    """Running mean over a twentieth of the run."""
    span, out = max(1, len(values) // 20), []
    for i in range(len(values)):
        window = values[max(0, i - span) : i + span + 1]
        out.append(sum(window) / len(window))
    return out
