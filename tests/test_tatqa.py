"""tatqa.py: which answers agree, by the tolerant rule and by TAT-QA's own."""

import random
import time

import pytest

import tatqa


def row(*answers, scale="", kind=None):
    kind = kind or ("multi-span" if len(answers) > 1 else "arithmetic")
    return {"answers": list(answers), "scale": scale, "answer_type": kind}


@pytest.mark.parametrize(
    "text, number, scale",
    [
        ("3.2 million", 3.2, "million"),
        ("$ 1,452.4", 1452.4, ""),
        ("US$1.5bn", 1.5, "billion"),
        ("£(8.1m)", -8.1, "million"),
        ("15%", 15, "percent"),
        ("15 per cent.", 15, "percent"),
        ("15 percentage points", 15, "percent"),
        ("$5mn", 5, "million"),
        ("5 mm", 5, "million"),
        ("5K", 5, "thousand"),
        ("5b", 5, "billion"),
        ("(5", 5, ""),
        ("5)", 5, ""),
        ("(3.4)%", -3.4, "percent"),
        ("(3.4%)", -3.4, "percent"),
        ("($134) thousand", -134, "thousand"),
        ("−7", -7, ""),
        ("-$7", -7, ""),
        ("+.5", 0.5, ""),
        ("12 EUR", 12, ""),
        ("5 Millions", 5, "million"),
    ],
)
def test_a_number_is_read_with_sign_and_scale(text, number, scale):
    assert tatqa.quantity(text) == (number, scale)


@pytest.mark.parametrize("text", ["", "million", "4-year", "10-K", "5 6", "FY2019", "x5", "½",
                                  "5 mice", "1.2.3", "3 (4)", "inf", "1e5"])  # fmt: skip
def test_what_is_more_or_less_than_one_number_is_none(text):
    assert tatqa.quantity(text) is None


@pytest.mark.parametrize(
    "given, gold, scale, same",
    [
        ("1452.4", "$1,452.4", "", True),
        ("12.3%", "12.34", "percent", True),
        ("0.1234", "12.34", "percent", True),  # a share for a percentage
        ("12.34", "12.34", "percent", True),  # no scale said: the number decides
        ("12.34 million", "12.34", "percent", False),
        ("12.34%", "12.34", "", False),
        ("1.2 billion", "1,200", "million", True),
        ("1.2 million", "1,200", "million", False),
        ("101", "100", "", True),  # 1e-2 of gold, the border included
        ("99", "100", "", True),
        ("101.1", "100", "", False),
        ("-5", "5", "", False),
        ("(5)", "-5", "", True),
        ("0.001", "0", "", False),
        ("0", "0", "", True),
        ("2018", "2019", "", False),  # years stand 1e-3 apart
        ("2,018", "2,019", "", True),
        ("2018", "2019", "million", True),
        ("The revenue was $3.2 million.", "3.2", "million", True),
        ("3.2 in 2019", "3.2", "", False),  # which of the two?
        ("no number", "3.2", "", False),
        ("", "3.2", "", False),
        ("the Fixed price", "fixed-price", "", False),
        ("The fixed-price!", "fixed-price", "", True),
        ("fixed", "fixed-price", "", False),
        ("", "the", "", False),  # nothing is left of either
    ],
)
def test_the_tolerant_rule_for_one_span(given, gold, scale, same):
    assert tatqa.same(given, gold, scale) is same


def test_counts_are_exact():
    assert tatqa.em("300", row("301", kind="count")) == 0
    assert tatqa.em("301", row("301", kind="count")) == tatqa.em("300", row("301")) == 1


def test_several_spans_match_in_any_order_each_once():
    assert tatqa.em("sales; costs", row("costs", "sales")) == 1
    assert tatqa.em("sales; sales", row("costs", "sales")) == 0
    assert tatqa.em("sales", row("costs", "sales")) == 0
    assert tatqa.em("sales; costs; rent", row("costs", "sales")) == 0
    # 100 agrees with both golds, 101 with the first alone: taken greedily, it would be left over
    assert tatqa.em("100; 101", row("100.5", "99.5")) == 1
    assert tatqa.em("3; 4 million", row("3", "4", scale="million")) == 1
    assert tatqa.em("3; 4 billion", row("3", "4", scale="million")) == 0
    assert tatqa.em("sales; costs", row("sales; costs", kind="span")) == 1


@pytest.mark.parametrize("text", ["2018; 2019", "2019\n2018", "- 2019\n- 2018", "1. 2019\n2) 2018",
                                  " 2018, 2019", "2018 and 2019", "2018,\n2019\n"])  # fmt: skip
def test_several_spans_may_be_parted_as_a_list(text):
    assert tatqa.em(text, row("2019", "2018")) == 1
    assert tatqa.em(text, row("2019", "2017")) == 0


def test_a_list_is_parted_for_several_spans_only():
    assert tatqa.em("sales and costs", row("sales and costs", kind="span")) == 1
    assert tatqa.em("- 5", row("5")) == 1 and tatqa.em("5, 6", row("5")) == 0
    assert tatqa.em("land, net\nsales and costs", row("sales and costs", "land, net")) == 1
    assert tatqa.em("1,000, 2,500", row("2,500", "1,000")) == 1
    assert tatqa.em("sales and costs, rent", row("rent", "sales and costs")) == 1
    assert tatqa.em("brand", row("br", "d")) == 0


def test_spans_and_scale_are_taken_apart():
    assert tatqa.parse("3.2 million", ["3"]) == (["3.2"], "million")
    assert tatqa.parse(" 15 % ", ["3"]) == (["15"], "percent")
    assert tatqa.parse("(1.5) million; sales;", ["3", "4"]) == (["(1.5)", "sales"], "million")
    assert tatqa.parse("1 million; 2 billion", ["3", "4"]) == (["1 million", "2 billion"], "")
    assert tatqa.parse("one million", ["3"]) == (["one million"], "")
    assert tatqa.parse(" ; ", ["3"]) == ([], "")


@pytest.mark.parametrize(
    "prediction, gold, exact, f1",
    [
        ("3.2 million", row("3.2", scale="million"), 1, 1),
        ("3.2", row("3.2", scale="million"), 0, 0),  # the scale is missing
        ("3.2 billion", row("3.2", scale="million"), 0, 0),
        ("3.201 million", row("3.2", scale="million"), 1, 1),  # two decimals count
        ("3.21 million", row("3.2", scale="million"), 0, 0),
        ("0.2342", row("23.42", scale="percent"), 1, 1),
        ("23.42%", row("23.42", scale="percent"), 1, 1),
        ("(134)", row("-134"), 1, 1),
        ("£59.1m", row("£59.1m", kind="span"), 1, 1),
        ("0.15", row("15%", kind="span"), 1, 1),
        ("500", row("5 hundred", kind="span"), 1, 1),
        ("$3 million", row("$3 Million", kind="span"), 1, 1),
        ("5", row(".5", kind="span"), 0, 0),  # ".5" is a word to the original
        ("a", row("the", kind="span"), 1, 1),  # nothing is left of either
        ("The total sales", row("total sales", kind="span"), 1, 1),
        ("total costs", row("total sales", kind="span"), 0, 0.5),
        ("3 years", row("3 years ago", kind="span"), 0, 0.8),
        ("sales; costs", row("costs", "sales"), 1, 1),
        ("sales", row("costs", "sales"), 0, 0.67),
        ("", row("costs", "sales"), 0, 0),
    ],
)
def test_the_original_scores_want_the_scale(prediction, gold, exact, f1):
    assert tatqa.original(prediction, gold) == (exact, f1)


def test_an_answer_in_its_own_words_is_always_right():
    rng = random.Random(7)
    marks = {"": "", "percent": "%", "thousand": " thousand", "million": " million"}
    for _ in range(300):
        scale = rng.choice(list(marks))
        golds = [f"{rng.uniform(-900, 900):.2f}" for _ in range(rng.randrange(1, 4))]
        gold = row(*golds, scale=scale)
        said = "; ".join(number + marks[scale] for number in rng.sample(golds, len(golds)))
        assert tatqa.em(said, gold) == 1 and tatqa.original(said, gold) == (1, 1)


@pytest.mark.parametrize("piece", ["1", "1 ", "1,", "(", "( ", "(1 ", "1;", " ", "$", "-", "1 %"])
def test_long_replies_are_scored_in_linear_time(piece):
    start = time.process_time()
    for gold in (row("1", "2", scale="million"), row("5")):
        text = piece * (100_000 // len(piece))
        tatqa.em(text, gold), tatqa.original(text, gold)
    assert time.process_time() - start < 10  # quadratic: minutes
