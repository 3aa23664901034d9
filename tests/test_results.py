"""results.py: checkpoints are compared on the same rows, asked in the same way."""

import re

import pytest
from evaluating import label_rows, run
from tiny import write_checkpoint, write_rows

import results
from config import UserError

# Comparing


def other_checkpoint(folder, path):
    template = "chatml" if "chatml" in str(folder) else "llama3"
    return write_checkpoint(path, template, seed=5)


def test_compare_pairs_the_same_rows(folder, rows_dir, tmp_path, capsys):
    a = run(folder, rows_dir, tmp_path / "a")
    b = run(other_checkpoint(folder, tmp_path / "ck"), rows_dir, tmp_path / "b")
    capsys.readouterr()
    results.compare(tmp_path / "a", tmp_path / "b")
    shown = capsys.readouterr().out
    for name in a:
        found, scores, draws = results.difference(tmp_path / "a", tmp_path / "b", name)
        assert scores == pytest.approx([a[name]["score"], b[name]["score"]], abs=1e-3)
        assert found["difference"] == pytest.approx(scores[1] - scores[0], abs=1e-3)
        assert found["low"] <= found["difference"] <= found["high"] and len(draws) == 1000
        assert re.search(rf"^{name} .*{found['difference']:+.1f}".replace("+", r"\+"), shown, re.M)
    assert "mean of the 3 tasks" in shown


def test_a_result_compared_with_itself_differs_by_nothing(folder, rows_dir, tmp_path):
    run(folder, rows_dir, tmp_path, tasks="arc")
    found = results.difference(tmp_path, tmp_path, "arc")[0]
    assert found == {"difference": 0, "low": 0, "high": 0, "n": 30}


@pytest.mark.parametrize(
    "change",
    [
        {"chat_template": False},
        {"system": "be brief"},
        {"mode": "loglikelihood"},
        {"max_new_tokens": 4},  # the prompts are the same, the room for the reply is not
    ],
)
def test_compare_refuses_rows_asked_in_another_way(folder, rows_dir, tmp_path, change):
    run(folder, rows_dir, tmp_path / "a", tasks="fpb")
    run(folder, rows_dir, tmp_path / "b", tasks="fpb", **change)
    with pytest.raises(UserError, match="cannot be compared"):
        results.compare(tmp_path / "a", tmp_path / "b")


def test_compare_refuses_other_questions_under_the_same_id(folder, rows_dir, tmp_path):
    run(folder, rows_dir, tmp_path / "a", tasks="fpb")
    rows = label_rows(24)
    rows[3]["query"] += " now"
    write_rows(tmp_path / "fpb.jsonl", rows)
    run(folder, tmp_path, tmp_path / "b", tasks="fpb")
    with pytest.raises(UserError, match="prompt_hash of row l3"):
        results.compare(tmp_path / "a", tmp_path / "b")
