"""public_sets.py: texts, questions and conversations in their authors' forms."""

import json

import pytest
from preparing import lines, run

import public_sets
from config import UserError


def test_fpb_takes_the_same_fifth_in_any_order(tmp_path, capsys):
    labels = ("positive", "negative", "neutral")
    said = [f"Sales of plant {i} reached \xa3{i}@{labels[i % 3]}" for i in range(1200)]
    said.append(said[0].upper().replace("@POSITIVE", "@neutral"))  # the same sentence again
    (tmp_path / "Sentences_50Agree.txt").write_text("\n".join(said), encoding="latin-1")
    test, shots, train = run("fpb", tmp_path, tmp_path / "a")
    assert len(test) == public_sets.FPB_TEST and len(test) + len(train) >= 1200
    assert "1201 rows in = " in capsys.readouterr().out
    assert test[0]["query"].startswith("Analyze the sentiment")
    assert test[0]["query"].endswith("Answer:")
    (tmp_path / "Sentences_50Agree.txt").write_text("\n".join(said[::-1]), encoding="latin-1")
    again, _, _ = run("fpb", tmp_path, tmp_path / "b")
    assert [row["text"] for row in test] == [row["text"] for row in again]
    asked = {public_sets.letters(row["text"]) for row in test}
    for chat in train:
        text = chat["messages"][0]["content"].partition("Text: ")[2].partition("\nAnswer:")[0]
        assert public_sets.letters(text) not in asked
    assert not asked & {public_sets.letters(row["text"]) for row in shots}


def test_fpb_lines_without_a_label_are_counted(tmp_path):
    (tmp_path / "f.txt").write_text("Up@positive\nA sentence@happy\n")
    test, _, _ = run("fpb", tmp_path / "f.txt", tmp_path / "out")
    listed = (tmp_path / "out" / "fpb_left_out.txt").read_text()
    assert len(test) == 1 and "f.txt:2: label: line does not end in @positive" in listed


def fiqa(tmp_path, entries):
    prompt = "Instruction: What is the sentiment of this news? Please choose.\nInput: {}\nAnswer: "
    rows = [{"context": prompt.format("Tesco's profit up"), "target": "positive"}]
    lines(tmp_path / "fiqa_test.jsonl", rows)
    (tmp_path / "task1_headline_ABSA_train.json").write_text(json.dumps(entries))
    (tmp_path / "task1_post_ABSA_train.json").write_text("{}")


def test_fiqa_never_trains_on_a_test_sentence(tmp_path, capsys):
    def entry(sentence, *scores):
        return {"sentence": sentence, "info": [{"sentiment_score": score} for score in scores]}

    fiqa(tmp_path, {"1": entry("TESCOS Profit up!", "0.5"), "2": entry("Shell falls", "-0.4"),
                    "3": entry("BP up, Shell off", "0.5", "-0.5"), "4": entry("Flat", "0.02"),
                    "5": {"sentence": "Odd", "info": [{"score": 1}]}})  # fmt: skip
    test, shots, chats = run("fiqa_sa", tmp_path, tmp_path / "out")
    assert test[0]["answer"] == "positive" and "financial headline" in test[0]["query"]
    assert [chat["messages"][1]["content"] for chat in chats] == ["negative", "neutral"]
    assert [row["text"] for row in shots] == ["Shell falls", "Flat"]
    said = capsys.readouterr().out
    assert "6 rows in = 3 used" in said and "1 left out (info: opposite labels" in said
    assert "entry 5: info: needs a sentiment_score in each" in said


def test_ner_turns_iob_tags_into_bio_and_a_list(tmp_path):
    said = ["-DOCSTART- -X- O O", "", "Acme NNP - I-ORG", "Solar NNP - I-ORG", "hired VB - O",
            "Ann NNP - I-PER", "in IN - O", "Rome NNP - I-LOC", "", "Nothing NN - O", "",
            "Euro NN - I-MISC", "Bank NN - I-ORG"]  # fmt: skip
    for name in ("FIN3.txt", "FIN5.txt"):
        (tmp_path / name).write_text("\n".join(said))
    test, shots, chats = run("ner", tmp_path, tmp_path / "out")
    assert [row["answer"] for row in test] == ["Acme Solar, ORG\nAnn, PER\nRome, LOC", "Bank, ORG"]
    assert test[0]["label"] == ["B-ORG", "I-ORG", "O", "B-PER", "O", "B-LOC"]
    assert test[1]["label"] == ["O", "B-ORG"]
    assert chats == [] and shots == []  # every sentence is a test sentence


def test_fomc_labels_by_number(tmp_path):
    for half in ("test", "train"):
        rows = [{"sentence": f"Rates rise {half}", "label": 1}, {"sentence": "Same", "label": 2},
                {"sentence": "Odd", "label": 3}]  # fmt: skip
        lines(tmp_path / f"lab-manual-split-combine-{half}-5768.jsonl", rows)
    test, _, train = run("fomc", tmp_path, tmp_path / "out")
    assert [row["answer"] for row in test] == ["hawkish", "neutral"]
    assert len(train) == 1
    assert "label: 3 is not one of 0, 1, 2" in (tmp_path / "out/fomc_left_out.txt").read_text()


def test_nq_open_keeps_every_answer(tmp_path):
    rows = [
        {"question": "who wrote it", "answer": ["Bob", "Bobby"]},
        {"question": "x", "answer": []},
    ]
    test, _, _ = run("nq_open", lines(tmp_path / "NQ-open.dev.jsonl", rows), tmp_path / "out")
    assert len(test) == 1 and test[0]["query"] == "Q: who wrote it?\nA:"
    assert test[0]["answers"] == ["Bob", "Bobby"] and test[0]["answer"] == "Bob"


@pytest.mark.parametrize(
    "kind, answer, scale, answers, shown",
    [
        ("arithmetic", 12.5, "percent", ["12.5"], "12.5%"),
        ("arithmetic", 3, "million", ["3"], "3 million"),
        ("span", ["the costs"], "", ["the costs"], "the costs"),
        ("multi-span", ["2018", "2017"], "", ["2018", "2017"], "2018; 2017"),
        ("multi-span", ["8", "7"], "thousand", ["8", "7"], "8; 7 (in thousand)"),
        ("count", "2", "", ["2"], "2"),
    ],
)
def test_tat_qa_keeps_answers_and_scale(tmp_path, kind, answer, scale, answers, shown):
    asked = {"question": "How much?", "answer_type": kind, "scale": scale, "order": 1}
    entry = {"table": {"table": [["", "2019"], ["Sales", "$ 5"]]},
             "paragraphs": [{"order": 2, "text": "second"}, {"order": 1, "text": "first"}],
             "questions": [asked | {"uid": "u", "answer": answer},
                           asked | {"uid": "v", "answer": [" "]}]}  # fmt: skip
    (tmp_path / "tatqa_dataset_dev.json").write_text(json.dumps([entry]))
    [row], _, _ = run("tatqa", tmp_path, tmp_path / "out")
    assert (row["answers"], row["scale"], row["answer"]) == (answers, scale, shown)
    assert "Sales | $ 5\nfirst\nsecond" in row["query"] and "How much?" in row["query"]
    listed = (tmp_path / "out" / "tatqa_left_out.txt").read_text()
    assert "row 0: question 1: answer" in listed


def test_financebench_shows_its_evidence_and_keeps_it_as_the_text(tmp_path):
    evidence = [{"evidence_text": "Capex \n \n1,577\n"}, {"evidence_text": "Sales"}]
    row = {"financebench_id": "f1", "question": "How much capex?", "answer": "$1577.00"}
    rows = [row | {"evidence": evidence}, row | {"financebench_id": "f2", "evidence": [{}]}]
    path = lines(tmp_path / "financebench_open_source.jsonl", rows)
    [found], _, _ = run("financebench", path.parent, tmp_path / "out")
    assert found["text"] == "Capex\n1,577\nSales" and found["text"] in found["query"]
    assert "How much capex?" in found["query"] and found["id"] == "f1"
    listed = (tmp_path / "out" / "financebench_left_out.txt").read_text()
    assert "jsonl:2: evidence: needs an evidence_text in each" in listed


def test_mt_bench_takes_references_from_the_question_or_beside_it(tmp_path):
    asked = [{"question_id": k, "category": "math", "turns": ["one?", "two?"]} for k in (1, 2, 3)]
    asked[0]["reference"] = ["a", "b"]
    asked.append(asked[2] | {"question_id": 4, "turns": ["one?"]})
    lines(tmp_path / "question.jsonl", asked)
    beside = {"question_id": 2, "choices": [{"turns": ["c", "d"]}]}
    lines(tmp_path / "reference_answer" / "gpt-4.jsonl", [beside])
    rows, _, _ = run("mt_bench", tmp_path, tmp_path / "out")
    assert [row.get("references") for row in rows] == [["a", "b"], ["c", "d"], None]
    listed = (tmp_path / "out" / "mt_bench_left_out.txt").read_text()
    assert "question.jsonl:4: turns: needs two texts" in listed
    hub = [{"prompt_id": 9, "category": "writing", "prompt": ["x?", "y?"], "reference": []}]
    [row], _, _ = run("mt_bench", lines(tmp_path / "h" / "train.jsonl", hub), tmp_path / "out")
    assert row["turns"] == ["x?", "y?"] and row["query"] == "x?"


def test_another_authors_file_is_refused_by_its_first_flaw(tmp_path):
    (tmp_path / "tatqa_dataset_dev.json").write_text(json.dumps([{"table": {}}]))
    with pytest.raises(UserError, match=r"row 0: table: is empty"):
        run("tatqa", tmp_path, tmp_path / "out")
