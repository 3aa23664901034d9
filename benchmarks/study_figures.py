"""The pictures of the study: capabilities and losses by stage, alignment; with study_forest.py."""

from study_forest import BLUE, GREY, ORANGE, forest, interval, spread
from study_rows import ARMS, STAGES

from figures import FAINT, INK, finish

SOFT, TRACK = "#52606d", "#eef1f4"
STYLE = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK) | {
    "font.size": 10, "axes.edgecolor": FAINT, "axes.grid": True, "axes.grid.axis": "x",
    "grid.color": FAINT, "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "savefig.dpi": 160,
    "figure.constrained_layout.use": True,
}  # fmt: skip
HEADS = {  # stage: (two lines above its column, colour)
    "base": ("base", "#a3acb8"),
    "text_finance": ("CPT\nfinance text", "#9cc3e6"),
    "text": ("CPT\n+ general text", "#6aa3d5"),
    "it": ("IT", "#e9b44c"),
    "cpt_then_it": ("CPT,\nthen IT", "#5aa469"),
    "joint": ("CPT + IT\njointly", "#3b78b5"),
    "policy": ("the same,\n3 passes", "#1d4e80"),
    "both": ("then DPO,\nFAP + SCP", "#d9572b"),
}
SPANS = [("", "base", "base"), ("one stage alone", "text_finance", "it"),
         ("both stages", "cpt_then_it", "policy"), ("aligned", "both", "both")]  # fmt: skip
PROFILE = [  # (what is below each other, {metric: name})
    ("new: finance", {"knows": "facts, by choices", "concepts": "facts, asked",
                      "read": "facts only read", "tasks": "tasks", "exam": "exam: answer",
                      "process": "exam: every step"}),
    ("to be kept", {"if": "instructions", "general": "general"}),
]  # fmt: skip
TRAINED = {"fap": "FAP", "scp": "SCP", "both": "FAP + SCP", "no_nll": "FAP + SCP without NLL"}
COUNTS = (("64", "first_64"), ("256", "first_256"), ("all", "both"))
NOISE = (("0%", "both"), ("20%", "noisy_0.2"), ("40%", "noisy_0.4"))


def draw(result, folder):
    """Draw the figures: {title: path}. Without matplotlib there are none, and a line says so."""
    try:
        import matplotlib
    except ImportError:
        print("note: no figures; they need: pip install matplotlib")
        return {}
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    with matplotlib.rc_context(STYLE):
        for title, picture in PICTURES.items():
            if (figure := picture(result)) is not None:
                drawn[title] = written(figure, folder / f"{picture.__name__}.png")
        groups = list(dict.fromkeys(row["group"] for row in result["rows"]))
        for i, group in enumerate(groups, 1):
            rows = [row for row in result["rows"] if row["group"] == group]
            drawn[group] = written(forest(rows), folder / f"rows_{i}.png")
    return drawn


def written(figure, path):
    """The file of a figure, with 128 colours: a third of the bytes, and no one sees it."""
    from PIL import Image

    Image.open(finish(figure, path)).convert("RGB").quantize(128).save(path, optimize=True)
    return path


def present(result, arms, metric):
    """{arm: {"mean", "low", "high", "seeds"}} of those arms that have the metric."""
    scores = result["scores"]
    return {arm: scores[arm][metric] for arm in arms if metric in scores.get(arm, {})}


# ---- by stage ------------------------------------------------------------------------------------


def profile(result):
    """A column for each stage, a bar for each capability: how the shape of a model changes."""
    from matplotlib import pyplot

    stages = list(present(result, STAGES, "exam"))
    if not stages:
        return None
    figure, axis = pyplot.subplots(figsize=(10, 4.2))
    at, pitch, labels, start = 0.0, 148, {}, {}
    for title, names in PROFILE:
        start[title] = at
        for metric, name in names.items():
            labels[at] = name
            for i, stage in enumerate(stages):
                found, left = result["scores"][stage].get(metric), i * pitch
                if found is None:
                    axis.text(left, at, "not measured", va="center", fontsize=8, color=SOFT)
                    continue
                axis.barh(at, 100, 0.62, left, color=TRACK, linewidth=0)
                axis.barh(at, found["mean"], 0.62, left, color=HEADS[stage][1], linewidth=0)
                if found["low"] is not None:
                    ends = [left + min(100, max(0, found[end])) for end in ("low", "high")]
                    axis.plot(ends, (at, at), color=INK, linewidth=1.2, solid_capstyle="butt")
                axis.text(left + 104, at, f"{found['mean']:.0f}", va="center", fontsize=9)
            at += 1
        at += 0.55
    bottom = at - 0.55
    for i, stage in enumerate(stages):
        axis.text(i * pitch, -0.72, HEADS[stage][0], va="bottom", fontsize=9.5, linespacing=1.25,
                  fontweight="bold" if stage in ("joint", "both") else "normal")  # fmt: skip
    for title, first, last in SPANS:
        inside = [i for i, s in enumerate(stages)
                  if STAGES.index(first) <= STAGES.index(s) <= STAGES.index(last)]  # fmt: skip
        if title and inside:
            ends = (inside[0] * pitch, inside[-1] * pitch + 124)
            axis.plot(ends, (-2.05, -2.05), color=FAINT, linewidth=1.6, solid_capstyle="butt")
            axis.text(ends[0], -2.2, title, va="bottom", fontsize=9, color=SOFT)
    for title, y in start.items():
        axis.text(-178, y - 0.5, title, va="bottom", fontsize=9, color=SOFT)
    for y, name in labels.items():
        axis.text(-178, y, name, va="center", fontsize=10)
    seeds = max(result["scores"][s]["exam"]["seeds"] for s in stages)
    note = "points of 100, one seed"
    if seeds > 1:
        note = f"points of 100; mean of {seeds} seeds, line: 95% interval"
    axis.text(-178, bottom - 0.1, note, va="top", fontsize=9, color=SOFT)
    axis.set_xlim(-182, len(stages) * pitch - 10)
    axis.set_ylim(bottom + 0.6, -2.9)
    axis.axis("off")
    return figure


def by_stage(axis, result, stages, metric, marker="o", color=None, label=None):
    """Means and intervals of one metric, a stage a line, the first at the top."""
    for y, (stage, found) in enumerate(present(result, stages, metric).items()):
        look = color or HEADS[stage][1]
        spread(axis, found, y, color=INK, linewidth=1.2, zorder=2)
        axis.plot(found["mean"], y, marker, color=look, markeredgecolor=INK, markeredgewidth=0.7,
                  markersize=7.5, zorder=3, label=label if y == 0 else None)  # fmt: skip
    plain(axis, len(stages))


def plain(axis, lines):
    """Lines below each other, every second one shaded, without an axis at the left."""
    axis.set_ylim(lines - 0.5, -0.5)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    for y in range(1, lines, 2):
        axis.axhspan(y - 0.5, y + 0.5, color="#f5f7f9", zorder=0, linewidth=0)


def numbers(axis, result, stages, metric, form):
    """Means as numbers at the right edge, where by_stage leaves room."""
    for y, found in enumerate(present(result, stages, metric).values()):
        axis.annotate(f"{found['mean']:{form}}", (0.985, y), fontsize=9, va="center",
                      ha="right", xycoords=("axes fraction", "data"), color=SOFT)  # fmt: skip


def name_stages(axis, stages):
    axis.set_yticks(range(len(stages)), [HEADS[stage][0].replace("\n", " ") for stage in stages])


def nats(axis, result, stages, metrics, room=0.0):
    """Losses lie between 0.001 and 10: a log scale over all of the metrics, with plain numbers.
    room: what is free at the right edge, for numbers, as a share of the rest."""
    found = [row["mean"] for m in metrics for row in present(result, stages, m).values()]
    low, high = min(found) / 1.6, max(found) * 1.6
    axis.set_xscale("log")
    axis.set_xlim(low, high * (high / low) ** room)
    ticks = [10.0**power for power in range(-6, 3)]
    if high / low < 100:
        ticks = [digit * tick for tick in ticks for digit in (1, 3)]
    elif high / low > 3000:
        ticks = ticks[::2]
    axis.set_xticks([tick for tick in ticks if low < tick < high])
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.minorticks_off()


def forgetting(result):
    """What the base knew, after each stage: two scores, two losses."""
    from matplotlib import pyplot

    stages = list(present(result, STAGES, "loss general text"))
    if len(stages) < 2:
        return None
    size = {"figsize": (9, 3.2), "width_ratios": (1, 1, 1.5)}
    figure, axes = pyplot.subplots(1, 3, sharey=True, **size)
    for axis, metric, title in zip(axes, ("general", "if"), ("general questions",
                                   "instruction following"), strict=False):  # fmt: skip
        by_stage(axis, result, stages, metric)
        numbers(axis, result, stages, metric, ".1f")
        axis.set_xlim(-6, 142)
        axis.set_xticks((0, 50, 100))
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("points")
    for kind, marker, color in (("text", "s", "#6aa3d5"), ("chat", "o", "#e9b44c")):
        by_stage(axes[2], result, stages, f"loss general {kind}", marker, color, f"general {kind}")
    nats(axes[2], result, stages, ("loss general text", "loss general chat"))
    axes[2].set_title("held-out loss", fontsize=10, loc="left")
    axes[2].set_xlabel("nats per token, log scale")
    axes[2].legend(fontsize=8.5, loc="lower right", bbox_to_anchor=(1.02, 0.98), ncols=2,
                   handletextpad=0.1, columnspacing=0.8, borderaxespad=0)  # fmt: skip
    name_stages(axes[0], stages)
    return figure


def losses(result):
    """Held-out loss of the four sources, after each stage."""
    from matplotlib import pyplot

    stages = list(present(result, STAGES, "loss general text"))
    if len(stages) < 2:
        return None
    figure, axes = pyplot.subplots(1, 4, figsize=(10, 3.2), sharey=True)
    names = [f"{part} {kind}" for kind in ("text", "chat") for part in ("finance", "general")]
    for axis, name in zip(axes, names, strict=True):
        by_stage(axis, result, stages, f"loss {name}")
        numbers(axis, result, stages, f"loss {name}", ".3g")
        kind = name.split()[1]  # the same scale for both texts, and for both chats
        same = [f"loss {part} {kind}" for part in ("finance", "general")]
        nats(axis, result, stages, same, 0.4)
        axis.set_title(name, fontsize=10, loc="left")
    figure.supxlabel("nats per token, log scale", fontsize=10, color=INK)
    name_stages(axes[0], stages)
    return figure


# ---- alignment -----------------------------------------------------------------------------------


def band(axis, steps, values, color, label=None, **style):
    """Mean of the seeds as a line, their range as a band. values: a list of seeds for each step."""
    axis.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=color,
                      alpha=0.2, linewidth=0)  # fmt: skip
    axis.plot(steps, [sum(v) / len(v) for v in values], color=color, label=label, **style)


def rewards(result):
    """How DPO moves both sides of a pair: rewards and their margin, and bare log-probs."""
    from matplotlib import pyplot

    arms = [arm for arm in TRAINED if result["curves"].get(arm)]
    if not arms:
        return None
    figure, axes = pyplot.subplots(2, len(arms), sharex="col", sharey="row", squeeze=False,
                                   figsize=(0.8 + 2.35 * len(arms), 4.4))  # fmt: skip
    lines = (("chosen", BLUE, "-"), ("rejected", ORANGE, "--"))
    for (above, below), arm in zip(axes.T, arms, strict=True):
        curves = result["curves"][arm]
        steps = curves.get("step") or range(len(curves["rewards/margins"]))
        band(above, steps, curves["rewards/margins"], GREY, "margin", linestyle=":", linewidth=2)
        for side, color, line in lines:
            band(above, steps, curves[f"rewards/{side}"], color, side, linestyle=line)
            band(below, steps, curves[f"logps/{side}"], color, linestyle=line)
        above.set_title(TRAINED[arm], fontsize=10, loc="left")
        above.axhline(0, color=INK, linewidth=0.8, zorder=1)
        below.set_xlabel("step")
        for axis in (above, below):
            axis.grid(visible=True, axis="y")
            axis.grid(visible=False, axis="x")
    axes[0, 0].set_ylabel("rewards\n(beta × log-ratio)")
    axes[1, 0].set_ylabel("log-prob of a side\n(nats)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3, loc="outside upper center",
                  fontsize=9)  # fmt: skip
    return figure


def gains(result):
    """Exam, every arm minus what it is aligned from: seeds as dots, mean and interval."""
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    found = result["gains"]
    if not found:
        return None
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 1.1 + 0.27 * len(found)), sharey=True)
    # Arms that lose much are arrows at the edge, or those that gain could not be told apart
    near = [row for rows in found.values() for row in rows.values() if row["mean"] > -5]
    ends = [x for row in near for x in (*row["each_seed"].values(), row["low"], row["high"])]
    ends = [0, 1, *(x for x in ends if x is not None)]
    low, high = min(ends), max(ends)
    for axis, metric in zip(axes, ("exam", "process"), strict=True):
        axis.axvline(0, color=INK, linewidth=1, zorder=1)
        for y, (arm, rows) in enumerate(found.items()):
            row, sft = rows[metric], "sft" in arm
            if row["mean"] < low:
                axis.annotate(f"◀ {interval(row, 'points')}", (0.01, y), va="center",
                              xycoords=("axes fraction", "data"), fontsize=9)  # fmt: skip
                continue
            color = BLUE if sft else ORANGE
            axis.plot(list(row["each_seed"].values()), [y] * row["seeds"], "o", color=color,
                      alpha=0.35, markersize=4.5, markeredgewidth=0)  # fmt: skip
            spread(axis, row, y, color=INK, linewidth=1.2)
            axis.plot(row["mean"], y, "s" if sft else "o", color=color, markersize=6.5,
                      markeredgecolor=INK, markeredgewidth=0.7, zorder=3)  # fmt: skip
        axis.set_title({"exam": "answer right", "process": "every step right too"}[metric],
                       fontsize=10, loc="left")  # fmt: skip
        axis.set_xlabel("points gained in the exam")
        axis.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        plain(axis, len(found))
    axes[0].set_yticks(range(len(found)), [ARMS[arm] for arm in found])
    marks = [("DPO", ORANGE, "o", 6.5), ("SFT", BLUE, "s", 6.5), ("a seed", "#f0bba7", "o", 4.5)]
    handles = [Line2D([], [], linestyle="", color=color, marker=marker, markersize=size, label=name)
               for name, color, marker, size in marks]  # fmt: skip
    figure.legend(handles=handles, ncols=3, loc="outside upper right", fontsize=9)
    return figure


def rejected(result):
    """DPO and SFT on the same chosen texts, by number of pairs and by wrong verdicts."""
    from matplotlib import pyplot

    panels = []
    for title, places in (("pairs", COUNTS), ("verdicts that are wrong", NOISE)):
        both = [places, [(label, f"sft_{arm}") for label, arm in places]]
        found = [present(result, [arm for _, arm in side], "exam") for side in both]
        if all(len(some) > 1 for some in found):
            panels.append((title, both, found))
    if not panels:
        return None
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.3 * len(panels), 3.1), sharey=True,
                                   squeeze=False)  # fmt: skip
    start = present(result, ["policy"], "exam")
    for axis, (title, both, found) in zip(axes[0], panels, strict=True):
        looks = ((ORANGE, "o", "DPO", -0.03), (BLUE, "s", "SFT on the chosen texts", 0.03))
        for side, some, (color, marker, name, shift) in zip(both, found, looks, strict=True):
            places = [i for i, (_, arm) in enumerate(side) if arm in some]
            rows = [some[side[i][1]] for i in places]
            axis.plot([i + shift for i in places], [row["mean"] for row in rows], marker=marker,
                      color=color, markersize=6.5, label=name)  # fmt: skip
            for i, row in zip(places, rows, strict=True):
                if row["low"] is not None:
                    axis.vlines(i + shift, row["low"], row["high"], color=color, linewidth=1.4)
        if start:
            axis.axhline(start["policy"]["mean"], color=GREY, linestyle=":", linewidth=1.4,
                         label="before alignment")  # fmt: skip
        axis.set_xticks(range(len(both[0])), [label for label, _ in both[0]])
        axis.set_xlim(-0.35, len(both[0]) - 0.65)
        axis.set_xlabel(title)
        axis.grid(visible=True, axis="y")
    axes[0, 0].set_ylabel("exam, points")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3, loc="outside upper center",
                  fontsize=9)  # fmt: skip
    return figure


PICTURES = {
    "Capabilities by stage": profile,
    "What is forgotten": forgetting,
    "Losses by source": losses,
    "DPO, step by step": rewards,
    "Gain in the exam": gains,
    "With and without the rejected side": rejected,
}
