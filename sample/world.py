"""Makes the sample world: every training, exam and evaluation file of the demo, from one seed.

    python sample/world.py --out sample/data --seed 0

    general part, known to the base model     people, everyday calculations, sums, answer formats
    finance part, new to it                   companies, finance formulas, headlines, deals

Half of the companies are asked about in the instruction rows, the other half appear in running
text only: a model answers those if it can use in a conversation what it has merely read. Five of
the ten finance formulas are rare in the instruction rows; they make the tuned model imperfect,
which is what preference alignment needs. The same seed gives the same bytes.
"""

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for scripts
from sample import exam, facts

RARE = ["free cash", "book value", "retained earnings", "total return", "quick ratio"]
HARD = ["retained earnings", "total return"]  # of the rare ones, never solved without more examples
COMMON = [name for name in exam.FINANCE if name not in RARE]
ROWS = {
    "rare exercises": 60,
    "hard exercises": 80,
    "exam_train": 1400,
    "exam_dev": 300,
    "exam_test": 500,
}
FORMATS = {  # instruction -> what it makes of an answer, applied in this order
    "Say the answer twice.": "{0} {0}",
    "Put the answer in brackets.": "[{0}]",
    "Start with a dash.": "- {0}",
    "Start with sure.": "Sure: {0}",
    "End with thanks.": "{0}. Thanks",
}
SUBJECTS = "profit revenue output demand cash turnover income growth".split()
VERBS = {
    "positive": "rises jumps improves recovers".split(),
    "negative": "falls drops weakens collapses".split(),
    "neutral": "stays holds waits rests".split(),
}
HEADLINES = [
    "{0} says {1} {2}.",
    "At {0} the {1} {2}.",
    "Analysts write that {1} at {0} {2}.",
    "The {1} of {0} {2} again.",
]
DEALS = [
    "{buyer} buys {target} for {price} million.",
    "{target} is sold to {buyer} for {price} million.",
    "{buyer} pays {price} million for {target}.",
    "For {price} million, {target} goes to {buyer}.",
]
DEAL_QUESTIONS = {
    "buyer": "Who is the buyer?",
    "target": "Which company is sold?",
    "price": "What is the price in millions?",
}


# ---- rows -------------------------------------------------------------------------------------


def text_row(text):
    return {"text": text}


def chat_row(user, assistant):
    roles = ("user", user), ("assistant", assistant)
    return {"messages": [{"role": role, "content": content} for role, content in roles]}


def eval_row(task, query, answer, choices=(), **extra):
    """A FLARE row (PIXIU's schema); `gold` is -1 for a question without choices."""
    choices = list(choices)
    gold = choices.index(answer) if choices else -1
    row = {"id": task, "query": query, "answer": answer, "text": query, "choices": choices}
    return {**row, "gold": gold, **extra}


def formatted(question, answer, instructions):
    """A question with answer formats to obey, and the one answer that obeys them."""
    for instruction, pattern in FORMATS.items():
        if instruction in instructions:
            question, answer = f"{question} {instruction}", pattern.format(answer)
    return question, answer


def some_format(rng):
    """One or two answer formats."""
    singles = [(name,) for name in FORMATS]
    return rng.choice(rng.choice([singles, list(combinations(FORMATS, 2))]))


# ---- material ---------------------------------------------------------------------------------


def equations(rng):
    """The whole table of sums, differences, products and ratios, eight to a row."""
    numbers = range(1, exam.LARGEST + 1)
    table = [
        f"{a} {operator} {b} = {value}."
        for a in numbers
        for operator in "+-*/"
        for b in numbers
        if (value := exam.calculate(a, operator, b)) is not None
    ]
    rng.shuffle(table)
    return [text_row(" ".join(table[i : i + 8])) for i in range(0, len(table), 8)]


def profiles(kind, known, count, rng):
    """`count` paragraphs about every name."""
    names = [name for name in known for _ in range(count)]
    return [text_row(facts.profile(kind, name, known[name], rng)) for name in names]


def questions(kind, known, repeat, share_formatted, rng):
    """Every question about every name, `repeat` times, a share of them with answer formats."""
    rows = []
    for name, about in known.items():
        for _, question, answer in facts.questions(kind, name, about) * repeat:
            wanted = some_format(rng) if rng.random() < share_formatted else ()
            rows.append(chat_row(*formatted(question, answer, wanted)))
    return rows


def exercises(names, count, rng, taken):
    """`count` new exercises, formulas in turn: (formula, question, solution, answer)."""
    found = []
    while len(found) < count:
        name = names[len(found) % len(names)]
        question, solution, answer = exam.exercise(name, rng)
        if question not in taken:  # train, development and test exams share no question
            taken.add(question)
            found.append((name, question, solution, answer))
    return found


def worked(exercise_list):
    return [chat_row(question, solution) for _, question, solution, _ in exercise_list]


def next_steps(exercise_list, rng):
    """The question SCP asks (arXiv:2501.04961 section 5.3), so that the model knows its form."""
    rows = []
    for _, question, solution, _ in exercise_list:
        spans = exam.split_steps(solution)
        start, end = spans[rng.randrange(len(spans) - 1)]
        asked = f"{question} {solution[:start]}".strip() + " What is the next step?"
        rows.append(chat_row(asked, solution[start:end]))
    return rows


def slips(exercise_list, rng):
    """Right against wrong solutions, made and not sampled: pairs for a bare train_dpo.py."""
    rows = []
    for _, question, right, _ in exercise_list:
        wrong = exam.solve(question, slip=rng.choice([-2, -1, 1, 2]))
        if wrong is not None:  # the slip may leave the range of the world
            chat = chat_row(question, right)["messages"]
            rejected = {"role": "assistant", "content": exam.solution(*wrong)}
            rows.append({"prompt": chat[:1], "chosen": chat[1:], "rejected": [rejected]})
    return rows


def headline(names, rng):
    """A headline about a company and its sentiment."""
    sentiment = rng.choice(list(VERBS))
    subject, verb = rng.choice(SUBJECTS), rng.choice(VERBS[sentiment])
    return rng.choice(HEADLINES).format(rng.choice(names), subject, verb), sentiment


def sentiment_question(names, rng):
    text, sentiment = headline(names, rng)
    return f"Headline: {text} Is it positive, negative or neutral?", sentiment


def deal_question(names, rng):
    buyer, target = rng.sample(names, 2)
    deal = {"buyer": buyer, "target": target, "price": str(rng.randint(2, exam.LARGEST))}
    asked = rng.choice(list(DEAL_QUESTIONS))
    return f"News: {rng.choice(DEALS).format(**deal)} {DEAL_QUESTIONS[asked]}", deal[asked]


def unseen(make, names, count, rng, taken):
    """`count` different (question, answer) pairs of `make` that are not in `taken` yet."""
    rows = []
    while len(rows) < count:
        question, answer = make(names, rng)
        if question not in taken:
            taken.add(question)
            rows.append((question, answer))
    return rows


def news(names, count, rng):
    """Headlines and deals as running text."""
    rows = []
    for _ in range(count):
        text, sentiment = headline(names, rng)
        buyer, target = rng.sample(names, 2)
        price = rng.randint(2, exam.LARGEST)
        deal = rng.choice(DEALS).format(buyer=buyer, target=target, price=price)
        view = f"Analysts write that it is {sentiment}."
        rows.append(text_row(f"{text} {view} {deal} The buyer is {buyer}."))
    return rows


def definitions(names, count, rng):
    return [text_row(exam.definition(name, rng)) for name in names for _ in range(count)]


# ---- files ------------------------------------------------------------------------------------


def make(seed: int) -> dict[str, list[dict]]:
    """Every file of the world: path below --out -> rows."""
    rng, taken = Random(seed), set()
    people, firms = facts.people(seed), facts.companies(seed)
    asked_people, asked_firms = dict(list(people.items())[:40]), dict(list(firms.items())[:20])
    firm_names = list(firms)
    general, finance = list(exam.GENERAL), list(exam.FINANCE)

    # Evaluation first: whatever it asks is barred from training.
    dev = exercises(finance, ROWS["exam_dev"], rng, taken)
    test = exercises(finance, ROWS["exam_test"], rng, taken)
    everyday = exercises(general, 100, rng, taken)
    sentiment_test = unseen(sentiment_question, firm_names, 200, rng, taken)
    deal_test = unseen(deal_question, firm_names, 200, rng, taken)
    files = {
        "eval/concepts.jsonl": fact_rows("company", firms, rng),
        "eval/tasks.jsonl": [
            eval_row("sentiment", q, a, list(VERBS)) for q, a in sentiment_test
        ] + [eval_row("deal", q, a) for q, a in deal_test],
        "eval/reasoning.jsonl": exam_rows("exam", test),
        "eval/reasoning_dev.jsonl": exam_rows("exam-dev", dev),
        "eval/instruction_following.jsonl": format_rows(asked_people, 400, rng),
        "eval/general.jsonl": fact_rows("person", people, rng)
        + [eval_row("everyday", q, solution) for _, q, solution, _ in everyday],
    }  # fmt: skip

    files["base_text.jsonl"] = (
        profiles("person", people, 60, rng)
        + equations(rng)
        + equations(rng)
        + definitions(general, 60, rng)
    )
    files["base_chat.jsonl"] = (
        questions("person", asked_people, 4, 0.75, rng)
        + worked(exercises(general, 3000, rng, taken))
        + next_steps(exercises(general, 900, rng, taken), rng)
    )

    text = (
        profiles("company", firms, 125, rng)
        + definitions(finance, 180, rng)
        + news(firm_names, 600, rng)
        + profiles("person", people, 18, rng)  # replay against forgetting
        + equations(rng)
    )
    chat = (
        questions("company", asked_firms, 4, 0.25, rng)
        + [chat_row(*row) for row in unseen(sentiment_question, firm_names, 1600, rng, taken)]
        + [chat_row(*row) for row in unseen(deal_question, firm_names, 1200, rng, taken)]
        + worked(exercises(COMMON, 1500, rng, taken))
        + worked(exercises(RARE, ROWS["rare exercises"], rng, taken))
        + next_steps(exercises(COMMON, 300, rng, taken), rng)
        + questions("person", asked_people, 2, 0.75, rng)  # replay
        + worked(exercises(general, 600, rng, taken))
    )
    for name, rows, held_out in (("cpt", text, 200), ("sft", chat, 200)):
        rng.shuffle(rows)
        files[f"{name}_heldout.jsonl"] = rows[:held_out]
        files[f"{name}.jsonl"] = rows[held_out:]
    for name in ("base_text", "base_chat"):
        rng.shuffle(files[f"{name}.jsonl"])

    # Drawn last: their number sets how imperfect the tuned model is, and changes nothing above.
    files["sft.jsonl"] += worked(exercises(HARD, ROWS["hard exercises"], rng, taken))
    files["exam_train.jsonl"] = [
        {"id": f"exercise-{i:04d}", "source": formula, "prompt": question, "answer": answer,
         "solution": solution}
        for i, (formula, question, solution, answer) in enumerate(
            exercises(finance, ROWS["exam_train"], rng, taken)
        )
    ]  # fmt: skip
    files["pairs.jsonl"] = slips(exercises(general, 600, rng, taken), rng)
    for path, rows in files.items():
        if path.startswith("eval/"):
            for i, row in enumerate(rows):
                row["id"] = f"{row['id']}-{i:04d}"
    return files


def fact_rows(kind, known, rng):
    """One question for each fact."""
    rows = []
    for name, about in known.items():
        for attribute, (_, _, wordings) in facts.ATTRIBUTES[kind].items():
            question, answer = rng.choice(wordings).format(n=name), about[attribute]
            choices = facts.options(kind, attribute, answer, rng)
            rows.append(eval_row(attribute, question, answer, choices))
    return rows


def exam_rows(task, exercise_list):
    return [
        eval_row(task, question, answer, solution=solution, formula=name)
        for name, question, solution, answer in exercise_list
    ]


def format_rows(known, count, rng):
    """Questions the base can answer, each with one or two answer formats."""
    rows = []
    for _ in range(count):
        name = rng.choice(list(known))
        _, question, answer = rng.choice(facts.questions("person", name, known[name]))
        rows.append(eval_row("format", *formatted(question, answer, some_format(rng))))
    return rows


def write(files: dict[str, list[dict]], out: Path) -> None:
    for path, rows in files.items():
        target = out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the files of the sample world.")
    parser.add_argument("--out", default="sample/data", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another world")
    args = parser.parse_args()
    world = make(args.seed)
    write(world, Path(args.out))
    for path, rows in world.items():
        print(f"{path}: {len(rows)} rows")
