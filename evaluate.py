"""FinEval: ask a checkpoint every question of every task, score the answers, say how sure that is.

    rows -> prompts -> generated replies, or log-probs of the choices -> samples_TASK.jsonl
         -> scores with 95% bootstrap intervals -> results.json and a table, all in points (0-100)

    python evaluate.py --init_from out/demo/aligned --out_dir out/demo/eval_aligned
    python evaluate.py --init_from out/smollm2 --tasks fpb,arc --data out/data --mode loglikelihood
    python evaluate.py --compare out/demo/eval_cpt_it out/demo/eval_aligned

`--compare A B` pairs the same rows of two results and refuses rows that were asked differently.
Under torchrun every rank holds the model and takes its share of the rows. Tasks share nothing:
their order, the batch size and the number of ranks leave the scores as they are.
"""

import difflib
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import metrics
import packing
import parallel
import scorers
from config import UserError, check_range, parse
from generate import generate
from jsonl import sha, write_jsonl, write_text
from model import Llama
from results import compare, points
from tasks import TASKS, baseline, judge_choices, judge_reply, load_rows, measures
from tokenizer import Tokenizer

MISSING_WARN = 10.0  # points of replies without an answer above which a score says little


@dataclass
class Config:
    init_from: str = "sample/base"  # checkpoint directory to evaluate
    tasks: str = "concepts,tasks,reasoning,instruction_following,general"  # see --list
    data: str = "sample/data/eval"  # directory of TASK.jsonl files
    out_dir: str = "out/eval"  # gets results.json and samples_TASK.jsonl
    list: bool = False  # print the tasks and leave
    limit: int = 0  # rows per task, a fixed random sample; 0 = all
    mode: str = ""  # loglikelihood or generate; empty = as each task says
    chat_template: bool = True  # ask as a user turn; without: plain text, as base models are asked
    system: str = ""  # system message instead of the task's own
    max_new_tokens: int = 0  # longest reply; 0 = as each task says
    batch_tokens: int = 4096  # tokens per forward of log-likelihoods
    slots: int = 128  # replies generated together
    dtype: str = "auto"  # auto = bfloat16 on a GPU, float32 on a CPU
    device: str = "auto"  # auto, cpu or cuda


# Prompts -------------------------------------------------------------------------------------


def head(tokenizer):
    """What every sequence begins with: BOS, or nothing where the model was trained without."""
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]


def encode_plain(tokenizer, text):
    return head(tokenizer) + tokenizer.encode(text)


def prompt_text(cfg, task, row):
    """The prompt without a chat template."""
    system = cfg.system or task.system
    return f"{system}\n\n{row['query']}" if system else row["query"]


def encode_prompt(tokenizer, cfg, task, row):
    """Ids of a row's prompt with BOS: a user turn and the assistant's header, or plain text."""
    if not cfg.chat_template:
        return encode_plain(tokenizer, prompt_text(cfg, task, row))
    system, turns = cfg.system or task.system, [{"role": "user", "content": row["query"]}]
    if system:
        turns.insert(0, {"role": "system", "content": system})
    ids, bos = tokenizer.prompt(turns), tokenizer.bos_id
    if bos is not None and (ids[0] != bos or ids.count(bos) != 1):
        raise UserError(f"row {row['id']}: the prompt must hold one BOS, at its head")
    return ids


def encode_choices(tokenizer, cfg, task, row):
    """(context ids, ids of each choice) by the rules of lm-evaluation-harness.

    White space that ends the context is scored with the choice. As plain text a choice follows a
    space, and is what the context's tokens leave of the joint encoding; after a chat header it
    follows at once.
    """
    if cfg.chat_template:
        context, space = encode_prompt(tokenizer, cfg, task, row), []
        while tokenizer.decode(context[-1:], skip_special=False).isspace():
            space.insert(0, context.pop())
        choices = [space + tokenizer.encode(choice) for choice in row["choices"]]
    else:
        text = prompt_text(cfg, task, row)
        bare = text.rstrip()
        context, space = encode_plain(tokenizer, bare), text[len(bare) :] + " "
        joint = [encode_plain(tokenizer, bare + space + choice) for choice in row["choices"]]
        choices = [ids[len(context) :] for ids in joint]
    if not all(choices):  # merged away: "5" after "1" may leave no token of its own
        raise UserError(f"row {row['id']}: choices: one adds no token of its own to the prompt")
    return context, choices


# Log-likelihoods -----------------------------------------------------------------------------


def choice_families(context, choices, limit):
    """Families of one row: the context once for all choices, else a document per choice.

    lm-eval keeps the last `limit` + 1 tokens of context + choice. Where choices of different
    length then leave different contexts, nothing can be shared. UserError: no context is left.
    """
    heads = [(context + c)[-(limit + 1) :][: -len(c)] for c in choices]
    if len(heads[0]) > 1 and all(h == heads[0] for h in heads):
        return [packing.family(heads[0], choices)]
    if not all(heads):
        raise UserError(f"a choice of {max(map(len, choices))} tokens exceeds the model's context "
                        f"of {limit}")  # fmt: skip
    return [
        packing.document(h + c, np.array([False] * len(h) + [True] * len(c)))
        for h, c in zip(heads, choices, strict=True)
    ]


@torch.no_grad()
def score_families(model, families, batch_tokens, device, title):
    """Summed log-probs of each family's scored segments, in order: [[float, ...], ...].

    Longest first and side by side in rows of about batch_tokens: like lengths share a forward,
    and what does not fit in memory fails at once.
    """
    sizes = [packing.size(family) for family in families]
    order = sorted(range(len(families)), key=lambda i: -sizes[i])
    out, start = [None] * len(families), 0
    with tqdm(total=sum(sizes), desc=title, unit="tok", disable=title is None) as bar:
        while start < len(order):
            stop, tokens = start + 1, sizes[order[start]]
            while stop < len(order) and tokens + sizes[order[stop]] <= batch_tokens:
                tokens += sizes[order[stop]]
                stop += 1
            batch = packing.collate([families[i] for i in order[start:stop]]).to(device)
            logprobs = model(
                batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.labels, batch.parent
            )
            # Sums of segments as differences of one running sum: in fp64, or the ends would drown
            total = torch.nn.functional.pad(logprobs.double().cumsum(0), (1, 0))  # (N + 1,)
            if not total[-1].isfinite():
                raise UserError("the log-probs are not finite: the checkpoint has diverged")
            sums = iter(total[batch.cu_seqlens.long()].diff().tolist())  # (B,)
            for i in order[start:stop]:
                scored = [(next(sums), packing.targets([segment]) > 0) for segment in families[i]]
                out[i] = [value for value, is_choice in scored if is_choice]
            bar.update(tokens)
            start = stop
    return out


def ask_choices(model, tokenizer, cfg, task, rows, device, title):
    """Sample log of log-likelihoods: one entry per row, lm-eval's names."""
    limit = model.config.max_position_embeddings
    asked, families, owner = [], [], []
    for i, row in enumerate(rows):
        context, choices = encode_choices(tokenizer, cfg, task, row)
        asked.append((context, choices))
        try:
            found = choice_families(context, choices, limit)
        except UserError as e:
            raise UserError(f"row {row['id']}: choices: {e}") from None
        families += found
        owner += [i] * len(found)
    sums = [[] for _ in rows]
    scores = score_families(model, families, cfg.batch_tokens, device, title)
    for i, values in zip(owner, scores, strict=True):
        sums[i] += values
    samples = []
    for row, (context, choices), values in zip(rows, asked, sums, strict=True):
        prompt = tokenizer.decode(context, skip_special=False)
        arguments = [[prompt, tokenizer.decode(ids, skip_special=False)] for ids in choices]
        prediction, found = judge_choices(task, row, values)
        pairs = [[value, None] for value in values]  # lm-eval's (log-prob, is greedy)
        entry = sample(row, arguments, [[pair] for pair in pairs], pairs, prediction, found)
        truncated = len(context) + max(map(len, choices)) > limit + 1
        samples.append(entry | {"truncated": truncated, "finish": None})
    return samples


# Generation ----------------------------------------------------------------------------------


def ask_replies(model, tokenizer, cfg, task, rows, device, title):
    """Sample log of greedy replies: one entry per row, lm-eval's names."""
    room = model.config.max_position_embeddings
    new_tokens = cfg.max_new_tokens or task.max_new_tokens
    limit = max(room // 2, room - new_tokens)  # a small context is shared half and half
    prompts = [encode_prompt(tokenizer, cfg, task, row) for row in rows]
    # The end of a prompt holds the question: cut behind BOS, and counted
    kept = [ids if len(ids) <= limit else ids[:1] + ids[1 - limit :] for ids in prompts]
    order = sorted(range(len(rows)), key=lambda i: -len(kept[i]))
    texts = [kept[i] for i in order]
    found = generate(model, texts, tokenizer.stop_ids, new_tokens, slots=cfg.slots, progress=title)
    replies = [None] * len(rows)
    for i, completions in zip(order, found, strict=True):
        replies[i] = completions[0]
    samples = []
    for row, ids, full, reply in zip(rows, kept, prompts, replies, strict=True):
        text = tokenizer.decode(reply.ids).replace("\0", "\ufffd")  # the log must be readable again
        if not cfg.chat_template and task.style == "direct":
            text = text.split("\n\n")[0]  # a plain continuation ends its answer with a blank line
        prediction, values = judge_reply(task, row, text)
        prompt = tokenizer.decode(ids, skip_special=False)
        arguments = [[prompt, {"do_sample": False, "max_gen_toks": new_tokens}]]
        entry = sample(row, arguments, [[text]], [prediction], prediction, values)
        samples.append(entry | {"truncated": len(full) > limit, "finish": reply.finish})
    return samples


def sample(row, arguments, resps, filtered, prediction, values):
    """One line of samples_TASK.jsonl, under lm-eval's names, so that its viewers show it.

    The prompt's hash covers the text as the model saw it, template and system message included, and
    the choices: equal hashes mean that two checkpoints were asked the same.
    """
    asked = [[part for part in parts if isinstance(part, str)] for parts in arguments]
    return {
        "doc": row,
        "target": row["answer"],
        "arguments": arguments,
        "resps": resps,
        "filtered_resps": filtered,
        "filter": "flexible",
        "metrics": list(values),
        "doc_hash": sha(row),
        "prompt_hash": sha(asked),
        "target_hash": sha(row["answer"]),
        "prediction": prediction,
    } | values


# One task ------------------------------------------------------------------------------------


def run_task(name, model, tokenizer, cfg, device, rank, world):
    """(entry of results.json, samples) of a task; the ranks share its rows."""
    task, path = TASKS[name], Path(cfg.data) / f"{name}.jsonl"
    rows = load_rows(name, path)
    place = {row["id"]: number for number, row in enumerate(rows)}
    if 0 < cfg.limit < len(rows):
        # Not the first rows: files are often sorted by label or subject
        picked = np.random.default_rng(0).permutation(len(rows))[: cfg.limit]
        rows = [rows[i] for i in sorted(picked)]
    mode = cfg.mode or task.mode
    if mode == "loglikelihood" and not all(row.get("choices") for row in rows):
        raise UserError(f"{path}: choices: some rows have none, so --mode loglikelihood cannot ask")
    ask = ask_choices if mode == "loglikelihood" else ask_replies
    title = name if rank == 0 else None
    mine = rows[rank::world]
    try:
        samples = ask(model, tokenizer, cfg, task, mine, device, title) if mine else []
    except UserError as e:
        raise UserError(f"{path}: {e}") from None
    samples = [{"doc_id": place[s["doc"]["id"]]} | s for s in samples]
    if world > 1:
        parts = [None] * world
        dist.all_gather_object(parts, samples)
        samples = sorted((s for part in parts for s in part), key=lambda s: s["doc_id"])
    entry = {
        "title": task.title, "capability": task.capability, "kind": task.kind,
        "novelty": task.novelty, "style": task.style, "metric": task.metrics[0],
        **summary(name, samples),
        "asked": {
            # two results with other values here are not compared
            "mode": mode, "fewshot": 0,
            "chat_template_sha": tokenizer.template_sha if cfg.chat_template else None,
            "system_instruction_sha": sha(cfg.system or task.system),
            "bos": len(head(tokenizer)),
            "max_new_tokens": 0 if mode == "loglikelihood"
            else cfg.max_new_tokens or task.max_new_tokens,
        },
        "prompts_sha": sha(sorted(s["prompt_hash"] for s in samples)),
        "data_sha": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip
    return entry, samples


def summary(name, samples):
    """Score, interval and side figures of a sample log, in points."""
    task, found = TASKS[name], {}
    for metric, (statistics, score) in measures(task, samples).items():
        low, high = scorers.interval(scorers.resample(statistics, score, seed=name))
        found[metric] = points(scorers.point(statistics, score), low, high)
    return {
        **found[task.metrics[0]],
        "n": len(samples),
        "metrics": found,
        "baseline": {k: round(100 * v, 4) for k, v in baseline(task, samples).items()},
        "missing": found["missing"]["score"] if "missing" in found else 0.0,
        "truncated": sum(s["truncated"] for s in samples),
        "finish_length": sum(s["finish"] == "length" for s in samples),
    }


# The run -------------------------------------------------------------------------------------


def list_tasks():
    for name, task in TASKS.items():
        print(f"{name:<22} {task.title}\n{'':<22} {task.capability}, {task.kind}, {task.novelty}, "
              f"{task.style}; {task.mode}, {', '.join(task.metrics)}; {task.source}")  # fmt: skip


def chosen_tasks(cfg):
    """(names to run, {name: why not}); UserError for an unknown name or if nothing can be run."""
    names = [name.strip() for name in cfg.tasks.split(",") if name.strip()]
    skipped = {}
    for name in names:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "see --list"
            raise UserError(f"--tasks: unknown task {name!r}; {hint}")
        if not (Path(cfg.data) / f"{name}.jsonl").exists():
            skipped[name] = (f"no {cfg.data}/{name}.jsonl. Get {TASKS[name].source}; public sets: "
                             f"python prepare.py {name} SOURCE {cfg.data}")  # fmt: skip
    runnable = list(dict.fromkeys(name for name in names if name not in skipped))
    if not runnable:
        raise UserError("; ".join(f"{k}: {v}" for k, v in skipped.items()) or "--tasks: is empty")
    return runnable, skipped


def print_table(result):
    """Scores in points; `majority` is what always giving the most frequent answer would score."""
    heads = ("task", "metric", "score", "95% interval", "n", "majority", "missing")
    line = "{:<24}{:<9}{:>7}{:>17}{:>7}{:>10}{:>9}"
    print("\n" + line.format(*heads))
    for name, e in result["tasks"].items():
        interval = f"[{e['low']:.1f}, {e['high']:.1f}]"
        most = e["baseline"].get(e["metric"])
        most = "" if most is None else f"{most:.1f}"
        score, missing = f"{e['score']:.1f}", f"{e['missing']:.1f}"
        print(line.format(name, e["metric"], score, interval, e["n"], most, missing))
    for name, e in result["tasks"].items():
        if e["missing"] > MISSING_WARN:
            print(f"warning: {name}: no answer found in {e['missing']:.1f}% of the replies")
        if e["truncated"] or e["finish_length"]:
            print(f"note: {name}: {e['truncated']} prompts cut to fit the context, "
                  f"{e['finish_length']} replies ended by the length limit")  # fmt: skip
    for name, why in result["skipped"].items():
        print(f"warning: {name} was not run: {why}")


def main(cfg):
    if cfg.list:
        return list_tasks()
    if cfg.mode not in ("", "loglikelihood", "generate"):
        raise UserError(f"--mode {cfg.mode}: must be loglikelihood or generate")
    check_range(cfg, ("batch_tokens", "slots"), ("limit", "max_new_tokens"))
    names, skipped = chosen_tasks(cfg)
    rank, world, device = parallel.init(cfg.device)
    tokenizer = Tokenizer(cfg.init_from)
    dtype = parallel.auto_dtype(cfg.dtype, device)
    model = Llama.from_pretrained(cfg.init_from, device, dtype).eval()
    tokenizer.check_fits(model.config.vocab_size)
    metrics.describe_run(cfg, __file__)
    out = Path(cfg.out_dir)
    result = {"init_from": cfg.init_from, "unit": "points, 0 to 100 (mcc: -100 to 100)",
              "tokenizer_sha": tokenizer.sha, "limit": cfg.limit, "dtype": str(dtype),
              "tasks": {}, "skipped": skipped}  # fmt: skip
    for name in names:
        entry, samples = run_task(name, model, tokenizer, cfg, device, rank, world)
        result["tasks"][name] = entry
        if rank == 0:
            write_jsonl(out / f"samples_{name}.jsonl", samples)
    if rank == 0:
        write_text(out / "results.json", json.dumps(result, indent=1) + "\n")
        print_table(result)


if __name__ == "__main__":
    with parallel.clean_exit():
        if sys.argv[1:2] == ["--compare"]:
            if len(sys.argv) != 4:
                raise UserError("usage: python evaluate.py --compare DIR_A DIR_B")
            compare(*sys.argv[2:])
        else:
            main(parse(Config))
