"""Real runs of the scripts, broken on purpose:

    python tests/faults/run.py                       all of it, into benchmarks/results/faults.json
    python tests/faults/run.py --only SIGTERM        cases whose name holds this word

kill -9, SIGTERM, ranks that fail or hang, full disks, damaged states, a judge in trouble
(kills.py, services.py), then inputs that no script can use (bad_inputs.py). After each fault the
same command again must end as if nothing had happened, or the run must say in a line what is wrong.
"""

import argparse
import importlib
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import jobs  # noqa: E402
import kills  # noqa: E402
import services  # noqa: E402

RESULT = jobs.ROOT / "benchmarks" / "results" / "faults.json"
ABOUT = (
    "Faults injected into runs of the scripts as processes: what was done, how the run ended, and "
    "how the same command ended after it. Seconds: from the fault to the end of the run. "
    "python tests/faults/run.py"
)


def guarded(name, function):
    """function(), or the record of a case that broke itself."""
    try:
        record = function()
    except Exception as e:  # one case must not take the others with it
        record = {"name": name, "class": "broken", "script": "", "ranks": 0, "injected": "",
                  "where": "", "exit": None, "exit_again": None, "message": "", "seconds": 0.0,
                  "steps_lost": 0, "ok": False, "outcome": "failed", "exit_ranks": []}  # fmt: skip
        record["why"] = f"{type(e).__name__}: {e}"
    print(line_of(record), flush=True)
    return record


def line_of(record):
    mark = "ok    " if record["ok"] else "FAILED"
    codes = f"{record['exit']} then {record['exit_again']}"
    what = f"{record['injected']} at {record['where']}" if record["where"] else record["injected"]
    text = f"{mark} {record['name']:<24} {codes:<14} {record['seconds']:>5.1f} s  {what}"
    return text[:150] + (f"\n       {record['why'][:600]}" if not record["ok"] else "")


def planned(root, only, at_once):
    """{name: function} of all faults that are wanted, once what they are compared with is there."""
    data, everything = jobs.write_data(root / "data"), {}
    services.write_questions(data)
    bench = kills.Bench(root, data)
    wanted = [case for case in kills.cases() if only in case["name"]]
    asked = [(what, ranks) for what, ranks in services.ASKING
             if only in f"SIGTERM {what} {ranks}"]  # fmt: skip
    ways = [way for way in services.WAYS if only in f"judge {way}"]
    stages = dict.fromkeys((case["stage"], case["ranks"]) for case in wanted)
    stopped = dict.fromkeys((c["stage"], c["ranks"]) for c in wanted if c["class"] == "damaged")
    with ThreadPoolExecutor(at_once) as pool:
        whole = {run: pool.submit(kills.undisturbed, bench, *run) for run in stages}
        broken = {run: pool.submit(kills.prepared, bench, *run) for run in stopped}
        answers = {
            what: pool.submit(services.asked_whole, root, data, what)
            for what in dict.fromkeys(what for what, _ in asked)
        }
        good = pool.submit(services.good_day, root) if ways else None
    bench.whole = {run: future.result() for run, future in whole.items()}
    bench.stopped = {run: future.result() for run, future in broken.items()}
    for case in wanted:
        everything[case["name"]] = partial(kills.run_case, bench, case)
    for way in ways:
        everything[f"judge {way}"] = partial(services.judged, root, way, good.result())
    for what, ranks in asked:
        run = root, data, what, ranks, answers[what].result()
        everything[f"SIGTERM {what} {ranks}"] = partial(services.asked, *run)
    return everything


def bad_inputs(folder):
    """Records of bad_inputs.py; none, with a line, as long as it is not there."""
    try:
        module = importlib.import_module("bad_inputs")
    except ModuleNotFoundError as e:
        print(f"bad inputs: not run: {e}")
        return []
    folder.mkdir()
    return [r | {"class": f"bad input: {r['class']}"} for r in module.run_all(folder)]


def clean(record, root):
    """A record without the folder of this run."""
    return {key: value.replace(f"{root}/", "") if isinstance(value, str) else value
            for key, value in record.items()}  # fmt: skip


def summary(faults, inputs):
    records = faults + inputs
    hung = [r for r in records if "hung" in r.get("why", "")]
    return {
        "about": ABOUT, "faults": len(faults), "bad_inputs": len(inputs),
        "silent_wrong_resumes": sum(r.get("silent", False) for r in faults), "hangs": len(hung),
        "lost_pairs": sum(r.get("lost_pairs", 0) for r in faults),
        "judged_twice": sum(r.get("judged_twice", 0) for r in faults),
        "failed": sum(not r["ok"] for r in records), "cases": records,
    }  # fmt: skip


def table(result):
    """A line a class: cases, failed, longest time to the end."""
    classes = [record["class"].partition(":")[0] for record in result["cases"]]
    counts = Counter(classes)
    print(f"\n{'class':<18}{'cases':>6}{'failed':>8}{'longest':>10}{'most steps lost':>17}")
    for name, count in counts.items():
        some = [r for r, kind in zip(result["cases"], classes, strict=True) if kind == name]
        failed = sum(not record["ok"] for record in some)
        longest = max(record.get("seconds", 0) for record in some)
        lost = max(record.get("steps_lost", 0) for record in some)
        print(f"{name:<18}{count:>6}{failed:>8}{longest:>8.1f} s{lost:>17}")
    print(", ".join(f"{key} {value}" for key, value in result.items()
                    if key not in ("about", "cases")))  # fmt: skip


def main(only="", keep=None, at_once=2):
    begin = time.time()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # after the cases that are on
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        root = Path(keep or temporary).resolve()
        root.mkdir(exist_ok=True)
        plan = planned(root, only, at_once)
        with ThreadPoolExecutor(at_once) as pool:
            records = list(pool.map(lambda item: guarded(*item), plan.items()))
        inputs = [] if only else bad_inputs(root / "inputs")
        result = summary([clean(r, root) for r in records], [clean(r, root) for r in inputs])
    table(result)
    print(f"{time.time() - begin:.0f} s")
    if not only:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    return bool(result["failed"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="cases whose name holds this; writes no file")
    parser.add_argument("--at_once", type=int, default=2, help="cases at a time")
    parser.add_argument("--keep", help="new folder for everything that the runs write")
    sys.exit(main(**vars(parser.parse_args())))
