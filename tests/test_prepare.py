"""prepare.py on small files in the published forms."""

import csv
import json

import pytest

import prepare
from config import UserError
from jsonl import read_jsonl


def run(name, source, out):
    prepare.main([name, str(source), str(out)])
    test = [row for _, row in read_jsonl(out / f"{name}.jsonl", {"query": str})]
    train = out / f"{name}_train.jsonl"
    chats = [r for _, r in read_jsonl(train, {"messages": list})] if train.exists() else []
    return test, chats


def test_fpb_takes_the_same_fifth_in_any_order(tmp_path, capsys):
    labels = ("positive", "negative", "neutral")
    lines = [f"Sales of plant {i} reached \xa3{i}@{labels[i % 3]}" for i in range(1200)]
    lines.append(lines[0].upper().replace("@POSITIVE", "@neutral"))  # the same sentence again
    (tmp_path / "Sentences_50Agree.txt").write_text("\n".join(lines), encoding="latin-1")
    test, train = run("fpb", tmp_path, tmp_path / "a")
    assert len(test) == prepare.FPB_TEST and len(test) + len(train) >= 1200
    assert "1201 rows in = " in capsys.readouterr().out
    assert test[0]["query"].startswith("Analyze the sentiment")
    assert test[0]["query"].endswith("Answer:")
    (tmp_path / "Sentences_50Agree.txt").write_text("\n".join(lines[::-1]), encoding="latin-1")
    again, _ = run("fpb", tmp_path, tmp_path / "b")
    assert [row["text"] for row in test] == [row["text"] for row in again]
    asked = {prepare.letters(row["text"]) for row in test}
    for chat in train:
        text = chat["messages"][0]["content"].partition("Text: ")[2].partition("\nAnswer:")[0]
        assert prepare.letters(text) not in asked


def test_fiqa_never_trains_on_a_test_sentence(tmp_path):
    prompt = "Instruction: What is the sentiment of this news? Please choose.\nInput: {}\nAnswer: "
    rows = [{"context": prompt.format("Tesco's profit up"), "target": "positive"}]
    (tmp_path / "fiqa_test.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def entry(sentence, *scores):
        return {"sentence": sentence, "info": [{"sentiment_score": score} for score in scores]}

    train = {"1": entry("TESCOS Profit up!", "0.5"), "2": entry("Shell falls", "-0.4"),
             "3": entry("BP up, Shell off", "0.5", "-0.5"), "4": entry("Flat", "0.02")}  # fmt: skip
    (tmp_path / "task1_headline_ABSA_train.json").write_text(json.dumps(train))
    (tmp_path / "task1_post_ABSA_train.json").write_text("{}")
    test, chats = run("fiqa_sa", tmp_path, tmp_path / "out")
    assert test[0]["answer"] == "positive" and "financial headline" in test[0]["query"]
    assert [chat["messages"][1]["content"] for chat in chats] == ["negative", "neutral"]


def test_ner_turns_iob_tags_into_bio_and_a_list(tmp_path):
    lines = ["-DOCSTART- -X- O O", "", "Acme NNP - I-ORG", "Solar NNP - I-ORG", "hired VB - O",
             "Ann NNP - I-PER", "in IN - O", "Rome NNP - I-LOC", "", "Nothing NN - O", "",
             "Euro NN - I-MISC", "Bank NN - I-ORG"]  # fmt: skip
    for name in ("FIN3.txt", "FIN5.txt"):
        (tmp_path / name).write_text("\n".join(lines))
    test, chats = run("ner", tmp_path, tmp_path / "out")
    assert [row["answer"] for row in test] == ["Acme Solar, ORG\nAnn, PER\nRome, LOC", "Bank, ORG"]
    assert test[0]["label"] == ["B-ORG", "I-ORG", "O", "B-PER", "O", "B-LOC"]
    assert test[1]["label"] == ["O", "B-ORG"]
    assert chats == []  # every sentence is a test sentence


def test_mmlu_has_the_harness_prompt(tmp_path):
    (tmp_path / "test").mkdir()
    for subject in prepare.FINANCE_SUBJECTS:
        with open(tmp_path / "test" / f"{subject}_test.csv", "w", newline="") as f:
            csv.writer(f).writerow(["What, then?", "one", "two", "three", "four", "C"])
    test, _ = run("mmlu_finance", tmp_path, tmp_path / "out")
    assert len(test) == 7 and test[0]["gold"] == 2
    assert test[0]["query"] == (
        "The following are multiple choice questions (with answers) about business ethics.\n\n"
        "What, then?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    )


def test_arc_takes_question_and_options_apart(tmp_path):
    form = "Please choose the correct answer to the question: {}\n\nAnswer1: {} Answer2: {}"
    form += "\n\nAnswer format: answer1/answer2"
    for half in ("test", "train"):
        for level in ("Easy", "Challenge"):
            question = f"Which one is it, {half} {level}?"
            row = {"instruction": form.format(question, "BB", "Bb"), "answer": "answer2"}
            (tmp_path / f"ARC-{level}_{half}.json").write_text(json.dumps([row]))
    test, train = run("arc", tmp_path, tmp_path / "out")
    assert test[0]["choices"] == ["BB", "Bb"] and test[0]["answer"] == "Bb"
    assert test[0]["query"] == "Question: Which one is it, test Easy?\nAnswer:"
    assert len(test) == len(train) == 2


def test_fomc_labels_by_number(tmp_path):
    for half in ("test", "train"):
        path = tmp_path / f"lab-manual-split-combine-{half}-5768.jsonl"
        rows = [{"sentence": f"Rates rise {half}", "label": 1}, {"sentence": "Same", "label": 2}]
        path.write_text("\n".join(map(json.dumps, rows)))
    test, train = run("fomc", tmp_path, tmp_path / "out")
    assert [row["answer"] for row in test] == ["hawkish", "neutral"]
    assert len(train) == 1


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("fpb", "A sentence@happy", "f:1: label: line does not end in @positive"),
        ("ner", "Acme NNP - ORG", "f:1: tag: 'ORG' is not"),
        ("cfa", '{"query": "q", "answer": "D", "choices": ["A", "B"], "gold": 0}', "f:1: answer"),
    ],
)
def test_a_bad_source_names_file_and_line(tmp_path, name, text, message):
    (tmp_path / "f").write_text(text)
    with pytest.raises(UserError) as error:
        prepare.main([name, str(tmp_path / "f"), str(tmp_path / "out")])
    assert message in str(error.value)


def test_a_missing_source_says_what_is_needed(tmp_path):
    with pytest.raises(UserError, match="Financial PhraseBank"):
        prepare.main(["fpb", str(tmp_path / "none"), str(tmp_path)])
    with pytest.raises(UserError, match="usage: python prepare.py"):
        prepare.main(["fbp", str(tmp_path), str(tmp_path)])
