"""The forest plots of the study: each difference with its interval, coloured by its verdict."""

import math
import textwrap

from study_rows import MARGIN, METRICS

from figures import INK

BLUE, ORANGE, GREY = "#3b78b5", "#d9572b", "#7b8794"
LOOKS = {  # a verdict's colour and mark, so that it can be told without colours, too
    "reproduced": (BLUE, "o"), "not reproduced": (ORANGE, "X"), "higher": ("#2a9d9d", "^"),
    "lower": ("#8e5a9e", "v"), "no difference": (GREY, "s"), "not decidable": ("#a3acb8", "o"),
}  # fmt: skip


def spread(axis, found, y, **style):
    """A line over an interval, at height y; nothing where there is one seed."""
    if found["low"] is not None:
        axis.plot((found["low"], found["high"]), (y, y), solid_capstyle="butt", **style)


def look(verdict):
    """(colour, mark, filled?) of a verdict."""
    color, marker = next(LOOKS[name] for name in LOOKS if verdict.startswith(name))
    return color, marker, not verdict.startswith("not decidable")


def forest(rows):
    """A line for each finding: difference, interval, verdict. Points above, nats below."""
    from matplotlib import pyplot

    panels = [[row for row in rows if METRICS[row["metric"]][1] == unit] for unit in MARGIN]
    panels = [(unit, some) for unit, some in zip(MARGIN, panels, strict=True) if some]
    heights = [0.35 + len(some) for _, some in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, squeeze=False, height_ratios=heights,
        figsize=(9, 0.7 + 0.42 * sum(heights) + 0.4 * (len(panels) - 1)),
    )  # fmt: skip
    for axis, (unit, some) in zip(axes[:, 0], panels, strict=True):
        axis.axvspan(-MARGIN[unit], MARGIN[unit], color="#e8edf2", zorder=0, linewidth=0)
        axis.axvline(0, color=INK, linewidth=1, zorder=1)
        for y, row in enumerate(some):
            color, marker, filled = look(row["verdict"])
            spread(axis, row, y, color=color, linewidth=2, zorder=2)
            axis.plot(row["difference"], y, marker, color=color, markersize=7.5, zorder=3,
                      markerfacecolor=color if filled else "white",
                      markeredgewidth=1.4)  # fmt: skip
            axis.annotate(shown(row["difference"], unit), (1.01, y), va="center", fontsize=9.5,
                          xycoords=("axes fraction", "data"), annotation_clip=False)  # fmt: skip
        axis.set_yticks(range(len(some)), [balanced(row["finding"]) for row in some])
        axis.set_ylim(len(some) - 0.4, -0.6)
        # The margin is seen as a whole, even where all differences are small
        ends = [row[end] for row in some for end in ("low", "high", "difference")]
        ends = [x for x in ends if x is not None] + [-1.5 * MARGIN[unit], 1.5 * MARGIN[unit]]
        room = 0.05 * (max(ends) - min(ends))
        axis.set_xlim(min(ends) - room, max(ends) + room)
        axis.locator_params(axis="x", nbins=9, steps=(1, 2, 5, 10))
        axis.set_xlabel(f"difference in {unit}; shaded: ±{MARGIN[unit]:g}")
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0, labelsize=9.5)
    legend(figure, rows)
    return figure


def balanced(words, width=40):
    """Words in as few lines as fit, all about equally long."""
    lines = math.ceil(len(words) / width)
    return textwrap.fill(words, min(width, len(words) // lines + 6))


def legend(figure, rows):
    """The verdicts that a picture shows, above it."""
    from matplotlib.lines import Line2D

    names = [name for name in LOOKS if any(row["verdict"].startswith(name) for row in rows)]
    handles = []
    for name in names:
        color, marker, filled = look(name)
        face = color if filled else "white"
        handles.append(Line2D([], [], linestyle="", marker=marker, color=color, label=name,
                              markerfacecolor=face, markersize=7))  # fmt: skip
    figure.legend(handles=handles, ncols=len(handles), loc="outside upper right", fontsize=9,
                  handletextpad=0.2, columnspacing=1.2)  # fmt: skip


def shown(value, unit):
    """ "+1.2" points, "−0.034" nats; with a true minus, and no sign for 0."""
    digits = 1 if unit == "points" else 3
    if not round(value, digits):
        return f"{0:.{digits}f}"
    return f"{value:+.{digits}f}".replace("-", "−")


def interval(found, unit, middle="mean", sign=True):
    """ "+1.2 [+0.3, +2.1]"; without an interval where there is one seed."""
    words = [shown(found[key], unit) for key in (middle, "low", "high") if found[key] is not None]
    words = words if sign else [word.replace("+", "") for word in words]
    return words[0] + (f" [{words[1]}, {words[2]}]" if len(words) > 1 else "")
