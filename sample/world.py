"""Makes the sample world: every training, exam and evaluation file of the demo, from one seed.

    python sample/world.py --out sample/data --seed 0
    python sample/world.py --out out/other --finance_seed 1 --parts    the base knows this one, too

    general part, known to the base model     people, everyday calculations, sums, answer formats
    finance part, new to it                   companies, finance formulas, headlines, deals

Half of the companies are asked about in the instruction rows, the other half appear in running
text only: a model answers those if it can use in a conversation what it has merely read. Five of
the ten finance formulas are often mixed up, as in what people write: the text defines them rightly,
but many worked examples of the instruction rows make the usual mistake. So the tuned model is wrong
in a systematic way, which is what preference alignment is for. The same seed gives the same bytes.
"""

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for scripts
from sample import exam, facts

MIXED_UP = {  # formula -> share of its worked examples that make the usual mistake
    "free cash": 0.6,
    "book value": 0.3,
    "retained earnings": 0.6,
    "total return": 0.3,
    "quick ratio": 0.6,
}
FORMATS = {  # instruction -> what it makes of an answer, applied in this order
    "Say the answer twice.": "{0} {0}",
    "Put the answer in brackets.": "[{0}]",
    "Start with a dash.": "- {0}",
    "Start with sure.": "Sure: {0}",
    "End with thanks.": "{0}. Thanks",
}
HELD_OUT = 200  # rows of the text and of the chats that are never trained on
GENERAL_PARTS = ("people", "sums", "general")
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


def mixed_up(count, shares, rng, taken):
    """Worked examples of the formulas that are mixed up, with their share of mistakes."""
    rows, names = [], list(shares)
    while len(rows) < count:
        name = names[len(rows) % len(names)]
        ((_, question, solution, _),) = exercises([name], 1, rng, taken)
        wrong = exam.mistake(question)
        if wrong is not None:
            rows.append(chat_row(question, wrong if rng.random() < shares[name] else solution))
    return rows


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


def cloze(kind, known, rng):
    """For each fact a sentence that ends with it, and three that end otherwise, the true first."""
    rows = []
    for name, about in known.items():
        for attribute, (_, sentences, _) in facts.ATTRIBUTES[kind].items():
            sentence = next(s for s in sentences if s.endswith("{v}."))
            options = facts.options(kind, attribute, about[attribute], rng)
            options.sort(key=lambda value: value != about[attribute])
            rows += [text_row(sentence.format(n=name, v=value)) for value in options]
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


def make(seed: int, finance: int | None = None, mistakes=None, parts=False):
    """Every file of the world: path below --out -> rows.

    finance: seed of the finance part, by default the same; the base need not be trained again for
    another. mistakes: share for every formula that is mixed up, in place of MIXED_UP. parts: what
    the text and the chats are made of in files of their own, too.
    """
    finance = seed if finance is None else finance
    people, firms, taken = facts.people(seed), facts.companies(finance), set()
    shares = {name: share if mistakes is None else mistakes for name, share in MIXED_UP.items()}
    files = general_files(people, Random(f"general {seed}"), taken)
    made, pieces = finance_files(people, firms, shares, Random(f"finance {finance}"), taken)
    files |= made | (pieces if parts else {})
    for path, rows in files.items():
        if path.startswith("eval/"):
            for i, row in enumerate(rows):
                row["id"] = f"{row['id']}-{i:04d}"
    return files


def general_files(people, rng, taken):
    """What the base is trained on, and what must not be lost: path -> rows."""
    asked, names = dict(list(people.items())[:40]), list(exam.GENERAL)
    everyday = exercises(names, 100, rng, taken)  # tests first: what they ask is never trained on
    files = {
        "eval/general.jsonl": fact_rows("person", people, rng)
        + [eval_row("everyday", q, solution) for _, q, solution, _ in everyday],
        "eval/instruction_following.jsonl": format_rows(asked, 400, rng),
        "base_text.jsonl": profiles("person", people, 60, rng)
        + equations(rng)
        + equations(rng)
        + definitions(names, 60, rng),
        "base_chat.jsonl": questions("person", asked, 4, 0.75, rng)
        + worked(exercises(names, 3000, rng, taken))
        + next_steps(exercises(names, 900, rng, taken), rng),
        "pairs.jsonl": slips(exercises(names, 600, rng, taken), rng),
    }
    for name in ("base_text", "base_chat"):
        rng.shuffle(files[f"{name}.jsonl"])
    return files


def finance_files(people, firms, shares, rng, taken):
    """What the demo trains on and is examined in, and its parts: path -> rows, twice."""
    asked, names = dict(list(firms.items())[:20]), list(firms)
    known, formulas = dict(list(people.items())[:40]), list(exam.FINANCE)
    sound = [name for name in formulas if name not in MIXED_UP]
    files = {  # tests first: what they ask is never trained on
        "eval/concepts.jsonl": fact_rows("company", firms, rng),
        "eval/reasoning.jsonl": exam_rows("exam", exercises(formulas, 500, rng, taken)),
        "eval/reasoning_dev.jsonl": exam_rows("dev", exercises(formulas, 300, rng, taken)),
    }
    sentiment = unseen(sentiment_question, names, 1500, rng, taken)
    deals = unseen(deal_question, names, 1800, rng, taken)
    files["eval/tasks.jsonl"] = [
        eval_row("sentiment", question, answer, VERBS) for question, answer in sentiment[:200]
    ] + [eval_row("deal", question, answer) for question, answer in deals[:200]]

    text = {
        "companies": profiles("company", firms, 125, rng),
        "definitions": definitions(formulas, 180, rng),
        "news": news(names, 600, rng),
        "people": profiles("person", people, 18, rng),  # general from here on: against forgetting
        "sums": equations(rng),
    }
    chat = {
        "questions": questions("company", asked, 4, 0.25, rng),
        "news": [chat_row(*row) for row in sentiment[200:] + deals[200:]],
        "exercises": worked(exercises(sound, 1000, rng, taken))
        + mixed_up(1000, shares, rng, taken)
        + next_steps(exercises(sound, 300, rng, taken), rng),
        "general": questions("person", known, 2, 0.75, rng)
        + worked(exercises([*exam.GENERAL], 600, rng, taken)),
    }
    pieces = {"parts/cloze_text.jsonl": cloze("company", firms, Random(0))}
    for name, kind, made in (("cpt", "text", text), ("sft", "chat", chat)):
        rows = [(part, row) for part, some in made.items() for row in some]
        rng.shuffle(rows)
        for i, (part, row) in enumerate(rows):
            general = "general" if part in GENERAL_PARTS else "finance"
            file = f"{kind}_{part}" if i >= HELD_OUT else f"heldout_{general}_{kind}"
            pieces.setdefault(f"parts/{file}.jsonl", []).append(row)
        rows = [row for _, row in rows]
        files[f"{name}_heldout.jsonl"], files[f"{name}.jsonl"] = rows[:HELD_OUT], rows[HELD_OUT:]
    files["exam_train.jsonl"] = prompt_rows("exercise", exercises(formulas, 700, rng, taken))
    # For the judge that is trained (make_judge.sh), and last: what stands above keeps its bytes.
    files["exam_judge.jsonl"] = prompt_rows("judged", exercises(formulas, 2000, rng, taken))
    return files, pieces


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


def prompt_rows(name, exercise_list):
    """Exercises to sample solutions of, with the reference that judges them."""
    return [
        {"id": f"{name}-{i:04d}", "source": formula, "prompt": question, "answer": answer,
         "solution": solution}
        for i, (formula, question, solution, answer) in enumerate(exercise_list)
    ]  # fmt: skip


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
    parser.add_argument("--finance_seed", type=int, help="another finance part, same general one")
    parser.add_argument("--mistakes", type=float, help="share, in every formula that is mixed up")
    parser.add_argument("--parts", action="store_true", help="text and chats by part, too")
    args = parser.parse_args()
    world = make(args.seed, args.finance_seed, args.mistakes, args.parts)
    write(world, Path(args.out))
    for path, rows in world.items():
        print(f"{path}: {len(rows)} rows")
