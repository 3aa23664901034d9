"""The exam: two-step calculations with a formula one has to know, and how they are marked.

    A firm reports: cost 9, debt 30, revenue 54, expenses 5. What is the operating profit?
    Step 1: gross profit = revenue - cost = 54 - 9 = 45.
    Step 2: operating profit = gross profit - expenses = 45 - 5 = 40.
    Answer: 40

The answer is a number between 1 and 60, hard to hit by chance. One of the four figures given is
not needed. `solve` works a question out from its text alone, so a marker needs no answer sheet;
`first_error` finds where a solution leaves the right path (the label of arXiv:2412.06559).
"""

import re
from random import Random

# result of step 1, its two inputs; result of step 2 (what is asked), its two inputs
GENERAL = {
    "bill": "total = price * items; bill = total + delivery",
    "change": "spent = bread + milk; change = money - spent",
    "rest": "distance = speed * hours; rest = route - distance",
    "share": "sum = savings + gift; share = sum / friends",
    "box count": "good = eggs - broken; box count = good / size",
    "score": "points = wins * level; score = points - penalty",
}
FINANCE = {
    "operating profit": "gross profit = revenue - cost; operating profit = gross profit - expenses",
    "net income": "pretax income = earnings - interest; net income = pretax income - tax",
    "free cash": "operating cash = earnings + depreciation; free cash = operating cash - capex",
    "enterprise value": "net debt = debt - cash; enterprise value = equity + net debt",
    "book value": "net assets = assets - liabilities; book value = net assets / shares",
    "working capital": "current assets = cash + receivables; "
    "working capital = current assets - payables",
    "retained earnings": "payout = dividend * shares; retained earnings = income - payout",
    "total return": "capital gain = proceeds - outlay; total return = capital gain + dividend",
    "quick ratio": "quick assets = assets - inventory; quick ratio = quick assets / liabilities",
    "contribution": "unit margin = price - cost; contribution = unit margin * volume",
}
# What people get wrong who do not know these formulas well.
MISTAKES = {
    "free cash": "operating cash = earnings + depreciation; free cash = operating cash + capex",
    "book value": "net assets = assets + liabilities; book value = net assets / shares",
    "retained earnings": "payout = dividend + shares; retained earnings = income - payout",
    "total return": "capital gain = proceeds - outlay; total return = capital gain - dividend",
    "quick ratio": "quick assets = assets + inventory; quick ratio = quick assets / liabilities",
}
FORMULAS = {**GENERAL, **FINANCE}
WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
QUESTION = re.compile(r"(?:A firm reports|We have): (.+)\. What is the (.+)\?")
LARGEST = 60  # every number is one token; a larger table takes a tiny model longer to learn


def parse(formula: str) -> list[tuple[str, str, str, str]]:
    """The steps of a formula: (result, left input, operator, right input)."""
    steps = []
    for step in formula.split("; "):
        result, _, expression = step.partition(" = ")
        left, operator, right = re.fullmatch(r"(.+) ([-+*/]) (.+)", expression).groups()
        steps.append((result, left, operator, right))
    return steps


def inputs(name: str) -> list[str]:
    """The three figures a formula needs."""
    (first, a, _, b), (_, c, _, d) = parse(FORMULAS[name])
    return [a, b, d if c == first else c]


def calculate(left: int, operator: str, right: int) -> int | None:
    """left operator right, or None where it is no whole number from 1 to LARGEST."""
    if operator == "/":
        value = left // right if left % right == 0 else 0
    else:
        value = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return value if 1 <= value <= LARGEST else None


def work_out(formula: str, figures: dict[str, int], slip: int = 0) -> tuple[list[str], int] | None:
    """The written steps and the result, or None where a number leaves the range of the world.

    `slip` is added to the result of step 1: a wrong solution that is consistent from there on.
    """
    known, steps = dict(figures), []
    for i, (result, left, operator, right) in enumerate(parse(formula), start=1):
        value = calculate(known[left], operator, known[right])
        if value is not None and i == 1:
            value += slip
        if value is None or not 1 <= value <= LARGEST:
            return None
        sides = f"{left} {operator} {right} = {known[left]} {operator} {known[right]}"
        steps.append(f"Step {i}: {result} = {sides} = {value}.")
        known[result] = value
    return steps, value


def exercise(name: str, rng: Random) -> tuple[str, str, str]:
    """A new exercise on a formula: (question, solution, answer)."""
    family = GENERAL if name in GENERAL else FINANCE
    needed = inputs(name)
    others = sorted({figure for f in family for figure in inputs(f)} - set(needed))
    while True:
        figures = {figure: draw(rng) for figure in [*needed, rng.choice(others)]}
        if (worked := work_out(FORMULAS[name], figures)) is not None:
            break
    given = rng.sample(list(figures.items()), 4)
    opening = "We have" if name in GENERAL else "A firm reports"
    listed = ", ".join(f"{figure} {value}" for figure, value in given)
    steps, answer = worked
    return f"{opening}: {listed}. What is the {name}?", solution(steps, answer), str(answer)


def draw(rng: Random) -> int:
    """A figure: small ones are as likely as large ones, or products and ratios never fit."""
    return rng.randint(2, rng.choice([9, LARGEST]))


def solution(steps: list[str], answer: int) -> str:
    return " ".join([*steps, f"Answer: {answer}"])


def read(question: str) -> tuple[str, dict[str, int]] | None:
    """(formula asked for, figures given) of an exam question, or None if the text is not one."""
    found = QUESTION.search(question)
    if found is None or found[2] not in FORMULAS:
        return None
    figures = {}
    for item in found[1].split(", "):
        figure, _, value = item.rpartition(" ")
        figures[figure] = int(value) if value.isdigit() else 0
    return (found[2], figures) if set(inputs(found[2])) <= set(figures) else None


def solve(question: str, slip: int = 0) -> tuple[list[str], str] | None:
    """(steps, answer) of an exam question, or None if the text is not one or has no answer."""
    asked = read(question)
    worked = asked and work_out(FORMULAS[asked[0]], asked[1], slip)
    return (worked[0], str(worked[1])) if worked else None


def mistake(question: str) -> str | None:
    """The solution with the usual mistake of its formula; None if it does not work out or show."""
    name, figures = read(question)
    worked, right = work_out(MISTAKES[name], figures), work_out(FORMULAS[name], figures)
    return solution(*worked) if worked and worked[1] != right[1] else None


def final_answer(text: str) -> str | None:
    """The number behind `Answer:`; None if there is no such number or more than one."""
    answers = re.findall(r"Answer: (\d+)", text)
    return answers[0] if len(answers) == 1 else None


def split_steps(text: str) -> list[tuple[int, int]]:
    """(start, end) of each step and of the answer in `text`: exact quotes, nothing rewritten."""
    starts = [0] + [m.start() for m in re.finditer(r"(?<=\s)(?=Step \d|Answer:)", text)]
    ends = [*starts[1:], len(text)]
    return [(a, a + len(text[a:b].rstrip())) for a, b in zip(starts, ends, strict=True)]


def first_error(text: str, steps: list[str], answer: str) -> int:
    """Index of the first wrong step of `text`, -1 if none: the answer counts as the last one."""
    right = [*steps, f"Answer: {answer}"]
    written = [text[a:b] for a, b in split_steps(text)]
    for i, expected in enumerate(right):
        if i >= len(written) or written[i] != expected:
            return i
    return -1 if len(written) == len(right) else len(right)


def definition(name: str, rng: Random) -> str:
    """A textbook paragraph that defines a formula: no worked numbers."""
    (first, a, op1, b), (_, c, op2, d) = parse(FORMULAS[name])
    one, two = f"{a} {WORDS[op1]} {b}", f"{c} {WORDS[op2]} {d}"
    return rng.choice([
        f"The {name} is found in two steps. First, the {first} is {one}. "
        f"Then the {name} is {two}.",
        f"To find the {name}, take the {first}: it is {one}. The {name} is then {two}.",
        f"Analysts write {first} = {a} {op1} {b}, and {name} = {c} {op2} {d}.",
        f"The {name} is {two}, where the {first} is {one}.",
        f"By definition, {name} = {c} {op2} {d}. Here {first} = {a} {op1} {b}.",
        f"Step 1 is the {first}: {first} = {a} {op1} {b}. "
        f"Step 2 is the {name}: {name} = {c} {op2} {d}.",
    ])  # fmt: skip
