"""Sets of questions with options, in the words of lm-evaluation-harness -> rows.

Each function takes one record of any published form (the authors' json lines, the hub's columns,
LLM-Adapters' json) and returns a row; UserError "where: field: reason" for what is no question.
Texts stay as published, spaces included: a choice's log-likelihood counts each of its tokens.
"""

import re
from pathlib import Path

from config import UserError
from flare import FINANCE_SUBJECTS, option
from jsonl import check_fields
from sources import Found, csv_rows, find, find_more, numbered_lines, place, rows_of
from tasks import TASKS


def choice_row(name, number, choices, gold, text, **parts):
    """A row with choices; parts fill the places of the task's prompt beside {text}."""
    query = TASKS[name].prompt.format(text=text, **parts)
    return {"id": f"{name}{number}", "query": query, "answer": choices[gold], "text": text,
            "choices": list(choices), "gold": gold}  # fmt: skip


def label_row(name, where, text, answer):
    """A row of a task with fixed labels; its number is its place in the source."""
    labels = TASKS[name].labels
    return choice_row(name, place(where), labels, option(where, "answer", labels, answer), text)


ADAPTERS = re.compile(
    r"Please choose the correct (?:answer|solution|ending)\b.*?(?:question|sentence): (.*?)\s*"
    r"(?:Answer|Solution|Option|Ending)1: (.*?)\s*Answer format: (\S+)",
    re.S,
)


def adapters(where, record):
    """(question, options, gold) of a row of LLM-Adapters: all in one text, the answer "answer3"."""
    check_fields(record, {"instruction": str, "answer": str}, where)
    found = ADAPTERS.fullmatch(record["instruction"].strip())
    if not found:
        raise UserError(f"{where}: instruction: not LLM-Adapters' form")
    question, options, names = found.groups()
    choices = re.split(r"\s+(?:Answer|Solution|Option|Ending)\d: ", options)
    names = names.split("/")
    if len(choices) != len(names):
        raise UserError(f"{where}: instruction: {len(choices)} options for {len(names)} names")
    gold = option(where, "answer", names, record["answer"])
    return question.strip(), [choice.strip() for choice in choices], gold


def lettered(where, record):
    """(question, options, gold) of AI2's forms: {"question": {"stem", "choices": [..]}} in the
    authors' json lines, {"question" or "question_stem", "choices": {"text", "label"}} on the hub.
    Labels are A to E, in some of ARC's questions 1 to 4."""
    check_fields(record, {"answerKey": str}, where)
    stem = record.get("question", record.get("question_stem"))
    if isinstance(stem, dict):
        check_fields(stem, {"stem": str, "choices": list}, where)
        options, stem = stem["choices"], stem["stem"]
        choices, labels = ([option.get(key) for option in options] for key in ("text", "label"))
    else:
        check_fields({"question": stem, **record}, {"question": str, "choices": dict}, where)
        choices, labels = record["choices"].get("text"), record["choices"].get("label")
    if not isinstance(choices, list) or not isinstance(labels, list):
        raise UserError(f"{where}: choices: needs text and label")
    if len(choices) != len(labels) or not all(isinstance(choice, str) for choice in choices):
        raise UserError(f"{where}: choices: texts and labels do not fit")
    return stem, choices, option(where, "answerKey", labels, record["answerKey"].strip())


# One record -> one row -----------------------------------------------------------------------


def arc_row(where, record):
    stem, choices, gold = (adapters if "instruction" in record else lettered)(where, record)
    return choice_row("arc", f"_{record.get('id', place(where))}", choices, gold, stem)


def openbookqa_row(where, record):
    """lm-eval asks with the question alone."""
    stem, choices, gold = (adapters if "instruction" in record else lettered)(where, record)
    return choice_row("openbookqa", f"_{record.get('id', place(where))}", choices, gold, stem)


def piqa_row(where, record):
    if "instruction" in record:
        return choice_row("piqa", f"_{place(where)}", *reordered(adapters(where, record)))
    fields = {"goal": str, "sol1": str, "sol2": str, "label": (int, str)}
    check_fields(record, fields, where)
    gold = option(where, "label", ("0", "1"), str(record["label"]).strip())
    return choice_row("piqa", f"_{place(where)}", [record["sol1"], record["sol2"]], gold,
                      record["goal"])  # fmt: skip


def social_iqa_row(where, record):
    """Labels count from 1. LLM-Adapters has context and question as one text, as we ask it."""
    if "instruction" in record:
        return choice_row("social_iqa", f"_{place(where)}", *reordered(adapters(where, record)))
    names = ("answerA", "answerB", "answerC")
    fields = {"context": str, "question": str, "label": (str, int)} | dict.fromkeys(names, str)
    check_fields(record, fields, where)
    gold = option(where, "label", ("1", "2", "3"), str(record["label"]).strip())
    text = f"{record['context']} {record['question']}"
    return choice_row("social_iqa", f"_{place(where)}", [record[n] for n in names], gold, text)


def winogrande_row(where, record):
    """No prompt: the sentence is the query, its one `_` the blank."""
    if "instruction" in record:
        text, choices, gold = adapters(where, record)
    else:
        check_fields(record, dict.fromkeys(("sentence", "option1", "option2"), str), where)
        gold = option(where, "answer", ("1", "2"), str(record.get("answer", "")))
        text, choices = record["sentence"], [record["option1"], record["option2"]]
    return {"id": f"winogrande_{record.get('qID', place(where))}", "query": text, "text": text,
            "choices": choices, "gold": gold, "answer": choices[gold]}  # fmt: skip


def mathqa_row(where, record):
    """Five options in one text, "a ) 38 , b ) 27 , ..", which may hold commas themselves: lm-eval
    cuts such an option at its first one, we do not."""
    if "instruction" in record:
        check_fields(record, {"instruction": str, "answer": str}, where)
        # LLM-Adapters has the letters a to e in capitals, inside words too
        text, _, options = record["instruction"].partition(" The options: ")
        options, correct = options.lower(), record["answer"].lower()
    else:
        check_fields(record, {"Problem": str, "options": str, "correct": str}, where)
        text, options, correct = record["Problem"], record["options"], record["correct"].strip()
    # Some rows have a list in its printed form, "['a ) 38', 'b ) 27']", a few the letter twice
    found = re.split(r"(?:^|,)[\s'\"]*([a-e]) \) (?:\1 \) )?", options.strip("[] "))
    if found[0] or found[1::2] != list("abcde"):
        raise UserError(f"{where}: options: not the five of a to e")
    gold = option(where, "correct", "abcde", correct)
    choices = [option.strip(" ,'\"") for option in found[2::2]]
    return choice_row("mathqa", f"_{place(where)}", choices, gold, text)


def hellaswag_row(where, record):
    """`activity: ctx_a Ctx_b` and four endings, freed of the marks of WikiHow."""
    text, choices = record.get("text"), record.get("endings")
    if text is None:
        check_fields(record, {"activity_label": str, "ctx_a": str, "ctx_b?": str}, where)
        context = f"{record['ctx_a']} {(record.get('ctx_b') or '').capitalize()}"
        text = unmarked(f"{record['activity_label']}: {context}")
    check_fields(record, {"endings": list, "label": (str, int)}, where)
    if not all(isinstance(choice, str) for choice in choices):
        raise UserError(f"{where}: endings: must be texts")
    gold = option(where, "label", [str(i) for i in range(len(choices))], str(record["label"]))
    number = record.get("ind", place(where))
    return choice_row("hellaswag", f"_{number}", [unmarked(c) for c in choices], gold, text)


def unmarked(text):
    """Without WikiHow's bracketed marks: " [title]" ends a sentence, other spans go."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def mmlu_row(name):
    """For mmlu or mmlu_finance: the hub's columns question, choices, answer (0 to 3), subject."""

    def row(where, record):
        fields = {"question": str, "choices": list, "answer": (int, str), "subject": str}
        check_fields(record, fields, where)
        return mmlu_question(name, where, record["subject"], place(where), record["question"],
                             record["choices"], record["answer"])  # fmt: skip

    return row


def mmlu_question(name, where, subject, number, text, options, answer):
    """The letters are the choices; answer is a letter or its index."""
    if len(options) != 4:
        raise UserError(f"{where}: choices: {len(options)} options, not 4")
    letters = (0, 1, 2, 3) if isinstance(answer, int) else ("A", "B", "C", "D")
    gold = option(where, "answer", letters, answer)
    parts = dict(zip("abcd", options, strict=True))
    row = choice_row(name, f"_{subject}_{number}", "ABCD", gold, text.strip(), **parts)
    return row | {"subject": subject.replace("_", " ")}


def reordered(parts):
    """(question, options, gold) in choice_row's order."""
    question, choices, gold = parts
    return choices, gold, question


# Sets whose parts lie in several files -------------------------------------------------------


def prepare_mmlu(source, name="mmlu"):
    """csv files without header: question, four options, letter. dev holds the examples."""
    found, shots, folder = Found([]), [], Path(source)
    files = [folder] if folder.is_file() else sorted(folder.rglob("*_test.csv"))
    files = {path.stem.removesuffix("_test"): path for path in files}
    wanted = FINANCE_SUBJECTS if name == "mmlu_finance" else files
    if missing := [f"{subject}_test.csv" for subject in wanted or ["*"] if subject not in files]:
        raise UserError(f"{source}: no test/{missing[0]} in it; needed: {TASKS[name].source}")
    for subject in sorted(wanted):
        found.test += mmlu_file(name, files[subject], subject, found.left_out)
        dev = find_more(source, f"**/{subject}_dev.csv")
        shots += mmlu_file(name, dev, subject, found.left_out) if dev else []
    found.shots = shots
    return found


def prepare_mmlu_finance(source):
    return prepare_mmlu(source, "mmlu_finance")


def mmlu_file(name, path, subject, left_out):
    half = "dev_" if path.stem.endswith("_dev") else ""
    records = [(f"{path}:{line}", (number, cells))
               for number, (line, cells) in enumerate(csv_rows(path))]  # fmt: skip

    def row(where, record):
        number, cells = record
        if len(cells) != 6:
            raise UserError(f"{where}: needs question, 4 options, letter; has {len(cells)} cells")
        return mmlu_question(name, where, subject, f"{half}{number}", cells[0], cells[1:5],
                             cells[5])  # fmt: skip

    return rows_of(records, row, left_out)


def prepare_hellaswag(source):
    """klosax's six lines per question: context, label, four endings."""
    path = find(source, "*val*.txt.bz2", "*val*.txt")
    lines, records, found = numbered_lines(path), [], Found([])
    if len(lines) % 6:
        raise UserError(f"{path}: {len(lines)} lines, not six per question")
    for start in range(0, len(lines), 6):
        (number, context), (_, label), *endings = lines[start : start + 6]
        record = {
            "text": unmarked(capital_fragment(context)),
            "label": label.strip(),
            "ind": start // 6,
        }
        record["endings"] = [line for _, line in endings]
        records.append((f"{path}:{number}", record))
    found.test = rows_of(records, hellaswag_row, found.left_out)
    return found


def capital_fragment(context):
    """ctx_b, the sentence that the endings complete, gets the capital that lm-eval gives it.

    klosax's file has ctx_a and ctx_b joined; ctx_b is what follows the last full sentence.
    """
    begun = re.fullmatch(r"(.*[.!?]) ([a-z][^.!?]*)", context)
    return f"{begun[1]} {begun[2].capitalize()}" if begun else context


MAKERS = {
    "arc": arc_row, "openbookqa": openbookqa_row, "piqa": piqa_row, "social_iqa": social_iqa_row,
    "winogrande": winogrande_row, "mathqa": mathqa_row, "hellaswag": hellaswag_row,
    "mmlu": mmlu_row("mmlu"), "mmlu_finance": mmlu_row("mmlu_finance"),
}  # fmt: skip
