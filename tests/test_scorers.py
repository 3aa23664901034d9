"""scorers.py against hand-computed numbers, plain definitions, and the packages others score with.

Parity, to 1e-9: scikit-learn (labels), seqeval (entities) and rouge-score (summaries).
"""

import math
import random
import warnings

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from seqeval.metrics import f1_score as seqeval_f1
from seqeval.scheme import IOB2
from sklearn import metrics as sk

import scorers as S

LABELS = ["positive", "negative", "neutral"]


def confusion_scores(gold, predicted, labels):
    statistics = S.confusion_statistics(gold, predicted, labels)
    names = ("accuracy", "weighted_f1", "macro_f1", "balanced_accuracy", "mcc")
    return {name: S.point(statistics, getattr(S, f"{name}_score")) for name in names}


# Classification


def test_classification_scores_of_a_hand_computed_example():
    gold = ["a", "a", "a", "b", "b", "c"]
    predicted = ["a", "a", "b", "b", None, "a"]
    # a: 2 right of 3 gold, 3 predicted -> 2/3. b: 1 of 2, 2 predicted -> 1/2. c: 0.
    scores = confusion_scores(gold, predicted, ["a", "b", "c"])
    assert scores["accuracy"] == pytest.approx(3 / 6)
    assert scores["weighted_f1"] == pytest.approx((3 * 2 / 3 + 2 * 1 / 2) / 6)
    assert scores["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # c s - sum t p = 3 * 6 - (3*3 + 2*2 + 1*0) = 5; p = 3, 2, 0 and 1 missing; t = 3, 2, 1
    assert scores["mcc"] == pytest.approx(5 / math.sqrt((36 - 14) * (36 - 14)))


def test_binary_mcc_equals_the_four_cell_formula():
    rng = random.Random(1)
    for _ in range(50):
        gold = [rng.random() < 0.3 for _ in range(40)]
        predicted = [rng.random() < 0.5 for _ in range(40)]
        tp, tn, fp, fn = (
            sum(g == a and p == b for g, p in zip(gold, predicted, strict=True))
            for a, b in ((True, True), (False, False), (False, True), (True, False))
        )
        below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        want = (tp * tn - fp * fn) / below if below else 0.0
        assert confusion_scores(gold, predicted, [True, False])["mcc"] == pytest.approx(want)


def test_f1_equals_precision_and_recall_written_out():
    rng = random.Random(2)
    gold = [rng.choice(LABELS) for _ in range(200)]
    predicted = [rng.choice([*LABELS, None]) for _ in range(200)]
    f1 = {}
    for label in LABELS:
        right = sum(g == p == label for g, p in zip(gold, predicted, strict=True))
        precision, recall = right / predicted.count(label), right / gold.count(label)
        f1[label] = 2 * precision * recall / (precision + recall)
    scores = confusion_scores(gold, predicted, LABELS)
    assert scores["macro_f1"] == pytest.approx(sum(f1.values()) / 3)
    assert scores["weighted_f1"] == pytest.approx(sum(f1[g] for g in gold) / 200)


def test_constant_answers_have_no_correlation_and_chance_balance():
    scores = confusion_scores(["no"] * 97 + ["yes"] * 3, ["no"] * 100, ["no", "yes"])
    assert scores["accuracy"] == 0.97
    assert scores["mcc"] == 0.0
    assert scores["balanced_accuracy"] == 0.5


def sklearn_scores(gold, predicted):
    """A missing answer is a label of its own, for which no F1 is taken."""
    predicted = ["missing" if p is None else p for p in predicted]
    labels, settings = sorted(set(gold)), {"zero_division": 0}
    return {
        "accuracy": sk.accuracy_score(gold, predicted),
        "weighted_f1": sk.f1_score(gold, predicted, labels=labels, average="weighted", **settings),
        "macro_f1": sk.f1_score(gold, predicted, labels=labels, average="macro", **settings),
        "balanced_accuracy": sk.balanced_accuracy_score(gold, predicted),
        "mcc": sk.matthews_corrcoef(gold, predicted),
    }


def labellings():
    """(gold, predicted): random with few and many labels, and one-sided, missing, absent ones."""
    rng = random.Random(11)
    for _ in range(150):
        labels = [f"l{i}" for i in range(rng.randrange(2, 8))]
        weights = [rng.random() ** 3 for _ in labels]
        n, skill, silence = rng.randrange(1, 80), rng.random(), rng.random() ** 2
        gold = rng.choices(labels, weights, k=n)
        guess = [g if rng.random() < skill else rng.choice(labels) for g in gold]
        yield gold, [None if rng.random() < silence else p for p in guess]
    for gold in (["a"], ["a", "a"], ["a", "b"], ["a"] * 99 + ["b"]):
        for given in ("a", "b", "c", None):
            yield gold, [given] * len(gold)
    yield ["a", "b", "c"], ["b", "c", "a"]
    yield ["a", "b"] * 20, ["a", "b"] * 20


def test_label_scores_equal_scikit_learns():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels that are never predicted, or a single one
        for gold, predicted in labellings():
            labels = sorted({*gold, *predicted} - {None})
            ours, theirs = (
                confusion_scores(gold, predicted, labels),
                sklearn_scores(gold, predicted),
            )
            assert ours == pytest.approx(theirs, abs=1e-9), (gold, predicted)


# Bootstrap


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).random(2000) < 0.3
    statistics = S.mean_statistics(values)
    low, high = S.interval(S.resample(statistics, S.mean_score))
    mean, spread = values.mean(), 1.96 * values.std() / math.sqrt(2000)
    assert low == pytest.approx(mean - spread, abs=0.004)
    assert high == pytest.approx(mean + spread, abs=0.004)


def test_95_of_100_intervals_hold_the_truth():
    rng, held = np.random.default_rng(6), 0
    for trial in range(400):
        statistics = S.mean_statistics(rng.random(150) < 0.3)
        low, high = S.interval(S.resample(statistics, S.mean_score, 400, str(trial)))
        held += low <= 0.3 <= high
    assert 0.92 <= held / 400 <= 0.98  # three standard errors


def test_the_same_seed_draws_the_same_and_another_task_other_samples():
    statistics = S.mean_statistics(np.arange(50.0))
    first = S.resample(statistics, S.mean_score, seed="fpb")
    assert (first == S.resample(statistics, S.mean_score, seed="fpb")).all()
    assert (first != S.resample(statistics, S.mean_score, seed="fomc")).any()
    assert len(first) == S.RESAMPLES and len(S.resample(statistics, S.mean_score, 70)) == 70


def test_samples_without_a_value_leave_the_mean_alone():
    statistics = np.array([[1.0, 1], [0, 0], [0.5, 1], [0, 0]])
    assert S.point(statistics, S.mean_score) == 0.75
    assert S.point(statistics[[1, 3]], S.mean_score) == 0.0  # none has one: no division by zero
    low, high = S.interval(S.resample(statistics, S.mean_score))
    assert 0 <= low < 0.75 < high <= 1


@pytest.mark.parametrize(
    "score",
    [
        S.accuracy_score,
        S.weighted_f1_score,
        S.macro_f1_score,
        S.balanced_accuracy_score,
        S.mcc_score,
    ],
)
def test_vectorised_bootstrap_equals_scoring_each_resample(score):
    rng = np.random.default_rng(3)
    gold, predicted = rng.integers(3, size=60), rng.integers(4, size=60)
    statistics = S.confusion_statistics(gold.tolist(), predicted.tolist(), [0, 1, 2])
    drawn = np.random.default_rng(list(b"fpb")).integers(60, size=(S.BLOCK, 60))
    fast = S.resample(statistics, score, resamples=S.BLOCK, seed="fpb")
    for r in range(S.BLOCK):
        picked = S.confusion_statistics(
            gold[drawn[r]].tolist(), predicted[drawn[r]].tolist(), [0, 1, 2]
        )
        assert fast[r] == pytest.approx(S.point(picked, score))


def test_paired_interval_is_narrower_than_independent_draws():
    rng = np.random.default_rng(4)
    a = (rng.random(400) < 0.6).astype(float)
    b = np.where(rng.random(400) < 0.05, 1.0, a)  # b repeats a, but for a few rows
    a, b = S.mean_statistics(a), S.mean_statistics(b)
    first, second = S.resample(a, S.mean_score), S.resample(b, S.mean_score)
    low, high = S.interval(second - first)
    assert low <= S.point(b, S.mean_score) - S.point(a, S.mean_score) <= high
    loose_low, loose_high = S.interval(second - S.resample(a, S.mean_score, seed="other"))
    assert high - low < 0.5 * (loose_high - loose_low)


# Entities

WORDS = "Silicium de Provence SAS and Evergreen Solar Inc . of John Smith".split()
TAGS = "B-ORG I-ORG I-ORG I-ORG O B-ORG I-ORG I-ORG O O B-PER I-PER".split()


def test_bio_spans_of_adjacent_and_broken_entities():
    assert S.bio_spans(["B-PER", "B-PER", "I-PER", "O"]) == {(0, 1, "PER"), (1, 3, "PER")}
    assert S.bio_spans(["I-ORG", "I-LOC", "I-LOC"]) == {(0, 1, "ORG"), (1, 3, "LOC")}


def random_tags(rng, n):
    """BIO tags as a strict reader wants them: I- only after the same type."""
    tags = []
    while len(tags) < n:
        kind, length = rng.choice(["PER", "ORG", "LOC"]), rng.randrange(1, 4)
        tags += ["O"] if rng.random() < 0.5 else [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
    return tags[:n]


def test_span_f1_equals_seqevals():
    rng = random.Random(8)
    for _ in range(60):
        gold = [random_tags(rng, rng.randrange(1, 15)) for _ in range(rng.randrange(1, 12))]
        given = [tags if rng.random() < 0.4 else random_tags(rng, len(tags)) for tags in gold]
        spans = [(S.bio_spans(a), S.bio_spans(b)) for a, b in zip(given, gold, strict=True)]
        sums = np.array([[len(a & b), len(a), len(b)] for a, b in spans], dtype=float).sum(0)
        theirs = seqeval_f1(gold, given, mode="strict", scheme=IOB2, zero_division=0)
        assert S.entity_f1_score(sums) == pytest.approx(theirs, abs=1e-9)


def test_replies_that_name_every_entity_once_score_as_their_tags_in_seqeval():
    rng = random.Random(9)
    for _ in range(60):
        gold = [random_tags(rng, 12) for _ in range(5)]
        given = [tags if rng.random() < 0.4 else random_tags(rng, 12) for tags in gold]
        words = [[f"<{i}>" for i in range(12)] for _ in gold]  # no two words alike
        replies = [
            "\n".join(f"{' '.join(text[a:b])}, {kind}" for a, b, kind in S.bio_spans(tags))
            for text, tags in zip(words, given, strict=True)
        ]
        ours = S.point(S.entity_statistics(replies, words, gold), S.entity_f1_score)
        theirs = seqeval_f1(gold, given, mode="strict", scheme=IOB2, zero_division=0)
        assert ours == pytest.approx(theirs, abs=1e-9)


def entity_counts(reply):
    return S.entity_statistics([reply], [WORDS], [TAGS])[0].tolist()


def test_entities_count_only_with_exact_borders_and_type():
    assert entity_counts("Silicium de Provence SAS, ORG\nJohn Smith, PER") == [2, 2, 3]
    assert entity_counts("Provence SAS, ORG\nJohn Smith, ORG") == [0, 2, 3]
    assert entity_counts("Evergreen Solar Inc, ORG")[0] == 1
    assert entity_counts("Smith, PER\nJohn Smith, PER") == [1, 1, 3]  # the longer one first
    assert entity_counts("- Evergreen Solar Inc., ORG") == [0, 1, 3]  # takes the full stop along


def test_an_entity_at_the_end_is_labelled_and_an_invented_one_is_wrong():
    assert entity_counts("John Smith, PER")[0] == 1
    assert entity_counts("Acme, ORG") == [0, 1, 3]
    assert entity_counts("ohn Smith, PER") == [0, 1, 3]  # begins inside a word
    assert entity_counts("") == [0, 0, 3]


def test_entity_f1_is_pooled_over_the_corpus():
    sums = np.array([2.0, 3.0, 5.0])
    assert S.entity_f1_score(sums) == pytest.approx(2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))


# ROUGE


def test_rouge_by_hand():
    reply, target = "the cat sat on the mat", "The cat was on a mat."
    # unigrams shared: the cat on mat (the second "the" is not in the target)
    assert S.rouge(reply, target, "rouge1") == pytest.approx(2 * 4 / 12)
    assert S.rouge(reply, target, "rouge2") == pytest.approx(2 * 1 / 10)  # "the cat"
    assert S.rouge(reply, target, "rougeL") == pytest.approx(2 * 4 / 12)
    assert S.rouge("", "a", "rouge1") == S.rouge("x", "", "rougeL") == 0.0


TEXTS = ["", " ", "a", "A a a", "the the the the", "the cat sat", "cat the sat the", "Größe 3,5 %",
         "naïve café", "İstanbul", "日本語 text", "U.S. GDP-growth: 2.5%", "\n\t", "1 1 1 2", "_a_",
         "ſharp ß", "running runs run", "don't", "a" * 50, "x y " * 40]  # fmt: skip


def test_rouge_equals_rouge_scores():
    rng, kinds = random.Random(10), ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=False)
    vocabulary = "the a cat sat mat on 3.5 U.S. naïve runs running İ don't".split()
    texts = TEXTS + [" ".join(rng.choices(vocabulary, k=rng.randrange(40))) for _ in range(20)]
    for target in texts:
        for reply in texts:
            theirs = scorer.score(target, reply)
            for kind in kinds:
                want = pytest.approx(theirs[kind].fmeasure, abs=1e-9)
                assert S.rouge(reply, target, kind) == want, (reply, target)


def test_longest_common_subsequence_equals_the_table():
    rng = random.Random(5)
    for _ in range(60):
        a = [rng.choice("abcd") for _ in range(rng.randrange(90))]
        b = [rng.choice("abcd") for _ in range(rng.randrange(90))]
        table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                best = max(table[i, j + 1], table[i + 1, j])
                table[i + 1, j + 1] = table[i, j] + 1 if x == y else best
        assert S.longest_common(a, b) == table[-1, -1]
