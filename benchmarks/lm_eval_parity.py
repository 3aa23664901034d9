"""evaluate.py against EleutherAI's lm-evaluation-harness: the same numbers in less time.

    pip install -r benchmarks/requirements-lm-eval.txt       # in an environment of its own
    python benchmarks/lm_eval_parity.py --init_from SMOLLM2 --data DATA --source PUBLIC

Ours are the rows of DATA/TASK.jsonl, made by `evaluate.py prepare`, that --limit picks. lm-eval has
the same items, read again from the public files in PUBLIC/TASK and written in the hub's columns.
The tasks it ships are included whole, prompts, choices and rules, with another path of the data.

Zero-shot without chat template, timed; a few items with it; MMLU with examples from its dev half.
Shares of items: other choice by sum, by sum per character, other text. "difference" of log-probs is
to lm-eval with softmax_dtype=float64: by default it adds up the probabilities of all words in fp32,
which alone puts it up to 1e-3 off an fp64 model ("default"). Choices are compared with both.

Both run as programs, in fp32 on as many threads, ours first and last; lm-eval with each of
`batch_sizes`, then with the fastest again: a time is the mean of two. "scoring" is without the
start: of lm-eval what its progress bar says, of ours what lies beyond a run of one item a task.

Exit code 1 if a difference is beyond its limit. The result goes to benchmarks/results/lm-eval.json.
"""

import bz2
import csv
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import parallel
from benchmarks.measure import RESULTS, about
from config import parse
from jsonl import read_jsonl, write_jsonl

EVALUATE = RESULTS.parent.parent / "evaluate.py"
LIMITS = {"difference": 1e-3, "other_choice": 0.005, "other_per_char": 0.005, "seconds": 0.5}


@dataclass
class Config:
    init_from: str = ""  # folder of the checkpoint
    data: str = "out/data"  # folder of our TASK.jsonl
    source: str = ""  # folder of the public sets
    tasks: str = "arc,openbookqa,piqa,hellaswag,mmlu"
    limit: int = 120  # items of a task, zero-shot without template
    chat_limit: int = 24  # items of a task with the template; 0 = none
    shot_limit: int = 24  # MMLU items with examples; 0 = none
    fewshot: int = 5  # examples before each of these
    batch_sizes: str = "1,4,16"  # lm-eval has the best of them
    threads: int = 2  # of both


# ---- the public files, as documents of the hub ---------------------------------------------------
# Each reader gives (task of lm-eval, what is asked, choices, document)


def rows_of(path):
    return [row for _, row in read_jsonl(path, {})]


def adapters(path):
    """(question, choices, columns of the hub) of LLM-Adapters' json, where all is one text."""
    form = r".*?to the question: (.*)\n\nAnswer1: (.*)\n\nAnswer format: \S+"
    for row in json.loads(path.read_text(encoding="utf-8")):
        question, options = re.fullmatch(form, row["instruction"], re.S).groups()
        choices, gold = re.split(r" Answer\d: ", options), int(row["answer"][-1]) - 1
        labelled = {"text": choices, "label": list("ABCDE"[: len(choices)])}
        yield question, choices, {"choices": labelled, "answerKey": "ABCDE"[gold]}


def arc(folder):
    for level in ("Easy", "Challenge"):
        for question, choices, doc in adapters(folder / f"ARC-{level}_test.json"):
            doc["question"], asked = question, f"Question: {question} Answer:"
            yield f"arc_{level.lower()}", asked, choices, doc


def openbookqa(folder):
    for stem, choices, columns in adapters(folder / "openbookqa_test.json"):
        yield "openbookqa", stem, choices, columns | {"question_stem": stem}


def piqa(folder):
    labels = (folder / "valid-labels.lst").read_text().split()
    for row, label in zip(rows_of(folder / "valid.jsonl"), labels, strict=True):
        row["label"], choices = int(label), [row["sol1"], row["sol2"]]
        yield "piqa", f"Question: {row['goal']} Answer:", choices, row


def hellaswag(folder):
    """Six lines an item: "activity: context", label, endings. Where the context's second part
    begins is not told: at a sentence that begins small, since lm-eval capitalises it."""
    lines = bz2.open(folder / "hellaswag_val_full.txt.bz2", "rt", encoding="utf-8").readlines()
    for text, label, *endings in zip(*[map(str.rstrip, lines)] * 6, strict=True):
        activity, context = text.split(": ", 1)
        first, second = re.fullmatch(r"(.*?)((?<=[.!?] )[a-z][^.!?]*)?", context).groups("")
        doc = {"activity_label": activity, "ctx_a": first.strip(), "ctx_b": second}
        plain = [re.sub(r"\[.*?\]", "", ending) for ending in endings]
        yield "hellaswag", activity, plain, doc | {"endings": endings, "label": label}


def mmlu_docs(path):
    subject = path.stem.rpartition("_")[0]
    with open(path, encoding="utf-8", newline="") as f:
        for question, *choices, letter in csv.reader(f):
            yield {"question": question, "subject": subject, "choices": choices,
                   "answer": "ABCD".index(letter), "row": ""}  # fmt: skip


def mmlu(folder):
    for path in sorted(folder.glob("test/*_test.csv")):
        for doc in mmlu_docs(path):
            options = zip("ABCD", doc["choices"], strict=True)
            asked = [doc["question"], *(f"{letter}. {text}" for letter, text in options), "Answer:"]
            yield f"mmlu_{doc['subject']}", " ".join(asked), list("ABCD"), doc


READERS = {f.__name__: f for f in (arc, openbookqa, piqa, hellaswag, mmlu)}


def key(subject, asked, choices):
    """An item by its words, however they are spaced."""
    return subject.replace("_", " "), " ".join([*asked.split(), *" ".join(choices).split()])


def documents(cfg, task, samples):
    """{lm-eval's task: documents} of the items in our log, each with our id as `row`."""
    found, public = {}, {}
    for name, asked, choices, doc in READERS[task](Path(cfg.source) / task):
        public[key(doc.get("subject", ""), asked, choices)] = name, doc
    for row in (sample["doc"] for sample in samples):
        asked = row["query"].split(": ")[0] if task == "hellaswag" else row["query"]
        at = key(row.get("subject", ""), asked, row["choices"])
        if at not in public:
            sys.exit(f"error: {task}: {row['id']} is not in {cfg.source}/{task}")
        name, doc = public[at]
        found.setdefault(name, []).append(doc | {"row": row["id"]})
    return found


def write_task(cfg, folder, name, docs):
    """Documents, and a task that includes lm-eval's own with another path of the data."""
    import lm_eval.tasks

    group, _, subject = name.partition("_")
    shipped, files = Path(lm_eval.tasks.__file__).parent / group, {}
    halves = dict.fromkeys(("train", "validation", "test"), docs)
    if group == "mmlu":
        shipped /= "default"
        examples = mmlu_docs(Path(cfg.source) / f"mmlu/dev/{subject}_dev.csv")
        halves = {"test": docs, "dev": list(examples)}
    for half, rows in halves.items():
        files[half] = str(folder / f"{name}-{half}.jsonl")
        write_jsonl(files[half], rows)
    task = {"include": str(shipped / f"{name}.yaml"), "task": f"same_{name}", "tag": None,
            "dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": files}}  # fmt: skip
    (folder / f"same_{name}.yaml").write_text(json.dumps(task))  # json is yaml
    return f"same_{name}"


# ---- both programs -------------------------------------------------------------------------------


def timed(cfg, *words):
    """Run a python program -> ({"seconds", "cpu_seconds"}, what it wrote to stderr)."""
    env = os.environ | {"OMP_NUM_THREADS": str(cfg.threads), "HF_HUB_OFFLINE": "1"}
    env["THP_MEM_ALLOC_ENABLE"] = "1"  # parallel.init asks for huge pages: lm-eval has them, too
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    words = [sys.executable, *map(str, words)]
    done = subprocess.run(words, env=env, text=True, capture_output=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"error: {words[:3]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": used}, done.stderr


def ours(cfg, out, tasks, limit, *flags):
    """-> (times, {task: samples})"""
    times, _ = timed(
        cfg, EVALUATE, "--init_from", cfg.init_from, "--tasks", ",".join(tasks), "--data",
        cfg.data, "--mode", "loglikelihood", "--limit", limit, "--out_dir", out, "--device", "cpu",
        "--dtype", "float32", *flags,
    )  # fmt: skip
    return times, {task: rows_of(f"{out}/samples_{task}.jsonl") for task in tasks}


def theirs(cfg, folder, names, batch_size, *flags, more=""):
    """-> (times, {our id: sample})"""
    out = tempfile.mkdtemp(dir=folder)
    times, log = timed(
        cfg, "-m", "lm_eval", "run", "--model", "hf", "--model_args",
        f"pretrained={cfg.init_from},dtype=float32{more}", "--tasks", ",".join(names),
        "--include_path", folder, "--batch_size", batch_size, "--device", "cpu",
        "--output_path", out, "--log_samples", *flags,
    )  # fmt: skip
    minutes, seconds = re.findall(r"hood requests: 100%[^\r\n]*\[(\d+):(\d+)<", log)[-1]
    times["scoring"] = 60 * int(minutes) + int(seconds)
    samples = [row for path in Path(out).rglob("samples_*.jsonl") for row in rows_of(path)]
    return times, {sample["doc"]["row"]: sample for sample in samples}


# ---- the comparison ------------------------------------------------------------------------------


def pick(logprobs, texts):
    scores = [a / max(1, len(text)) for a, text in zip(logprobs, texts, strict=True)]
    return scores.index(max(scores))


def item(our, their, chat):
    """How the samples of one item compare, with one run of lm-eval."""
    a, b = ([float(pair[0]) for pair in one["filtered_resps"]] for one in (our, their))
    pairs = [(one["arg_0"], one["arg_1"]) for one in their["arguments"].values()]
    choices, texts = our["doc"]["choices"], [text if chat else text[1:] for _, text in pairs]
    none, norm = [""] * len(a), our["acc_norm"] if "acc_norm" in their else None
    return {
        "difference": max(abs(x - y) for x, y in zip(a, b, strict=True)),
        "other_choice": pick(a, none) != pick(b, none) or our["acc"] != their["acc"],
        "other_per_char": pick(a, choices) != pick(b, texts) or norm != their.get("acc_norm"),
        "other_text": ["".join(pair) for pair in our["arguments"]] != list(map("".join, pairs)),
    }


def compare(samples, runs, chat):
    """{task: figures}, and of all; runs: lm-eval's samples with the softmax in fp64, by default."""
    result = {}
    for task, mine in (samples | {"all": sum(samples.values(), [])}).items():
        items = [[item(one, run[one["doc"]["id"]], chat) for run in runs] for one in mine]
        exact, default = (max(one["difference"] for one in run) for run in zip(*items, strict=True))
        result[task] = {"items": len(items), "difference": exact, "default": default}
        for name in ("other_choice", "other_per_char", "other_text"):
            result[task][name] = sum(one[name] or two[name] for one, two in items) / len(items)
        result[task]["acc"] = sum(sample["acc"] for sample in mine) / len(items)
    show(result)
    return result


def show(rows):
    """{name: figures} as a table."""
    heads = list(rows[next(iter(rows))])
    print(f"{'':<12}" + "".join(f"{head:>15}" for head in heads))
    for name, row in rows.items():
        print(f"{name:<12}" + "".join(f"{row[k]:>15.3g}" for k in heads), flush=True)


def speed(cfg, folder, tasks, names, our, sweep, flags):
    """Times of both and their ratio; of our, and of sweep {batch size: ..}, some are there."""
    start, _ = ours(cfg, folder / "start", tasks, 1, *flags)
    for size in cfg.batch_sizes.split(","):
        if size not in sweep:
            sweep[size], _ = theirs(cfg, folder, names, size)
    best = min(sweep, key=lambda size: sweep[size]["seconds"])
    again, _ = theirs(cfg, folder, names, best)
    last, _ = ours(cfg, folder / "last", tasks, cfg.limit, *flags)
    for one in (our, last):
        one["scoring"] = one["seconds"] - start["seconds"]
    both = {"ours": (our, last), f"batch {best}": (sweep[best], again)}
    result = {side: {k: (one[k] + two[k]) / 2 for k in one} for side, (one, two) in both.items()}
    mine, other = result.values()
    result["ratio"] = {k: mine[k] / other[k] for k in mine}
    show(result)
    return result | {"visits": {"ours": [our, last, start], "lm_eval": sweep, "again": again}}


def main(cfg):
    tasks = cfg.tasks.split(",")
    result, bad = {"lm_eval": version("lm_eval"), "fewshot": cfg.fewshot}, []
    plain, shots = "--chat_template=false", cfg.fewshot
    parts = {  # name: our tasks, items of each, flags of ours, flags of lm-eval
        "plain": (tasks, cfg.limit, [plain], []),
        "chat": (tasks, cfg.chat_limit, ["--chat_template=true"], ["--apply_chat_template"]),
        "shots": (["mmlu"], cfg.shot_limit, [plain, "--fewshot", shots], ["--num_fewshot", shots]),
    }
    for name, (chosen, limit, flags, their_flags) in parts.items():
        if not limit or not {*chosen} <= {*tasks}:
            continue
        size = cfg.batch_sizes.split(",")[0]
        with tempfile.TemporaryDirectory() as scratch:
            os.environ["HF_HOME"], folder = scratch, Path(scratch)  # lm-eval's copies of the data
            first, samples = ours(cfg, folder / "ours", chosen, limit, *flags)
            docs = {}
            for task, mine in samples.items():
                docs |= documents(cfg, task, mine)
            names = [write_task(cfg, folder, *pair) for pair in docs.items()]
            _, exact = theirs(cfg, folder, names, size, *their_flags, more=",softmax_dtype=float64")
            times, default = theirs(cfg, folder, names, size, *their_flags)
            print(f"\n{name}: {len(names)} tasks of lm-eval")
            result[name] = compare(samples, (exact, default), name == "chat")
            found = {**result[name]["all"]}
            if name == "plain":
                result["speed"] = speed(cfg, folder, tasks, names, first, {size: times}, flags)
                found |= result["speed"]["ratio"]
        bad += [f"{name}: {k} {found[k]:.2g}" for k in LIMITS if not found.get(k, 0) <= LIMITS[k]]
        whole = result | about() | {"threads": cfg.threads}
        (RESULTS / "lm-eval.json").write_text(json.dumps(whole, indent=1) + "\n")
    sys.exit("error: " + "; ".join(bad) if bad else 0)


if __name__ == "__main__":
    with parallel.clean_exit():
        main(parse(Config))
