"""extract.py: what a reply says, and the traps of other scorers (PIXIU's 'no' in 'know')."""

import time

import pytest

import extract

LABELS = ["positive", "negative", "neutral"]


# Labels


@pytest.mark.parametrize(
    "reply, label",
    [
        ("I know the economic outlook", None),  # "no" stands inside know and economic
        ("It is not clear, I cannot say", None),
        ("the casino has a piano", None),
        ("No.", "no"),
        ("no-one can tell", None),
        ("**Yes**", "yes"),
        ("Yes, there is no doubt", "yes"),  # both occur: the reply opens with one
        ("there is no doubt. Answer: yes", "yes"),
        ("It could be yes or no", None),
        ("yes or no", None),
        ("yes/no", None),
        ("Yes, no doubt", "yes"),
        ("There is no doubt", None),  # about what?
        ("Is it? No risk is seen", None),
        ("No risk is seen", "no"),
        ("Clearly: no", "no"),
        ("The prediction is no since cash grows", "no"),
        ("I see no doubt: yes", "yes"),
    ],
)
def test_labels_are_whole_words(reply, label):
    assert extract.extract_label(reply, ["no", "yes"]) == label


@pytest.mark.parametrize(
    "reply, label",
    [
        ("The credit is not good", None),
        ("isn't very good, it is bad", "bad"),
        ("GOOD", "good"),
        ("goodness gracious", None),
        ("it's no good", None),
        ("far from good", None),
        ("hardly a good risk", None),
        ("no longer good", None),
        ("The client is good, no bad debts", "good"),
        ("Neither good nor bad", None),
        ("It does not convey a bad opinion", None),
        ("not only good but bad", None),  # "only" takes the denial back: two labels, no conclusion
    ],
)
def test_a_denied_label_is_not_given(reply, label):
    assert extract.extract_label(reply, ["good", "bad"]) == label


def test_of_nested_labels_the_longest_is_taken():
    labels = ["Carbon Emissions", "Product Carbon Footprint", "Carbon"]
    assert extract.extract_label("It is: product  carbon footprint.", labels) == labels[1]
    assert extract.extract_label("carbon", labels) == "Carbon"
    assert extract.extract_label("The issue: carbon emissions", labels) == "Carbon Emissions"


def test_labels_that_differ_in_case_only_keep_their_case():
    assert extract.extract_label("The genotype is Bb", ["BB", "Bb", "bb"]) == "Bb"
    assert extract.strict_label("bb.", ["BB", "Bb", "bb"]) == "bb"


def test_a_conclusion_decides_between_several_labels():
    reply = "The sentiment of this text is neutral. It may sound positive to a negative reader"
    assert extract.extract_label(reply, LABELS) == "neutral"
    reply = "Rises are positive, so this is classified as positive, whatever a negative mind says"
    assert extract.extract_label(reply, LABELS) == "positive"
    reply = "Profit rose (positive) but debt too (negative). The sentiment is **neutral**."
    assert extract.extract_label(reply, LABELS) == "neutral"
    assert extract.extract_label("positive, negative or neutral: hard to say", LABELS[1:]) is None
    assert extract.extract_label("positive, negative or neutral: hard to say", LABELS) is None


def test_strict_label_wants_nothing_but_the_label():
    assert extract.strict_label(' "Positive".\n', LABELS) == "positive"
    assert extract.strict_label("It is positive", LABELS) is None


# Letters


@pytest.mark.parametrize(
    "reply, strict, flexible",
    [
        ("Because of tax. Selection: [[B]]", "B", "B"),
        ("Selection: [[A]] ... on reflection Selection: [[C]]", "C", "C"),
        ("I choose [[b]]", None, "B"),
        ("a bond pays a coupon", None, None),
        ("A bond pays a coupon", None, None),
        ("The correct answer is (C) since yields fall", None, "C"),
        ("The correct answer is B. Option A is wrong because it rises", None, "B"),
        ("The answer is B, not option C.", None, "B"),
        ("The answer is option C, though option B is close", None, "C"),
        ("Answer: A. On second thoughts the answer is B", None, "B"),
        ("The answer is A bond which pays", None, None),
        ("The answer is A because yields fall", None, "A"),
        ("The answer is A-rated debt", None, None),
        ("Option A is wrong, so it must be option B", None, "B"),
        ("I go for choice C, not option A", None, "C"),
        ("Option A rises and option B falls", None, None),
        ("The best choice is A bond fund", None, None),
        ("Option A pays more", None, "A"),
        ("It is option A.", None, "A"),
        ("B", None, "B"),
        ("B. The price falls", None, "B"),
        ("Selection: [[D]]", None, None),
        ('{"answer": "B"}', None, "B"),
        ("**Answer**: C", None, "C"),
        ("Answer:\n\n(C)", None, "C"),
        ("The answer is not A", None, None),
        (r"Thus $\boxed{B}$", None, "B"),
        ("B\n\nA falls", None, "B"),
        ("Answer: A or B", None, None),
        ("The answer is B/C", None, None),
        ("The answer is A and option B", None, None),
        ("It is option A or option B", None, None),
        ("Answer: A or B. The answer is B", None, "B"),
        ("Answer: A and A", None, "A"),
        ("The answer is B and C is wrong", None, "B"),
        ("The answer is B, C is wrong", None, "B"),
        ("A. rises B. falls C. stays", None, None),  # the question's options again
        ("A) rises\nB) falls\nC) stays", None, None),
        ("A\nB\nC", None, None),
        ("A. It rises. B. falls", None, "A"),
        ("B. It falls, A. rises, C. stays", None, "B"),
        ("answer: c", None, "C"),
        ("The answer is b.", None, "B"),
        ("Answer: b. On second thoughts the answer is c", None, "C"),
        ("The answer is a matter of taste", None, None),
        ("The answer would be C", None, "C"),
        ("Option B should be chosen", None, "B"),
        ("Yields fall, therefore B", None, "B"),
        ("I choose C.", None, "C"),
        ("I would not choose C", None, None),
        ("B is correct", None, "B"),
        ("B is the best answer", None, "B"),
        ("It's not that B is right", None, None),
        ("I pick B. C is right", None, None),
        ("Thus A bond falls", None, None),
        ("Option A holds. Thus B", None, "A"),  # options that are named come first
        ("Réponse : Á", None, None),
        ("", None, None),
    ],
)
def test_letters_need_a_selection(reply, strict, flexible):
    assert extract.strict_label(extract.selection(reply) or "", "ABC") == strict
    assert extract.extract_letter(reply, "ABC") == flexible


def test_brackets_are_read_on_one_line_and_the_last_selection_counts():
    reply = "Selection: [[A]] [[x [[ b ]] [[\n]] Selection:[[C. bond]] then [[1]] ]] [[ [] ]]"
    assert extract.bracketed(reply) == ["A", "b", "C. bond", "1", "[]"]
    assert extract.selection(reply) == "C. bond"
    assert extract.selection("[[A]]") is None and extract.bracketed("[[[[") == []


def test_a_denial_or_conclusion_far_before_a_label_does_not_reach_it():
    assert extract.extract_label("not " + "x " * 200 + "good", ["good", "bad"]) == "good"
    far = "good, bad. The label is " + "x " * 200 + "bad"
    assert extract.extract_label(far, ["good", "bad"]) == "good"  # it opens the reply


LONG = ["good ", "not good ", "no ", "not ", "answer ", "answer is ", "option A ", " ", "\n", "[[",
        "[[A ", "( ", "*", "#### a  ", "\\boxed{", "1", "step 1: ", "rated x y z "]  # fmt: skip


@pytest.mark.parametrize("piece", LONG)
def test_long_replies_are_read_in_linear_time(piece):
    start = time.process_time()
    for reply in (
        piece * (100_000 // len(piece)),
        f"answer {piece * 20_000} x",
        f"[[{piece}" * 9999,
    ):
        extract.extract_label(reply, ["good", "bad"])
        extract.extract_label(reply, ["no", "yes"])
        extract.extract_letter(reply, "ABC")
        extract.selection(reply), extract.final_answer(reply), extract.exam_steps(reply)
    assert time.process_time() - start < 10  # quadratic: minutes


# Texts


def test_texts_match_without_case_punctuation_and_articles():
    assert extract.exam_right("Answer: The  Federal-Reserve!", "federalreserve")
    assert not extract.exam_right("Answer: Fed", "Federal Reserve")
    assert extract.exact_match("a b \n c", "a b c")
    assert not extract.exact_match("A b c", "a b c")


# Final answers


@pytest.mark.parametrize(
    "text, final",
    [
        ("Step 1: 3 = 3. Answer: 40", "40"),
        ("step 2 : x = 4 . answer : 40", "40"),
        ("So the answer is $1,234.50.", "$1,234.50"),
        ("Selection: [[B]]", "B"),
        ("The final answer is **B**. Selection: [[B]]", "[[B]]"[2:3]),
        (r"thus \boxed{7}", "7"),
        (r"thus \boxed{}", None),
        ("#### 12", "12"),
        ("Answer: 1\nAnswer: 2", None),
        ("neutral", "neutral"),
        ("Net income.", "Net income."),
        ("", None),
        ("no end in sight", None),
        ("", None),
    ],
)
def test_the_final_answer_is_found_if_there_is_exactly_one(text, final):
    assert extract.final_answer(text) == final


@pytest.mark.parametrize(
    "final, reference, same",
    [
        ("40", "40.0", True),
        ("$1,234.5", "1234.50", True),
        (".5", "0.5", True),
        ("$.5", "5", False),
        ("5.", "5", True),
        ("12 %", "12%", True),
        ("40 apples", "40", True),
        ("40 or 41", "40", False),
        ("41", "40", False),
        ("-4", "4", False),
        ("(B)", "B", True),
        ("B) because", "b", True),
        ("Because", "B", False),
        ("A", "B", False),
        ("Net  Income.", "net income", True),
        ("income", "net income", False),
    ],
)
def test_answers_are_the_same_as_numbers_letters_or_text(final, reference, same):
    assert extract.same_answer(final, reference) == same


# Exam

SOLUTION = "step 1 : margin = revenue - cost = 54 - 9 = 45\nstep 2 : tax = 45 - 5 = 40\nanswer : 40"


def test_exam_answer_is_explicit_and_not_contradicted():
    assert extract.exam_answer("Step 1: 20 + 20 = 40. Answer: 40.") == "40"
    assert extract.exam_answer("answer : 40\nAnswer: 40") == "40"
    assert extract.exam_answer("answer : 3 . no , answer : 40 .") is None
    assert extract.exam_answer("no answer here") is None and extract.exam_answer("Answer: ") is None
    assert extract.exam_right("step 1 : so answer : 40.0", "40")
    assert not extract.exam_right("40", "40")


def test_a_right_answer_by_a_wrong_step_fails_the_process():
    one_line = SOLUTION.replace("\n", " . ")
    lucky = SOLUTION.replace("= 54 - 9 = 45", "= 54 - 9 = 46")
    assert extract.exam_process_right(one_line, SOLUTION, "40")
    assert extract.exam_right(lucky, "40") and not extract.exam_process_right(lucky, SOLUTION, "40")
    swapped = SOLUTION.replace("step 1", "step 3")
    assert not extract.exam_process_right(swapped, SOLUTION, "40")
    skipped = "step 1 : margin = revenue - cost = 54 - 9 = 45\nanswer : 40"
    assert not extract.exam_process_right(skipped, SOLUTION, "40")
    wrong = SOLUTION.replace("answer : 40", "answer : 41")
    assert not extract.exam_process_right(wrong, SOLUTION, "40")
