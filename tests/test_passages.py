import random
import string

import pytest
from judging import book_exercise

from passages import labels_of, passages, place_of

GIVEN = ["Answer: B", "12. B", "The correct answer is B", "Answers: 11. A 12. B 13. C", "Ans. (B)",
         "12) b", "ANSWER\nB", "Correct answer: option B (6%)", "Solution: B) 6%",
         "(b) is correct.", "11 A 12 B 13 C", "**Answer:** B", "The answer is b, as it says above.",
         "The correct choice is B because it is"]  # fmt: skip
NOT_GIVEN = ["B", "A plan B is there", "Answer: C", "13. B", "1. B-Mart sells", "Answer: Bond",
             "12. B plans are", "The answer is b bonds", "Answer the next one:\nB. 6%", "Plan B.",
             "is B.", "Answers:\nA. 5%\nB. 6%", "12.B5", "AB is correct", ""]  # fmt: skip


@pytest.mark.parametrize("behind", GIVEN + NOT_GIVEN)
def test_a_letter_is_an_answer_only_where_the_text_gives_it_as_one(behind):
    text = "Which?\n12. What is it?\nA. 5%\nB. 6%\nC. 7%\n\n" + behind
    exercise = {"questions": "What is it?", "scenario": "", "exhibit": "", "answer": "B"}
    place, reason = place_of(text, exercise | {"answer_choices": ["A. 5%", "B. 6%", "C. 7%"]})
    if behind in GIVEN:
        assert text[slice(*place.answer)] in "Bb" and place.answer[0] > text.index("7%")
    else:
        assert reason == "answer not given as one in the source"


@pytest.mark.parametrize(
    "text",
    [
        "What is it? Mark the correct answer: A. 5% B. 6%",  # its own choices
        "What is it?\nA. 5%\nB. 6%\n\nWhat is that? Choose from these answers:\nA. 7%\nB. 8%",
        "What is it?\nA. 5%\nB. 6%\n\nMark one. Answers:\nA. 7%\nB. 8%",  # another one's
    ],
)
def test_a_list_of_choices_gives_no_answer(text):
    said = {"questions": "What is it?", "scenario": "", "exhibit": "", "answer": "A"}
    said |= {"answer_choices": ["A. 5%", "B. 6%"]}
    assert place_of(text, said) == (None, "answer not given as one in the source")


def test_the_letters_of_choices_in_one_text_follow_each_other():
    assert labels_of("A. 5% of X. Then B. 6% (c) the U.S. rate") == {
        "A": "5% of X. Then", "B": "6%", "C": "the U.S. rate",
    }  # fmt: skip
    assert labels_of("5% of A. B.") == {}


def test_an_answer_before_the_question_belongs_to_another_one():
    said = {"questions": "What is it?", "scenario": "", "exhibit": "", "answer": "B"}
    said |= {"answer_choices": ["A. 5%", "B. 6%"]}
    text = "Answer: B\nWhat is it?\nA. 5%\nB. 6%\n"
    assert place_of(text, said) == (None, "answer not given as one in the source")
    said = said | {"answer": "Profit", "answer_choices": []}
    assert place_of("Profit. What is it?", said) == (None, "answer not given as one in the source")
    assert place_of("What is it? Profit.", said)[0].answer == (12, 18)


@pytest.mark.parametrize(
    "answer, found",
    [("5", False), ("1.5", True), ("500", False), ("1,500", True), ("rofit", False)],
)
def test_a_number_or_word_is_found_only_whole(answer, found):
    said = {"questions": "What?", "scenario": "", "exhibit": "", "answer": answer}
    place, reason = place_of("What? 1.5 and 1,500 of profit", said | {"answer_choices": []})
    assert bool(place) == found and (found or reason == "answer not in the source")


def test_a_question_is_looked_for_behind_its_scenario():
    text = "Firm X. What is it? 1 Firm Y. What is it? 2"
    said = {"questions": "What is it?", "exhibit": "", "answer_choices": []}
    for scenario, answer in (("Firm X.", "1"), ("Firm Y.", "2")):
        place, _ = place_of(text, said | {"scenario": scenario, "answer": answer})
        assert place.question[0] == text.index("What", text.index(scenario))
    assert place_of(text, said | {"scenario": "Firm Y.", "answer": "1"})[0] is None


def random_book(rng):
    def line():
        return "".join(rng.choices(string.ascii_letters + "   .利", k=rng.randint(0, 400)))

    glue = ["\n\n", "\n", "\n \n\n", " ", "\n\nExercises\n\n", "\n\nChapter 2 of it\n"]
    return "".join(line() + rng.choice(glue) for _ in range(rng.randint(0, 60)))


@pytest.mark.parametrize("most", [500, 1000, 8000])
def test_passages_cover_the_text_within_their_size_and_end_between_words(most):
    for seed in range(200):
        text = random_book(random.Random(seed))
        spans, reached = passages(text, most), 0
        for start, end in spans:
            assert not text[reached:start].strip() and end > reached and end - start <= most
            assert reached - start <= most // 4 and end > start
            reached = end
        assert not text[reached:].strip()
        assert len(text) > most or len(spans) <= 1


def test_an_exercise_on_a_border_is_whole_in_one_of_two_passages():
    for seed in range(50):
        rng, parts = random.Random(seed), []
        for i in range(60):
            fill = " ".join(["word"] * rng.randint(1, 60))
            parts += [fill, f"Exercise {i}. What is {i}?\n\nAnswer: it is {i}"]
        text = "\n\n".join(parts)
        found = [text[slice(*span)] for span in passages(text, 2000)]
        for part in parts[1::2]:
            assert any(part in one for one in found), part


def test_a_passage_ends_before_a_heading_and_a_section_that_fits_is_not_cut():
    fill = "\n\n".join(["word " * 19] * 6)
    section = "Exercises\n\n" + "\n\n".join(book_exercise(i, "Why?", [], "So.") for i in range(25))
    text = f"{fill}\n\n{section}\n\n{fill}"
    assert 500 < len(fill) < 650 < len(section) < 1000
    (
        first,
        *_,
    ) = found = [text[slice(*span)] for span in passages(text, 1000)]
    assert first.strip() == fill.strip() and any(section in one for one in found)
