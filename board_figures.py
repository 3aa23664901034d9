"""The pictures of the scoreboard: means as bars, tasks as dots, paired differences."""

from figures import FAINT, INK, finish, interval_bars

COLORS = ("#7b8794", "#3b78b5", "#d9572b", "#e9b44c", "#5aa469", "#8e6bbf", "#2a9d9d", "#c2578f")
MARKERS = ("o", "s", "^", "v")  # another one each time the colours are used up


def looks(checkpoints):
    """{checkpoint: (colour, marker)}."""
    return {c: (COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)])
            for i, c in enumerate(checkpoints)}  # fmt: skip


def draw(board, folder):
    """Draw the figures: {title: path}. Without matplotlib there are none, and a line says so."""
    try:
        import matplotlib
    except ImportError:
        print("note: no figures; they need: pip install matplotlib")
        return {}
    matplotlib.use("Agg")
    ink = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    style = dict.fromkeys(ink, INK) | {
        "font.size": 10, "axes.edgecolor": FAINT, "axes.grid": True, "grid.color": FAINT,
        "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.spines.top": False,
        "axes.spines.right": False, "legend.frameon": False, "savefig.dpi": 160,
        "figure.constrained_layout.use": True,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(style):
        drawn = {"Means": bars(board, folder / "means.png"),
                 "Every task": dots(board, folder / "tasks.png")}  # fmt: skip
        if len(board["checkpoints"]) > 1:
            drawn["Differences"] = changes(board, folder / "differences.png")
    return drawn


def legend_above(axis, handles, columns):
    axis.legend(handles=handles, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1.0),
                fontsize=9, columnspacing=1.4)  # fmt: skip


def handle(label, color, marker="o", **style):
    """A legend's entry: a mark without a line."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=marker, color=color, label=label, **style)


def bars(board, path):
    """Means side by side, one colour per checkpoint."""
    from matplotlib import pyplot

    means, checkpoints = board["means"], looks(board["checkpoints"])
    width = 0.82 / len(checkpoints)
    size = (max(9.6, 0.34 * len(means) * len(checkpoints)), 3.8)
    figure, axis = pyplot.subplots(figsize=size)
    for i, (checkpoint, (color, _)) in enumerate(checkpoints.items()):
        places = [x + (i - (len(checkpoints) - 1) / 2) * width for x in range(len(means))]
        entries = [view["scores"][checkpoint] for view in means.values()]
        interval_bars(axis, places, entries, width=0.92 * width, color=color)
    labels = [f"{name.replace('_', chr(10))}\n{len(view['tasks'])} of {view['of']}"
              for name, view in means.items()]  # fmt: skip
    axis.set_xticks(range(len(means)), labels)
    axis.tick_params(axis="x", length=0)
    axis.grid(visible=False, axis="x")
    low = min(cell["low"] for view in means.values() for cell in view["scores"].values())
    axis.set_ylim(min(0, low - 5), 108)  # room for the number above a bar of 100
    axis.set_yticks(range(0, 101, 25))
    axis.set_ylabel("points")
    handles = [handle(c, color, "s") for c, (color, _) in checkpoints.items()]
    legend_above(axis, handles, min(6, len(handles)))
    return finish(figure, path)


def lines_of(board, rows_each):
    """(figure, axis, {task: middle of its band}) with a band per task, capabilities apart."""
    from matplotlib import pyplot

    places, at, before = {}, 0.0, None
    for name, entry in board["tasks"].items():
        if before is not None and entry["capability"] != before:
            at += 0.6
        before, places[name] = entry["capability"], at
        at += 1
    height = at * max(0.26, 0.09 + 0.095 * rows_each) + 1.1
    figure, axis = pyplot.subplots(figsize=(9.6, height))
    axis.set_yticks(list(places.values()), list(places))
    axis.set_ylim(at - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(visible=False, axis="y")
    for i, middle in enumerate(places.values()):
        if i % 2:
            axis.axhspan(middle - 0.5, middle + 0.5, color="#f5f7f9", zorder=0, linewidth=0)
    for capability in dict.fromkeys(e["capability"] for e in board["tasks"].values()):
        members = [places[n] for n, e in board["tasks"].items() if e["capability"] == capability]
        axis.annotate(capability.replace("_", "\n"), (1.01, sum(members) / len(members)),
                      xycoords=("axes fraction", "data"), va="center", fontsize=9, color="#52606d",
                      annotation_clip=False)  # fmt: skip
    return figure, axis, places


def offsets(count):
    """Places of `count` checkpoints within a task's band."""
    return [(i - (count - 1) / 2) * 0.8 / count for i in range(count)]


def interval_dot(axis, found, score, place, color, marker, hollow=False):
    axis.plot((found["low"], found["high"]), (place, place), color=color, linewidth=1.4, zorder=2)
    axis.plot(score, place, marker, color=color, markersize=4.5, zorder=3,
              markerfacecolor="white" if hollow else color)  # fmt: skip


def dots(board, path):
    """Every task: checkpoints below each other, a tick for the majority, the paper's Llama-Fin."""
    checkpoints = looks(board["checkpoints"])
    figure, axis, places = lines_of(board, len(checkpoints))
    shown_paper = shown_majority = False
    for name, middle in places.items():
        entry = board["tasks"][name]
        for (checkpoint, look), shift in zip(
            checkpoints.items(), offsets(len(checkpoints)), strict=True
        ):
            cell = entry["scores"][checkpoint]
            interval_dot(axis, cell, cell["score"], middle + shift, *look)
        if entry["majority"] is not None:
            shown_majority = True
            axis.vlines(entry["majority"], middle - 0.42, middle + 0.42, color=INK, linewidth=1.3)
        # Another metric has no place on this axis
        if entry["paper"] and "metric" not in entry["paper"]["other"]:
            shown_paper = True
            axis.plot(entry["paper"]["llama_fin"], middle, "D", markerfacecolor="none",
                      markeredgecolor=INK, markersize=6.5, zorder=4)  # fmt: skip
    low = min(cell["low"] for e in board["tasks"].values() for cell in e["scores"].values())
    axis.set_xlim(min(-1.5, low - 2), 102)
    axis.set_xlabel("points")
    handles = [handle(c, *look) for c, look in checkpoints.items()]
    if shown_majority:
        handles.append(handle("majority answer", INK, "|", markersize=10))
    if shown_paper:
        handles.append(handle("paper's Llama-Fin, asked otherwise", INK, "D",
                              markerfacecolor="none"))  # fmt: skip
    legend_above(axis, handles, min(5, len(handles)))
    return finish(figure, path)


def changes(board, path):
    """Paired differences to the first checkpoint; hollow where the interval holds 0."""
    first, *others = board["checkpoints"]
    colors = looks(board["checkpoints"])
    figure, axis, places = lines_of(board, len(others))
    axis.axvline(0, color=INK, linewidth=1, zorder=1)
    for name, middle in places.items():
        for other, shift in zip(others, offsets(len(others)), strict=True):
            found = board["tasks"][name]["differences"][other]
            if "reason" in found:
                axis.annotate("not compared", (0, middle + shift), (4, 0), fontsize=7,
                              textcoords="offset points", va="center", color="#52606d")  # fmt: skip
                continue
            hollow = found["low"] <= 0 <= found["high"]
            interval_dot(axis, found, found["difference"], middle + shift, *colors[other], hollow)
    axis.set_xlabel(f"points more than {first}, on the same rows")
    handles = [handle(other, *colors[other]) for other in others]
    handles.append(handle("hollow: the interval holds 0", INK, markerfacecolor="white"))
    legend_above(axis, handles, min(5, len(handles)))
    return finish(figure, path)
