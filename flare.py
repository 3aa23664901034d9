"""Published FLARE rows -> rows of a task, and which task records belong to, by their content.

    {"id", "query", "answer", "text", "choices", "gold"}     TheFinAI/flare-*, TheFinAI/cra-*
    the same with other columns missing or renamed           Salesforce/FinEval

Names of files and configurations are not believed: the released FinEval has LendingClub's rows
under FinanceBench, SM-Bigdata's under CRA-Bigdata and PortoSeguro's under CRA-ProtoSeguro.
"""

import re

from config import UserError
from jsonl import check_fields
from rows import LETTERS, NUMERAL, reads_like
from sources import place
from tasks import TASKS

FINANCE_SUBJECTS = (
    "business_ethics econometrics high_school_macroeconomics high_school_microeconomics "
    "professional_accounting management marketing"
).split()
MMLU_SMALL = 3000  # fewer rows than this are MMLU-Finance's (1,460), not MMLU's (14,042)
ABOUT = re.compile(r"The following are multiple choice questions \(with answers\) about (.*?)\.\s*")
ZEROS_AND_ONES = re.compile(r"\b0 and 1\b")  # PIXIU asks ECTSUM for a 0 or 1 per line
# Columns that only one task's original form has; the first that fits wins
COLUMNS = {
    "tatqa": ("table", "questions"),
    "financebench": ("financebench_id", "evidence"),
    "mt_bench": ("turns", "category"),
    "mathqa": ("Problem", "options", "correct"),
    "social_iqa": ("answerA", "answerB", "answerC"),
    "openbookqa": ("question_stem", "choices"),
    "hellaswag": ("ctx_a", "endings"),
    "winogrande": ("option1", "option2", "sentence"),
    "piqa": ("goal", "sol1", "sol2"),
    "mmlu": ("question", "choices", "answer", "subject"),
    "arc": ("question", "choices", "answerKey"),
    "australian": ("A1", "A14", "answer"),
}
OPENBOOKQA_ID = re.compile(r"\d+-\d+")  # its authors' json lines have ARC's columns


# Which task ----------------------------------------------------------------------------------


def is_flare(records):
    """Do records have FLARE's columns? FinEval's ECTSUM has `summary` for an answer."""
    columns = records[0][1].keys() if records else set()
    return "query" in columns and bool({"answer", "gold", "summary", "label_text"} & columns)


def task_of(records):
    """The task that records belong to, by their columns or else their queries; "" if unknown."""
    if not records:
        return ""
    rows = [record for _, record in records]
    if not is_flare(records):
        name = next((n for n, need in COLUMNS.items() if set(need) <= rows[0].keys()), "")
        answers = isinstance(rows[0].get("question"), str) and rows[0].get("answer")
        if not name and isinstance(answers, list):
            name = "nq_open"
        if isinstance(rows[0].get("question"), dict) and "answerKey" in rows[0]:
            own = all(OPENBOOKQA_ID.fullmatch(str(row.get("id"))) for row in rows)
            name = "openbookqa" if own else "arc"
        return mmlu_part(rows) if name == "mmlu" else name
    queries = [row["query"] for row in rows if isinstance(row.get("query"), str)]
    for name, task in TASKS.items():
        if task.sign and queries and reads_like(task, queries):
            return mmlu_part(rows) if name == "mmlu" else name
    return ""


def mmlu_part(rows):
    """ "mmlu" or "mmlu_finance": by subjects, and where rows have none by how many they are."""
    subjects = {str(row.get("subject", "")).replace(" ", "_") for row in rows}
    if subjects != {""}:
        return "mmlu_finance" if subjects <= set(FINANCE_SUBJECTS) else "mmlu"
    return "mmlu_finance" if len(rows) < MMLU_SMALL else "mmlu"


def refuse_others(name, path, records):
    """UserError where records are another task's, by their columns or queries."""
    queries = [row["query"] for _, row in records if isinstance(row.get("query"), str)]
    if queries and TASKS[name].sign and reads_like(TASKS[name], queries):
        return
    other = task_of(records)
    if other in ("", name) or {name, other} == {"mmlu", "mmlu_finance"}:
        return
    aside = " (the released FinEval has them under FinanceBench)" if other == "lendingclub" else ""
    raise UserError(f"{path}: these are {other} rows{aside}, not {name}'s; run: evaluate.py "
                    f"prepare {other} {path}")  # fmt: skip


# One row -------------------------------------------------------------------------------------


def flare_row(name, where, record):
    """A row of a task from a FLARE row. UserError "where: field: reason" if it cannot be one."""
    kind = TASKS[name].answer
    check_fields(record, {"query": str, "id?": (str, int)}, where)
    key = record.get("id")
    out = {"id": f"{name}_{place(where)}" if key in (None, "") else str(key)}
    out |= {key: value for key, value in record.items() if key != "id" and value is not None}
    if not isinstance(out.get("text"), str) or not out["text"].strip():
        out["text"] = bare_text(record["query"])
    if kind in ("label", "letter", "text"):
        return chosen(name, where, out)
    if kind == "summary":
        return summarised(name, where, out)
    if kind == "number":
        return measured(where, out)
    if kind == "short":
        answers = out["answer"] if isinstance(out.get("answer"), list) else [out.get("answer")]
        return out | {"answers": answers, "answer": answers[0] if answers else ""}
    return out


def option(where, field, names, name):
    """The index of the right option, UserError if there is none of that name."""
    if name not in names:
        raise UserError(f"{where}: {field}: {name!r} is not one of {', '.join(map(str, names))}")
    return list(names).index(name)


def bare_text(query):
    """What stands between `Text:` (or `Context:`) and `Answer:`, else the whole query."""
    found = re.search(r"\b(?:Text|Context):\s*(.*?)\s*(?:Answer:\s*)?$", query, re.S)
    return found[1] if found and found[1] else query


def chosen(name, where, row):
    """Choices, gold and answer where the published row lacks one of them."""
    task = TASKS[name]
    if not row.get("choices"):
        letters = LETTERS[: 4 if "{d}" in task.prompt else 3] if task.answer == "letter" else ()
        row["choices"] = [*task.labels, *letters]
    choices, gold = row["choices"], row.get("gold")
    if not isinstance(choices, list) or not choices:
        raise UserError(f"{where}: choices: missing")
    if "answer" not in row and type(gold) is int and 0 <= gold < len(choices):
        row["answer"] = choices[gold]
    check_fields(row, {"answer": str}, where)
    answer = row["answer"].strip()
    if gold is None:
        known = [str(choice).strip().lower() for choice in choices]
        row["gold"] = option(where, "answer", known, answer.lower())
    elif task.answer == "text" and type(gold) is int and 0 <= gold < len(choices):
        if answer == LETTERS[gold : gold + 1]:  # a letter that stands for a text
            row["answer"] = choices[gold]
    if "{subject}" in task.description:
        about = ABOUT.search(row["query"])
        row["query"] = ABOUT.sub("", row["query"]).strip()
        subject = row.get("subject") or (about[1] if about else "finance")
        row["subject"] = str(subject).replace("_", " ").strip()
    return row


def summarised(name, where, row):
    """FinEval calls the reference `summary`, PIXIU `label_text`; flare-edtsum has it as answer.

    Where only 0/1 per line of text are given, the marked lines are the reference. A query that
    asks for such a list is put in our words, since the answer is text.
    """
    text = row.pop("summary", None) or row.pop("label_text", None)
    if not text and isinstance(marks := row.get("label"), list):
        lines = row["text"].split("\n")
        text = "\n".join(x for x, mark in zip(lines, marks, strict=False) if mark in (1, "1"))
    row["answer"] = text if isinstance(text, str) and text.strip() else row.get("answer")
    if ZEROS_AND_ONES.search(row["query"]):
        row["query"] = TASKS[name].prompt.format(text=row["text"])
        check_fields(row, {"answer": str}, where)
        if re.fullmatch(r"[01\s,\[\]]+", row["answer"]):
            raise UserError(f"{where}: summary: missing; only a list of 0 and 1 is there")
    if "label" in row and not isinstance(row["label"], list):
        row.pop("label")
    return row


def measured(where, row):
    """FLARE's TAT-QA has the answer as one text: its type is read off it, its scale is unknown."""
    check_fields(row, {"answer": (str, int, float)}, where)
    row["answer"] = str(row["answer"])
    if "answer_type" not in row:
        row["answer_type"] = "arithmetic" if NUMERAL.fullmatch(row["answer"].strip()) else "span"
    return {"answers": [row["answer"]], "scale": ""} | row
