"""A few of the injected faults of each kind; python tests/faults/run.py does them all."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import jobs  # noqa: E402
import kills  # noqa: E402
import services  # noqa: E402

# (class, stage, ranks, beginning of what is done or of where)
QUICK = {
    "kill -9 while a state is written": ("kill", "sft", 1, r"^before rename out/resume"),
    "kill -9 inside the optimizer, two ranks": ("kill", "sft", 2, kills.INSIDE),
    "SIGTERM while training": ("SIGTERM", "sft", 1, "("),
    "one of two ranks raises": ("rank raises", "sft", 2, "^before backward"),
    "the disk is full at a save": ("disk full", "sft", 1, "^"),
    "a state is cut short": ("damaged", "sft", 1, "truncated"),
    "a bit of a state is flipped": ("damaged", "sft", 1, "bit flipped"),
}


def quick(wanted):
    """The case of kills.TRAIN that QUICK speaks of."""
    kind, stage, ranks, begin = wanted
    for case in kills.cases():
        if (case["class"], case["stage"], case["ranks"]) == (kind, stage, ranks):
            if str(case["at"]).startswith(begin) or case["do"] == begin:
                return case
    raise LookupError(wanted)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """{name: record} of all these cases, two at a time."""
    root = tmp_path_factory.mktemp("faults")
    bench = kills.Bench(root, jobs.write_data(root / "data"))
    with ThreadPoolExecutor(2) as pool:
        good = pool.submit(services.good_day, root)
        whole = {n: pool.submit(kills.undisturbed, bench, "sft", n) for n in (2, 1)}
        stopped = pool.submit(kills.prepared, bench, "sft", 1)
        bench.whole = {("sft", n): future.result() for n, future in whole.items()}
        bench.stopped = {("sft", 1): stopped.result()}
        cases = {name: partial(kills.run_case, bench, quick(w)) for name, w in QUICK.items()}
        cases["kill -9 of what asks a judge"] = partial(
            services.judged, root, "kill -9", good.result()
        )
        found = {name: pool.submit(case) for name, case in cases.items()}
    return {name: future.result() for name, future in found.items()}


@pytest.mark.parametrize("name", [*QUICK, "kill -9 of what asks a judge"])
def test_after_a_fault_the_same_command_ends_as_if_nothing_had_happened(name, records):
    record = records[name]
    assert record["ok"], record
    assert record["exit"] != 0 and record["exit_again"] == 0


def test_a_moment_that_never_comes_is_no_passed_case(records):
    assert "did not strike" in kills.problem_of({"class": "kill", "ranks": 1}, jobs.Run(code=0))
