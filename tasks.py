"""FinEval's tasks: what is asked, how a reply is read, what it scores. No model in here.

    row (FLARE jsonl) -> prompt -> reply or log-likelihoods -> reading -> statistics -> scores

One entry of TASKS per task. `prepare.py` makes the rows from the public files; the sample world's
rows are in sample/data/eval. A capability is one of FinCap's four, or `general`: what must be kept.

    python evaluate.py --list
    python prepare.py fpb path/to/FinancialPhraseBank out/data
"""

from dataclasses import dataclass

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
