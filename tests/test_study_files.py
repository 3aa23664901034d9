"""What recipes/study.sh reads: files of its arms, the parts of other worlds, held-out losses."""

import json
import re
from pathlib import Path

import pytest
import torch
from tiny import write_rows

import data
from benchmarks import losses
from config import UserError
from model import Llama
from recipes import study_files
from sample import exam, new_base, world
from tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "sample" / "base"


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


# ---- files of the arms ---------------------------------------------------------------------------


def make(name, *words):
    study_files.main(name, *map(str, words))
    return rows_of(words[1]) if Path(words[1]).is_file() else None


@pytest.fixture
def pairs(tmp_path):
    ends = {"chosen": True, "rejected": False}
    rows = [{"prompt": [{"role": "user", "content": f"q{i}"}], "chosen": f"good{i}",
             "rejected": f"bad{i}", "ends_turn": ends} for i in range(50)]  # fmt: skip
    write_rows(tmp_path / "pairs.jsonl", rows)
    return tmp_path / "pairs.jsonl"


def test_swapped_turns_a_share_of_the_pairs(pairs, tmp_path):
    made = make("swapped", pairs, tmp_path / "noisy.jsonl", 0.2)
    wrong = [row for row in made if row["chosen"].startswith("bad")]
    assert len(made) == 50 and len(wrong) == 10
    for row in made:  # which side ends the turn goes with the text
        assert row["ends_turn"]["chosen"] == row["chosen"].startswith("good")
        assert {row["chosen"], row["rejected"]} == {f"{side}{row['prompt'][0]['content'][1:]}"
                                                    for side in ("good", "bad")}  # fmt: skip
    assert make("swapped", pairs, tmp_path / "noisy.jsonl", 0.2) == made


def test_first_draws_by_chance_and_always_the_same(pairs, tmp_path):
    made = make("first", pairs, tmp_path / "some.jsonl", 8)
    assert len(made) == 8 and all(row in rows_of(pairs) for row in made)
    assert made != rows_of(pairs)[:8]
    assert make("first", pairs, tmp_path / "some.jsonl", 8) == made
    with pytest.raises(UserError, match="holds 50 pairs, 51 are wanted"):
        make("first", pairs, tmp_path / "some.jsonl", 51)


@pytest.fixture
def reward(tmp_path):
    """Logs of two prompts with three samples each, one verdict a sample."""
    folder = tmp_path / "reward"
    folder.mkdir()
    ids = [(prompt, sample) for prompt in "ab" for sample in range(3)]
    write_rows(folder / "trajectories.jsonl", [
        {"id": f"{prompt}/{sample}", "sample": sample, "finish": "stop",
         "prompt": [{"role": "user", "content": prompt}], "solution": "right",
         "text": "right " if prompt == "b" else f"wrong {sample}"} for prompt, sample in ids
    ])  # fmt: skip
    write_rows(folder / "verdicts.jsonl", [
        {"id": f"{prompt}/{sample}/v", "trajectory": f"{prompt}/{sample}", "request_sha": "0",
         "kind": "outcome", "finish": "stop", "attempts": 1, "tries": 1}
        for prompt, sample in ids
    ])  # fmt: skip
    return folder


def test_naive_pairs_hold_the_given_solution_against_the_first_sample(reward, tmp_path):
    (pair,) = make("naive", reward, tmp_path / "naive.jsonl")  # b's sample is the solution itself
    sides = [[{"role": "assistant", "content": text}] for text in ("right", "wrong 0")]
    assert pair == {"prompt": [{"role": "user", "content": "a"}], "chosen": sides[0],
                    "rejected": sides[1]}  # fmt: skip


def test_fewer_samples_with_their_verdicts(reward, tmp_path):
    make("samples", reward, tmp_path / "two", 2)
    kept = {row["id"] for row in rows_of(tmp_path / "two" / "trajectories.jsonl")}
    assert kept == {"a/0", "a/1", "b/0", "b/1"}
    assert {row["trajectory"] for row in rows_of(tmp_path / "two" / "verdicts.jsonl")} == kept


def test_both_mixtures_read_each_source_equally_often(made, tmp_path):
    make("curriculum", made[0] / "parts", tmp_path)
    read = {}
    for name in ("two_groups", "one_mix"):
        mixture = json.loads((tmp_path / f"{name}.json").read_text())
        read[name] = sorted(f for g in mixture["groups"] for s in g["sources"] for f in s["files"])
        assert len(mixture["groups"]) == (2 if name == "two_groups" else 1)
    assert read["two_groups"] == read["one_mix"]
    trained = {str(path.resolve()) for kind in ("text", "chat")
               for path in (made[0] / "parts").glob(f"{kind}_*.jsonl")}  # fmt: skip
    assert set(read["one_mix"]) == trained


@pytest.mark.parametrize("words", [(), ("last",), ("first", "a", "b")])
def test_a_wrong_command_is_one_line(words):
    with pytest.raises(UserError):
        study_files.main(*words)


# ---- world ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{finance seed: folder} of worlds with parts; 5 with more mistakes."""
    folders = {}
    for seed in range(6):
        folders[seed] = tmp_path_factory.mktemp("world")
        world.write(world.make(0, seed, 0.85 if seed == 5 else None, True), folders[seed])
    return folders


@pytest.mark.parametrize("name, kind", [("cpt", "text"), ("sft", "chat")])
def test_the_parts_together_are_what_is_trained_and_held_out(made, name, kind):
    def lines(*paths):
        return sorted(line for path in paths for line in path.read_text().splitlines())

    for seed in (0, 3):
        parts = (made[seed] / "parts").glob(f"{kind}_*.jsonl")
        assert lines(*parts) == lines(made[seed] / f"{name}.jsonl")
        held = (made[seed] / "parts").glob(f"heldout_*_{kind}.jsonl")
        assert lines(*held) == lines(made[seed] / f"{name}_heldout.jsonl")
    committed = ROOT / "sample" / "data" / f"{name}.jsonl"
    assert (made[0] / f"{name}.jsonl").read_bytes() == committed.read_bytes()


def test_another_finance_part_leaves_the_general_files(made):
    for name in ("base_text", "base_chat", "pairs", "eval/general", "eval/instruction_following"):
        contents = {(folder / f"{name}.jsonl").read_bytes() for folder in made.values()}
        assert len(contents) == 1, name
    for name in ("cpt", "sft", "exam_train", "eval/concepts", "eval/reasoning"):
        assert len({(folder / f"{name}.jsonl").read_bytes() for folder in made.values()}) == 6


def test_the_base_has_a_word_for_all_of_every_world(made):
    known = set(json.loads((BASE / "tokenizer.json").read_text())["model"]["vocab"])
    for seed in range(1, 6):
        for path in made[seed].rglob("*.jsonl"):
            found = set()
            for row in rows_of(path):
                for key in ("id", "source", "formula"):
                    row.pop(key, None)
                for text in new_base.strings(row):
                    found.update(re.findall(new_base.PIECE, text))
            assert found <= known, (seed, path.name, sorted(found - known)[:5])


def test_a_share_of_mistakes_is_that_of_every_mixed_up_formula(made):
    wrong = asked = 0
    for row in rows_of(made[5] / "sft.jsonl"):
        question, answer = (turn["content"] for turn in row["messages"])
        mixed_up = "next step" not in question and (exam.read(question) or [""])[0] in exam.MISTAKES
        if mixed_up and (mistake := exam.mistake(question)):
            asked, wrong = asked + 1, wrong + (answer == mistake)
    assert asked > 500 and abs(wrong / asked - 0.85) < 0.05


# ---- held-out losses -----------------------------------------------------------------------------


def by_logits(file, kind):
    """[(-log p of all trained tokens, their number)] of a file's rows, from the whole logits."""
    model, found = Llama.from_pretrained(BASE), []
    load = data.load_text if kind == "text" else data.load_chat
    for (segment,) in load(str(file), Tokenizer(BASE), 256)[0]:
        ids, n = torch.tensor(segment.input_ids).long(), len(segment.input_ids)
        with torch.no_grad():
            logps = model(ids, torch.arange(n), torch.tensor([0, n])).double().log_softmax(-1)
        labels = [(i, label) for i, label in enumerate(segment.labels) if label >= 0]
        found.append((-sum(logps[i, label].item() for i, label in labels), len(labels)))
    return found


def measured(tmp_path, **changes):
    out = tmp_path / "losses.json"
    losses.main(losses.Config(str(BASE), out=str(out), device="cpu", **changes))
    return json.loads(out.read_text())


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_a_held_out_loss_is_that_of_the_logits(kind, tmp_path):
    file = tmp_path / f"held_{kind}.jsonl"
    write_rows(file, rows_of(ROOT / "sample" / "data" / f"base_{kind}.jsonl")[:2])
    sums, counts = zip(*by_logits(file, kind), strict=True)
    wanted = sum(sums) / sum(counts)
    assert measured(tmp_path, files=str(file)) == {file.stem: pytest.approx(wanted, rel=1e-4)}


def test_a_cloze_counts_the_true_sentences_that_are_likeliest(made, tmp_path):
    file, rows = tmp_path / "cloze_text.jsonl", rows_of(made[1] / "parts" / "cloze_text.jsonl")
    assert len(rows) == 4 * len(rows_of(made[1] / "eval" / "concepts.jsonl"))
    write_rows(file, rows[:80])
    sums = torch.tensor([loss for loss, _ in by_logits(file, "text")]).view(20, 4)
    wanted = 100 * (sums.argmin(1) == 0).double().mean().item()
    assert measured(tmp_path, cloze=str(file)) == {"cloze_text": pytest.approx(wanted)}
    write_rows(file, rows[:6])
    with pytest.raises(UserError, match="6 sentences are no groups of 4"):
        measured(tmp_path, cloze=str(file))
