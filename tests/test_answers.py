"""answers.py: replies are read, and a sample log alone gives the scores."""

import time

import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

import answers
import scorers
from tasks import TASKS

ROW = {"id": "a", "query": "Good?\nAnswer:", "answer": "good", "text": "Good?"}
ROW |= {"choices": ["good", "bad"], "gold": 0}
ENTITY = {"query": "q", "answer": "Acme, ORG", "text": "Acme pays", "label": ["B-ORG", "O"]}
EXAM = {"choices": ["A", "B", "C"], "gold": 1, "answer": "B"}
TEXT = {"choices": ["a bond", "two bonds"], "gold": 1, "answer": "two bonds", "text": "Which?"}
NQ = {"answers": ["New York", "NYC"], "answer": "New York"}
TATQA = {"answers": ["3.2"], "answer_type": "arithmetic", "scale": "million"}
BENCH = {"answer": "$1577.00"}
WORLD_EXAM = {"answer": "4", "solution": "Step 1: a = 2 + 2 = 4. Answer: 4"}


def read(name, row, reply, style="direct"):
    return answers.read_reply(TASKS[name], row, reply, style)


def values(name, row, reply, style="direct"):
    return answers.judge_reply(TASKS[name], row, reply, style)[2]


# Choices


@pytest.mark.parametrize(
    "reply, strict, flexible",
    [
        ("no", "no", "no"),
        ("**Yes.**", "yes", "yes"),
        ("I know the economy", None, None),  # PIXIU finds "no" in there
        ("It is yes.", None, "yes"),
        ('{"label": "no"}', None, "no"),
        ("yes and no", None, None),
        ("I think [[no]], others say yes", None, "no"),
        ("[[yes]] or rather [[no]]", None, "no"),
        ("The answer is yes [[1]]", None, "yes"),  # a footnote is no choice
        ("yes, but [[None]]", None, None),  # it declines
        ("[[]]", None, None),
        ("ｙｅｓ не", None, None),
        ("Yes.\nText: Another case\nAnswer: no", None, "yes"),  # it goes on asking itself
        ("Yes.\n\nI was asked: [[no]]", None, "yes"),
        ("yes\nno", None, "yes"),
        ("yes\nThe answer is no\nno", None, "no"),  # two names on lines of their own
        ("\nyes" + "\n" * 20 + "no", None, "yes"),
        ("\nyes\nAnswer: no", None, "yes"),
        ("", None, None),
    ],
)
def test_a_label_is_read_from_a_direct_reply(reply, strict, flexible):
    assert read("cra_ccf", {"choices": ["no", "yes"]}, reply) == (strict, flexible)


@pytest.mark.parametrize(
    "reply, strict, flexible",
    [
        ("Not good at all. Selection: [[bad]]", "bad", "bad"),
        ("Selection: [[good]] no: Selection: [[ Bad. ]]", "bad", "bad"),
        ("bad", None, "bad"),  # right, but not in the asked form
        ("Selection: [[not good]]", None, None),
        ("It is bad. Selection: [[X]]", None, "bad"),
        ("Good\nas it looks. Selection: [[bad]]", "bad", "bad"),
        ("Good\nThe answer is bad", None, "bad"),  # only a direct reply answers at once
        ("It is bad.\nText: a good one\nSelection: [[good]]", "good", "good"),  # it quotes
        ("Selection: [[bad]]\n\nText: next\nSelection: [[good]]", "bad", "bad"),  # it goes on
        ("It is bad.\nText: next\nThe answer is good", None, "bad"),
        ("good. Selection: bad", None, "good"),
        ("Selection: [[good]] and [[bad]]", "good", "bad"),
        ("Selection: [[good]] and [[None]]", "good", "good"),
        ("[[bad]]\nText: next\nSelection: [[good]]", None, "bad"),  # it goes on
        ("It is not good", None, None),
    ],
)
def test_a_label_is_read_from_a_chain_of_thought(reply, strict, flexible):
    assert read("german", ROW, reply, "cot") == (strict, flexible)


@pytest.mark.parametrize(
    "reply, style, strict, flexible",
    [
        ("B", "direct", "B", "B"),
        (" (b) ", "direct", "B", "B"),
        ("B. A bond", "direct", None, "B"),
        ("A bond pays a coupon", "direct", None, None),
        ("A bond. Selection: [[B]]", "cot", "B", "B"),
        ("Selection: [[b]]", "cot", "B", "B"),
        ("Selection: [[B. bonds]]", "cot", None, "B"),
        ("Selection: [[A bond]]", "cot", None, None),
        ("Selection: [[D]]", "cot", None, None),
        ("Option A looks right. Selection: [[None]]", "cot", None, None),
        ("B", "cot", None, "B"),
    ],
)
def test_letters(reply, style, strict, flexible):
    assert read("cfa_easy", EXAM, reply, style) == (strict, flexible)


def test_letters_are_read_in_the_spelling_of_the_row():
    row = {"choices": ["a", "b"], "gold": 1, "answer": "b"}
    assert read("cfa_easy", row, "B") == ("b", "b") and values("cfa_easy", row, "B")["acc"] == 1


def test_options_asked_for_by_letter_are_read_as_their_texts():
    assert read("arc", TEXT, "B") == ("two bonds", "two bonds")
    assert read("arc", TEXT, "Selection: [[A]]", "cot") == ("a bond", "a bond")
    assert read("arc", TEXT, "Two bonds.") == (None, "two bonds")
    assert read("arc", TEXT, "C") == (None, None)
    assert read("winogrande", TEXT | {"choices": ["Ann", "Bob"]}, "the answer is A") == (
        None,
        "Ann",
    )
    assert values("arc", TEXT, "B") == {"missing": 0, "acc": 1, "acc_strict": 1}
    assert values("arc", TEXT, "[[A]]", "cot")["acc"] == 0


def test_a_reply_is_right_or_missing_or_wrong():
    assert values("fpb", ROW, "good") == {"missing": 0, "acc": 1, "acc_strict": 1}
    assert values("fpb", ROW, "so good") == {"missing": 0, "acc": 1, "acc_strict": 0}
    assert values("fpb", ROW, "bad") == {"missing": 0, "acc": 0, "acc_strict": 0}
    assert values("fpb", ROW, "?") == {"missing": 1, "acc": 0, "acc_strict": 0}


def test_both_readings_are_handed_on():
    judged = answers.judge_reply(TASKS["german"], ROW, "Selection: [[good]], then [[bad]]", "cot")
    assert judged[:2] == ("bad", "good")
    assert (judged[2]["acc"], judged[2]["acc_strict"]) == (0, 1)


# Words


@pytest.mark.parametrize(
    "reply, strict, flexible",
    [
        (" New York\nQ: Who? The answer is Bob", "New York", "New York"),
        ("3.5 percent. Or so", "3", "3.5 percent"),  # lm-eval's rule cuts the number
        ("1,000, or so", "1", "1,000"),
        ("in 2019. Or so", "in 2019", "in 2019"),
        ("The answer is New York.", "The answer is New York", "New York"),
        ("St. Louis", "St", "St"),
        ("I say [[NYC]].", "I say [[NYC]]", "NYC"),
        (" \n ", None, None),
        (".", None, None),
    ],
)
def test_a_short_direct_reply_ends_with_its_sentence(reply, strict, flexible):
    assert read("nq_open", NQ, reply) == (strict, flexible)


@pytest.mark.parametrize(
    "reply, strict, flexible",
    [
        ("It is 3. So. Selection: [[3.2 million]]", "3.2 million", "3.2 million"),
        ("Selection: [[3]] [[4]]", "3", "4"),
        ("So the answer is 3.2 million.\nBye", None, "3.2 million"),
        ("It is 3, 4\nThus 5 in total\n\n", None, "Thus 5 in total"),
        ("Restated.\nQuestion: how much?\n Selection: [[3.2]]", "3.2", "3.2"),
        ("Thus 5\n \n\tQuestion : how much?\nThus 6", None, "Thus 5"),
        ("Question: how much?\nThus 6", None, "Thus 6"),  # nothing stands before it
        ("Selection: [[]]", None, "Selection: [[]]"),
        ("", None, None),
    ],
)
def test_a_number_is_read_from_a_chain_of_thought(reply, strict, flexible):
    assert read("tatqa", TATQA, reply, "cot") == (strict, flexible)


def test_a_direct_number_is_the_whole_reply_or_what_is_marked():
    assert read("tatqa", TATQA, " 3.2 million\n") == ("3.2 million", "3.2 million")
    assert read("tatqa", TATQA, "The answer is 3.2.")[1] == "3.2"
    assert read("tatqa", TATQA, "answer: 3\nanswer: 4")[1] == "answer: 3\nanswer: 4"


def test_words_are_right_up_to_case_articles_and_tolerance():
    assert values("nq_open", NQ, "the new york") == {"missing": 0, "em": 1, "em_strict": 1}
    assert values("nq_open", NQ, "The answer is NYC") == {"missing": 0, "em": 1, "em_strict": 0}
    blood = {"answers": ["A+", "AB+"], "answer": "A+"}  # without punctuation and articles: nothing
    assert values("nq_open", blood, "a+")["em"] == 1 == values("nq_open", blood, "AB+")["em"]
    assert values("nq_open", blood, "the")["em"] == values("nq_open", blood, "!")["em"] == 0
    saint = {"answers": ["St. Louis"], "answer": "St. Louis"}
    assert values("nq_open", saint, "St. Louis\nSelection: [[Oslo]]", "cot")["em"] == 0
    assert values("nq_open", saint, "St. Louis\nQ: Who?") == {"missing": 0, "em": 1, "em_strict": 0}
    assert values("nq_open", NQ, "York")["em"] == values("nq_open", NQ, "")["em"] == 0
    assert values("financebench", BENCH, "Selection: [[$1,580]]", "cot")["em"] == 1
    assert values("financebench", BENCH, "Selection: [[$1,600]]", "cot")["em"] == 0
    assert values("financebench", {"answer": "Yes, it is."}, "[[Yes it is]]", "cot")["em"] == 1
    found = values("tatqa", TATQA, "Selection: [[3.21 million]]", "cot")
    assert found == {"missing": 0, "em": 1, "em_strict": 0, "f1": 0}
    found = values("tatqa", TATQA, "")
    assert found == {"missing": 1, "em": 0, "em_strict": 0, "f1": 0}


# Texts


def test_entities_summaries_chats_and_the_sample_world():
    assert read("ner", ENTITY, "none found") == (None, None)
    assert read("ner", ENTITY, "here:\nAcme, ORG") == (None, "here:\nAcme, ORG")
    assert read("concepts", {}, " Oslo ") == ("Oslo", "Oslo")
    assert read("concepts", {}, " ") == (None, None)
    found = values("edtsum", {"answer": "the cat sat"}, "the cat ran")
    assert found == {
        "missing": 0,
        "rouge1": pytest.approx(2 / 3),
        "rouge2": pytest.approx(1 / 2),
        "rougeL": pytest.approx(2 / 3),
    }
    assert values("edtsum", {"answer": "a"}, " ")["missing"] == 1
    assert values("mt_bench", {}, "one\n\ntwo") == {"missing": 0}
    assert values("mt_bench", {}, "\n\n") == {"missing": 1}


def test_the_exam_scores_answer_and_process_apart():
    found = values("reasoning", WORLD_EXAM, "Step 1: a = 2 + 2 = 5. Answer: 4", "cot")
    assert (found["acc"], found["acc_strict"], found["process"]) == (1, 1, 0)
    assert values("reasoning", WORLD_EXAM, WORLD_EXAM["solution"], "cot")["process"] == 1


ALL = {"fpb": ROW, "cfa_easy": EXAM, "arc": TEXT, "ner": ENTITY, "edtsum": {"answer": "a b"},
       "tatqa": TATQA, "nq_open": NQ, "financebench": BENCH, "mt_bench": {}, "concepts": BENCH,
       "reasoning": WORLD_EXAM}  # fmt: skip
ODD = ["", " ", "\0", "\ufffd", "[[", "]]", "[[[[A]]]]", "[[]]", "{}", "日本語", "İİ", "\r\n", "١٢",
       "1e999", "9" * 5000, "-", "()", ";", ";;", "%", "nan", "inf", "Selection:", "٣"]  # fmt: skip


@pytest.mark.parametrize("style", ["direct", "cot"])
@pytest.mark.parametrize("name", ALL)
def test_every_kind_survives_odd_replies_and_reads_long_ones_soon(name, style):
    for reply in ODD:
        prediction, strict, found = answers.judge_reply(TASKS[name], ALL[name], reply, style)
        assert all(0 <= v <= 1 for k, v in found.items() if k != "spans"), (reply, found)
        assert found["missing"] == (prediction is None)
    for piece in ("good ", "answer is ", "[[A ", "1,", "Acme, ORG\n", " ", "\n", "\nText :"):
        start = time.process_time()
        reply = f"x{piece * (100_000 // len(piece))}x"
        answers.judge_reply(TASKS[name], ALL[name], reply, style)
        assert time.process_time() - start < 3  # quadratic: minutes


# Log-likelihoods


def test_choices_by_sum_by_characters_and_by_bytes():
    row = {"choices": ["no", "maybe", "né"], "gold": 1}
    # sums: no wins. per character -1.45, -1.2, -1.5: maybe. per byte -1.45, -1.2, -1: né (3 bytes)
    prediction, found = answers.judge_choices(TASKS["arc"], row, [-2.9, -6.0, -3.0])
    assert prediction == "no" and found == {"acc": 0, "acc_norm": 1, "acc_bytes": 0}
    assert answers.judge_choices(TASKS["arc"], row, [-3.0] * 3)[0] == "no"  # the first wins


def test_a_blank_is_scored_by_sum_only():
    row = {"choices": ["Ann", "Barbara"], "gold": 0}
    assert answers.judge_choices(TASKS["winogrande"], row, [-2.0, -3.0]) == ("Ann", {"acc": 1})


# Measures


def logged(name, rows, replies, style="direct"):
    out = []
    for row, reply in zip(rows, replies, strict=True):
        prediction, _, found = answers.judge_reply(TASKS[name], row, reply, style)
        out.append({"doc": row, "target": row["answer"], "prediction": prediction,
                    "metrics": list(found)} | found)  # fmt: skip
    return out


def scores(name, log):
    found = answers.measures(TASKS[name], log)
    return {metric: scorers.point(*measure) for metric, measure in found.items()}


def test_measures_of_a_log_equal_a_count_by_hand():
    rows = [ROW, ROW, ROW | {"answer": "bad", "gold": 1}, ROW | {"answer": "bad", "gold": 1}]
    log = logged("fpb", rows, ["Good", "dunno", "bad", "good"])
    found = scores("fpb", log)
    assert found["acc"] == 0.5 and found["missing"] == 0.25 and found["balanced_acc"] == 0.5
    # good: 1 right of 2 gold, 2 given -> 1/2; bad: 1 right of 2 gold, 1 given -> 2/3
    assert found["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert answers.baseline(TASKS["fpb"], log)["acc"] == 0.5


def test_labels_that_no_row_has_as_gold_are_labels_of_their_own():
    labels = ["positive", "negative", "neutral", "mixed"]
    gold, said = ["positive", "negative"] * 4, "neutral mixed positive negative".split() * 2
    rows = [{"choices": labels, "gold": labels.index(g), "answer": g} for g in gold]
    found = scores("mlesg", logged("mlesg", rows, said))
    assert found["mcc"] == pytest.approx(matthews_corrcoef(gold, said), abs=1e-9)
    want = f1_score(gold, said, labels=labels[:2], average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(want, abs=1e-9)


def test_a_sample_that_no_judge_has_marked_does_not_count():
    log = logged("financebench", [BENCH] * 4, ["1577", "2", "3", ""])
    assert "judge" not in scores("financebench", log)
    for sample, mark in zip(log[1:3], (1.0, 0.5), strict=True):
        sample |= {"judge": mark, "metrics": [*sample["metrics"], "judge"]}
    found = scores("financebench", log)
    assert found["judge"] == 0.75 and found["em"] == 0.25 and found["missing"] == 0.25
    assert len(answers.measures(TASKS["financebench"], log)["judge"][0]) == 4  # pairs with others


def test_entity_measures_are_pooled_over_rows():
    log = logged("ner", [ENTITY, ENTITY], ["Acme, ORG", "pays, PER"])
    found = scores("ner", log)
    assert found["entity_f1"] == pytest.approx(0.5) == found["rouge1"]
    assert answers.baseline(TASKS["ner"], log) == {}


def test_baselines_give_the_most_frequent_label_or_position_or_nothing():
    rows = [TEXT, TEXT | {"choices": ["x", "y"], "answer": "y"}, TEXT | {"gold": 0}]
    assert answers.baseline(TASKS["arc"], logged("arc", rows, "ABA"))["acc"] == pytest.approx(2 / 3)
    assert answers.baseline(TASKS["cfa_easy"], logged("cfa_easy", [EXAM] * 2, "AB"))["acc"] == 1
    assert answers.baseline(TASKS["nq_open"], logged("nq_open", [NQ], ["x"])) == {}
    one_sided = [ROW, ROW, ROW | {"answer": "bad", "gold": 1}]
    found = answers.baseline(TASKS["german"], logged("german", one_sided, ["good"] * 3))
    assert found["acc"] == pytest.approx(2 / 3) and found["mcc"] == 0
