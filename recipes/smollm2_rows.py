"""Training rows, prompts and held-out exercises for recipes/smollm2_study.sh, of public data sets.

    python recipes/smollm2_rows.py DATA OUT

    DATA, each set if it is there                OUT
    gsm8k/train.jsonl, test.jsonl                general_text.jsonl, general_chat.jsonl
    dm_mathematics/train.jsonl                   finance_chat.jsonl
    finqa_subset/train_100.json, dev_200.json    prompts_SET.jsonl   to sample solutions of
    convfinqa/convfinqa_dev.json                 held_SET.jsonl      exercises, never trained on
    headlines/headlines.csv                      SET: arithmetic, problems (GSM8K), reports (FinQA)

No exercise is in two of the files: what is read as text is not asked in a chat, and what solutions
are sampled of is neither. Questions end with the form that the answer should have: so a model that
was never tuned is asked for it, too, and a rule can tell whether an answer is right.
"""

import re
import sys
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import parallel
from config import UserError
from jsonl import read_jsonl, write_jsonl
from sources import read_csv, read_json

ALONE = "\nReply with the answer alone."
YES_NO = "\nReply with Yes or No."
WORKED = "\nCalculate step by step, then close with a line of the form: Answer: X"
SIGNS = {"add": "+", "minus": "-", "multiply": "*", "divide": "/"}
HEADLINE = {  # one of these is asked about a headline: {column of its answer: question}
    "PriceOrNot": "Does it talk about a price?",
    "DirectionUp": "Does it say that the price went up?",
    "DirectionConstant": "Does it say that the price stayed where it was?",
    "DirectionDown": "Does it say that the price went down?",
    "PastPrice": "Does it talk about a price in the past?",
    "FuturePrice": "Does it talk about a price in the future?",
    "PastNews": "Does it talk about a past event other than a price?",
    "FutureNews": "Does it talk about a future event other than a price?",
    "AssetComparision": "Does it compare gold with another asset?",
}
EVERY = 7  # one headline in so many: short as they are, they must not be most of the chats


class Exercise(NamedTuple):
    question: str
    form: str  # what is said behind the question about the form of the answer
    reply: str  # a whole answer
    answer: str  # the final answer alone

    def chat(self):
        turns = ("user", self.question + self.form), ("assistant", self.reply)
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    def prompt(self, name):
        question = self.question + self.form
        return {"id": name, "source": name.split("/")[0], "prompt": question, "answer": self.answer}


# Sets ----------------------------------------------------------------------------------------


def problems(path):
    """GSM8K, without its calculator's marks: "48/2 = <<48/2=24>>24 clips.\\n#### 24"."""
    found = []
    for line, row in read_jsonl(path, {"question": str, "answer": str}):
        solution, mark, answer = re.sub(r"<<[^>]*>>", "", row["answer"]).rpartition("\n#### ")
        if not mark:
            raise UserError(f"{path}:{line}: answer: does not end with a line '#### X'")
        reply = f"{solution}\nAnswer: {answer}"
        found.append(Exercise(row["question"], WORKED, reply, answer))
    return found


def sums(path, easy):
    """DeepMind's exercises of the lowest level (rows that name none are of it), or the others: of
    those a small model gets none right, so that no solutions are sampled of them."""
    rows = read_jsonl(path, {"question": str, "answer": str, "split?": str})
    return [Exercise(row["question"], ALONE, row["answer"], row["answer"])
            for _, row in rows if easy == row.get("split", "easy").endswith("easy")]  # fmt: skip


def reports(path):
    """FinQA: of the page what the answer needs, and its program as the steps."""
    found = []
    for row in read_json(path, list):
        qa, results, steps = row["qa"], [], []
        for step in qa["steps"]:
            sign = SIGNS.get(re.match("[a-z]*", step["op"])[0])
            if not sign:  # the largest of a table's row, and the like
                break
            left, right = (operand(step[name], results) for name in ("arg1", "arg2"))
            steps.append(f"{left} {sign} {right} = {step['res']}")
            results.append(step["res"])
        if qa["answer"].strip() and len(steps) == len(qa["steps"]):
            question = "\n".join([*qa["gold_inds"].values(), f"Question: {qa['question']}"])
            reply = "\n".join([*steps, f"Answer: {qa['answer']}"])
            found.append(Exercise(question, WORKED, reply, qa["answer"]))
    return found


def operand(word, results):
    """ "#0": the first result; "const_100": 100; "const_m1": -1; else a number of the page."""
    if word.startswith("#"):
        return results[int(word[1:])]
    return word.removeprefix("const_").replace("m", "-") if word.startswith("const_") else word


def conversations(path):
    """ConvFinQA: all questions of a conversation, of which the last is to be answered."""
    found = []
    for row in read_json(path, list):
        page = f"{row['golden_table']}\n{row['golden_text']}".strip()
        question = "\n".join([page, "Questions:", *row["questions"], "Answer the last one."])
        steps = row["programs"][-1].replace("; ", "\n")
        found.append(Exercise(question, WORKED, f"{steps}\nAnswer: {row['answer']}", row["answer"]))
    return found


def headlines(path):
    found, asked = [], list(HEADLINE.items())
    for i, (_, row) in enumerate(read_csv(path)[::EVERY]):
        column, question = asked[i % len(asked)]
        reply = "Yes" if row[column] == "1" else "No"
        found.append(Exercise(f"Headline: {row['News']}\n{question}", YES_NO, reply, reply))
    return found


# Files ---------------------------------------------------------------------------------------


def main(argv):
    if len(argv) != 2:
        raise UserError("usage: python recipes/smollm2_rows.py DATA OUT")
    data, out = map(Path, argv)

    def exercises(read, name):
        return read(data / name) if (data / name).exists() else []

    def places(found, *wanted):  # of every ten: exercises of one kind stand together
        return [e for i, e in enumerate(found) if i % 10 in wanted]

    easy, hard = (exercises(partial(sums, easy=level), "dm_mathematics/train.jsonl")
                  for level in (True, False))  # fmt: skip
    words = exercises(problems, "gsm8k/train.jsonl")
    text = hard[::2] + places(easy, 0, 1, 2) + words[::2]
    chat = hard[1::2] + places(easy, 3, 4, 5) + places(words, 1, 3, 5, 7)
    prompts = {"arithmetic": places(easy, 6, 7), "problems": places(words, 9)}
    held = {"arithmetic": places(easy, 8, 9)}
    prompts["reports"] = exercises(reports, "finqa_subset/dev_200.json")
    held["problems"] = exercises(problems, "gsm8k/test.jsonl")
    finance = exercises(reports, "finqa_subset/train_100.json")
    finance += exercises(conversations, "convfinqa/convfinqa_dev.json")
    finance += exercises(headlines, "headlines/headlines.csv")

    files = {"general_text": [{"text": f"{e.question}\n\n{e.reply}"} for e in text]}
    files["general_chat"] = [e.chat() for e in chat]
    files["finance_chat"] = [e.chat() for e in finance]
    seen = {e.question for e in (*text, *chat)}
    for kind, sets in (("prompts", prompts), ("held", held)):
        for name, found in sets.items():
            found = [e for e in found if e.question not in seen]  # short ones are there twice
            seen |= {e.question for e in found}
            rows = [e.prompt(f"{name}/{i}") for i, e in enumerate(found)]
            Random(name).shuffle(rows)  # so the first ones of a file are a sample of it
            files[f"{kind}_{name}"] = rows
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        if rows:
            write_jsonl(out / f"{name}.jsonl", rows)
            print(f"{out / name}.jsonl: {len(rows):,} rows")


if __name__ == "__main__":
    with parallel.clean_exit():
        main(sys.argv[1:])
