"""--scorer pixiu has PIXIU's quirks, a line each below; the default scorer has none of them."""

import numpy as np
import pytest
from seqeval.metrics import f1_score as seqeval_f1
from sklearn.metrics import f1_score, matthews_corrcoef

import answers
import pixiu
import scorers
from tasks import TASKS


def label(gold, *choices):
    return {"choices": list(choices), "gold": choices.index(gold), "answer": gold, "text": "t",
            "query": "q", "id": "1"}  # fmt: skip


def entities(text, tags):
    return {"text": text, "label": tags.split(), "answer": "Acme, ORG", "query": "q", "id": "1"}


def number(*gold, kind="arithmetic", scale=""):
    return {"answers": list(gold), "answer_type": kind, "scale": scale, "query": "q", "text": "t",
            "answer": " ".join([*gold, scale]).strip(), "id": "1"}  # fmt: skip


SENTIMENT = ("positive", "negative", "neutral")
CALL = {"text": "Sales rose.\nThanks to all.", "label": [1, 0], "answer": "Sales rose."}
CALL |= {"query": "q", "id": "1"}
NQ = {"answers": ["the Beatles", "Fab Four"], "answer": "the Beatles", "text": "t", "query": "q",
      "id": "1"}  # fmt: skip
INITIAL = entities("Acme pays Bob Lee now", "B-ORG O B-PER I-PER O")
FINAL = entities("paid by Acme", "O O B-ORG")
SPACED = entities("the  lender  Acme  pays  now", "O O B-ORG O O")

# what is asked, the reply, what is looked at ("prediction" or a value), PIXIU's, the default's
QUIRKS = {
    "no is in know": ("polish", label("yes", "no", "yes"), "I know it will: yes",
                      "prediction", "no", "yes"),
    "no is in not": ("taiwan", label("yes", "no", "yes"), "Yes, it cannot be avoided",
                     "prediction", "no", "yes"),
    "no is in economic": ("cra_ccf", label("yes", "no", "yes"), "Yes, on economic grounds",
                          "prediction", "no", "yes"),
    "no wins whenever present": ("polish", label("yes", "no", "yes"), "Yes. There is no doubt",
                                 "acc", 0, 1),
    "not good is good": ("cra_ccfraud", label("bad", "good", "bad"), "not good, so: bad",
                         "prediction", "good", "bad"),
    "not good is good, with words": ("german", label("bad", "good", "bad"), "not good: bad",
                                     "prediction", "good", "bad"),
    "row order, not the conclusion": ("fpb", label("negative", *SENTIMENT),
                                      "Not positive. The answer is: negative",
                                      "prediction", "positive", "negative"),
    "a label inside a word": ("mlesg", label("Board", "Pay", "Board"), "Board, for payments",
                              "prediction", "Pay", "Board"),
    "a label inside a longer label": ("mlesg", label("Water Stress", "Water", "Water Stress"),
                                      "Water Stress", "prediction", "Water", "Water Stress"),
    "no reads as fall": ("sm_acl", label("Fall", "Rise", "Fall"), "no", "acc", 1, 0),
    "yes reads as rise": ("sm_cikm", label("Rise", "Rise", "Fall"), "Yes", "acc", 1, 0),
    "positive reads as rise": ("sm_cikm", label("Rise", "Rise", "Fall"), "positive", "acc", 1, 0),
    "another word beats the label": ("sm_cikm", label("Fall", "Rise", "Fall"), "Fall: yes",
                                     "prediction", "Rise", "Fall"),
    "anything else is a fall": ("sm_bigdata", label("Fall", "Rise", "Fall"), "hard to tell",
                                "prediction", "Fall", None),
    "an empty reply is a fall": ("sm_bigdata", label("Fall", "Rise", "Fall"), "", "acc", 1, 0),
    "a default leaves none missing": ("sm_bigdata", label("Fall", "Rise", "Fall"), "",
                                      "missing", 0, 1),
    "anything else is good": ("german", label("good", "good", "bad"), "hard to tell",
                              "prediction", "good", None),
    "also without a word": ("australian", label("good", "good", "bad"), "?", "missing", 0, 1),
    "yes is good": ("australian", label("good", "good", "bad"), "yes", "prediction", "good", None),
    "neutral is bad": ("german", label("bad", "good", "bad"), "Neutral", "prediction", "bad", None),
    "negative is bad": ("german", label("bad", "good", "bad"), "negative.", "acc", 1, 0),
    "no is bad": ("german", label("bad", "good", "bad"), "no", "prediction", "bad", None),
    "sentences answer A": ("cfa_easy", label("B", "A", "B", "C"), "The answer is B.",
                           "prediction", "A", "B"),
    "the asked form answers A": ("cfa_challenge", label("C", "A", "B", "C"),
                                 "Rates fall. Selection: [[C]]", "prediction", "A", "C"),
    "any sentence answers A": ("cfa_easy", label("A", "A", "B", "C"), "I can not tell",
                               "missing", 0, 1),
    "an extract is always empty": ("ectsum", CALL, "1\n0", "prediction", "", "1\n0"),
    "a perfect summary scores 0": ("ectsum", CALL, "Sales rose.", "rouge1", 0, 1),
    "a comma is a difference": ("tatqa", number("1000"), "1,000", "em", 0, 1),
    "a currency sign is a difference": ("tatqa", number("1000"), "$1000", "em", 0, 1),
    "a full stop is a difference": ("nq_open", NQ, "the Beatles.", "em", 0, 1),
    "case is a difference": ("nq_open", NQ, "The Beatles", "em", 0, 1),
    "only the first answer counts": ("nq_open", NQ, "Fab Four", "em", 0, 1),
    "an entity at the end is not labelled": ("ner", FINAL, "Acme, ORG",
                                             "spans", [0, 0, 1], [1, 1, 1]),
    "words are single-spaced": ("ner", SPACED, "Acme, ORG", "spans", [0, 1, 1], [1, 1, 1]),
    "inside a word labels the next": ("ner", INITIAL, "cme, ORG", "prediction",
                                      "O B-ORG O O O", "cme, ORG"),
    "an invented entity costs nothing": ("ner", INITIAL, "Acme, ORG\nEve, PER",
                                         "spans", [1, 1, 2], [1, 2, 2]),
    "a list mark hides an entity": ("ner", INITIAL, "- Acme, ORG", "spans", [0, 0, 2], [1, 1, 2]),
    "a type's case is a difference": ("ner", INITIAL, "Acme, org", "spans", [0, 1, 2], [1, 1, 2]),
    "no space, no entity": ("ner", INITIAL, "Acme,ORG", "spans", [0, 0, 2], [1, 1, 2]),
    "a later line writes over": ("ner", INITIAL, "Bob Lee, PER\nBob, PER\nLee, PER",
                                 "prediction", "O O B-PER B-PER O",
                                 "Bob Lee, PER\nBob, PER\nLee, PER"),
    "a part breaks the whole": ("ner", INITIAL, "Bob Lee, PER\nLee, PER",
                                "spans", [0, 2, 2], [1, 1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("style", ["direct", "cot"])
@pytest.mark.parametrize("case", QUIRKS)
def test_a_quirk_of_pixiu_is_none_of_the_default_scorer(case, style):
    name, row, reply, key, theirs, ours = QUIRKS[case]
    for scorer, expected in ((pixiu, theirs), (answers, ours)):
        prediction, _, values = scorer.judge_reply(TASKS[name], row, reply, style)
        assert (values | {"prediction": prediction})[key] == expected, scorer.__name__
    assert theirs != ours


def test_what_pixiu_reads_as_it_should():
    def read(name, row, reply):
        return pixiu.judge_reply(TASKS[name], row, reply, "direct")[0]

    assert read("fpb", label("neutral", *SENTIMENT), " NEUTRAL\n") == "neutral"
    assert read("fpb", label("neutral", *SENTIMENT), "?") is None
    assert read("sm_acl", label("Rise", "Rise", "Fall"), "It will rise") == "Rise"
    # lendingclub has the labels of german, not its default
    assert read("lendingclub", label("good", "good", "bad"), "hard to tell") is None
    assert read("cfa_easy", label("B", "A", "B", "C"), "B") == "B"
    assert read("arc", label("iron", "wood", "iron"), "B") == "iron"
    assert read("ner", INITIAL, "Acme, ORG\nBob Lee, PER") == "B-ORG O B-PER I-PER O"
    assert read("ner", entities("Acme or Acme ?", "B-ORG O O O"), "Acme, ORG") == "B-ORG O B-ORG O"
    assert read("ner", entities("A, B and C", "O O O O"), "A, B, ORG") == "B-ORG I-ORG O O"
    assert pixiu.marked_lines("a\nb\nc", [1, 0, 1, 1]) == "a\nc"


def test_exact_answers_and_summaries_score():
    def score(name, row, reply, key):
        return pixiu.judge_reply(TASKS[name], row, reply, "direct")[2][key]

    assert score("tatqa", number("12.5", scale="million"), " 12.5 million\n", "em") == 1
    assert score("concepts", {"answer": "Oslo"}, "Oslo ", "acc") == 1
    assert score("edtsum", {"answer": "profit rose", "text": "t"}, "profit fell", "rouge1") == 0.5


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.answer != "chat"])
def test_every_task_has_a_score_or_waits_for_a_judge(name):
    """The metrics that pixiu gives are among the task's own, so its score is one of them."""
    task, choices = TASKS[name], TASKS[name].labels or ("A", "B")
    row = label(choices[0], *choices) | {"label": ["O"], "solution": "Answer: A"}
    row |= {"answers": ["A"], "answer_type": "span", "scale": ""}
    found = pixiu.measures(task, log(task, [row], ["A"]))
    assert set(task.metrics) & set(found)


# Scores --------------------------------------------------------------------------------------


def log(task, rows, replies):
    """A sample log as evaluate.py keeps it, as far as `measures` reads it."""
    out = []
    for row, reply in zip(rows, replies, strict=True):
        prediction, _, values = pixiu.judge_reply(task, row, reply, task.style)
        out.append({"doc": row, "target": row["answer"], "prediction": prediction,
                    "metrics": list(values)} | values)  # fmt: skip
    return out


def by_sklearn(gold, given):
    """F1 over the labels in gold, and MCC with -1 for any other, computed plainly."""
    labels = sorted(set(gold))
    places = [[labels.index(x) if x in labels else -1 for x in side] for side in (gold, given)]
    kinds = ("weighted", "macro")
    f1 = [f1_score(gold, given, average=kind, labels=labels, zero_division=0) for kind in kinds]
    return [*f1, matthews_corrcoef(*places)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, replies", [
    ("fpb", ("positive", "Negative", "NEUTRAL", "?", "")),
    ("fomc", ("dovish", "HAWKISH", "neutral", "unclear")),
    ("sm_acl", ("Rise", "Fall", "no", "?")),
    ("cfa_easy", ("A", "B", "C", "?")),
])  # fmt: skip
@pytest.mark.parametrize("in_gold", [3, 2])  # with 2, a label that is given occurs in no gold
def test_scores_and_every_resample_equal_sklearn(name, replies, in_gold):
    task, rng = TASKS[name], np.random.default_rng(0)
    choices = task.labels or ("A", "B", "C")
    golds = rng.choice(choices[:in_gold], 60)
    rows = [label(str(gold), *choices) for gold in golds]
    samples = log(task, rows, rng.choice(replies, 60).tolist())
    found = pixiu.measures(task, samples)
    gold = [str(g).lower() for g in golds]
    given = [(s["prediction"] or "missing").lower() for s in samples]
    names = ("weighted_f1", "macro_f1", "mcc")
    point = [scorers.point(*found[metric]) for metric in names]
    assert point == pytest.approx(by_sklearn(gold, given), abs=1e-12)
    assert scorers.point(*found["acc"]) == np.mean(
        [a == b for a, b in zip(gold, given, strict=True)]
    )
    assert scorers.point(*found["missing"]) == given.count("missing") / 60
    for size in (3, 8, 60):  # small draws lack labels
        for _ in range(20):
            drawn = rng.integers(60, size=size)
            expected = by_sklearn([gold[i] for i in drawn], [given[i] for i in drawn])
            scores = [score(statistics[drawn].sum(0)) for statistics, score in
                      (found[metric] for metric in names)]  # fmt: skip
            assert scores == pytest.approx(expected, abs=1e-12)


def test_resamples_are_scored_many_at_once():
    task = TASKS["fpb"]
    golds = ["positive", "negative"] * 3 + ["neutral"] * 6
    rows = [label(gold, *SENTIMENT) for gold in golds]
    # In the first rows a label that is gold in none of them counts as a missing one does
    replies = ["neutral", "?", "positive", "neutral", "?", "negative"] + ["negative", "neutral"] * 3
    for statistics, score in pixiu.measures(task, log(task, rows, replies)).values():
        sums = np.stack([statistics[:k].sum(0) for k in (2, 5, 12)])
        assert score(sums) == pytest.approx([float(score(row)) for row in sums])
        low, high = scorers.interval(scorers.resample(statistics, score))
        assert low <= scorers.point(statistics, score) <= high


@pytest.mark.filterwarnings("ignore")
def test_entity_f1_equals_seqeval():
    task, rng = TASKS["ner"], np.random.default_rng(1)
    words, kinds = ["Acme", "Bob", "Lee", "Oslo", "pays", "in"], ["PER", "ORG", "LOC", ""]
    rows, replies = [], []
    for _ in range(80):
        text = rng.choice(words, 9)
        # I- without a B- before it opens a span too, as in seqeval
        tags = rng.choice(["O", "O", "B-PER", "I-PER", "B-ORG", "I-ORG"], 9)
        rows.append(entities(" ".join(text), " ".join(tags)))
        named = [" ".join(text[at : at + rng.integers(1, 3)]) for at in rng.integers(9, size=3)]
        replies.append("\n".join(f"{entity}, {rng.choice(kinds)}" for entity in named))
    pairs = zip(replies, rows, strict=True)
    labels = [pixiu.label_words(reply, row["text"]) for reply, row in pairs]
    found = pixiu.measures(task, log(task, rows, replies))
    expected = seqeval_f1([row["label"] for row in rows], labels)
    assert 0.02 < expected < 0.9
    assert scorers.point(*found["entity_f1"]) == pytest.approx(expected)


def test_choices_by_log_probs_are_scored_too():
    task, row = TASKS["fpb"], label("negative", *SENTIMENT)
    prediction, values = pixiu.judge_choices(task, row, [-3.0, -1.0, -2.0])
    sample = {"doc": row, "target": "negative", "prediction": prediction, "metrics": list(values)}
    found = pixiu.measures(task, [sample | values])
    assert scorers.point(*found["acc"]) == scorers.point(*found["macro_f1"]) == 1


def test_tasks_scored_before_do_not_change_a_score():
    """PIXIU's do (issue 63), and its ROUGE is drawn (issue 16)."""
    summary = {"answer": "profit rose", "text": "profit rose again"}
    first = log(TASKS["edtsum"], [summary, summary], ["profit rose", "a loss"])
    alone = scorers.point(*pixiu.measures(TASKS["edtsum"], first)["rouge1"])
    pixiu.measures(TASKS["ectsum"], log(TASKS["ectsum"], [CALL], ["1\n0"]))
    pixiu.measures(TASKS["fpb"], log(TASKS["fpb"], [label("neutral", *SENTIMENT)], ["?"]))
    assert scorers.point(*pixiu.measures(TASKS["edtsum"], first)["rouge1"]) == alone == 0.5
