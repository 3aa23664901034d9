"""FinEval's tasks: what is asked, how a reply is read, what it scores. No model in here.

    row (FLARE jsonl) -> prompt -> reply or log-likelihoods -> reading -> statistics -> scores

One entry of TASKS per task. `prepare.py` makes the rows from the public files; the sample world's
rows are in sample/data/eval. A capability is one of FinCap's four, or `general`: what must be kept.

    python evaluate.py --list
    python prepare.py fpb path/to/FinancialPhraseBank out/data
"""

from dataclasses import dataclass

import numpy as np

import extract
import scorers
from config import UserError
from jsonl import read_jsonl

CAPABILITIES = ("concepts", "tasks", "reasoning", "instruction_following", "general")


@dataclass(frozen=True)
class Task:
    title: str
    capability: str  # one of CAPABILITIES
    kind: str  # "general" | "domain" | "reasoning": FinEval's own tag
    novelty: str  # "similar" to a training task | "novel"
    style: str  # "direct" | "cot": answer at once, or reason first
    answer: str  # how a reply is read: "label" "letter" "text" "entities" "exact" "exam"
    mode: str  # "generate" | "loglikelihood": how it is asked unless --mode says otherwise
    metrics: tuple[str, ...]  # the first one is the score
    max_new_tokens: int
    source: str  # where the data comes from
    prompt: str = ""  # how prepare.py writes `query`; empty: the rows bring it
    system: str = ""  # system message that belongs to the task


# One label of a fixed set: accuracy says little where one class dominates, so F1 and MCC go along
LABEL = ("acc", "weighted_f1", "macro_f1", "mcc", "balanced_acc")
# One text of several: by sum, and per character or byte, since long choices collect more log-loss
CHOICE = ("acc", "acc_norm", "acc_bytes")
WORLD = "the sample world: python sample/world.py --out sample/data"

# In substance the published prompt of CFA-Challenge, the only one of FinEval's that is known
CFA_SYSTEM = (
    "You are taking a CFA exam. Choose the one right answer among A, B and C. First explain your "
    "reasoning in up to 100 words, then give your choice in the form Selection: [[A]]. "
    "If none of the options is right, say so."
)

TASKS = {
    # Finance tasks, similar to training tasks
    "fpb": Task(
        title="FPB, sentiment of news sentences",
        capability="tasks", kind="domain", novelty="similar", style="direct",
        answer="label", mode="generate", metrics=LABEL, max_new_tokens=32,
        source="Financial PhraseBank v1.0 (Malo et al. 2014), Sentences_50Agree.txt",
        prompt="Analyze the sentiment of this statement extracted from a financial news article. "
        "Provide your answer as either negative, positive or neutral. For instance, 'The company's "
        "stocks plummeted following the scandal.' would be classified as negative.\n"
        "Text: {text}\nAnswer:",
    ),
    "fiqa_sa": Task(
        title="FiQA-SA, sentiment of headlines and posts",
        capability="tasks", kind="domain", novelty="similar", style="direct",
        answer="label", mode="generate", metrics=LABEL, max_new_tokens=32,
        source="FinLoRA data/test/fiqa_test.jsonl and FiQA 2018 task 1 (train, two json files)",
        prompt="What is the sentiment of the following financial {category}: Positive, Negative, "
        "or Neutral?\nText: {text}\nAnswer:",
    ),
    "fomc": Task(
        title="FOMC, stance of central bank sentences",
        capability="tasks", kind="domain", novelty="similar", style="direct",
        answer="label", mode="generate", metrics=LABEL, max_new_tokens=32,
        source="gtfintechlab/fomc-hawkish-dovish, lab-manual-split-combine-{train,test}-5768",
        prompt="Examine the excerpt from a central bank's release below. Classify it as HAWKISH if "
        "it advocates for a tightening of monetary policy, DOVISH if it suggests an easing of "
        "monetary policy, or NEUTRAL if the stance is unbiased. Your response should return only "
        "HAWKISH, DOVISH, or NEUTRAL.\nText: {text}\nAnswer:",
    ),
    "ner": Task(
        title="NER, entities in loan agreements",
        capability="tasks", kind="domain", novelty="similar", style="direct",
        answer="entities", mode="generate", metrics=("rouge1", "entity_f1"), max_new_tokens=128,
        source="Salinas Alvarado et al. 2015, FIN5.txt (train) and FIN3.txt (test), CoNLL columns",
        prompt="In the sentences extracted from financial agreements in U.S. SEC filings, identify "
        "the named entities that represent a person ('PER'), an organization ('ORG'), or a "
        "location ('LOC'). The required answer format is: 'entity name, entity type'.\n"
        "Text: {text}\nAnswer:",
    ),
    # Knowledge, novel. Prompts are lm-eval-harness's, so that its numbers can be compared.
    "mmlu_finance": Task(
        title="MMLU-Finance, seven business subjects",
        capability="concepts", kind="domain", novelty="novel", style="direct",
        answer="letter", mode="loglikelihood", metrics=("acc",), max_new_tokens=16,
        source="hendrycks/test: the folder that holds test/*_test.csv",
        prompt="The following are multiple choice questions (with answers) about {subject}.\n\n"
        "{text}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:",
    ),
    "arc": Task(
        title="AI2-ARC, Easy and Challenge",
        capability="general", kind="general", novelty="novel", style="direct",
        answer="text", mode="loglikelihood", metrics=CHOICE, max_new_tokens=64,
        source="LLM-Adapters dataset/ARC-{Easy,Challenge} (json lists of train and test)",
        prompt="Question: {text}\nAnswer:",
    ),
    # Reasoning, novel
    "cfa": Task(
        title="CFA-Easy, exam questions with reasoning",
        capability="reasoning", kind="reasoning", novelty="novel", style="cot",
        answer="letter", mode="generate", metrics=("acc",), max_new_tokens=512,
        source="flare-cfa (TheFinAI on the hub) as jsonl of FLARE rows",
        system=CFA_SYSTEM,
    ),
    # The sample world
    "concepts": Task(
        title="Facts of the sample world's companies",
        capability="concepts", kind="domain", novelty="similar", style="direct",
        answer="exact", mode="generate", metrics=("acc",), max_new_tokens=24, source=WORLD,
    ),
    "tasks": Task(
        title="Sentiment and extraction in the sample world",
        capability="tasks", kind="domain", novelty="similar", style="direct",
        answer="exact", mode="generate", metrics=("acc",), max_new_tokens=24, source=WORLD,
    ),
    "reasoning": Task(
        title="Exam of the sample world, two calculation steps",
        capability="reasoning", kind="reasoning", novelty="similar", style="cot",
        answer="exam", mode="generate", metrics=("acc", "process"), max_new_tokens=96,
        source=WORLD,
    ),
    "reasoning_dev": Task(
        title="The same exam, questions for choosing settings",
        capability="reasoning", kind="reasoning", novelty="similar", style="cot",
        answer="exam", mode="generate", metrics=("acc", "process"), max_new_tokens=96,
        source=WORLD,
    ),
    "instruction_following": Task(
        title="Answers in a prescribed form, sample world",
        capability="instruction_following", kind="general", novelty="similar", style="direct",
        answer="exact", mode="generate", metrics=("acc",), max_new_tokens=48, source=WORLD,
    ),
    "general": Task(
        title="General facts and sums that the base knows",
        capability="general", kind="general", novelty="similar", style="direct",
        answer="exact", mode="generate", metrics=("acc",), max_new_tokens=96, source=WORLD,
    ),
}  # fmt: skip


# Rows ----------------------------------------------------------------------------------------


def load_rows(name, path):
    """FLARE rows of a task, checked: [{"id": str, "query", "answer", ...}]. UserError on a bad one.

    Choices are needed where a choice is made: distinct, with `gold` inside and `answer` equal to
    choices[gold]. Extra keys stay. A row without id gets its row number (flare-cfa has none).
    """
    task = TASKS[name]
    fields = {"query": str, "answer": str}
    if task.answer in ("label", "letter", "text"):
        fields |= {"choices": list, "gold": int}
    if task.answer == "entities":
        fields |= {"text": str, "label": list}
    if task.answer == "exam":
        fields |= {"solution": str}
    rows, seen = [], set()
    for line, row in read_jsonl(path, fields):
        problem = row_problem(task, row)
        row["id"] = str(row.get("id", len(rows)))
        if not problem and row["id"] in seen:
            problem = f"id: {row['id']!r} occurs twice"
        if problem:
            raise UserError(f"{path}:{line}: {problem}")
        seen.add(row["id"])
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def row_problem(task, row):
    """What is wrong with a row whose types are right, as "field: reason"; None if nothing is."""
    if not row["query"].strip():
        return "query: is empty"
    if not row["answer"].strip():
        return "answer: is empty"
    if task.answer == "entities":
        words, tags = row["text"].split(), row["label"]
        if len(words) != len(tags) or not all(isinstance(tag, str) for tag in tags):
            return f"label: needs one tag per word of text ({len(tags)} for {len(words)} words)"
    if task.answer not in ("label", "letter", "text"):
        return None
    choices = row["choices"]
    if len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        return "choices: needs at least two texts"
    if len({c.strip() for c in choices}) < len(choices):
        return "choices: two of them are equal"
    if not 0 <= row["gold"] < len(choices):
        return f"gold: {row['gold']} is outside the {len(choices)} choices"
    if row["answer"].strip().lower() != choices[row["gold"]].strip().lower():
        return f"answer: {row['answer']!r} is not choices[{row['gold']}]"
    return None


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
