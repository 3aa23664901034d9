"""The scores of PIXIU (The-FinAI/PIXIU, src/tasks/flare.py), its quirks included: --scorer pixiu.

    reply "I know the answer: yes", choices no, yes    -> "no": it stands in "know"
    reply "hard to tell" on stock moves                -> "Fall": the default, so nothing is missing

Published figures of these tasks were made so, and only with the same quirks can they be compared;
answers.py has none of them. The functions are answers.py's: evaluate.py takes either module.

PIXIU knows one reading, of the whole reply, so strict and flexible are the same and `style` says
nothing. Its classes by kind of answer: Classification (label, letter), StockMovement (label of
five tasks), NER (entities), AbstractiveSummarization and, for ECTSUM, ExtractiveSummarization
(summary), QA (number, short, free, exact). Choices that are texts are asked for by letter and read
as the class CFA reads letters. PIXIU has no conversations and no worked exams: those are scored as
in answers.py. Its BERTScore and BARTScore need models of their own and are left out; its relation
extraction and its TSA regression belong to no task of FinEval.
"""

import numpy as np

import answers
import scorers
from rows import LETTERS
from tasks import TASKS

# StockMovement and its two heirs: more words that stand for a choice, and the choice when none is
# found. Other good-or-bad tasks (LendingClub, CCFraud) are plain Classification.
YES, NO = ("yes", "positive"), ("no", "negative", "neutral")
MOVES, CREDIT = {"rise": YES, "fall": NO}, {"good": YES, "bad": NO}
WORDS = {TASKS[name]: (MOVES, "fall") for name in ("sm_bigdata", "sm_acl", "sm_cikm")}
WORDS |= {TASKS[name]: (CREDIT, "good") for name in ("german", "australian")}
NONE_FOUND = "missing"  # what a prediction is called where no choice was found

judge_choices = answers.judge_choices  # PIXIU asks no log-probs


# Reading a reply -----------------------------------------------------------------------------


def judge_reply(task, row, reply, style):
    """(prediction, strict, values) of a reply, see answers.judge_reply; strict = prediction."""
    if task.answer in ("label", "letter", "text", "blank"):
        prediction, values = judge_class(task, row, reply)
    elif task.answer == "entities":
        labels = label_words(reply, row["text"])
        prediction, values = " ".join(labels), {"spans": span_counts(labels, row["label"])}
    elif task.answer == "summary":
        prediction, gold = reply, row["answer"]
        if task == TASKS["ectsum"]:
            # Each line of the reply is taken for the mark of a line of the text. The marks stay
            # strings, which never equal 1: the predicted summary is always empty.
            prediction = marked_lines(row["text"], reply.split("\n"))
            gold = marked_lines(row["text"], row.get("label") or [])
        values = {kind: scorers.rouge(prediction, gold, kind) for kind in task.metrics}
    elif task.answer in ("number", "short", "free", "exact"):
        prediction = reply.strip() or None
        # Every character counts: "$1,000", "1000." and "The answer is 1000" are not "1000". Of
        # several acceptable answers only the first one counts.
        values = {"em" if "em" in task.metrics else "acc": float(prediction == row["answer"])}
    else:
        return answers.judge_reply(task, row, reply, style)
    return prediction, prediction, values


def judge_class(task, row, reply):
    """(choice or None, values) by Classification or StockMovement."""
    choices = row["choices"]
    named = choices if task.answer == "label" else LETTERS[: len(choices)]
    more, default = WORDS.get(task, ({}, None))
    found = first_choice([name.lower() for name in named], more, reply.strip().lower())
    if found is None and default is not None:
        # Whatever else is said is the default, so these tasks never miss an answer
        found = [choice.lower() for choice in choices].index(default)
    prediction = None if found is None else choices[found]
    right = found is not None and prediction.lower() == choices[row["gold"]].lower()
    return prediction, {"acc": float(right), "missing": float(found is None)}


def first_choice(choices, more, text):
    """Place of the first choice, in the row's order, that is a substring of the text, or None.

    Not of a word: "no" is found in "not" and "know", "good" in "not good", and what the reply
    names first or concludes plays no part. The text is in lower case, letters too: the class CFA
    is defined twice, and the second one drops the case that the first one keeps. So "a" is found
    in nearly every sentence, and a reply in sentences answers A.
    """
    for place, choice in enumerate(choices):
        if any(word in text for word in (choice, *more.get(choice, ()))):
            return place
    return None


def marked_lines(text, marks):
    """The lines of a text whose mark is the number 1."""
    lines = zip(text.split("\n"), marks, strict=False)  # the shorter of both ends it
    return "\n".join(line for line, mark in lines if mark == 1)


# Entities ------------------------------------------------------------------------------------


def label_words(reply, text):
    """BIO labels of the words of a text, from reply lines `entity, TYPE`.

    A line is split at its last ", ", neither half is stripped or checked. Every occurrence in the
    text, in this case, is labelled, and a later line writes over an earlier one.
    """
    words, starts = text.split(), [0]
    for word in words[:-1]:
        starts.append(starts[-1] + len(word) + 1)  # one space between words, whatever the text has
    labels = ["O"] * len(words)
    for line in reply.split("\n"):
        entity, _, kind = line.rpartition(", ")
        at = text.find(entity) if entity else -1
        while at >= 0:
            end = at + len(entity)  # behind its last character
            # Words that begin at or after the occurrence's first character, and after its last
            # one. An occurrence inside a word therefore labels the next word.
            first = next((i for i, start in enumerate(starts) if start >= at), None)
            after = next((i for i, start in enumerate(starts) if start >= end), None)
            # No word begins after the last one: an entity that ends the text is not labelled
            if after is not None:
                labels[first] = f"B-{kind}"
                labels[first + 1 : after] = [f"I-{kind}"] * (after - first - 1)
            at = text.find(entity, end)
    return labels


def span_counts(labels, gold):
    """[right, predicted, gold] spans, as seqeval counts them: an entity that the text does not
    hold has no label and so is no wrong prediction."""
    labels, gold = scorers.bio_spans(labels), scorers.bio_spans(gold)
    return [len(labels & gold), len(labels), len(gold)]


# Scoring -------------------------------------------------------------------------------------


def measures(task, samples):
    """{metric: (statistics (n, S), score function)} of a task's sample log, see answers.measures.

    ROUGE is the plain mean. PIXIU prints the median of a bootstrap without a seed, so its own
    figure differs from run to run.
    """
    if task.answer in ("exam", "chat"):
        return answers.measures(task, samples)
    found = {
        name: (scorers.mean_statistics([sample[name] for sample in samples]), scorers.mean_score)
        for name in samples[0]["metrics"]
        if name != "spans"
    }
    if task.answer == "entities":
        spans = np.array([sample["spans"] for sample in samples], dtype=float)
        found["entity_f1"] = spans, scorers.entity_f1_score
    if task.answer in ("label", "letter"):
        rows = [sample["doc"] for sample in samples]
        gold = [row["choices"][row["gold"]].lower() for row in rows]
        given = [(sample["prediction"] or NONE_FOUND).lower() for sample in samples]
        # Only labels that occur in gold have an F1; what else is given is one class, "unknown"
        statistics = scorers.confusion_statistics(gold, given, sorted(set(gold)))
        found["weighted_f1"] = statistics, scorers.weighted_f1_score
        found["macro_f1"] = statistics, scorers.macro_f1_score
        found["mcc"] = statistics, mcc_score
    return found


def mcc_score(sums):
    """MCC in which a label that is not in gold is unknown (-1), just as a missing one: (..., S).

    The whole log's matrix is made so. This does it for resamples, which may lack a label.
    """
    matrix = scorers.square(sums)
    absent = matrix.sum(-1, keepdims=True) == 0  # (..., L, 1)
    columns = np.swapaxes(absent, -1, -2)  # (..., 1, L)
    known = np.where(columns, 0, matrix[..., :-1])
    unknown = matrix.sum(-1, keepdims=True) - known.sum(-1, keepdims=True)
    return scorers.mcc_score(np.concatenate([known, unknown], -1).reshape(sums.shape))
