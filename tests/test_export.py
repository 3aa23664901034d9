import json
from collections import Counter

import pytest
from judging import numbers, rows_of, trajectory
from tiny import sentences, write_checkpoint, write_rows
from tokenizers import Tokenizer as Encoder

import judge
from config import UserError
from data import load_chat, load_pairs, sequences_of
from export import Export, Renderer, export
from judge import split_steps
from tokenizer import Tokenizer

ENDS = {"chosen": True, "rejected": True}


# ---- pairs: what TRL makes of a row, written here after its DPOTrainer._prepare_dataset ----------


def trl_ids(folder, row):
    """[(ids, their number of the prompt)] of chosen and rejected, from a row of strings."""
    encoder = Encoder.from_file(str(folder / "tokenizer.json"))
    eos = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
    texts = [row[side] for side in ("chosen", "rejected")]
    texts = [text if text.endswith(eos) else text + eos for text in texts]
    prompt = encoder.encode(row["prompt"]).ids
    whole = [encoder.encode(row["prompt"] + text).ids for text in texts]

    def common(a, b):
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))

    return [(ids, min(common(prompt, other) for other in whole)) for ids in whole]


def our_ids(folder, path):
    """The same of the pairs that train_dpo.py trains on."""
    families, _ = load_pairs(path, Tokenizer(folder), 4096, 1.0)
    return [
        [(ids, trained.index(True)) for ids, trained in sequences_of(members)]
        for members in families
    ]


def pair(i, prefix="", ends=(True, True), **changes):
    one, two, three = sentences(3, i)
    glue = " " if prefix else ""
    row = {"id": f"p{i}", "kind": "fap", "prompt": [{"role": "user", "content": one}]}
    row |= {"prefix": prefix, "chosen": f"{glue}good {two}", "rejected": f"{glue}bad {three}"}
    return row | {"ends_turn": dict(zip(ENDS, ends, strict=True))} | changes


def written(out, name, **settings):
    export(Export(out_dir=str(out), format=name, **settings))
    return rows_of(out / f"{name}.jsonl")


@pytest.fixture(params=["llama3", "chatml"])
def folder(request, tmp_path):
    return write_checkpoint(tmp_path / "policy", template=request.param)


def give_bos(folder):
    """A tokenizer.json that writes BOS itself, as Llama 3's does."""
    path, raw = folder / "tokenizer.json", json.loads((folder / "tokenizer.json").read_text())
    bos, name = Tokenizer(folder).bos_id, "<|begin_of_text|>"
    head, text = (
        {"SpecialToken": {"id": name, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [head, text],
        "pair": [head, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [bos], "tokens": [name]}},
    }
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize("bos_by_tokenizer", [False, True])
def test_trl_trains_rows_of_strings_on_the_ids_that_we_train_on(folder, tmp_path, bos_by_tokenizer):
    """BOS once, the turn's end, no merge across the cuts: token by token."""
    if bos_by_tokenizer:
        if Tokenizer(folder).bos_id is None:
            return  # ChatML has none
        give_bos(folder)
    rows = [pair(0), pair(1, "step one. "[:-1]), pair(2, "one\ntwo")]
    rows += [pair(3, chosen="profit !\n\n 1 2"), pair(4, prompt="a text, not messages")]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    made = written(tmp_path, "trl", tokenizer=str(folder))
    assert [row["id"] for row in made] == [f"p{i}" for i in range(5)]
    assert [trl_ids(folder, row) for row in made] == our_ids(folder, path)
    if bos_by_tokenizer:
        assert not any("<|begin_of_text|>" in row["prompt"] for row in made)


def test_what_trl_cannot_train_alike_is_left_out_and_counted(folder, tmp_path, capsys):
    rows = [pair(0, "step", (False, False)), pair(1, ends=(True, False)), pair(2)]
    rows += [pair(3, "step o", chosen="ne step"), pair(4, rejected="<|eot_id|><|im_end|> said")]
    write_rows(tmp_path / "pairs.jsonl", rows)
    made = written(tmp_path, "trl", tokenizer=str(folder))  # " one" is one token
    assert [row["id"] for row in made] == ["p2"]
    text = capsys.readouterr().out
    assert numbers(text)["pairs"] == (5, 1, 4)
    assert "2 that do not end the turn" in text and "2 that TRL would cut into other tokens" in text


def test_without_a_tokenizer_pairs_are_trls_messages(tmp_path, capsys):
    rows = [pair(0), pair(1, ends=(False, False)), pair(2, prompt="text")]
    write_rows(tmp_path / "pairs.jsonl", rows)
    made = written(tmp_path, "trl")
    assert [set(row) for row in made] == [{"id", "prompt", "chosen", "rejected"}] * 2
    assert made[0]["prompt"] == rows[0]["prompt"]
    assert made[0]["chosen"] == [{"role": "assistant", "content": rows[0]["chosen"]}]
    assert made[1]["prompt"] == [{"role": "user", "content": "text"}]
    assert numbers(capsys.readouterr().out)["pairs"] == (3, 2, 1)
    load_pairs(f"{tmp_path}/trl.jsonl", Tokenizer(write_checkpoint(tmp_path / "x")), 4096)
    write_rows(tmp_path / "pairs.jsonl", [*rows, pair(3, "prefix")])
    with pytest.raises(UserError, match=r"pairs.jsonl:4: prefix: .* --tokenizer"):
        export(Export(out_dir=str(tmp_path)))
    write_rows(tmp_path / "pairs.jsonl", [pair(0) | {"ends_turn": {"chosen": True}}])
    with pytest.raises(UserError, match="pairs.jsonl:1: ends_turn: chosen and rejected must be"):
        export(Export(out_dir=str(tmp_path)))


def test_a_tokenizer_whose_end_token_is_not_the_turns_end_is_refused(folder):
    path = folder / "tokenizer_config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"eos_token": {"content": "<|end|>"}}))
    with pytest.raises(UserError, match="tokenizer_config.json: eos_token: TRL ends replies with"):
        Renderer(folder)


# ---- steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("glue", [" ", "\n"])
def test_steps_joined_again_are_the_text(glue):
    steps = ["First, think.", "Step 1: 2 + 2 = 4.", "step 2) so: 4.", "The final answer: 4"]
    text = glue.join(steps)
    assert [text[a:z] for a, z in split_steps(text)] == steps


TEXT = "Step 1: fine. Step 2: also fine. Answer: 41"


def verdict(record, kind, attempt=1, raw=None, **parsed):
    if kind == "outcome":
        parsed = {"Correctness": "wrong"} | parsed
    else:
        empty = dict.fromkeys(judge.KEYS["stepwise"], "")
        parsed = empty | {key.replace("_", " "): value for key, value in parsed.items()}
    raw = raw or json.dumps({"Justification": "j"} | parsed)
    parts = judge.request_parts(record)
    body = judge.build_request(kind, attempt, *parts, "m", 64, 7)
    request = f"{record['id']}/{kind}/{attempt}", kind, attempt, body, record
    reply = {"raw": raw, "finish": "stop", "tries": 1, "latency_s": 0.0, "usage": {}}
    return judge.read_verdict(request, "http:m", reply)


def write_log(out, cases):
    """cases: [(text, [verdict settings, ...])]; one trajectory each."""
    records = [trajectory(f"q{i}", 0, text) for i, (text, _) in enumerate(cases)]
    verdicts = [
        verdict(record, **settings)
        for record, (_, asked) in zip(records, cases, strict=True)
        for settings in asked
    ]
    write_rows(out / "trajectories.jsonl", records)
    write_rows(out / "verdicts.jsonl", verdicts)
    return records, verdicts


WRONG, RIGHT = {"kind": "outcome"}, {"kind": "outcome", "Correctness": "correct"}
FINE = {"kind": "stepwise"}
SECOND = {"kind": "stepwise", "First_incorrect_step": "Step 2: also fine.",
          "Reasoning_up_to_incorrect": "Step 1: fine.", "Step_correction": "c"}  # fmt: skip
HALF = SECOND | {"First_incorrect_step": "also fine.",
                 "Reasoning_up_to_incorrect": "Step 1: fine. Step 2:"}  # fmt: skip
INVALID = {"raw": "no json"}


def test_labels_are_the_first_wrong_step_the_last_one_or_none(tmp_path, capsys):
    cases = [
        ((TEXT, [WRONG, SECOND]), 1),
        ((TEXT, [WRONG, HALF]), 1),  # half a step quoted: the step it is in, not the next
        ((TEXT, [WRONG, FINE]), 2),  # only the answer is wrong: the last step
        ((TEXT, [RIGHT, FINE]), -1),
        ((TEXT, [RIGHT, SECOND]), 1),  # a right answer by a wrong way
        ((TEXT, [WRONG, SECOND | {"First_incorrect_step": "Step 1: fine.",
                                  "Reasoning_up_to_incorrect": ""}]), 0),
        ((TEXT, [INVALID | WRONG, WRONG | {"attempt": 2}, SECOND]), 1),  # asked again
        ((TEXT, [RIGHT]), "1 with steps not judged"),
        ((TEXT, [WRONG, INVALID | FINE]), "1 with steps judged invalidly: reply is not one JSON"),
        ((TEXT, [INVALID | WRONG]), "1 with answer judged invalidly: reply is not one JSON"),
        ((TEXT, []), "1 with answer not judged"),
        ((" ", []), "1 empty"),
    ]  # fmt: skip
    records, _ = write_log(tmp_path, [case for case, _ in cases])
    labels = [label for _, label in cases if isinstance(label, int)]
    rows = written(tmp_path, "processbench")
    text = capsys.readouterr().out
    assert numbers(text)["solutions"] == (len(cases), len(labels), len(cases) - len(labels))
    assert all(reason in text for _, reason in cases if isinstance(reason, str))
    assert [row["label"] for row in rows] == labels
    assert [row["final_answer_correct"] for row in rows] == [False] * 3 + [True] * 2 + [False] * 2
    first = {"id": "q0/0", "generator": "p", "problem": "Question q0?", "label": 1, "answer": "40",
             "steps": ["Step 1: fine.", "Step 2: also fine.", "Answer: 41"], "solution": "",
             "final_answer_correct": False}  # fmt: skip
    assert rows[0] == first
    stepwise = written(tmp_path, "trl_stepwise")
    assert [row["completions"] for row in stepwise] == [row["steps"] for row in rows]
    assert stepwise[0]["prompt"] == "Question q0?"
    for row, label in zip(stepwise, labels, strict=True):
        assert row["labels"] == (
            [True] * label + [False] * (3 - label) if label >= 0 else [True] * 3
        )


# ---- verdicts ------------------------------------------------------------------------------------


def test_every_valid_verdict_becomes_a_chat_of_its_request_once(tmp_path, capsys):
    cases = [(TEXT, [WRONG, SECOND]), (TEXT + "0", [INVALID | WRONG, WRONG | {"attempt": 2}])]
    records, verdicts = write_log(tmp_path, cases)
    copied = verdicts[0] | {"id": "again/outcome/1"}  # a solution with the same words
    changed = [
        verdicts[1] | {"id": "x", "request_sha": "0" * 64},
        verdict(records[1], **SECOND | {"First_incorrect_step": "", "Step_correction": "",
                                        "Reasoning_up_to_incorrect": ""}) | {"settings": None},
        verdicts[0] | {"id": "y", "trajectory": "gone", "request_sha": "1" * 64},
    ]  # fmt: skip
    write_rows(tmp_path / "verdicts.jsonl", [*verdicts, copied, *changed])
    rows = written(tmp_path, "chats")
    text = capsys.readouterr().out
    assert numbers(text)["verdicts"] == (8, 3, 5)
    for reason in ("1 invalid: reply is not one JSON object", "1 on unknown solutions",
                   "1 on a solution with the same text", "1 without the settings of their request",
                   "1 on another request than this code makes"):  # fmt: skip
        assert reason in text
    assert [row["messages"][1]["content"] for row in rows] == [
        v["raw"] for v in verdicts if v["parsed"]
    ]
    for row, found in zip(rows, [v for v in verdicts if v["parsed"]], strict=True):
        record = next(r for r in records if r["id"] == found["trajectory"])
        parts = judge.request_parts(record)
        body = judge.build_request(found["kind"], found["attempts"], *parts, "m", 64, 7)
        assert row["messages"][:1] == body["messages"] and record["text"] in str(row)
    load_chat(f"{tmp_path}/chats.jsonl", Tokenizer(write_checkpoint(tmp_path / "x")), 4096)


# ---- the stage -----------------------------------------------------------------------------------


def test_the_file_can_be_named_and_equal_inputs_make_equal_bytes(tmp_path):
    write_log(tmp_path, [(TEXT, [WRONG, SECOND])])
    for name in ("a", "b"):
        export(Export(str(tmp_path), format="processbench", file=str(tmp_path / name)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != b""
    assert not (tmp_path / "processbench.jsonl").exists()


def test_what_cannot_be_written_says_why(tmp_path):
    write_log(tmp_path, [(TEXT, [])])
    write_rows(tmp_path / "pairs.jsonl", [pair(0) | {"prompt": ""}])
    for settings, complaint in (
        ({"format": "csv"}, "--format must be one of trl, processbench, trl_stepwise, chats"),
        ({"format": "chats", "tokenizer": "x"}, "--tokenizer is of --format trl, not of chats"),
        ({"format": "processbench"}, "nothing to write as processbench: see the reasons above"),
        ({}, r"pairs.jsonl:1: prompt: is empty"),
        ({"pairs": "none.jsonl"}, "none.jsonl: no such file"),
    ):
        with pytest.raises(UserError, match=complaint):
            export(Export(str(tmp_path), **settings))
    assert Counter(f.name for f in tmp_path.iterdir()).total() == 3  # nothing was written
