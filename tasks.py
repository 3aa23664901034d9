"""FinEval's tasks: what is asked, how a reply is read, what it scores. No model in here.

    row (FLARE jsonl) -> prompt -> reply or log-likelihoods -> reading -> statistics -> scores

One entry of TASKS per task: FinEval's 35, then the sample world's. A capability is one of FinCap's
four, or `general`: what must be kept. `evaluate.py prepare` makes the rows from the public files,
which mostly hold FLARE rows with a `query` already; the prompts here write it where they do not.

    python evaluate.py --list
    python evaluate.py prepare fpb path/to/FinancialPhraseBank out/data
"""

from dataclasses import dataclass

CAPABILITIES = ("concepts", "tasks", "reasoning", "instruction_following", "general")


@dataclass(frozen=True)
class Task:
    title: str
    capability: str  # one of CAPABILITIES
    kind: str  # "general" | "domain" | "reasoning": FinEval's own tag
    novelty: str  # "similar" to a training task | "novel"
    style: str  # "direct" | "cot": the paper's way, answer at once or reason first
    # What a row's answer is: "label" "letter" "text" "blank" "entities" "summary" "number" "short"
    # "free" "chat", and "exact" "exam" in the sample world. rows.py checks each kind's fields.
    answer: str
    mode: str  # "generate" | "loglikelihood": how it is asked unless --mode says otherwise
    metrics: tuple[str, ...]  # the first one is the score
    max_new_tokens: int
    source: str  # which public data to get, in which form
    prompt: str = ""  # how prepare writes `query`; empty: the rows bring it
    system: str = ""  # system message that belongs to the task
    description: str = ""  # stands once before examples and question; may hold {subject}
    labels: tuple[str, ...] = ()  # in the rows' order; empty where rows differ or there are many
    sign: str = ""  # regex, any case: this task's queries hold it, no other task's do
    until: tuple[str, ...] = ()  # a direct reply ends before the first of these
    separator: str = "\n\n"  # between the examples of a plain prompt
    judge: str = ""  # "outcome": a judge says right or wrong | "rating": 1 to 10


# One label of a fixed set: accuracy says little where one class dominates, so F1 and MCC go along
LABEL = ("acc", "weighted_f1", "macro_f1", "mcc", "balanced_acc")
MCC_FIRST = ("mcc", "acc", "weighted_f1", "macro_f1", "balanced_acc")
# One text of several: by sum, and per character or byte, since long choices collect more log-loss
CHOICE = ("acc", "acc_norm", "acc_bytes")
ROUGE = ("rouge1", "rouge2", "rougeL")

SENTIMENT = ("positive", "negative", "neutral")
GOOD_BAD, NO_YES, YES_NO = ("good", "bad"), ("no", "yes"), ("yes", "no")

# What the entries of a group share
SIMILAR = dict(capability="tasks", kind="domain", novelty="similar", style="direct",
               mode="generate")  # fmt: skip
NOVEL = SIMILAR | dict(novelty="novel")
LABELLED = dict(answer="label", metrics=LABEL, max_new_tokens=32)
REASONED = NOVEL | dict(style="cot", max_new_tokens=512)
REASONED_LABEL = NOVEL | LABELLED | dict(style="cot", max_new_tokens=512)
REASONED_MCC = REASONED_LABEL | dict(metrics=MCC_FIRST)
KNOWLEDGE = REASONED | dict(capability="concepts", kind="general", mode="loglikelihood")
REASONING = KNOWLEDGE | dict(capability="reasoning", kind="reasoning")
WORLD_DATA = "the sample world: python sample/world.py --out sample/data"
MADE_UP = SIMILAR | dict(answer="exact", metrics=("acc",), source=WORLD_DATA)
MADE_UP_EXAM = MADE_UP | dict(capability="reasoning", kind="reasoning", style="cot", answer="exam",
                              metrics=("acc", "process"), max_new_tokens=96)  # fmt: skip

# Chain of thought: the system message of a task that has none of its own, by kind of answer
THINK = "Reason first, in up to 100 words. Then close with a line of the form Selection: [[X]], "
COT = dict.fromkeys(("letter", "text", "blank"), THINK + "where X is the letter you choose.") | {
    "label": THINK + "where X is one of the labels that the task allows, spelt as it spells them.",
    "number": THINK + "where X is the final answer alone: a number with its percent sign or scale "
    "(thousand, million, billion), or the words asked for; a semicolon parts several of them.",
    "short": THINK + "where X is the answer alone, in as few words as possible.",
    "free": THINK + "where X is your final answer in one sentence.",
}

# In substance the published prompt of CFA-Challenge, the only one of FinEval's that is known
CFA_SYSTEM = (
    "You are taking a CFA exam. Choose the one right answer among A, B and C. First explain your "
    "reasoning in up to 100 words, then give your choice in the form Selection: [[A]]. "
    "If none of the options is right, say so."
)
CFA = REASONING | dict(mode="generate", answer="letter", metrics=("acc",), system=CFA_SYSTEM,
                       prompt="{text}\nA. {a}\nB. {b}\nC. {c}\nAnswer:")  # fmt: skip
MMLU = dict(
    answer="letter", metrics=("acc",),
    source="hendrycks/test: the folder that holds test/*_test.csv and dev/*_dev.csv (examples)",
    description="The following are multiple choice questions (with answers) about {subject}.",
    prompt="{text}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:", sign=r"(?m)^D\. .*\nAnswer:",
)  # fmt: skip
QUESTION, TEXT = "Question: {text}\nAnswer:", "\nText: {text}\nAnswer:"
STOCK = REASONED_LABEL | dict(
    labels=("Rise", "Fall"),
    prompt="Given the data and tweets, could you project whether the closing price of the stock "
    "will grow or shrink on the day asked about? Please specify either Rise or Fall.\n"
    "Context: {text}\nAnswer:",
)
STOCK_SIGN = r"closing price\D{{0,250}}(?:{years})-\d\d-\d\d"  # the sets differ in their years
ONLY = "and do not provide any additional information."
BANKRUPTCY = ("Predict whether the company will face bankruptcy based on the financial profile "
              "attributes provided in the following text. Respond with only 'no' or 'yes', "
              f"{ONLY}\nFor instance, 'The client has attributes: ")  # fmt: skip
# MSCI's key issues, which ML-ESG's labels are taken from
ESG_ISSUES = (
    "Access to Communications, Access to Finance, Access to Health Care, Accounting, Biodiversity "
    "& Land Use, Board, Business Ethics, Carbon Emissions, Chemical Safety, Climate Change "
    "Vulnerability, Community Relations, Consumer Financial Protection, Controversial Sourcing, "
    "Electronic Waste, Financing Environmental Impact, Health & Demographic Risk, Health & Safety, "
    "Human Capital Development, Labor Management, Opportunities in Clean Tech, Opportunities in "
    "Green Building, Opportunities in Nutrition & Health, Opportunities in Renewable Energy, "
    "Ownership & Control, Packaging Material & Waste, Pay, Privacy & Data Security, Product Carbon "
    "Footprint, Product Safety & Quality, Raw Material Sourcing, Responsible Investment, Supply "
    "Chain Labor Standards, Tax Transparency, Toxic Emissions & Waste, Water Stress"
)


def hub(config, dataset, original=""):
    """Where most sets have FLARE rows. Config names are Salesforce/FinEval's, as it spells them."""
    rows = f"FLARE rows (parquet or jsonl) of Salesforce/FinEval, config {config}, or of {dataset}"
    return f"{original}; or {rows}" if original else rows


TASKS = {
    # Finance tasks, similar to training tasks
    "fpb": Task(
        **SIMILAR | LABELLED, title="FPB, sentiment of news sentences", labels=SENTIMENT,
        source=hub("FPB", "TheFinAI/en-fpb", "Sentences_50Agree.txt of Financial PhraseBank v1.0"),
        sign="sentiment of this statement extracted from a financial news",
        prompt="Analyze the sentiment of this statement extracted from a financial news article. "
        "Provide your answer as either negative, positive or neutral. For instance, 'The company's "
        "stocks plummeted following the scandal.' would be classified as negative." + TEXT,
    ),
    "fiqa_sa": Task(
        **SIMILAR | LABELLED, title="FiQA-SA, sentiment of headlines and posts", labels=SENTIMENT,
        source=hub("FIQASA", "TheFinAI/flare-fiqasa", "the folder that holds FinLoRA's data/test/"
                   "fiqa_test.jsonl and FiQA 2018's two task1_*_ABSA_train.json"),
        sign=r"sentiment of the following financial \w+:",
        prompt="What is the sentiment of the following financial {category}: Positive, Negative, "
        "or Neutral?" + TEXT,
    ),
    "fomc": Task(
        **SIMILAR | LABELLED, title="FOMC, stance of central bank sentences",
        labels=("dovish", "hawkish", "neutral"),
        source=hub("FOMC", "TheFinAI/flare-fomc", "lab-manual-split-combine-{train,test}-5768 of "
                   "gtfintechlab/fomc-hawkish-dovish"),
        sign="excerpt from a central bank's release",
        prompt="Examine the excerpt from a central bank's release below. Classify it as HAWKISH if "
        "it advocates for a tightening of monetary policy, DOVISH if it suggests an easing of "
        "monetary policy, or NEUTRAL if the stance is unbiased. Your response should return only "
        "HAWKISH, DOVISH, or NEUTRAL." + TEXT,
    ),
    "ner": Task(
        **SIMILAR, title="NER, entities in loan agreements",
        answer="entities", metrics=("rouge1", "entity_f1"), max_new_tokens=128,
        source=hub("NER", "TheFinAI/flare-ner", "FIN3.txt (test) and FIN5.txt (train) of Salinas "
                   "Alvarado et al. 2015, CoNLL columns"),
        sign=r"financial agreements in U\.S\. SEC filings",
        prompt="In the sentences extracted from financial agreements in U.S. SEC filings, identify "
        "the named entities that represent a person ('PER'), an organization ('ORG'), or a "
        "location ('LOC'). The required answer format is: 'entity name, entity type'." + TEXT,
    ),
    "edtsum": Task(
        **SIMILAR, title="EDTSUM, headline-like summaries of news",
        answer="summary", metrics=ROUGE, max_new_tokens=128,
        source=hub("EDTSUM", "TheFinAI/flare-edtsum"), sign="perform abstractive summari[sz]ation",
        prompt="You are given a text that consists of multiple sentences. Your task is to perform "
        "abstractive summarization on this text. Use your understanding of the content to express "
        "its main ideas in one short sentence, as a headline would." + TEXT,
    ),
    # Knowledge, novel. Prompts are lm-eval-harness's, so that its numbers can be compared.
    "mmlu": Task(
        **KNOWLEDGE | MMLU, title="MMLU, 57 subjects",
    ),
    "arc": Task(
        **KNOWLEDGE, title="AI2-ARC, Easy and Challenge", answer="text", metrics=CHOICE,
        source="LLM-Adapters dataset/ARC-{Easy,Challenge} (json lists of train and test)",
        prompt=QUESTION,
    ),
    "nq_open": Task(
        **KNOWLEDGE | dict(mode="generate"), title="NQ-open, short factual questions",
        answer="short", metrics=("em",), until=("\n", ".", ","),
        source="NQ-open.dev.jsonl of google-research-datasets/natural-questions, nq_open/",
        description="Answer these questions:", prompt="Q: {text}?\nA:", separator="\n",
    ),
    "mmlu_finance": Task(
        **KNOWLEDGE | MMLU | dict(kind="domain", style="direct", max_new_tokens=16),
        title="MMLU-Finance, seven business subjects",
    ),
    # Finance tasks, novel
    "ectsum": Task(
        **NOVEL, title="ECTSUM, summaries of earnings calls",
        answer="summary", metrics=ROUGE, max_new_tokens=512,
        source=hub("ECTSUM", "TheFinAI/flare-ectsum"),
        sign="earnings call transcript|list of 0 and 1",
        prompt="Summarise the following earnings call transcript in a few short bullet points that "
        "give the key figures and the outlook." + TEXT,
    ),
    "mlesg": Task(
        **NOVEL | LABELLED, title="MLESG, ESG issue of a news article",
        source=hub("MLESG", "TheFinAI/flare-mlesg"),
        sign=r"Environmental, Social, and (?:Corporate )?Governance \(ESG\) issue",
        prompt="Which Environmental, Social, and Governance (ESG) issue is this news article "
        f"about? Reply with one of these issues: {ESG_ISSUES}." + TEXT,
    ),
    "ma": Task(
        **NOVEL | LABELLED, title="MA, completed or rumoured deals", labels=("complete", "rumour"),
        source=hub("MA", "TheFinAI/flare-ma"), sign=r"Mergers and Acquisitions (?:\(M&A\) )?news",
        prompt="In this task, you will be given Mergers and Acquisitions (M&A) news articles or "
        "tweets. Your task is to classify each article or tweet based on whether the mentioned "
        "deal was completed or remained a rumour. Your response should be a single word - either "
        "'complete' or 'rumour' - representing the outcome of the deal." + TEXT,
    ),
    "sm_bigdata": Task(
        **STOCK, title="SM-Bigdata, stock moves",
        source=hub("CRA-Bigdata", "TheFinAI/flare-sm-bigdata"),
        sign=STOCK_SIGN.format(years="2019|202."),
    ),
    "sm_acl": Task(
        **STOCK, title="SM-ACL, stock moves",
        source=hub("SM-ACL", "TheFinAI/flare-sm-acl", "yumoxu/stocknet-dataset"),
        sign=STOCK_SIGN.format(years="201[3-6]"),
    ),
    "sm_cikm": Task(
        **STOCK, title="SM-CIKM, stock moves",
        source=hub("SM-CIKM", "TheFinAI/flare-sm-cikm"), sign=STOCK_SIGN.format(years="201[78]"),
    ),
    "cra_ccf": Task(
        **REASONED_MCC, title="CRA-CCF, credit card fraud from 28 components",
        labels=NO_YES, source=hub("CRA-CCF", "TheFinAI/cra-ccf"),
        sign="credit card fraud using the following financial table",
        prompt="Detect the credit card fraud using the following financial table attributes. "
        f"Respond with only 'yes' or 'no', {ONLY} Therein, the data contains 28 numerical input "
        "variables V1, V2, ..., and V28 which are the result of a PCA transformation and 1 input "
        "variable Amount which has not been transformed with PCA. The feature 'Amount' is the "
        "transaction Amount." + TEXT,
    ),
    "cra_ccfraud": Task(
        **REASONED_LABEL, title="CRA-CCFraud, credit card fraud from a profile",
        labels=GOOD_BAD, source=hub("CRA-CCFraud", "TheFinAI/cra-ccfraud"),
        sign="credit card fraud with the following financial profile",
        prompt="Detect the credit card fraud with the following financial profile. Respond with "
        f"only 'good' or 'bad', {ONLY} For instance, 'The client is a female, the state number is "
        "25, the number of cards is 1, the credit balance is 7000, the number of transactions is "
        "16, the number of international transactions is 0, the credit limit is 6.' should be "
        "classified as 'good'." + TEXT,
    ),
    "german": Task(
        **REASONED_LABEL, title="German, creditworthiness from 20 attributes",
        labels=GOOD_BAD, source=hub("Flare-German", "TheFinAI/flare-german"),
        sign="status of (?:existing )?checking account",
        prompt="Evaluate the creditworthiness of a customer with the following financial profile. "
        "Respond with only either 'good' or 'bad'. For instance, 'The client has a stable income, "
        "no previous debts, and owns a property.' should be classified as 'good'." + TEXT,
    ),
    "australian": Task(
        **REASONED_LABEL, title="Australian, creditworthiness from 14 symbols",
        labels=GOOD_BAD, source=hub("Flare-Australian", "TheFinAI/flare-australian"),
        sign="8 categorical attributes and 6 numerical attributes",
        prompt="Assess the creditworthiness of a customer using the following table attributes for "
        "financial status. Respond with either 'good' or 'bad'. And all the table attribute names "
        "including 8 categorical attributes and 6 numerical attributes and values have been "
        "changed to meaningless symbols to protect confidentiality of the data. For instance, 'The "
        "client has attributes: A1: 0, A2: 21.67, A3: 11.5, A4: 1, A5: 5, A6: 3, A7: 0, A8: 1, A9: "
        "1, A10: 11, A11: 1, A12: 2, A13: 0, A14: 1.', should be classified as 'good'." + TEXT,
    ),
    "lendingclub": Task(
        **REASONED_LABEL, title="LendingClub, loan status",
        source=hub("CRA-LendingClub", "TheFinAI/cra-lendingclub", "modeldata's lending_club.csv"),
        labels=GOOD_BAD, sign="loan records from Lending ?Club",
        prompt="Assess the client's loan status based on the following loan records from Lending "
        f"Club. Respond with only 'good' or 'bad', {ONLY} For instance, 'The client has a stable "
        "income, no previous debts, and owns a property.' should be classified as 'good'." + TEXT,
    ),
    "polish": Task(
        **REASONED_MCC, title="Polish, bankruptcy from 64 ratios",
        labels=NO_YES, source=hub("CRA-Polish", "TheFinAI/cra-polish", "5year.arff of UCI 365"),
        sign="face bankruptcy.*\n?.*net profit / total assets",
        prompt=BANKRUPTCY + "net profit / total assets: -0.046186, ..., sales / short-term "
        "liabilities: 5.7063, sales / fixed assets: 1.3882.' should be classified as 'no'." + TEXT,
    ),
    "taiwan": Task(
        **REASONED_LABEL, title="Taiwan, bankruptcy from 95 ratios",
        labels=NO_YES, source=hub("CRA-Taiwan", "TheFinAI/cra-taiwan"),
        sign=r"face bankruptcy.*\n?.*ROA\(C\) before interest",
        prompt=BANKRUPTCY + "ROA(C) before interest and depreciation before interest: 0.499, ..., "
        "Net Income Flag: 1.000, Equity to Liability: 0.044.' should be classified as 'no'." + TEXT,
    ),
    "portoseguro": Task(
        **REASONED_LABEL, title="PortoSeguro, car insurance claims",
        labels=YES_NO, source=hub("CRA-ProtoSeguro", "TheFinAI/cra-portoseguro"),
        sign="a claim for the auto insurance policy holder",
        prompt="Identify whether or not to files a claim for the auto insurance policy holder "
        "using the following table attributes about individual financial profile. Respond with "
        f"only 'yes' or 'no', {ONLY} And the table attributes that belong to similar groupings are "
        "tagged as such in the feature names (e.g., ind, reg, car, calc). In addition, feature "
        "names include the postfix bin to indicate binary features and cat to indicate categorical "
        "features. Features without these designations are either continuous or ordinal. Values of "
        "-1 indicate that the feature was missing from the observation. For instance, 'The client "
        "has attributes: ps_ind_01: 1.0, ps_ind_02_cat: 2.0, ps_ind_03: 0.0, ..., ps_calc_18_bin: "
        "0.0, ps_calc_19_bin: 0.0, ps_calc_20_bin: 0.0.' should be classified as 'no'." + TEXT,
    ),
    "travelinsurance": Task(
        **REASONED_LABEL, title="TravelInsurance, travel insurance claims",
        labels=YES_NO, source=hub("CRA-TravelInsurance", "TheFinAI/cra-travelinsurace"),
        sign="claim status of insurance companies",
        prompt="Identify the claim status of insurance companies using the following table "
        f"attributes for travel insurance status. Respond with only 'yes' or 'no', {ONLY} And the "
        "table attributes including 5 categorical attributes and 4 numerical attributes are as "
        "follows: Agency, Agency Type, Distribution Channel, Product Name, Duration, Destination, "
        "Net Sales, Commission, Age." + TEXT,
    ),
    "tatqa": Task(
        **REASONED, title="TAT-QA, questions on a table and text",
        answer="number", metrics=("judge", "em", "f1"), judge="outcome",
        source="tatqa_dataset_dev.json of NExTplusplus/TAT-QA, dataset_raw/",
        sign="answer the given financial question based on the context",
        prompt="Please answer the given financial question based on the context. Give a number "
        "with its percent sign or scale (thousand, million, billion); part several answers by "
        "semicolons.\nContext: {table}\n{text}\nQuestion: {question}\nAnswer:",
    ),
    "financebench": Task(
        **REASONED, title="FinanceBench, questions on filings",
        answer="free", metrics=("judge", "em"), judge="outcome",
        source="financebench_open_source.jsonl of patronus-ai/financebench, data/ (not Salesforce/"
        "FinEval, whose config FinanceBench holds LendingClub rows)",
        sign="question about a company from its filings",
        prompt="Answer a question about a company from its filings.\nEvidence: {evidence}\n"
        "Question: {question}\nAnswer:",
    ),
    # Instructions and chat, novel
    "mt_bench": Task(
        **NOVEL | dict(capability="instruction_following", kind="general"),
        title="MT-Bench, conversations of two turns",
        answer="chat", metrics=("judge",), judge="rating", max_new_tokens=1024,
        source="question.jsonl of lm-sys/FastChat, fastchat/llm_judge/data/mt_bench/, and for its "
        "references reference_answer/gpt-4.jsonl beside it",
        prompt="{text}",
    ),
    # Reasoning, novel
    "mathqa": Task(
        **REASONING, title="MathQA, word problems", answer="text", metrics=CHOICE, prompt=QUESTION,
        source="test.json of MathQA (Amini et al. 2019) or allenai/math_qa",
    ),
    "social_iqa": Task(
        **REASONING, title="Social-IQA, motives and feelings",
        answer="text", metrics=("acc",), prompt="Q: {text}\nA:",
        source="socialiqa-train-dev: dev.jsonl with dev-labels.lst; or allenai/social_i_qa",
    ),
    "openbookqa": Task(
        **REASONING, title="OpenBookQA, school science",
        answer="text", metrics=CHOICE, prompt="{text}",
        source="LLM-Adapters dataset/openbookqa (json lists of train and test), or the jsonl files "
        "of allenai/openbookqa",
    ),
    "hellaswag": Task(
        **REASONING, title="HellaSwag, what happens next",
        answer="text", metrics=CHOICE, prompt="{text}",
        source="hellaswag_val.jsonl of rowanz/hellaswag, or klosax's hellaswag_val_full.txt",
    ),
    "winogrande": Task(
        **REASONING, title="WinoGrande, what a blank refers to", answer="blank", metrics=("acc",),
        source="dev.jsonl of winogrande_1.1, or the validation rows of allenai/winogrande",
    ),
    "piqa": Task(
        **REASONING, title="PIQA, everyday physics", answer="text", metrics=CHOICE, prompt=QUESTION,
        source="the folder that holds valid.jsonl and valid-labels.lst of ybisk/PIQA",
    ),
    "cfa_easy": Task(
        **CFA, title="CFA-Easy, exam questions with reasoning",
        source=hub("CFA-Easy", "TheFinAI/flare-cfa"), sign="among the three options A, B and C",
    ),
    "cfa_challenge": Task(
        **CFA, title="CFA-Challenge, level III exam cases",
        source=hub("CFA-Challenge", "ZixuanKe/CFA-Level-III"), sign="carefully read the scenario",
    ),
    # The sample world
    "concepts": Task(
        **MADE_UP | dict(capability="concepts"), title="Facts of the sample world's companies",
        max_new_tokens=24,
    ),
    "tasks": Task(
        **MADE_UP, title="Sentiment and extraction in the sample world", max_new_tokens=24,
    ),
    "reasoning": Task(**MADE_UP_EXAM, title="Exam of the sample world, two calculation steps"),
    "reasoning_dev": Task(**MADE_UP_EXAM, title="The same exam, questions for choosing settings"),
    "instruction_following": Task(
        **MADE_UP | dict(capability="instruction_following", kind="general"),
        title="Answers in a prescribed form, sample world", max_new_tokens=48,
    ),
    "general": Task(
        **MADE_UP | dict(capability="general", kind="general"),
        title="General facts and sums that the base knows", max_new_tokens=96,
    ),
}  # fmt: skip

# What --tasks world and --tasks fineval stand for
WORLD = ("concepts", "tasks", "reasoning", "instruction_following", "general")
FINEVAL = tuple(name for name, task in TASKS.items() if task.source != WORLD_DATA)
