"""overlap.py: what texts share with items, against a definition in plain Python."""

import random

import numpy as np
import pytest

import overlap
from overlap import GRAM, find, longest, make_index, words

ITEM = "The committee decided to keep the target range for the federal funds rate at four percent."
LETTERS = [len(word) for word in words(ITEM)]


def numbered(places):
    return " ".join(f"w{i}" for i in places)


def shared(text, question=ITEM, answer=""):
    """(question, answered, exact, words of the longest stretch) of one text, None without match."""
    index = make_index([(question, answer)])
    pairs = find(index, [text])
    if not len(pairs.item):
        return None
    exact, stretch = longest(index, pairs, 0)
    named = (words(question) + words(answer))[slice(*stretch)]
    return float(pairs.question[0]), float(pairs.answered[0]), exact, " ".join(named)


def test_a_whole_item_is_found_in_whatever_case_and_punctuation():
    found = shared(f"He said: {ITEM.upper().replace(' ', '  ').replace('.', '!')} And went.")
    assert found == (1.0, 1.0, True, " ".join(words(ITEM)))
    item = ITEM + " Officially."
    assert shared(item.replace("ffi", "\ufb03"), item)[2]  # a ligature, as pdf files have them


def test_nine_words_in_a_row_are_no_match_and_ten_are():
    first = ITEM.split()
    assert shared(" ".join(first[:9]) + " elsewhere") is None
    question, answered, exact, stretch = shared("so " + " ".join(first[:10]) + " other")
    assert stretch == " ".join(words(ITEM)[:10]) and not exact
    assert question == answered == pytest.approx(sum(LETTERS[:10]) / sum(LETTERS))


def test_a_word_that_no_item_holds_breaks_a_run():
    split = ITEM.split()
    assert shared(" ".join([*split[:7], "unseen", *split[7:]])) is None


def test_words_of_two_texts_or_of_two_items_make_no_run():
    split, index = ITEM.split(), make_index([(ITEM, "")])
    assert len(find(index, [" ".join(split[:8]), " ".join(split[8:])]).item) == 0
    index = make_index([(" ".join(split[:8]), ""), (" ".join(split[8:]), "")])
    assert len(find(index, [ITEM]).item) == 0


def test_two_stretches_add_up_and_repeated_ones_count_once():
    item = numbered(range(30))
    halves = f"{numbered(range(12))} x {numbered(range(18, 30))}"
    letters = [len(f"w{i}") for i in range(30)]
    share = (sum(letters) - sum(letters[12:18])) / sum(letters)
    for text in (halves, halves + " " + halves):
        question, _, exact, stretch = shared(text, item)
        assert question == pytest.approx(share) and not exact and len(stretch.split()) == 12


def test_all_of_an_item_in_pieces_is_not_exact():
    item = numbered(range(30))
    for first, last in ((range(20), range(10, 30)), (range(15), range(15, 30))):
        text = f"{numbered(first)} x {numbered(last)}"
        assert shared(text, item)[:3] == (1.0, 1.0, False)


def test_the_longest_stretch_is_one_piece_of_the_text():
    item = numbered(range(40))
    text = f"{numbered(range(10))} x {numbered(range(1, 11))}"
    assert len(shared(text, item)[3].split()) == 10
    text = f"{numbered(range(10))} x x x x x {numbered(range(15, 27))} x {numbered(range(30, 40))}"
    assert shared(text, item)[3] == numbered(range(15, 27))


def test_the_answer_counts_beside_the_question_not_instead_of_it():
    question, answered, exact, _ = shared(ITEM, ITEM, "hawkish stance")
    assert question == 1 and exact
    assert answered == pytest.approx(sum(LETTERS) / (sum(LETTERS) + len("hawkishstance")))
    assert shared(f"{ITEM} Hawkish stance", ITEM, "hawkish stance")[1] == 1
    answer = "one two three four five six seven eight nine ten"
    question, answered, exact, _ = shared(answer, ITEM, answer)
    assert question == 0 and not exact and answered > 0.3
    assert shared(answer, "", answer)[:3] == (0.0, 1.0, False)


def test_a_short_question_with_its_answer_is_compared_as_both():
    question, answer = "Who led the bank in two thousand and eight", "Ben Bernanke"
    assert shared(f"{question}? A: Mervyn King", question, answer) is None
    assert shared(f"{question}? {answer}", question, answer)[:3] == (1.0, 1.0, True)


def test_short_questions_are_looked_for_whole_and_very_short_ones_not_at_all():
    texts = ["nothing", "oil prices rose by four percent today", "Oil prices rose by four percent"]
    index = make_index([("Oil prices rose by four percent", "yes"), ("oil prices rose by", "")])
    assert find(index, texts).short == {0: 1}  # the first text that has it
    assert find(index, ["oil prices rose by five percent"]).short == {}


def test_what_a_tenth_of_a_group_shares_is_not_its_items():
    rule = "judge whether the profile of this client below is good or bad now"
    questions = [f"{rule} w{i} x{i} y{i} z{i} a{i} b{i} c{i} d{i} e{i} f{i}" for i in range(30)]
    index = make_index([(question, "") for question in questions], ["credit"] * 30)
    assert len(find(index, [f"{rule} w99 x99"]).item) == 0
    pairs = find(index, [questions[3]])
    assert pairs.item.tolist() == [3] and pairs.question[0] == 1 and longest(index, pairs, 0)[0]
    pairs = find(index, [questions[3].removeprefix(rule)])  # the instruction need not be there
    assert pairs.question[0] == 1 and longest(index, pairs, 0)[0]


def test_what_few_items_of_a_group_share_is_theirs():
    ten = numbered(range(10))
    for alike, count in ((2, 2), (2, 10), (3, 31)):
        questions = [f"{ten} x{i}" if i < alike else f"{i}" for i in range(count)]
        pairs = find(make_index([(question, "") for question in questions]), [ten])
        assert pairs.item.tolist() == list(range(alike))
    often = " x ".join([ten] * 5)  # five times in one item
    assert len(find(make_index([(often, ""), *[("few words", "")] * 19]), [ten]).item) == 1


def test_the_border_of_two_items_is_no_rule_of_their_group():
    ends = "first second third fourth {} fifth sixth seventh eighth ninth"
    middles = [" ".join(f"{letter}{i}" for letter in "abcdefghijkl") for i in range(9)]
    pairs = find(make_index([(ends.format(middle), "") for middle in middles]), [middles[4]])
    assert pairs.item.tolist() == [4] and 0.2 < pairs.question[0] < 0.6


def test_a_rule_of_one_group_is_looked_for_in_another():
    rule = "judge whether the profile of this client below is good or bad now"
    items = [(f"{rule} x{i}", "") for i in range(20)] + [(f"say {rule} or not", "")]
    groups = ["credit"] * 20 + ["other"]
    assert find(make_index(items, groups), [rule]).item.tolist() == [20]


def brute(items, texts):
    """{(item, text): (question, answered)} by comparing every place with every place."""
    found = {}
    for i, (question, answer) in enumerate(items):
        asked = len(words(question))
        item = words(question) + words(answer)
        for j, text in enumerate(texts):
            said, covered = words(text), set()
            for a in range(len(said) - GRAM + 1):
                for b in range(len(item) - GRAM + 1):
                    if said[a : a + GRAM] == item[b : b + GRAM]:
                        covered |= set(range(b, b + GRAM))
            if covered:
                size = [len(word) for word in item]
                part = [sum(size[k] for k in covered if k < end) for end in (asked, len(item))]
                found[i, j] = part[0] / max(1, sum(size[:asked])), part[1] / sum(size)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_random_texts_share_what_the_definition_says(seed):
    rng = random.Random(seed)
    alphabet = "a a a a bb".split()  # so few words that texts repeat themselves and each other
    makes = [(rng.randint(0, 22), rng.randint(0, 6)) for _ in range(40)]
    items = [tuple(" ".join(rng.choices(alphabet, k=k)) for k in sizes) for sizes in makes]
    texts = [" ".join(rng.choices([*alphabet, "other"], [9, 9, 9, 9, 9, 1], k=rng.randint(0, 80)))
             for _ in range(20)]  # fmt: skip
    pairs = find(make_index(items, list(map(str, range(40)))), texts)
    keys = zip(pairs.item.tolist(), pairs.row.tolist(), strict=True)
    got = dict(zip(keys, zip(pairs.question, pairs.answered, strict=True), strict=True))
    expected = brute(items, texts)
    assert len(expected) > 20 and got.keys() == expected.keys()
    for key, shares in expected.items():
        assert got[key] == pytest.approx(shares)


def test_equal_hashes_of_unequal_words_are_no_match(monkeypatch):
    monkeypatch.setattr(overlap, "BASE", np.uint64(0))  # hash = last word only
    item = [f"w{i}" for i in range(12)]
    assert shared(" ".join([*item[8::-1], *item[9:]]), " ".join(item)) is None
    assert shared(" ".join(item), " ".join(item))[2]


def test_nothing_to_look_for_or_in_is_no_match():
    assert len(find(make_index([("", ""), ("few words", "")]), [ITEM, ""]).item) == 0
    assert len(find(make_index([(ITEM, "")]), ["", "one"]).item) == 0
