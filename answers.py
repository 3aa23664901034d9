"""What a reply answers, and what the answers of a task score: from the sample log alone."""

import numpy as np

import extract
import scorers

# Reading an answer ---------------------------------------------------------------------------


def read_reply(task, row, reply):
    """(strict, flexible): what the reply answers in exactly the asked form, and read with goodwill.

    None = no answer found. The score uses the flexible reading; both are logged.
    """
    if task.answer in ("label", "text"):
        choices = row["choices"]
        return extract.strict_label(reply, choices), extract.extract_label(reply, choices)
    if task.answer == "letter":
        letters = [choice.upper() for choice in row["choices"]]
        strict = extract.strict_letter if task.style == "cot" else extract.strict_label
        return strict(reply, letters), extract.extract_letter(reply, letters)
    if task.answer == "entities":
        lines = [line for line in reply.splitlines() if line.strip()]
        found = len(scorers.parse_entities(reply))
        return reply if lines and found == len(lines) else None, reply if found else None
    if task.answer == "exam":
        return (extract.exam_answer(reply),) * 2
    return (reply.strip() or None,) * 2


def judge_reply(task, row, reply):
    """(prediction, values): the flexible reading of a reply and its share in every metric."""
    strict, flexible = read_reply(task, row, reply)
    values = {"missing": float(flexible is None)}
    if task.answer == "entities":
        spans = scorers.entity_statistics([reply], [row["text"].split()], [row["label"]])[0]
        rouge = scorers.rouge(reply, row["answer"], "rouge1")
        return flexible, {"rouge1": rouge, "spans": spans.tolist()} | values

    def right(given):
        if given is None:
            return 0.0
        if task.answer == "exam":
            return float(extract.exam_right(reply, row["answer"]))
        return float(extract.exact_match(given, row["answer"]) or same_choice(row, given))

    values |= {"acc": right(flexible), "acc_strict": right(strict)}
    if task.answer == "exam":
        solution, answer = row["solution"], row["answer"]
        values["process"] = float(extract.exam_process_right(reply, solution, answer))
    return flexible, values


def same_choice(row, given):
    """Labels are read in the spelling of `choices`, which may differ from `answer` in case."""
    return bool(row.get("choices")) and given == row["choices"][row["gold"]].strip()


def judge_choices(task, row, logprobs):
    """(prediction, values) from the summed log-probs of the choices; of equal ones the first wins.

    acc_norm divides by the characters of a choice, acc_bytes by its UTF-8 bytes (lm-eval's rules).
    """

    def best(lengths):
        scores = [a / b for a, b in zip(logprobs, lengths, strict=True)]
        return scores.index(max(scores))

    choices = row["choices"]
    picks = {
        "acc": best([1] * len(choices)),
        "acc_norm": best([len(choice) for choice in choices]),
        "acc_bytes": best([len(choice.encode()) for choice in choices]),
    }
    values = {name: float(pick == row["gold"]) for name, pick in picks.items()}
    return choices[picks["acc"]], values


# Scoring: from the sample log alone, so a log can be scored again without the model ----------


def measures(task, samples):
    """{metric: (statistics (n, S), score function)} of a task's sample log (see evaluate.py)."""
    # Whatever a sample has a value for is averaged; what is not a mean is built below
    names = [name for name in samples[0]["metrics"] if name != "spans"]
    found = {
        name: (scorers.mean_statistics([s[name] for s in samples]), scorers.mean_score)
        for name in names
    }
    if task.answer == "entities":
        spans = np.array([sample["spans"] for sample in samples])
        found["entity_f1"] = (spans, scorers.entity_f1_score)
    if task.answer == "label":
        gold = [sample["target"].lower() for sample in samples]
        given = [(sample["prediction"] or "").lower() for sample in samples]
        found |= classification(gold, given)
    return found


def classification(gold, predicted):
    """Five scores of a labelling, all from one confusion matrix; "" = no label found."""
    statistics = scorers.confusion_statistics(gold, predicted, sorted(set(gold)))
    return {
        "acc": (statistics, scorers.accuracy_score),
        "weighted_f1": (statistics, scorers.weighted_f1_score),
        "macro_f1": (statistics, scorers.macro_f1_score),
        "mcc": (statistics, scorers.mcc_score),
        "balanced_acc": (statistics, scorers.balanced_accuracy_score),
    }


def baseline(task, samples):
    """{metric: score} of always giving the most frequent answer; {} where that has no meaning."""
    if task.answer == "entities":
        return {}
    targets = [sample["target"].lower() for sample in samples]
    most = scorers.majority(targets)
    if task.answer == "label":
        found = classification(targets, [most] * len(targets))
        return {name: scorers.point(*measure) for name, measure in found.items()}
    if task.answer == "text":  # the texts differ from row to row: the most frequent position
        targets = [sample["doc"]["gold"] for sample in samples]
        most = scorers.majority(targets)
    return {"acc": targets.count(most) / len(targets)}
