"""Bad inputs end with one line or are counted: some of every class; bad_inputs.py runs them all."""

from collections import Counter

import bad_inputs
from bad_inputs import ALL, CASES, OPEN, adds_up, full_name, quick_cases, verdict


def test_there_are_more_than_a_hundred_each_with_a_name_of_its_own():
    names = Counter(map(full_name, ALL))
    assert len(CASES) > 100 and max(names.values()) == 1
    assert {*OPEN} <= {*names}
    assert {case.kind for case in quick_cases()} == {case.kind for case in CASES}


def test_some_of_every_class_end_as_they_should(tmp_path):
    records = bad_inputs.run_all(tmp_path, "--quick")
    wrong = [(r["class"], r["case"], r["why"], r["line"]) for r in records if not r["ok"]]
    assert not wrong and len(records) == len(quick_cases())
    assert {r["exit"] for r in records} == {0, 1} and any(r["new_interpreter"] for r in records)


def test_what_a_case_is_held_to():
    refused, counted = (next(c for c in CASES if c.exit == code) for code in (1, 0))
    refused, counted = refused._replace(line="f:2: "), counted._replace(line="12 rows")
    line = "error: f:2: text: missing\n"
    assert verdict(refused, 1, "", line, set()) == (line.strip(), "")
    assert verdict(refused, 1, "", "notice: a\n" + line, set())[1] == ""
    for code, err, fresh in [
        (0, line, set()),
        (-9, line, set()),
        (1, "", set()),
        (1, line * 2, set()),
        (1, "warning\n" + line, set()),
        (1, "error: g:2: text: missing\n", set()),
        (1, "Traceback (most recent call last):\n" + line, set()),
        (1, line, {"out/model.safetensors"}),
    ]:
        assert verdict(refused, code, "", err, fresh)[1]
    assert verdict(counted, 0, "12 rows = 11 used + 1 skipped\n", "", set())[1] == ""
    for code, out in [(1, "12 rows\n"), (0, "11 rows\n"), (0, "12 rows = 10 used + 1 skipped\n")]:
        assert verdict(counted, code, out, "", set())[1]
    assert adds_up("20 solutions = 4 correct + 15 wrong + 1 skipped [1 empty]")
    assert not adds_up("20 solutions = 4 correct + 14 wrong + 1 skipped [1 empty]")
