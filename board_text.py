"""The scoreboard as rows of words, for the terminal, board.md and the tables of board.html."""

from report import shown

PAPER_WARNING = (
    "The paper's columns are for orientation only: its prompts, splits and ways of asking differ "
    "from these, and most are not published. Where its metric or its way is another one than here "
    "the row says so; such figures are not comparable at all."
)
PAPER_HEADS = ("paper: n", "paper: way", "paper: metric", "paper: Llama-Fin",
               "paper: without preference alignment", "paper: Llama3-8B-Instruct", "paper: GPT-4o",
               "paper: Palmyra-Fin-70B")  # fmt: skip
PAPER_KEYS = ("n", "way", "metric", "llama_fin", "no_pa", "llama3", "gpt4o", "palmyra")
MISSING_WARN = 10.0  # points of replies without an answer above which a score says little


def spread(values):
    """One value if all checkpoints have the same, else all of them."""
    return " / ".join(map(str, dict.fromkeys(values)))


def percent(value):
    return "" if value is None else f"{value:.1f}"


def changed(found):
    """ "+1.2 [+0.3, +2.1]", or why there is no difference."""
    if "reason" in found:
        return f"not compared: {found['reason']}"
    return f"{found['difference']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"


def direction(found):
    """up or down where the interval of a difference excludes 0, else none."""
    if "reason" in found:
        return "why"
    return "up" if found["low"] > 0 else "down" if found["high"] < 0 else "none"


def heads_of(board):
    """Column heads of scores and differences."""
    first, *others = board["checkpoints"]
    return [first, *others, *(f"{other} - {first}" for other in others)]


def coverage(view):
    """ "7 of 10", the tasks of a mean, and how many of them a difference leaves out."""
    return f"{len(view['tasks'])} of {view['of']}"


def mean_change(view, found):
    """A mean's difference; over fewer tasks than its scores where some were asked differently."""
    less = "tasks" in found and len(found["tasks"]) < len(view["tasks"])
    return changed(found) + (f" over {len(found['tasks'])} tasks" if less else "")


def mean_rows(board):
    """[view, tasks, n, a score per checkpoint, a difference per other checkpoint]."""
    rows = []
    for name, view in board["means"].items():
        cells = view["scores"].values()
        rows.append([name.replace("_", " "), coverage(view), spread(cell["n"] for cell in cells),
                     *map(shown, cells),
                     *(mean_change(view, d) for d in view["differences"].values())])  # fmt: skip
    return rows


def task_rows(board):
    """[task, n, metric, way, majority, a score per checkpoint, a difference per other one]."""
    rows = []
    for name, entry in board["tasks"].items():
        cells = entry["scores"].values()
        rows.append([name, spread(cell["n"] for cell in cells), entry["metric"],
                     spread(cell["way"] for cell in cells), percent(entry["majority"]),
                     *map(shown, cells), *map(changed, entry["differences"].values())])  # fmt: skip
    return rows


def beside(found, score):
    """ "mcc 12.3, balanced 45.6": without them accuracy says little where one label dominates."""
    names, metrics = {"mcc": "mcc", "balanced_acc": "balanced"}, found["metrics"]
    return ", ".join(f"{word} {metrics[metric]['score']:.1f}" for metric, word in names.items()
                     if metric in metrics and metric != score)  # fmt: skip


def metric_rows(board):
    """[task, metric, majority, a value per checkpoint]: all that was measured."""
    rows = []
    for name, entry in board["tasks"].items():
        measured = [cell["metrics"] for cell in entry["scores"].values()]
        for metric in dict.fromkeys(metric for found in measured for metric in found):
            cells = [shown(found[metric]) if metric in found else "" for found in measured]
            if any(cells) and metric != "missing":  # reply_rows has it
                rows.append([name, metric, percent(entry["baseline"].get(metric)), *cells])
    return rows


def reply_rows(board):
    """[task, rows left out, "% without an answer / prompts cut / replies cut" per checkpoint].

    Rows left out are in no score; where checkpoints differ in them, all counts are shown.
    """
    rows = []
    for name, entry in board["tasks"].items():
        cells = entry["scores"].values()
        left_out = (", ".join(f"{count} by {field}" for field, count in cell["left_out"].items())
                    for cell in cells)  # fmt: skip
        rows.append([name, spread(words or "0" for words in left_out),
                     *(f"{cell['missing']:.1f}% / {cell['truncated']} / {cell['finish_length']}"
                       for cell in cells)])  # fmt: skip
    return rows


def paper_rows(board):
    """[task, a score per checkpoint, what differs in kind, the paper's columns]."""
    rows = []
    for name, entry in board["tasks"].items():
        if reference := entry["paper"]:
            other = "another " + " and ".join(reference["other"]) if reference["other"] else ""
            scores = [f"{cell['score']:.1f}" for cell in entry["scores"].values()]
            values = [f"{v:.1f}" if isinstance(v, float) else str(v)
                      for v in map(reference.get, PAPER_KEYS)]  # fmt: skip
            rows.append([name, *scores, other, *values])
    return rows


def table(heads, rows):
    """A markdown table, as lines. A bar inside a cell would end it."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def markdown(board, drawn):
    """board.md: the tables and figures without the replies."""
    heads = heads_of(board)
    lines = [
        f"# Scoreboard: {', '.join(board['checkpoints'])}",
        "",
        f"{board['unit']}.",
        "",
        f"Differences are to {next(iter(board['checkpoints']))}, on the same rows.",
        "",
        "## Means",
        "",
        *table(["mean over", "tasks", "n", *heads], mean_rows(board)),
        "## Tasks",
        "",
        *table(["task", "n", "metric", "asked by", "majority", *heads], task_rows(board)),
    ]
    if board["outside"]:
        lines += ["## Outside the means", "",
                  *table(["task", "why"], map(list, board["outside"].items()))]  # fmt: skip
    heads = ["task", "metric", "majority", *board["checkpoints"]]
    lines += ["## Every metric", "", *table(heads, metric_rows(board))]
    lines += ["## Replies", "",
              "Without an answer / prompts cut to fit / replies cut by length.", "",
              *table(["task", "rows left out", *board["checkpoints"]],
                     reply_rows(board))]  # fmt: skip
    if rows := paper_rows(board):
        heads = ["task", *board["checkpoints"], "differs in kind", *PAPER_HEADS]
        lines += ["## Beside the paper", "", PAPER_WARNING, "", *table(heads, rows)]
    lines += [f"- {note}" for note in board["notes"]] + [""]
    lines += [f"![{name}](figures/{path.name})" for name, path in drawn.items()]
    return "\n".join(lines) + "\n"


def print_table(board):
    """Means, then tasks, for the terminal; what a number hides, below."""
    first, *others = board["checkpoints"]
    heads = ["points (95% interval)", "n", "metric", *heads_of(board)]
    rows = [[f"{name}, {tasks} tasks", n, "mean", *cells]
            for name, tasks, n, *cells in mean_rows(board)]  # fmt: skip
    rows += [[name, n, metric, *cells] for name, n, metric, _, _, *cells in task_rows(board)]
    rows = [[cell if not cell.startswith("not compared") else "not compared" for cell in row]
            for row in rows]  # fmt: skip
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    for row in [heads, *rows]:
        cells = (f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
        if row[0].startswith("all tasks"):
            print()
    for checkpoint in board["checkpoints"]:
        missing = {name: e["scores"][checkpoint]["missing"] for name, e in board["tasks"].items()}
        high = [f"{name} {share:.1f}%" for name, share in missing.items() if share > MISSING_WARN]
        if high:
            print(f"warning: {checkpoint}: replies without an answer: {', '.join(high)}")
    for name, entry in board["tasks"].items():
        for other, found in entry["differences"].items():
            if "reason" in found:
                print(f"warning: {name}: {other} not compared: {found['reason']}")
    if board["outside"]:
        print(f"note: outside the means: {', '.join(board['outside'])}; board.html says why")
    for note in board["notes"]:
        print(f"note: {note}")
