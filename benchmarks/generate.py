r"""Sampling against Hugging Face's `generate`, on a CPU: the same tokens, and how fast.

    OMP_NUM_THREADS=2 python benchmarks/generate.py --init_from SMOLLM2 --parts tokens,rate,tail
    OMP_NUM_THREADS=1 python benchmarks/generate.py --init_from out/demo/cpt_it \
        --parts tokens,whole,tail --prompts sample/data/exam_train.jsonl --batches 1,16,64
    python benchmarks/generate.py --parts schedule

tokens     greedy tokens in fp32, batch 1 and 16, equal to transformers'? Exit code 1 if not
rate       tokens per second of decoding, of the rate of its matrix products alone: the separate
           weights as Hugging Face has them (q, k, v, o, gate, up, down of every layer, then the
           head), each by one F.linear on an activation of the same batch, nothing in between
whole      tokens per second, prefill included, at several batch sizes
tail       16 prompts whose answers have long-tailed lengths: useful tokens per second. Hugging
           Face's padded batch runs until the longest has ended
schedule   occupied slots and KV cache, counted on a trace of lengths by the engine's own scheduler

Hugging Face: SDPA, dynamic cache, inference_mode, no stop tokens. All arms take turns in one
process, so they see the same machine; each figure is the median of the rounds (of two at most in
`tail`), with the lowest and highest.
"""

import json
import math
import random
import statistics
import sys
import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn import functional as F

from benchmarks.measure import store
from config import UserError, parse
from generate import Sequence, generate, load, schedule
from jsonl import read_jsonl
from model import GROWTH

TOPICS = (
    "a bond", "inflation", "revenue", "a stock split", "net income", "a dividend", "an option",
    "liquidity", "2+2", "a central bank", "depreciation", "a mortgage", "gross margin", "equity",
    "an index fund", "a balance sheet",
)  # fmt: skip


@dataclass
class Config:
    init_from: str = "sample/base"  # checkpoint folder
    prompts: str = ""  # rows {"prompt"}; the first 64 are asked. Empty: 16 short questions
    parts: str = "tokens,rate,whole,tail,schedule"  # which, see above
    dtypes: str = "float32,bfloat16"  # of the parts rate, whole and tail
    batches: str = "1,16"  # of the parts tokens, rate and whole
    new_tokens: int = 64  # per answer
    rounds: int = 5  # turns of every arm
    name: str = "generate"  # the result is benchmarks/results/NAME-<device>.json


def questions(cfg):
    if not cfg.prompts:
        return [f"What is {topic}?" for topic in TOPICS]
    rows = islice(read_jsonl(cfg.prompts, {"prompt": str}), 64)
    return [row["prompt"] for _, row in rows]


# ---- the arms ------------------------------------------------------------------------------------


def hugging_face(path, dtype):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    return model.eval()


@torch.inference_mode()
def their_tokens(model, prompts, new_tokens, stop_ids=()):
    """Greedy answers (lists of ids, stop tokens included) of one batch, padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    model.generation_config.eos_token_id = sorted(stop_ids) or None
    model.generation_config.pad_token_id = 0
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new_tokens)
    return out[:, longest:].tolist()


def products(model, batch):
    """A function that multiplies all weights of a Hugging Face Llama, as a decoding step does."""
    parts = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj mlp.gate_proj"
    parts += " mlp.up_proj mlp.down_proj"
    layers = model.model.layers
    weights = [layer.get_submodule(part).weight for layer in layers for part in parts.split()]
    weights.append(model.lm_head.weight)
    inputs = {w.shape[1]: torch.randn(batch, w.shape[1]).to(w.dtype) for w in weights}

    @torch.inference_mode()
    def step():
        for w in weights:
            F.linear(inputs[w.shape[1]], w)

    return step


def seconds(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def in_turns(rounds, arms):
    """{name: [result of every round]} of functions that return seconds; one round goes unseen."""
    found = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name, arm in arms.items():
            found[name] += [arm()] if number else [arm()][:0]
    return found


def figures(tokens, times):
    """[median, lowest, highest] of tokens per second."""
    rates = [tokens / t for t in times]
    return [round(f(rates), 1) for f in (statistics.median, min, max)]


def ratio(a, b):
    """Median over the rounds of b's time over a's."""
    return round(statistics.median(y / x for x, y in zip(a, b, strict=True)), 3)


# ---- the parts -----------------------------------------------------------------------------------


def part_tokens(ours, theirs, prompts, stop_ids, cfg, batches):
    """Equal greedy tokens. Hugging Face answers every prompt alone: its padded batch rounds anew,
    and how often that changes its own tokens is counted beside."""
    alone = [their_tokens(theirs, [ids], cfg.new_tokens, stop_ids)[0] for ids in prompts]

    def cut(ids):
        return [t for t in ids if t not in stop_ids]

    result = {"prompts": len(prompts), "tokens": sum(len(cut(ids)) for ids in alone)}
    for batch in batches:
        answers = generate(ours, prompts, stop_ids, cfg.new_tokens, slots=batch)
        equal = sum(a.ids == cut(ids) for (a,), ids in zip(answers, alone, strict=True))
        result[f"equal_at_batch_{batch}"] = equal
    padded = their_tokens(theirs, prompts, cfg.new_tokens, stop_ids)
    same = [a[: len(b)] == b for a, b in zip(padded, alone, strict=True)]
    return result | {"hf_padded_equals_hf_alone": sum(same)}


def part_rate(ours, theirs, prompts, cfg, batch):
    """A step's time = (time of new_tokens - time of 1 token) / (new_tokens - 1): no prefill."""
    prompts, steps = prompts[:batch], cfg.new_tokens - 1
    step = products(theirs, batch)

    def of_a_step(function, *args):
        first = seconds(function, *args, 1)
        return (seconds(function, *args, cfg.new_tokens) - first) / steps

    found = in_turns(cfg.rounds, {
        "products": lambda: statistics.median(seconds(step) for _ in range(9)),
        "ours": lambda: of_a_step(generate, ours, prompts, frozenset()),
        "hf": lambda: of_a_step(their_tokens, theirs, prompts),
    })  # fmt: skip
    rates = {name: figures(batch, times) for name, times in found.items()}
    shares = {
        f"{name}_of_products": ratio(found[name], found["products"]) for name in ("ours", "hf")
    }
    length = sum(map(len, prompts)) / batch + cfg.new_tokens / 2
    return {"tokens_per_second": rates, "mean_context": round(length, 1)} | shares


def part_whole(ours, theirs, prompts, cfg, batch):
    prompts = (prompts * math.ceil(batch / len(prompts)))[:batch]
    found = in_turns(cfg.rounds, {
        "ours": lambda: seconds(generate, ours, prompts, frozenset(), cfg.new_tokens),
        "hf": lambda: seconds(their_tokens, theirs, prompts, cfg.new_tokens),
    })  # fmt: skip
    tokens = batch * cfg.new_tokens
    rates = {name: figures(tokens, times) for name, times in found.items()}
    return {"tokens_per_second": rates, "ours_over_hf": ratio(found["ours"], found["hf"])}


def lognormal_lengths(count, median, sigma, longest, seed=0):
    rng = random.Random(seed)
    drawn = (rng.lognormvariate(math.log(median), sigma) for _ in range(count))
    return [min(longest, max(1, round(length))) for length in drawn]


def part_tail(ours, theirs, prompts, cfg):
    prompts = prompts[:16]
    lengths = lognormal_lengths(len(prompts), 32, 1.0, 256)
    found = in_turns(min(cfg.rounds, 2), {
        "ours": lambda: seconds(generate, ours, prompts, frozenset(), lengths),
        "hf": lambda: seconds(their_tokens, theirs, prompts, max(lengths)),
    })  # fmt: skip
    rates = {name: figures(sum(lengths), times) for name, times in found.items()}
    rates |= {"ours_over_hf": ratio(found["ours"], found["hf"])}
    return {"lengths": sorted(lengths), "useful_tokens_per_second": rates}


def simulate(lengths, slots, prompt=64):
    """Drive the engine's scheduler by a trace of answer lengths, without a model.

    Returns shares over the decoding steps: of slots that are occupied, in all and until the last
    sequence has entered; of the KV cache that holds nothing (all slots are as long as the longest
    sequence so far); and of slots occupied by static batches of the same sequences.
    """
    waiting = deque(Sequence(i, 0, prompt, length) for i, length in enumerate(lengths))
    steps = occupied = full_steps = full = held = allocated = longest = 0
    for turn, start in schedule(waiting, slots, lambda *move: None):
        if start is None:
            steps, occupied = steps + 1, occupied + len(turn)
            held += sum(seq.position + 1 for seq in turn)
            longest = max(longest, *(seq.position + 1 for seq in turn))
            allocated += slots * math.ceil(longest / GROWTH) * GROWTH
            if waiting:
                full_steps, full = full_steps + 1, full + len(turn)
        for seq in turn:
            seq.position += start is None
            seq.room -= 1
            seq.out.finish = None if seq.room else "length"
    batches = [lengths[i : i + slots] for i in range(0, len(lengths), slots)]
    static = sum(map(sum, batches)) / (slots * sum(map(max, batches)))
    return {
        "sequences": len(lengths),
        "slots": slots,
        "longest_over_mean": round(max(lengths) * len(lengths) / sum(lengths), 2),
        "steps": steps,
        "occupied": round(occupied / (slots * steps), 4),
        "occupied_while_any_waits": round(full / max(1, slots * full_steps), 4),
        "occupied_static": round(static, 4),
        "kv_waste": round(1 - held / allocated, 4),
    }


def part_schedule():
    cases = [(512, 0.5), (512, 0.7), (512, 1.0), (2048, 0.7), (2048, 1.0)]
    return {
        f"{count} lengths, lognormal sigma {sigma}": simulate(
            lognormal_lengths(count, 100, sigma, 1024), 32
        )
        for count, sigma in cases
    }


def main(cfg):
    parts, result = cfg.parts.split(","), {"checkpoint": Path(cfg.init_from).name}
    batches = [int(b) for b in cfg.batches.split(",")]

    def found(part, value):
        result[part] = value
        print(f"{part}: {json.dumps(value)}", flush=True)

    if "schedule" in parts:
        found("schedule", part_schedule())
    for name in cfg.dtypes.split(",") if set(parts) != {"schedule"} else ():
        dtype = getattr(torch, name)
        ours, tokenizer = load(cfg.init_from, "cpu", name)
        theirs = hugging_face(cfg.init_from, dtype)
        prompts = [tokenizer.prompt(question) for question in questions(cfg)]
        if "tokens" in parts and dtype == torch.float32:
            found("tokens", part_tokens(ours, theirs, prompts, tokenizer.stop_ids, cfg, batches))
        for batch in batches:
            if "rate" in parts:
                found(f"rate {name} batch {batch}", part_rate(ours, theirs, prompts, cfg, batch))
            if "whole" in parts:
                found(f"whole {name} batch {batch}", part_whole(ours, theirs, prompts, cfg, batch))
        if "tail" in parts:
            found(f"tail {name}", part_tail(ours, theirs, prompts, cfg))
    store(cfg.name, result)
    equal = [n for k, n in result.get("tokens", {}).items() if k.startswith("equal_")]
    if any(n < result["tokens"]["prompts"] for n in equal):
        raise UserError("the two implementations differ")


if __name__ == "__main__":
    try:
        main(parse(Config))
    except UserError as e:
        sys.exit(f"error: {e}")
