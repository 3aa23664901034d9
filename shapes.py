"""Rows as other tools and releases write them -> rows of ours, each by the columns that it has.

    text     {"text"}, plain text files
    chat     {"messages"} (OpenAI), conversations (sharegpt), prompt + completion (TRL),
             instruction, input, output, system, history (alpaca), query + answer (FLARE)
    prompt   {"prompt", "answer"}, question + answer (GSM8K), exercises of FinTrain
    pair     {"prompt", "chosen", "rejected"}, the same as two whole conversations (UltraFeedback),
             with instruction or conversations (LLaMA-Factory), of OpenAI, of Step-DPO

    python curate.py convert --data alpaca.json,sharegpt.parquet --out out/chat.jsonl
    python curate.py convert --data gsm8k/train.jsonl --out out/gsm8k.jsonl --to text

--to chat, prompts or text makes the others into it; what cannot become it is dropped. Columns
beside these that hold one word, text or number (id, url, licence, ...) are kept; a row without a
source gets the name of its file.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from config import UserError, check_choice
from corpus import Pass, Rows
from jsonl import check_fields, sha
from turns import Unusable, as_turns, check_turns, text_of, turn, turns_of

# What instruction data calls the question, whose parts are joined, and its reply
ASKED = ("instruction", "question", "query", "problem", "input", "context")
REPLIED = ("output", "response", "solution")
EXERCISE = ("scenario", "exhibit", "questions", "answer_choices")  # in the order of a question
# Columns that rows are made of: copied along as well they would say it twice
CONTENT = frozenset((*ASKED, *REPLIED, *EXERCISE, *"""text messages conversations system history
    system_prompt prompt completion answer choices gold chosen rejected prefix ends_turn
    initial_reason_steps full_chosen full_rejected""".split()))  # fmt: skip
FINAL = re.compile(r"####\s*(\S[^\n]*?)\s*$")  # the answer that ends a solution of GSM8K
MEDIA = ("image", "images", "videos", "audios")


@dataclass
class Convert(Rows):
    to: str = "auto"  # chat, prompts or text; auto = what each row is


# Parts of rows --------------------------------------------------------------------------------


def joined(row, names, between):
    """The texts of columns, those without any left out."""
    texts = (text_of(row, name).strip("\n") for name in names)
    return between.join(text for text in texts if text.strip())


def system_of(row):
    return text_of(row, "system") or text_of(row, "system_prompt")


def prompt_column(row):
    """The column prompt: as it is if that is a text without system prompt, else as messages."""
    turns = turns_of(row["prompt"], "prompt", "user", system_of(row))
    return row["prompt"] if isinstance(row["prompt"], str) and len(turns) == 1 else turns


def asked(row):
    """Messages up to the question of instruction data: system, history, question with input."""
    turns = turns_of([], "", system=system_of(row))
    history = [] if row.get("history") is None else row["history"]
    for said in history if isinstance(history, list) else [history]:
        if not isinstance(said, (list, tuple)) or [type(part) for part in said] != [str, str]:
            raise UserError("history: must be a list of [question, answer]")
        turns += [turn("user", said[0]), turn("assistant", said[1])]
    return [*turns, turn("user", joined(row, ASKED, "\n"))]


# Kinds: fields of ours, or Unusable -----------------------------------------------------------


def chat_of(turns):
    check_turns(turns, last="assistant")
    if all(m.get("weight") == 0 for m in turns if m["role"] == "assistant"):
        raise Unusable("no turn that is trained")
    return "chat", {"messages": turns}


def prompt_of(prompt, answer, solution=""):
    check_turns(as_turns(prompt), last="user")
    if not answer.strip():
        raise Unusable("a prompt without an answer")
    solved = {"solution": solution} if solution.strip() else {}
    return "prompt", {"prompt": prompt, "answer": answer, **solved}


def pair_of(prompt, chosen, rejected, **how):
    """how: prefix, the beginning of the reply that both go on from, and ends_turn."""
    check_turns(as_turns(prompt), last="user")
    said = []
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        reply = turns_of(value, name, "assistant")
        if [m["role"] for m in reply] != ["assistant"]:
            raise Unusable("a reply of a pair that is not one turn of the assistant")
        if not reply[0]["content"].strip():
            raise Unusable("an empty reply")
        said.append(value if isinstance(value, str) else reply)
    ends = how.get("ends_turn") or {"chosen": True, "rejected": True}
    same = {as_turns(reply)[0]["content"] for reply in said}
    same = same if how.get("prefix") else {text.strip() for text in same}  # as training cuts turns
    if len(same) == 1 and ends["chosen"] == ends["rejected"]:
        raise Unusable("chosen and rejected are the same")
    return "pair", {"prompt": prompt, "chosen": said[0], "rejected": said[1], **how}


def become(kind, fields, to):
    """(kind, fields) of what is wanted. FinDAP reads supervised data as text: question, blank line,
    answer; here the whole solution where there is one."""
    wanted = {"auto": kind, "chat": "chat", "prompts": "prompt", "text": "text"}[to]
    if wanted == kind:
        return kind, fields
    if kind in ("text", "pair"):
        raise Unusable(f"a {kind} cannot become --to {to}")
    turns = fields.get("messages")
    if kind == "prompt":
        reply = fields.get("solution") or fields["answer"]
        turns = [*as_turns(fields["prompt"]), turn("assistant", reply)]
    if wanted == "text":
        return wanted, {"text": "\n\n".join(m["content"] for m in turns)}
    if wanted == "chat":
        return wanted, {"messages": turns}
    *asking, last = [turn(m["role"], m["content"]) for m in turns]  # without weights
    return wanted, {"prompt": asking, "answer": last["content"]}


# Shapes: row -> (kind, fields of ours) --------------------------------------------------------


def text(row):
    if not text_of(row, "text").strip():
        raise Unusable("an empty text")
    return "text", {"text": text_of(row, "text")}


def chat(row):
    name = "messages" if "messages" in row else "conversations"
    return chat_of(turns_of(row[name], name, system=system_of(row)))


def completed(row):
    if row.get("label") is False:  # KTO's rows say which replies are bad
        raise Unusable("a reply that is marked as bad")
    return chat_of(
        as_turns(prompt_column(row)) + turns_of(row["completion"], "completion", "assistant")
    )


def instructed(row):
    if row.get("kto_tag") is False:
        raise Unusable("a reply that is marked as bad")
    name = next(name for name in REPLIED if name in row)
    return chat_of([*asked(row), turn("assistant", text_of(row, name))])


def flare(row):
    """The query holds text and instruction; for want of an answer gold says which choice it is."""
    answer, choices, gold = text_of(row, "answer"), row.get("choices"), row.get("gold")
    if not answer and isinstance(choices, list) and type(gold) is int and 0 <= gold < len(choices):
        answer = str(choices[gold])
    return chat_of([turn("user", text_of(row, "query")), turn("assistant", answer)])


def prompt(row):
    return prompt_of(prompt_column(row), text_of(row, "answer"), text_of(row, "solution"))


def question(row):
    if row.get("choices") or row.get("options"):
        raise Unusable("a question whose choices stand apart")
    answer, solution = text_of(row, "answer"), text_of(row, "solution")
    if found := FINAL.search(answer):
        answer, solution = found[1], answer
    return prompt_of(joined(row, ("context", "question", "problem"), "\n\n"), answer, solution)


def exercise(row):
    return prompt_of(joined(row, EXERCISE, "\n\n"), text_of(row, "answer"))


def pair(row):
    """TRL's explicit and implicit pairs, LLaMA-Factory's, those of FinDAP and ours."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list):
        whole = turns_of(chosen, "chosen"), turns_of(rejected, "rejected")
        if all(turns and turns[0]["role"] != "assistant" for turns in whole):
            (*before, good), (*other, bad) = whole
            if before != other:
                raise Unusable("chosen and rejected part before their last turns")
            return pair_of(before, [good], [bad])
    check_fields(row, {"prefix?": str, "ends_turn?": dict}, "a pair")
    how = {name: row[name] for name in ("prefix", "ends_turn") if row.get(name) is not None}
    if how.get("prefix") or "ends_turn" in how:
        check_fields(how.get("ends_turn") or {}, {"chosen": bool, "rejected": bool}, "ends_turn")
    if "conversations" in row:
        given = turns_of(row["conversations"], "conversations", system=system_of(row))
    else:
        given = prompt_column(row) if "prompt" in row else asked(row)
    return pair_of(given, chosen, rejected, **how)


def step_pair(row):
    """One step of a solution each, after the steps before it: neither ends the turn."""
    ends = {"chosen": False, "rejected": False}
    steps = text_of(row, "initial_reason_steps")
    return pair_of(prompt_column(row), row["chosen"], row["rejected"], prefix=steps, ends_turn=ends)


def openai_pair(row):
    given = row["input"].get("messages") if isinstance(row["input"], dict) else row["input"]
    return pair_of(
        turns_of(given, "input: messages"), row["preferred_output"], row["non_preferred_output"]
    )


def tokenised(row):
    raise UserError("input_ids: holds tokens, not text; get the text that they were made from")


SHAPES = [  # what makes rows of which columns; the first that fits
    (step_pair, "prompt initial_reason_steps chosen rejected"),
    (openai_pair, "input preferred_output non_preferred_output"),
    (pair, "chosen rejected"),
    (chat, "messages"),
    (chat, "conversations"),
    (completed, "prompt completion"),
    (exercise, "questions answer_choices answer"),
    (question, "question answer"),
    (question, "problem answer"),
    (flare, "query answer"),
    (flare, "query gold"),
    *((instructed, f"{asking} {reply}") for asking in ASKED[:4] for reply in REPLIED),
    (prompt, "prompt answer"),
    (text, "text"),
    (prompt, "prompt"),
    (tokenised, "input_ids"),
]


# The pass -------------------------------------------------------------------------------------


def file_of(where):
    """The file of a row."""
    return Path(re.sub(r":\D*\d+$", "", where))


def id_of(row, where):
    """The id that a prompt needs to be sampled, the same in every run."""
    name = row.get("id")
    if type(name) is int:  # it counts the rows of a file, as that of another file may do
        path = file_of(where)
        return "_".join(filter(None, [path.parent.name, path.stem, str(name)]))
    if isinstance(name, str) and name.strip():
        return name
    place = "/".join(Path(where).parts[-2:])  # with it: a question may be there twice
    return sha([place, row])[:16]


def converted(row, where, to):
    """A row of ours. Unusable where it is of no use, UserError where it has no known shape."""
    make = next((make for make, names in SHAPES if row.keys() >= {*names.split()}), None)
    if make is None:
        raise UserError(f"no known shape; the row has {', '.join(list(row)[:12]) or 'no keys'}")
    kind, fields = make(row)
    if kind != "text" and any(row.get(name) for name in MEDIA):
        raise Unusable("holds parts that are no text")
    kind, fields = become(kind, fields, to)
    if kind == "prompt":
        fields = {"id": id_of(row, where)} | fields
    fields["source"] = text_of(row, "source").strip() or file_of(where).stem
    plain = (str, int, float, bool, type(None))
    more = {k: v for k, v in row.items() if isinstance(v, plain) and k not in CONTENT}
    return fields | {k: v for k, v in more.items() if k not in fields}


def convert(cfg):
    """Bring every row to the form that training reads."""
    check_choice(cfg, to=("auto", "chat", "prompts", "text"))
    todo = Pass(cfg)
    for block in todo.blocks():
        for where, row in block:
            try:
                made = converted(row, where, cfg.to)
            except Unusable as e:
                todo.drop(where, str(e))
            except UserError as e:
                todo.unreadable(where, e)
            else:
                todo.keep(made)
