"""What a reply answers, and what the answers of a task score: from the sample log alone.

    reply -> (strict, flexible) reading -> values of one sample -> statistics and scores of a task

Two readings: strict takes only the form that was asked for, flexible reads with goodwill. The score
uses the flexible one. None means that no answer was found.
"""

import re

import numpy as np

import extract
import scorers
import tatqa
from rows import LETTERS

CHOSEN = ("label", "letter", "text", "blank")
OPEN = ("number", "short", "free")
# A prompt's frame, in which a base model goes on with a next question of its own
RUN_ON = re.compile(r"(?<=\S)[^\S\n]*\n\s*(?:Text|Question|Q|Context|Input)\s*:")

# Reading an answer ---------------------------------------------------------------------------


def read_reply(task, row, reply, style):
    """(strict, flexible) of a reply; `style`: "direct" or "cot", the way it was asked.

    label, letter, text, blank: one of the row's choices (texts and blanks were asked for by letter)
    number, short, free:        words; see read_open
    entities:                   the reply, if every line, or any line, is "entity, TYPE"
    exam:                       what follows "Answer:"
    exact, summary, chat:       the reply
    """
    if task.answer in (*CHOSEN, *OPEN):
        strict, flexible = read_one(task, row, reply, style)
        own = RUN_ON.split(reply, maxsplit=1)[0]
        # Where only the whole has an [[X]], the frame was part of the reasoning
        reasoned = style == "cot" and not extract.bracketed(own) and extract.bracketed(reply)
        if own == reply or reasoned:
            return strict, flexible
        mine, found = read_one(task, row, own, style)
        return (mine if style == "cot" else strict), flexible if found is None else found
    if task.answer == "entities":
        lines = [line for line in reply.splitlines() if line.strip()]
        found = len(scorers.parse_entities(reply))
        return reply if lines and found == len(lines) else None, reply if found else None
    if task.answer == "exam":
        return (extract.exam_answer(reply),) * 2
    return (reply.strip() or None,) * 2


def read_one(task, row, reply, style):
    if task.answer in CHOSEN:
        return read_choice(task, row, reply, style)
    return read_open(task, reply, style)


def read_choice(task, row, reply, style):
    """(strict, flexible) choice. Strict: the whole reply, or of a chain of thought what its last
    `Selection: [[X]]` holds. Flexible: the first line of a direct reply, if it is one (the rest
    may be a next question that the model makes up); the last [[X]] that names one; else its words.
    """
    choices = row["choices"]
    if task.answer == "label":
        names, read = choices, extract.extract_label
    else:
        names, read = LETTERS[: len(choices)], extract.extract_letter
    asked = extract.selection(reply) if style == "cot" else reply
    strict = extract.strict_label(asked or "", names)
    at_once = first_line(reply, names) if style == "direct" else None
    flexible = at_once or read_marked(reply, names, read) or strict
    if task.answer in ("text", "blank"):
        texts = {None: None} | dict(zip(names, choices, strict=False))
        # A reply that is an option's text names it too
        return texts[strict], texts[flexible] or extract.strict_label(reply, choices)
    if task.answer == "letter":  # in the spelling of the row
        texts = {None: None} | {choice.upper(): choice for choice in choices}
        return texts.get(strict), texts.get(flexible)
    return strict, flexible


def first_line(reply, names):
    """The name that the first line is, unless one of the next lines is another one."""
    lines = reply.strip().split("\n", 10)[:10]
    found = [extract.strict_label(line, names) for line in lines]
    return found[0] if len({*found} - {None}) == 1 else None


def read_marked(reply, names, read):
    """The name in the last [[X]] that holds one, else what `read` finds in the reply.

    A reply that ends by declining, [[None]], gives no answer, whatever it says before.
    """
    for said in reversed(extract.bracketed(reply)):
        name = extract.strict_label(said, names) or read(said, names)
        if name or extract.DECLINED.fullmatch(said):
            return name
    return read(reply, names)


def read_open(task, reply, style):
    """(strict, flexible) words of a reply.

    cot:    strict is the content of the last `Selection: [[X]]`; flexible the last [[X]], else the
            one final answer that the reply marks, else its last line
    direct: strict is the reply, up to the first of task.until; flexible the last [[X]], else the
            one marked final answer, else the reply. There task.until ends no number (3.5; 1,000),
            and only a line end cuts before marks are looked for.
    """
    if style == "cot":
        lines = [line.strip() for line in reply.splitlines() if line.strip()]
        flexible = marked(reply) or extract.final_answer(reply) or (lines[-1] if lines else None)
        return extract.selection(reply) or None, flexible
    reply = reply.strip()
    strict = cut(reply, [re.escape(end) for end in task.until])
    line = cut(reply, ["\n"] if "\n" in task.until else [])
    whole = [rf"(?<!\d){end}|{end}(?!\d)" for end in map(re.escape, task.until)]
    return strict or None, marked(line) or concluded(line) or cut(line, whole) or None


def cut(text, ends):
    """A text up to the first match of the patterns `ends`."""
    return (re.split("|".join(ends), text, maxsplit=1)[0] if ends else text).strip()


def marked(reply):
    """What the last [[X]] holds, else None."""
    found = [said for said in extract.bracketed(reply) if said]
    return found[-1] if found else None


def concluded(reply):
    """The one final answer that a reply marks in words, else None."""
    found = extract.final_answers(reply)
    return next(iter(found.values())) if len(found) == 1 else None


# Judging one sample --------------------------------------------------------------------------


def judge_reply(task, row, reply, style):
    """(prediction, strict, values): both readings of a reply and its share in every metric."""
    strict, flexible = read_reply(task, row, reply, style)
    values = {"missing": float(flexible is None)}
    if task.answer == "entities":
        spans = scorers.entity_statistics([reply], [row["text"].split()], [row["label"]])[0]
        values["rouge1"] = scorers.rouge(reply, row["answer"], "rouge1")
        values["spans"] = spans.tolist()
    elif task.answer == "summary":
        for kind in ("rouge1", "rouge2", "rougeL"):
            values[kind] = scorers.rouge(flexible or "", row["answer"], kind)
    elif task.answer == "number":
        values["em"] = tatqa.em(flexible or "", row)
        values["em_strict"], values["f1"] = tatqa.original(flexible or "", row)
    elif task.answer in ("short", "free"):
        values["em"], values["em_strict"] = (
            right_words(task, row, given) for given in (flexible, strict)
        )
        if task.answer == "short" and style == "direct":  # a cut at a stop ends "St. Louis" early
            line = reply.strip().partition("\n")[0]
            values["em"] = max(values["em"], right_words(task, row, line))
    elif task.answer == "exam":
        right = float(extract.exam_right(reply, row["answer"]))
        values["acc"] = values["acc_strict"] = right
        process = extract.exam_process_right(reply, row["solution"], row["answer"])
        values["process"] = float(process)
    elif task.answer != "chat":
        values["acc"], values["acc_strict"] = (
            right_choice(task, row, given) for given in (flexible, strict)
        )
    return flexible, strict, values


def right_words(task, row, given):
    """short: equal to any answer, up to case, punctuation and articles. free: the reference's
    number within tolerance, or else its words (tatqa.same)."""
    if given is None:
        return 0.0
    if task.answer == "free":
        return float(tatqa.same(given, row["answer"]))
    return float(extract.plain(given) in {extract.plain(answer) for answer in row["answers"]})


def right_choice(task, row, given):
    """One of the choices: that of gold. exact: the answer, up to white space."""
    if given is None:
        return 0.0
    if task.answer in CHOSEN:
        return float(given == row["choices"][row["gold"]])
    return float(extract.exact_match(given, row["answer"]))


def judge_choices(task, row, logprobs):
    """(prediction, values) from the summed log-probs of the choices; of equal ones the first wins.

    acc_norm divides by the characters of a choice, acc_bytes by its UTF-8 bytes (lm-eval's rules);
    the choices of a blank are scored by the words after it, which are the same for all.
    """

    def best(lengths):
        scores = [a / b for a, b in zip(logprobs, lengths, strict=True)]
        return scores.index(max(scores))

    choices = row["choices"]
    picks = {"acc": best([1] * len(choices))}
    if task.answer != "blank":
        picks["acc_norm"] = best([len(choice) for choice in choices])
        picks["acc_bytes"] = best([len(choice.encode()) for choice in choices])
    values = {name: float(pick == row["gold"]) for name, pick in picks.items()}
    return choices[picks["acc"]], values


# Scoring: from the sample log alone, so a log can be scored again without the model ----------


def measures(task, samples):
    """{metric: (statistics (n, S), score function)} of a task's sample log (see evaluate.py).

    A sample without a value, as one that no judge has marked, does not count in that mean.
    """
    names = dict.fromkeys(name for sample in samples for name in sample["metrics"])
    found = {}
    for name in names:
        if name != "spans":
            here = np.array([name in sample["metrics"] for sample in samples], dtype=float)
            values = [sample[name] if name in sample["metrics"] else 0.0 for sample in samples]
            found[name] = scorers.mean_statistics(values) * here[:, None], scorers.mean_score
    if task.answer == "entities":
        spans = np.array([sample["spans"] for sample in samples])
        found["entity_f1"] = (spans, scorers.entity_f1_score)
    if task.answer == "label":
        gold = [sample["target"].strip().lower() for sample in samples]
        given = [(sample["prediction"] or "").strip().lower() for sample in samples]
        found |= classification(gold, given)
    return found


def classification(gold, predicted):
    """Five scores of a labelling, all from one confusion matrix; "" = no label found."""
    labels = sorted(({*gold} | {*predicted}) - {""})
    statistics = scorers.confusion_statistics(gold, predicted, labels)
    return {
        "acc": (statistics, scorers.accuracy_score),
        "weighted_f1": (statistics, scorers.weighted_f1_score),
        "macro_f1": (statistics, scorers.macro_f1_score),
        "mcc": (statistics, scorers.mcc_score),
        "balanced_acc": (statistics, scorers.balanced_accuracy_score),
    }


def baseline(task, samples):
    """{metric: score} of always giving the most frequent answer; {} where that has no meaning."""
    if task.answer not in (*CHOSEN, "exact", "exam"):
        return {}
    targets = [sample["target"].strip().lower() for sample in samples]
    most = scorers.majority(targets)
    if task.answer == "label":
        found = classification(targets, [most] * len(targets))
        return {name: scorers.point(*measure) for name, measure in found.items()}
    if task.answer in ("text", "blank"):  # the texts differ from row to row: the position
        targets = [sample["doc"]["gold"] for sample in samples]
        most = scorers.majority(targets)
    return {"acc": targets.count(most) / len(targets)}
