"""The files that only the arms of recipes/study.sh need, made of those that reward.py wrote.

    python recipes/study_files.py naive REWARD OUT          chosen: the given solution
    python recipes/study_files.py swapped PAIRS OUT SHARE   a judge that errs on a share of them
    python recipes/study_files.py first PAIRS OUT COUNT     so many pairs, drawn by chance
    python recipes/study_files.py samples REWARD OUT COUNT  logs of so many samples a prompt
    python recipes/study_files.py curriculum PARTS OUT      mixtures: two groups, and one of all

By chance means always the same chance: the seed is the name of what is written.
"""

import json
import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import parallel
from config import UserError
from jsonl import read_jsonl, write_jsonl, write_text
from logs import TRAJECTORY, VERDICT

PAIR = {"prompt": list, "chosen": (str, list), "rejected": (str, list), "ends_turn?": dict}
# Group 1: what the web and the ordinary data sets tell; group 2: books and their exercises, too
GROUP_1 = ["text_companies", "text_news", "text_people", "text_sums"]
GROUP_1 += ["chat_questions", "chat_news", "chat_general"]
GROUP_2 = ["text_definitions", "chat_exercises"]


def rows_of(path, fields):
    return [row for _, row in read_jsonl(path, fields)]


def naive(reward, out):
    """The pairs of arXiv:2501.04961's ablation: the reference solution of an exercise against the
    first sample, right or wrong."""
    pairs = []
    for row in rows_of(Path(reward) / "trajectories.jsonl", TRAJECTORY):
        if row["sample"] == 0 and row["text"] and row["text"].strip() != row["solution"].strip():
            sides = {"chosen": row["solution"], "rejected": row["text"]}
            turns = {k: [{"role": "assistant", "content": text}] for k, text in sides.items()}
            pairs.append({"prompt": row["prompt"]} | turns)
    write_jsonl(out, pairs)


def swapped(pairs, out, share):
    """A share of the verdicts is wrong: the worse side is chosen."""
    rng, rows = Random(Path(out).name), rows_of(pairs, PAIR)
    wrong = set(rng.sample(range(len(rows)), round(float(share) * len(rows))))
    for i in wrong:
        for sides in filter(None, (rows[i], rows[i].get("ends_turn"))):
            sides["chosen"], sides["rejected"] = sides["rejected"], sides["chosen"]
    write_jsonl(out, rows)


def first(pairs, out, count):
    """A random part of the pairs."""
    rows = rows_of(pairs, PAIR)
    if len(rows) < int(count):
        raise UserError(f"{pairs}: holds {len(rows)} pairs, {count} are wanted")
    Random(Path(out).name).shuffle(rows)
    write_jsonl(out, rows[: int(count)])


def samples(reward, out, count):
    """reward.py's logs as they would be, had it sampled less."""
    Path(out).mkdir(parents=True, exist_ok=True)
    rows = rows_of(Path(reward) / "trajectories.jsonl", TRAJECTORY)
    rows = [row for row in rows if row["sample"] < int(count)]
    kept = {row["id"] for row in rows}
    verdicts = rows_of(Path(reward) / "verdicts.jsonl", VERDICT)
    write_jsonl(Path(out) / "verdicts.jsonl", [v for v in verdicts if v["trajectory"] in kept])
    write_jsonl(Path(out) / "trajectories.jsonl", rows)


def curriculum(parts, out):
    """OUT/two_groups.json and one_mix.json: each source is read equally often in both."""

    def source(name, again=""):
        file = f"{Path(parts).resolve()}/{name}.jsonl"
        return {"name": name + again, "kind": name.partition("_")[0], "files": [file]}

    everything = [source(name) for name in GROUP_1 + GROUP_2]
    before = [source(name) for name in GROUP_1]
    again = [source(name, " again") for name in GROUP_1]
    groups = {"two_groups": [before, everything], "one_mix": [everything + again]}
    for name, lists in groups.items():
        mixture = {"groups": [{"sources": sources} for sources in lists]}
        write_text(Path(out) / f"{name}.json", json.dumps(mixture, indent=1) + "\n")


COMMANDS = {
    "naive": (naive, ("REWARD", "OUT")),
    "swapped": (swapped, ("PAIRS", "OUT", "SHARE")),
    "first": (first, ("PAIRS", "OUT", "COUNT")),
    "samples": (samples, ("REWARD", "OUT", "COUNT")),
    "curriculum": (curriculum, ("PARTS", "OUT")),
}


def main(name="", *words):
    if name not in COMMANDS:
        raise UserError(f"one of {', '.join(COMMANDS)} is wanted; see the head of this file")
    function, wanted = COMMANDS[name]
    if len(words) != len(wanted):
        raise UserError(f"{name}: {' '.join(wanted)} are wanted, and {len(words)} words are there")
    function(*words)


if __name__ == "__main__":
    with parallel.clean_exit():
        main(*sys.argv[1:])
