"""Our DPO against TRL's DPOTrainer: the same numbers, the same tokens, and the speed of a step.

    pip install -r benchmarks/requirements-trl.txt       # in an environment of its own
    OMP_NUM_THREADS=1 python benchmarks/dpo.py --chatml DIR

loss     one step's losses, rewards, log-probs and gradients, by TRL's own trainer and by ours, of
         the same policy, reference and pairs in fp32; and the losses of a few optimizer steps
shared   a prompt stored once for both replies against two separate sequences, in fp64
tokens   the ids TRL trains on, of files that export.py wrote, against those of data.load_pairs
speed    steps of ours with shared prompts, of ours with a prompt in front of each reply, of TRL:
         the same random model and pairs, prompt : reply = 6 : 1, reference computed before, nothing
         to pad, each in fresh processes in the order A B C C B A; seconds by the clock, and those
         of the processor, which count for the ratio on a machine that others use, too

Exit code 1 if a difference is beyond its limit. The result goes to benchmarks/results/dpo.json.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from safetensors.torch import load_file, save_file

import train_dpo
from benchmarks.measure import RESULTS, about, fresh, quantiles, there_and_back
from config import parse
from data import load_pairs, sequences_of
from export import Export, export
from jsonl import read_jsonl, write_jsonl
from model import Llama, LlamaConfig
from optim import build_optimizer
from packing import collate, document, size
from reference import pair_logps
from tokenizer import Tokenizer

BASE = Path(__file__).resolve().parent.parent / "sample" / "base"
PAIRS, COUNT = BASE.parent / "data" / "pairs.jsonl", 16  # of which these many are compared
CURVE = 10  # optimizer steps whose losses are compared
BATCH, REPLY = 4, 32  # of the speed: pairs in a step, tokens of a reply
VARIANTS = {  # name: settings of ours, of TRL
    "sigmoid": ({"nll_coef": 0.0}, {"loss_type": ["sigmoid"]}),
    "sigmoid + nll": ({"nll_coef": 0.7},
                      {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
    "length_norm": ({"nll_coef": 0.0, "length_norm": True, "beta": 2.0},
                    {"loss_type": ["sigmoid_norm"], "beta": 2.0}),
    "ipo": ({"nll_coef": 0.0, "loss": "ipo"}, {"loss_type": ["ipo"]}),
}  # fmt: skip
ARMS = ("shared", "unshared", "trl")
SPEED_MODEL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8,
               "vocab_size": 8192, "max_position_embeddings": 4096}  # fmt: skip
LIMIT, LIMIT_FP64 = 1e-5, 1e-10  # of relative differences


@dataclass
class Config:
    chatml: str = ""  # folder of a ChatML tokenizer (SmolLM2) to compare tokens with, too
    steps: int = 4  # timed steps of a process, after one; there are two processes an arm
    job: str = ""  # do one job in this process and print its result
    arm: str = ""  # of the job speed, or the variant of the job loss
    folder: str = ""  # of the job speed: model and pairs


def trl_trainer(policy, reference, pairs, folder, batch, **changes):
    """TRL's trainer in fp32 on this CPU; pairs = rows as dicts."""
    import transformers
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    args = {"per_device_train_batch_size": batch, "bf16": False, "use_cpu": True, "beta": 0.1}
    args |= {"gradient_checkpointing": False, "report_to": [], "save_strategy": "no"}
    args |= {"lr_scheduler_type": "constant", "weight_decay": 0.0, "adam_beta2": 0.95}
    args |= {"max_grad_norm": 1e9, "learning_rate": 3e-4, "max_length": None} | changes
    models = [path and AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
              for path in (policy, reference)]  # fmt: skip
    return DPOTrainer(
        *models, DPOConfig(tempfile.mkdtemp(), **args), train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip


# ---- the same numbers ----------------------------------------------------------------------------


def rows_of(path, count=None):
    """All rows of a file, or `count` from all over it."""
    rows = [row for _, row in read_jsonl(path, {})]
    return rows[:: len(rows) // count][:count] if count else rows


def apart(a, b):
    """Largest difference, relative where numbers are larger than 1."""
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return ((a - b).abs() / b.abs().clamp(min=1)).max().item()


def moved_policy(folder):
    """The base with every weight moved by 20%: a policy that has left its reference."""
    shutil.copytree(BASE, folder)
    torch.manual_seed(0)
    tensors = load_file(BASE / "model.safetensors").items()
    tensors = {name: t * (1 + 0.2 * torch.randn_like(t)) for name, t in tensors}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def our_step(policy, rows, folder, settings):
    """(values as train_dpo.py logs them, {name: gradient}) of one step on the pairs."""
    write_jsonl(folder / "pairs.jsonl", rows)
    families, _ = load_pairs(f"{folder}/pairs.jsonl", Tokenizer(BASE), 512)
    batch = collate(families, range(len(families)))
    reference = pair_logps(Llama.from_pretrained(BASE), batch)[0].detach()
    model, cfg = Llama.from_pretrained(policy), train_dpo.Config(**settings)
    losses, shown = train_dpo.step_sums(model, batch, reference, cfg)
    pairs, tokens = train_dpo.step_counts(batch)
    means = torch.stack([pairs, tokens])
    (losses * torch.tensor([1.0, cfg.nll_coef]) / means).sum().backward()
    values = train_dpo.step_values(torch.cat([losses.detach(), shown]), pairs, means, cfg)
    return values, {name: p.grad for name, p in model.named_parameters()}


def job_loss(cfg):
    """Differences of one step, for one variant, and of the losses of CURVE steps."""
    ours, theirs = VARIANTS[cfg.arm]
    rows, found = rows_of(PAIRS, COUNT), {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        policy = moved_policy(scratch / "policy")
        trainer = trl_trainer(policy, BASE, rows, BASE, len(rows), **theirs)
        trainer.model.train()
        inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        values, gradients = our_step(policy, rows, scratch, ours)
        metrics = {k: v[0] for k, v in trainer._metrics["train"].items()}
        names = [n for n in values if n.startswith(("rewards/", "logps/"))]
        metrics["loss"] = loss.item()
        found |= {name: apart(values[name], metrics[name]) for name in ("loss", *names)}
        want = {name: p.grad for name, p in trainer.model.named_parameters()}
        assert want.keys() == gradients.keys()
        off = [(g - want[n]).norm() / want[n].norm() for n, g in gradients.items()]
        found["gradient"] = max(off).item()
        found["theirs"] = metrics

        # From the base on, as it is used: the reference is the policy of the first step
        trainer = trl_trainer(BASE, BASE, rows, BASE, len(rows), max_steps=CURVE, **theirs)
        curve, compute = [], trainer.compute_loss
        trainer.compute_loss = lambda *a, **k: curve.append(compute(*a, **k)) or curve[-1]
        trainer.train()
        settings = train_dpo.Config(
            str(BASE), f"{scratch}/out", f"{scratch}/pairs.jsonl", device="cpu", max_length=512,
            batch_tokens=2**16, micro_batch_tokens=2**16, epochs=float(CURVE), warmup=0.0,
            schedule="constant", weight_decay=0.0, grad_clip=1e9, **ours,
        )  # fmt: skip
        with mock.patch.object(train_dpo, "plot_metrics"):
            train_dpo.main(settings)
        lines = [row["loss"] for row in rows_of(f"{scratch}/out/metrics.jsonl")]
    curve = [loss.item() for loss in curve]
    return found | {"curve": [curve, lines], "curve_apart": apart(curve, lines)}


def unshared(members):
    """A family as two documents: the prompt in front of each reply."""
    made = (document(ids, trained) for ids, trained in sequences_of(members))
    return [segment for one in made for segment in one]


def unshared_logps(model, batch):
    """reference.pair_logps for documents chosen, rejected, chosen, ..."""
    logprobs = model(batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.labels)
    doc = torch.arange(len(batch.parent)).repeat_interleave(batch.cu_seqlens.diff())
    logps = logprobs.new_zeros(len(batch.parent)).index_add(0, doc, logprobs)
    tokens = torch.zeros_like(logps).index_add(0, doc, (batch.labels >= 0).to(logps.dtype))
    return logps.view(-1, 2), tokens.view(-1, 2)


def job_shared(cfg):
    with tempfile.TemporaryDirectory() as scratch:
        write_jsonl(f"{scratch}/pairs.jsonl", rows_of(PAIRS, COUNT))
        families, _ = load_pairs(f"{scratch}/pairs.jsonl", Tokenizer(BASE), 512)
    model = Llama.from_pretrained(BASE).double()
    together = pair_logps(model, collate(families))[0]
    alone = torch.cat([unshared_logps(model, collate([unshared(one)]))[0] for one in families])
    weights = torch.linspace(-1, 2, alone.numel(), dtype=alone.dtype).view_as(alone)
    both = [torch.autograd.grad((weights * x).sum(), list(model.parameters()))
            for x in (together, alone)]  # fmt: skip
    gradient = max((a - b).abs().max().item() for a, b in zip(*both, strict=True))
    return {"logps": (together - alone).abs().max().item(), "gradient": gradient}


# ---- the same tokens -----------------------------------------------------------------------------


def continuation(row):
    """A pair as the last step of a solution, going on from a prefix: it ends the turn."""
    good, bad = (row[side][0]["content"] for side in ("chosen", "rejected"))
    prefix, glue, answer = good.rpartition(" Answer:")
    made = {"prompt": row["prompt"], "prefix": prefix, "chosen": glue + answer}
    made |= {"rejected": " Answer:" + bad.rpartition("Answer:")[2] + "0"}
    return made | {"ends_turn": {"chosen": True, "rejected": True}}


def trl_ids(folder, path):
    """[(ids, number of the prompt's)] of chosen and rejected, as TRL's trainer prepares a file."""
    from trl import DPOTrainer

    with mock.patch.object(DPOTrainer, "_precompute_ref_logps", lambda self, data, *_: data):
        trainer = trl_trainer(BASE, None, rows_of(path), folder, 1, precompute_ref_log_probs=True)
    for row in trainer.train_dataset:
        prompt = row["prompt_ids"]
        yield [(prompt + row[f"{side}_ids"], len(prompt)) for side in ("chosen", "rejected")]


def job_tokens(cfg):
    """{case: {how the ids of a pair compare: pairs}}"""
    found, rows = {}, rows_of(PAIRS, 64)
    for name, folder in {"llama3": str(BASE), "chatml": cfg.chatml}.items():
        for form in ("messages", "strings", "continuation") if folder else ():
            with tempfile.TemporaryDirectory() as out:
                pairs = list(map(continuation, rows)) if form == "continuation" else rows
                write_jsonl(f"{out}/pairs.jsonl", pairs)
                export(Export(out_dir=out, tokenizer="" if form == "messages" else folder))
                families, _ = load_pairs(f"{out}/pairs.jsonl", tokenizer := Tokenizer(folder), 4096)
                theirs = list(trl_ids(folder, f"{out}/trl.jsonl"))
            ours = [[(i, t.index(True)) for i, t in sequences_of(f)] for f in families]
            line, counts = tokenizer.encode("\n"), Counter()
            for our, their in zip(ours, theirs, strict=True):
                longer = [(ids + line, n) for ids, n in our]
                counts["equal" if our == their else "and \\n" if longer == their else "other"] += 1
            found[f"{name} {form}"] = counts
    return found


# ---- speed ---------------------------------------------------------------------------------------


def write_speed_data(folder):
    """A random model with the tokenizer of the sample world, and pairs of exactly the lengths."""
    shutil.copytree(BASE, folder / "model")
    config = json.loads((BASE / "config.json").read_text()) | SPEED_MODEL
    (folder / "model" / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    tensors = Llama(LlamaConfig.from_dict(config)).named_parameters()
    save_file({n: p.detach().contiguous() for n, p in tensors}, folder / "model/model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    tokenizer = Tokenizer(BASE)
    words = [w for w in tokenizer.encoder.get_vocab() if w.isalpha() and len(w) > 3]
    extra, rows = len(tokenizer.prompt("x")) - 1, []

    def text(count):
        return " ".join(words[i] for i in torch.randint(len(words), (count,)))

    for _ in range(BATCH):
        prompt = [{"role": "user", "content": text(6 * REPLY - extra)}]
        sides = {s: [{"role": "assistant", "content": text(REPLY - 1)}]
                 for s in ("chosen", "rejected")}  # fmt: skip
        rows.append({"prompt": prompt} | sides)
    write_jsonl(folder / "pairs.jsonl", rows)


def now():
    """Seconds by the clock, and of this process on the processor."""
    return time.perf_counter(), time.process_time()


def our_steps(cfg, folder):
    """Clocks around steps as train_dpo.main makes them, their losses, tokens of a step."""
    device = train_dpo.parallel.init("cpu")[2]
    families, _ = load_pairs(f"{folder}/pairs.jsonl", Tokenizer(folder / "model"), 4096)
    if cfg.arm == "unshared":
        families = list(map(unshared, families))
        train_dpo.pair_logps = unshared_logps
        train_dpo.pair_index = lambda batch: batch.source.view(-1, 2)[:, 0]
    model = train_dpo.parallel.shard(Llama.from_pretrained(folder / "model", "meta"), device)
    train_dpo.load_weights(model, folder / "model")
    optimizer = build_optimizer(model, 3e-4, 0.0)
    settings = train_dpo.Config()
    reference = train_dpo.pair_logps(model, collate(families))[0].detach()
    clocks, losses = [now()], []
    for _ in range(cfg.steps + 1):
        batch = collate(families, range(len(families)))
        parts, _ = train_dpo.step_sums(model, batch, reference, settings)
        loss = (parts / torch.tensor([BATCH, BATCH * REPLY])).sum()
        loss.backward()
        optimizer.step(scale=(1e9 / optimizer.grad_norm()).clamp(max=1))
        optimizer.zero_grad()
        losses.append(loss.item())
        clocks.append(now())
    return clocks, losses, sum(map(size, families))


def trl_steps(cfg, folder):
    """The same by TRL's train(): NLL by loss_type sft, reference precomputed."""
    from transformers import TrainerCallback

    model, rows = folder / "model", rows_of(folder / "pairs.jsonl")
    trainer = trl_trainer(
        model, None, rows, model, BATCH, max_steps=cfg.steps + 1,
        precompute_ref_log_probs=True, loss_type=["sigmoid", "sft"], padding_free=True,
    )  # fmt: skip
    clocks, losses, compute = [], [], trainer.compute_loss

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            clocks.append(now())

        on_train_begin = on_step_end

    trainer.add_callback(Clock)
    trainer.compute_loss = lambda *a, **k: losses.append(compute(*a, **k)) or losses[-1]
    trainer.train()
    assert not trainer.padding_free  # asked for, but 1.16 has it switched off
    return clocks, [loss.item() for loss in losses], trainer._total_train_tokens // len(losses)


def job_speed(cfg):
    clocks, losses, tokens = (trl_steps if cfg.arm == "trl" else our_steps)(cfg, Path(cfg.folder))
    each = torch.tensor(clocks, dtype=torch.float64).diff(dim=0)[1:].T.tolist()
    return {"seconds": each[0], "cpu_seconds": each[1], "losses": losses, "tokens": tokens}


def speed(run, cfg):
    """{arm: figures} of all arms, two processes each: [p20, p50, p80], and p50 over shared's."""
    visits, found = {arm: [] for arm in ARMS}, {}
    with tempfile.TemporaryDirectory() as folder:
        write_speed_data(Path(folder))
        for arm in there_and_back(ARMS):
            visits[arm].append(run("speed", "--arm", arm, "--folder", folder))
    for arm, both in visits.items():
        row = found[arm] = {"tokens": both[0]["tokens"], "visits": both}
        for clock in ("seconds", "cpu_seconds"):
            row[clock] = quantiles([s for visit in both for s in visit[clock]])
            row[f"times_{clock}"] = row[clock][1] / found["shared"][clock][1]
        row["token_ratio"] = row["tokens"] / found["shared"]["tokens"]
        row["losses_apart"] = apart(both[0]["losses"], visits["shared"][0]["losses"])
        print(f"{arm}: {row['seconds'][1]:.2f} s a step, {row['cpu_seconds'][1]:.2f} s of the "
              f"processor; of shared's: time {row['times_seconds']:.2f}, processor "
              f"{row['times_cpu_seconds']:.2f}, tokens {row['token_ratio']:.2f}; losses "
              f"{row['losses_apart']:.0e} apart", flush=True)  # fmt: skip
    return found


JOBS = {"loss": job_loss, "shared": job_shared, "tokens": job_tokens, "speed": job_speed}


def main(cfg):
    if cfg.job:
        os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # parallel.init asks for huge pages: TRL as well
        with contextlib.redirect_stdout(sys.stderr):
            found = JOBS[cfg.job](cfg)
        return print(json.dumps(found))
    words = ["--steps", cfg.steps, *(["--chatml", cfg.chatml] if cfg.chatml else [])]

    def run(job, *more):
        found = fresh(__file__, *words, "--job", job, *more)
        if "error" in found:
            sys.exit(f"error: {job}: {found['error']}")
        return found

    bad, result = [], {"trl": version("trl"), "loss": {}}
    for name in VARIANTS:
        found = result["loss"][name] = run("loss", "--arm", name)
        numbers = {k: v for k, v in found.items() if isinstance(v, float) and k != "curve_apart"}
        bad += [f"{name}: {k} is {v:.1e} off" for k, v in numbers.items() if not v <= LIMIT]
        print(f"{name}: " + ", ".join(f"{k} {v:.0e}" for k, v in numbers.items()), end="; ")
        print(f"losses of {CURVE} steps {found['curve_apart']:.0e}", flush=True)
    result["shared"] = run("shared")
    print(f"shared against separate in fp64: {result['shared']}")
    bad += [f"shared: {k} {v:.1e}" for k, v in result["shared"].items() if not v <= LIMIT_FP64]
    result["tokens"] = run("tokens")
    for name, counts in result["tokens"].items():
        print(f"{name}: ids of pairs against TRL's: {counts}", flush=True)
        bad += [f"{name}: other ids"] if "other" in counts else []
    result["speed"] = speed(run, cfg)
    bad += [f"speed: losses of {arm}" for arm in ARMS
            if not result["speed"][arm]["losses_apart"] <= 1e-3]  # fmt: skip
    (RESULTS / "dpo.json").write_text(json.dumps(result | about(), indent=1) + "\n")
    sys.exit("error: " + "; ".join(bad) if bad else 0)


if __name__ == "__main__":
    with train_dpo.parallel.clean_exit():
        main(parse(Config))
