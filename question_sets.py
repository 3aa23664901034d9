"""Public forms of the sets of questions, MMLU to WinoGrande -> FLARE rows. One function per set:

    function(source) -> (test rows, training rows or examples, {reason: rows left out})

    a row of arc    {"id", "query", "answer", "text", "choices": [texts], "gold": 0}

A file in another form than a published one is an error; a row that has no answer, or options that
cannot be told apart, is left out and counted. Queries and choices are lm-evaluation-harness's.
"""

import re
from collections import Counter

from config import UserError
from jsonl import check_fields
from public_sets import choice_row
from sources import NotFound, both, csv_rows, find, find_all, lines, rows_of
from tasks import TASKS

# MMLU-Finance is undocumented; these subjects have 1,461 questions where FinEval counts 1,460.
FINANCE_SUBJECTS = (
    "business_ethics econometrics high_school_macroeconomics high_school_microeconomics "
    "professional_accounting management marketing"
).split()


def mmlu_rows(name, path, half):
    """csv without header: question, four options, letter."""
    subject, rows = path.stem.removesuffix(f"_{half}"), []
    for line, (question, *options, letter) in csv_rows(path, 6):
        if letter not in ("A", "B", "C", "D"):
            raise UserError(f"{path}:{line}: letter: {letter!r} is not A, B, C or D")
        parts = dict(zip("abcd", options, strict=True))
        row = choice_row(name, f"_{subject}_{half}{len(rows)}", "ABCD", "ABCD".index(letter),
                         question.strip(), **parts)  # fmt: skip
        rows.append(row | {"subject": subject.replace("_", " ")})
    return rows


def prepare_mmlu(source, name="mmlu", subjects=("*",)):
    """test/*_test.csv, and as examples dev/*_dev.csv."""
    halves = []
    for half in ("test", "dev"):
        paths = []
        for subject in subjects:
            pattern = f"{subject}_{half}.csv"
            found = find_all(source, f"{half}/{pattern}", pattern) if source.is_dir() else []
            if half == "test" and not found:
                raise NotFound(f"{source}: no file {half}/{pattern} in it; needed: "
                               f"{TASKS[name].source}")  # fmt: skip
            paths += found if subject == "*" else found[:1]
        halves.append([row for path in sorted(paths) for row in mmlu_rows(name, path, half)])
    return *halves, {}


def prepare_mmlu_finance(source):
    return prepare_mmlu(source, "mmlu_finance", FINANCE_SUBJECTS)


def prepare_nq_open(source):
    """jsonl rows {"question", "answer": [..]}; the question has no question mark yet."""
    halves = []
    for half, path in both(source, ("NQ-open.dev.jsonl", "*valid*"), ("NQ-open.train.jsonl",)):
        rows = []
        for where, row in rows_of(path, {"question": str, "answer": list}) if path else ():
            text = row["question"].strip()
            row = {"id": f"nq_open_{half}{len(rows)}", "answer": row["answer"][0], "text": text,
                   "query": TASKS["nq_open"].prompt.format(text=text.removesuffix("?").rstrip()),
                   "answers": row["answer"]}  # fmt: skip
            check_fields(row, {"answer": str}, where)
            rows.append(row)
        halves.append(rows)
    return *halves, {}


# Questions with options: each function takes one row to (question, options, number of the right
# one). The number is None without an answer, the options are None if they cannot be told apart.

ADAPTERS = re.compile(
    r"Please choose the correct answer to the question: (.*?)\s*\n\nAnswer1: (.*?)\n\n"
    r"Answer format: (\S+)",
    re.S,
)


def school_question(row, where, label):
    """ARC and OpenBookQA: LLM-Adapters' one text, AI2's own jsonl, or the hub's columns."""
    if "instruction" in row:
        check_fields(row, {"instruction": str, "answer": str}, where)
        found = ADAPTERS.fullmatch(row["instruction"].strip())
        if not found:
            raise UserError(f"{where}: instruction: not LLM-Adapters' form; get it as published")
        question, options, names = found.groups()
        choices, names = re.split(r" Answer\d: ", options), names.split("/")
        if len(choices) != len(names):
            return question, None, None
        return question, [choice.strip() for choice in choices], place(row["answer"], names)
    check_fields(row, {"answerKey?": str}, where)
    question, choices = row.get("question"), row.get("choices")
    if isinstance(question, dict):
        question, choices = question.get("stem"), question.get("choices")
    elif "question_stem" in row:
        question = row["question_stem"]
    try:
        if isinstance(choices, dict):
            texts, names = choices["text"], choices["label"]
        else:
            texts = [choice["text"] for choice in choices]
            names = [choice["label"] for choice in choices]
    except (KeyError, TypeError):
        raise UserError(f"{where}: choices: needs text and label; get it as published") from None
    check_fields({"question": question}, {"question": str}, where)
    return question, texts, place((row.get("answerKey") or "").strip(), names)


def place(answer, names):
    return names.index(answer) if answer in names else None


def physics_question(row, where, label):
    """PIQA. The label, 0 or 1, is in a file of its own or, on the hub, in the row."""
    check_fields(row, {"goal": str, "sol1": str, "sol2": str}, where)
    return row["goal"], [row["sol1"], row["sol2"]], place(key_of(row, label), ["0", "1"])


def key_of(row, label):
    return str(row.get("label", "") if label is None else label)


def social_question(row, where, label):
    """Social-IQA. The label, 1 to 3, is in a file of its own or in the row."""
    fields = ("context", "question", "answerA", "answerB", "answerC")
    check_fields(row, dict.fromkeys(fields, str), where)
    context, question, *choices = (row[name] for name in fields)
    gold = place(key_of(row, label), ["1", "2", "3"])
    return f"{context} {question}", choices, gold


OPTIONS = re.compile(" ?, ?".join(rf"{letter} ?\) ?(.*?)" for letter in "abcde"))


def sum_question(row, where, label):
    """MathQA: five options in one text, "a ) 38 , b ) 27.675 , ..", and the right one's letter."""
    check_fields(row, {"Problem": str, "options": str, "correct": str}, where)
    found = OPTIONS.fullmatch(row["options"].strip())
    choices = [choice.strip(" ,") for choice in found.groups()] if found else None
    return row["Problem"], choices, place(row["correct"].strip(), [*"abcde"])


def story_question(row, where, label):
    """HellaSwag's jsonl: the context comes in two parts, the second one begins a sentence."""
    check_fields(row, {"activity_label": str, "ctx_a": str, "ctx_b?": str, "endings": list}, where)
    begun = (row.get("ctx_b") or "").capitalize()
    text = f"{row['activity_label']}: {row['ctx_a']} {begun}"
    endings = [plain(str(ending)) for ending in row["endings"]]
    return plain(text), endings, place(key_of(row, label), ["0", "1", "2", "3"])


def plain(text):
    """HellaSwag's texts without the traces of the pages they come from, as lm-eval has them."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


QUESTIONS = {
    "arc": school_question,
    "openbookqa": school_question,
    "piqa": physics_question,
    "social_iqa": social_question,
    "mathqa": sum_question,
    "hellaswag": story_question,
}


def option_rows(name, path, half, labels=None):
    """(rows, {reason: count}) of a json lines, json list or parquet file."""
    rows, skipped = [], Counter()
    found = rows_of(path)
    keys = [key.strip() for _, key in lines(labels)] if labels else [None] * len(found)
    if len(keys) != len(found):
        raise UserError(f"{labels}: label: {len(keys)} labels for the {len(found)} rows of {path}; "
                        "get both as published")  # fmt: skip
    for number, ((where, row), key) in enumerate(zip(found, keys, strict=True)):
        text, choices, gold = QUESTIONS[name](row, where, key)
        if choices is None:
            skipped["rows whose options cannot be told apart"] += 1
        elif gold is None or gold >= len(choices):
            skipped["rows without an answer"] += 1
        else:
            rows.append(choice_row(name, f"_{half}{number}", choices, gold, text.rstrip()))
    return rows, skipped


def prepare_options(name, source, test, train, labels=""):
    """Rows of both halves; labels: the pattern of the files of labels, if there are any."""
    halves, skipped = [], Counter()
    for half, path in both(source, test, train):
        beside = path.parent / labels.format(path.stem) if path and labels else None
        beside = beside if beside and beside.exists() else None
        rows, left_out = option_rows(name, path, half, beside) if path else ([], {})
        halves.append(rows)
        skipped.update(left_out)
    return *halves, skipped


def prepare_arc(source):
    """Easy and Challenge."""
    if source.is_file():
        return prepare_options("arc", source, (), ())
    halves, skipped = ([], []), Counter()
    for level in ("Easy", "Challenge"):
        names = [
            (f"ARC-{level}_{half}.json", f"ARC-{level}/{half}.json",
             f"ARC-{level}-{half.title()}.jsonl", f"ARC-{level}/{half}*.parquet")
            for half in ("test", "train")
        ]  # fmt: skip
        *found, left_out = prepare_options("arc", source, *names)
        for rows, more in zip(halves, found, strict=True):
            rows += [
                row | {"id": row["id"].replace("arc_", f"arc_{level.lower()}_")} for row in more
            ]
        skipped.update(left_out)
    return *halves, skipped


def prepare_openbookqa(source):
    names = [(f"openbookqa_{half}.json", f"{half}.json", f"{half}.jsonl", f"{half}*.parquet")
             for half in ("test", "train")]  # fmt: skip
    return prepare_options("openbookqa", source, *names)


def prepare_piqa(source):
    names = ("valid.jsonl", "*valid*.parquet"), ("train.jsonl", "train*.parquet")
    return prepare_options("piqa", source, *names, labels="{}-labels.lst")


def prepare_social_iqa(source):
    """The labelled half is the development half; the test half has no public labels."""
    names = ("dev.jsonl", "*valid*.parquet"), ("train.jsonl", "train*.parquet")
    return prepare_options("social_iqa", source, *names, labels="{}-labels.lst")


def prepare_mathqa(source):
    names = ("test.json", "test*.parquet"), ("train.json", "train*.parquet")
    return prepare_options("mathqa", source, *names)


def prepare_hellaswag(source):
    """The labelled half is the validation half. klosax' text has six lines a question: "activity:
    context", label, four endings; there the context's parts are joined, as lm-eval joins them but
    for the capital that begins the second part."""
    path = find(source, "hellaswag_val.jsonl", "hellaswag_val*.txt*", "*valid*.parquet")
    if ".txt" not in path.name:
        return prepare_options("hellaswag", source, (path.name,), ("hellaswag_train.jsonl",
                               "train*.parquet"))  # fmt: skip
    found, rows = lines(path), []
    for start in range(0, len(found), 6):
        (line, text), *below = found[start : start + 6]
        label, *endings = [line for _, line in below] or [""]
        if len(endings) != 4 or label.strip() not in ("0", "1", "2", "3"):
            raise UserError(f"{path}:{line}: label: needs 0 to 3 in the next line, then four "
                            "endings; get the file as published")  # fmt: skip
        if begun := re.fullmatch(r"(.*[.!?]) ([a-z][^.!?]*)", text):
            text = f"{begun[1]} {begun[2].capitalize()}"
        rows.append(choice_row("hellaswag", f"_test{start // 6}", [plain(e) for e in endings],
                               int(label), plain(text)))  # fmt: skip
    return rows, [], {}


def prepare_winogrande(source):
    """{"sentence" with one _, "option1", "option2", "answer": "1" or "2"}."""
    names = ("dev.jsonl", "*valid*.parquet"), ("train_xl.jsonl", "train_[lmsx]*.jsonl", "train*")
    halves, skipped = [], Counter()
    for half, path in both(source, *names):
        rows = []
        fields = {"sentence": str, "option1": str, "option2": str, "answer?": (str, int)}
        for number, (_, row) in enumerate(rows_of(path, fields) if path else ()):
            gold = place(str(row.get("answer")), ["1", "2"])
            if gold is None:
                skipped["rows without an answer"] += 1
                continue
            choices, text = [row["option1"], row["option2"]], row["sentence"].strip()
            rows.append({"id": f"winogrande_{half}{number}", "query": text, "text": text,
                         "answer": choices[gold], "choices": choices, "gold": gold})  # fmt: skip
        halves.append(rows)
    return *halves, skipped


PREPARE = {
    "mmlu": prepare_mmlu,
    "mmlu_finance": prepare_mmlu_finance,
    "arc": prepare_arc,
    "nq_open": prepare_nq_open,
    "openbookqa": prepare_openbookqa,
    "piqa": prepare_piqa,
    "hellaswag": prepare_hellaswag,
    "mathqa": prepare_mathqa,
    "social_iqa": prepare_social_iqa,
    "winogrande": prepare_winogrande,
}
