"""What a model is asked: a row of a task -> messages or plain text -> ids.

    plain text      description, then examples and question, a blank line between them
    chat template   system message with the description; each example is a user and an assistant
                    turn; the question is the last user turn

Log-likelihoods follow the rules of lm-evaluation-harness, so that both give the same numbers: as
plain text a choice follows a space and is what the context's tokens leave of the joint encoding;
after a chat header it follows at once; white space that ends a context is scored with the choice.
"""

from dataclasses import dataclass

from config import UserError
from jsonl import sha
from rows import LETTERS
from tasks import COT


@dataclass(frozen=True)
class Way:
    """How a task is asked. Scores of different ways are not compared."""

    mode: str  # "loglikelihood" | "generate"
    style: str  # "direct" | "cot", of generation
    fewshot: int  # examples before the question
    chat_template: bool
    system: str  # system message instead of the task's own
    max_new_tokens: int  # longest reply


def reasoning(task):
    """What asks for a chain of thought, "" where the kind of answer allows none."""
    return COT.get(task.answer, "")


def letter_answer(task, way):
    """Are the options listed and asked for by letter, though the row holds them as texts?"""
    return way.mode == "generate" and task.answer in ("text", "blank")


def halves(row, filler):
    """A sentence with `_` -> (up to the blank, filled; what follows it)."""
    before, after = row["query"].split("_", 1)
    return before + filler, after.strip()


def question(task, way, row):
    """What the last user turn says, or the last paragraph of a plain prompt."""
    if not letter_answer(task, way):
        return row["query"]
    options = zip(LETTERS, row["choices"], strict=False)
    listed = "\n".join(f"{letter}. {option}" for letter, option in options)
    ask = "Which option fits in the blank?" if task.answer == "blank" else "Which option fits best?"
    return f"{row['text']}\n{listed}\n{ask} Reply with its letter.\nAnswer:"


def answer(task, way, row):
    """What an example's assistant says."""
    return LETTERS[row["gold"]] if letter_answer(task, way) else row["answer"]


def example(task, way, row):
    """(question, answer) of a few-shot example."""
    if task.answer == "blank" and way.mode == "loglikelihood":
        return halves(row, row["answer"])
    return question(task, way, row), answer(task, way, row)


def examples(way, shots, row):
    """The examples of a row: the first ones, of its subject where the rows have subjects."""
    fitting = [shot for shot in shots if shot.get("subject") == row.get("subject")]
    if len(fitting) < way.fewshot:
        about = f" about {row['subject']}" if "subject" in row else ""
        raise UserError(f"examples: {len(fitting)}{about}, not {way.fewshot}")
    return fitting[: way.fewshot]


def systems(task, way):
    """System texts beside the description. What asks for a chain of thought and its closing form
    is never lost: a task's own message has it, one from the command line gets it behind."""
    thought = reasoning(task) if way.style == "cot" else ""
    return [way.system, thought] if way.system else [task.system or thought]


def instructions(task, way, row):
    """System message of a chat, or the head of a plain prompt; "" if there is none."""
    try:
        return "\n\n".join(filter(None, [*systems(task, way), task.description.format(**row)]))
    except KeyError as e:
        raise UserError(f"{e.args[0]}: missing, but the prompt names it") from None


def instructions_sha(task, way):
    """Of what is said beside the rows' own words."""
    return sha([*systems(task, way), task.description])


def messages(task, way, row, shots, said):
    """The conversation whose next turn is asked for. `said`: the last user turn, or the turns of a
    conversation that has begun: user, assistant, user ..."""
    head = instructions(task, way, row)
    if task.description:
        head += "\n\n"  # as lm-eval has it; Llama-3's template trims it, ChatML's does not
    turns = [said] if isinstance(said, str) else said
    for shot in reversed(examples(way, shots, row)):
        turns = [*example(task, way, shot), *turns]
    roles = ("user", "assistant")
    found = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return [{"role": "system", "content": head}, *found] if head else found


def plain(task, way, row, shots, said):
    """The same as one text, to be continued."""
    shown = [joined(*example(task, way, shot)) for shot in examples(way, shots, row)]
    said = said if isinstance(said, str) else "\n\n".join(said)
    text = task.separator.join([*shown, said])
    head = instructions(task, way, row)
    return f"{head}\n\n{text}" if head else text


def joined(question, answer):
    return question + answer if question[-1:].isspace() else f"{question} {answer}"


# Ids -----------------------------------------------------------------------------------------


def head(tokenizer):
    """What every sequence begins with: BOS, or nothing where the model was trained without."""
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]


def encode_plain(tokenizer, text):
    return head(tokenizer) + tokenizer.encode(text)


def encode_prompt(tokenizer, task, way, row, shots, said):
    """Ids of a prompt with one BOS: a chat up to the assistant's header, or plain text."""
    if not way.chat_template:
        return encode_plain(tokenizer, plain(task, way, row, shots, said))
    ids, bos = tokenizer.prompt(messages(task, way, row, shots, said)), tokenizer.bos_id
    if bos is not None and (ids[0] != bos or ids.count(bos) != 1):
        raise UserError("query: the prompt must hold one BOS, at its head")
    return ids


def encode_choices(tokenizer, task, way, row, shots):
    """[(context ids, choice ids)], one per choice."""
    if task.answer == "blank":  # the options differ in their context and share what is scored
        pairs = [halves(row, choice) for choice in row["choices"]]
    else:
        pairs = [(row["query"], choice) for choice in row["choices"]]
    found, cache = [], {}
    for said, choice in pairs:
        if way.chat_template:
            if said not in cache:
                cache[said] = encode_prompt(tokenizer, task, way, row, shots, said)
            context, space = list(cache[said]), []
            while tokenizer.decode(context[-1:], skip_special=False).isspace():
                space.insert(0, context.pop())
            ids = space + tokenizer.encode(choice)
        else:
            text = plain(task, way, row, shots, said)
            bare = text.rstrip()
            if bare not in cache:
                cache[bare] = encode_plain(tokenizer, bare)
            context = cache[bare]
            ids = encode_plain(tokenizer, f"{bare}{text[len(bare) :]} {choice}")[len(context) :]
        if not ids:  # merged away: "5" after "1" may leave no token of its own
            raise UserError("choices: one adds no token of its own to the prompt")
        found.append((context, ids))
    return found
