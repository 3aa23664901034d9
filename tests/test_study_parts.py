"""What is held out as general is general; a save's ranks meet; ranks must mean the same run."""

import resume
import states
from sample import facts, world


def test_what_is_held_out_as_general_names_no_company():
    files = world.make(0, parts=True)
    firms = list(facts.companies(0))
    text = [row["text"] for row in files["parts/heldout_general_text.jsonl"]]
    assert text and not any(firm in row for firm in firms for row in text)
    finance = [row["text"] for row in files["parts/heldout_finance_text.jsonl"]]
    assert any(firm in row for firm in firms for row in finance)


def test_ranks_meet_between_writing_and_looking_for_each_others_files(tmp_path, monkeypatch):
    order = []
    for name in ("write_part", "await_parts"):
        monkeypatch.setattr(states, name, lambda *args, name=name: order.append(name) or {})
    monkeypatch.setattr(states, "publish", lambda *args: None)
    folder = states.folder_of(tmp_path, 1)
    states.prepare(folder)
    monkeypatch.setattr(states, "sync", lambda *args: None)
    states.write(folder, 1, {}, {}, {}, [], 0, 1, met=lambda: order.append("met"))
    assert order == ["write_part", "met", "await_parts"]


def test_a_run_is_compared_over_the_ranks_before_anything_else(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(resume.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(resume, "check_same", lambda run, what: seen.append(run))
    monkeypatch.setattr(resume, "on_rank0", lambda function, *args: True)
    assert resume.finished(tmp_path, {"lr": 0.1}) and seen == [{"lr": 0.1}]
