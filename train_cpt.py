"""Continual pretraining, alone or jointly with instruction tuning (FinDAP, arXiv:2501.04961).

    python train_cpt.py                                        the sample world, on whatever is here
    torchrun --nproc_per_node 8 train_cpt.py --init_from llama3 --text web.jsonl --chat chat.jsonl
    torchrun --nproc_per_node 8 train_cpt.py --init_from llama3 --mixture recipes/group1.json

Text teaches knowledge, but text alone destroys the ability to answer; instructions alone teach no
new knowledge. So one run, one optimizer, one shuffled stream of packed rows holds both. Every token
of a text carries loss; of a chat, the assistant's tokens and the end of its turn:

    loss = -(sum of log-probs over all trained tokens of the step) / (their number on all ranks)
"""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

import dry_run
import parallel
import resume
from checkpoint import load_weights, save_pretrained
from config import check_choice, check_range, parse
from data import Families, load_chat, load_text
from metrics import Metrics, describe_run, is_finite, plot_metrics
from mixture import SOURCES, files_of, load_mixed, read_mixture
from model import Llama
from optim import build_optimizer, check_settings, lr_at
from packing import IGNORE, Curriculum, Plan, micro_batches
from parallel import print0, sum_over_ranks
from tokenizer import Tokenizer


@dataclass
class Config:
    init_from: str = "sample/base"  # checkpoint folder: config.json, safetensors, tokenizer.json
    out_dir: str = "out/cpt"  # the trained folder; a stopped run goes on from here
    text: str = "sample/data/cpt.jsonl"  # {"text"} rows, files comma separated; "" = chat only
    chat: str = "sample/data/sft.jsonl"  # {"messages"} rows; "" = text only
    heldout_text: str = "sample/data/cpt_heldout.jsonl"  # measured, never trained; "" = none
    heldout_chat: str = "sample/data/sft_heldout.jsonl"  # the same for chat
    mix: str = (
        "tokens"  # cut text down to the chat's tokens (paper), its rows (released code), or all
    )
    mixture: str = (
        ""  # file of sources, shares and groups (mixture.py), in place of text, chat, mix
    )
    token_cache: str = "out/tokens"  # folder of what is tokenised already; may be deleted
    max_length: int = 256  # tokens of a packed row; longer texts are split, longer chats skipped
    batch_tokens: int = 1024  # tokens per step, over all ranks and micro-batches
    micro_batch_tokens: int = 1024  # tokens per rank in one forward: as many as fit
    epochs: float = 2.0  # passes over the mixture
    lr: float = 2e-3  # peak learning rate (paper, 8B: 5e-6)
    warmup: float = 0.1  # share of the steps that the rate rises
    schedule: str = "linear"  # then linear, cosine or constant
    weight_decay: float = 0.1  # on matrices
    grad_clip: float = 1.0  # largest global gradient norm
    dtype: str = "auto"  # of the forward pass; master weights are fp32 always
    recompute: bool = False  # recompute activations in the backward pass: less memory, slower
    replicas: int = 1  # copies of the model, each over world / replicas ranks (HSDP)
    device: str = "auto"  # cpu or cuda
    eval_every: int = 200  # steps between held-out losses
    save_every: int = 500  # steps between states to resume from
    keep_last: int = 2  # newest states that stay
    keep_every: int = 0  # states of each so many-th step stay for good; 0 = none
    background: bool = (
        False  # write states while training goes on: a copy more of weights + moments
    )
    max_skipped: float = 0.05  # share of unusable rows above which the run does not start
    max_bad_steps: int = 3  # steps in a row without a finite loss and gradient that end the run
    seed: int = 0  # order of the rows
    dry_run: int = 0  # ranks to plan for: prints memory, steps and time, and ends


def token_losses(model, batch):
    """-log p of every label, (N,); 0 where it is ignored."""
    row = (batch.input_ids, batch.position_ids, batch.cu_seqlens)
    return -model(*row, labels=batch.labels, common_gradient=True)


def by_source(values, batch, count):
    """Sum values (N,) over the tokens of each source -> (count,) float64."""
    source = batch.source.repeat_interleave(batch.cu_seqlens.diff())  # (N,)
    return torch.stack([values[source == i].sum().double() for i in range(count)])


def tokens_by_source(plan, steps, mixed):
    """Tokens of each source in these steps, (number of sources,); of every rank."""
    chosen = [i for step in steps for row in plan.rows(step) for i in row]
    sizes, count = mixed.families.sizes[chosen], len(mixed.names)
    return np.bincount(mixed.sources[chosen], sizes, count).astype(int)


@torch.no_grad()
def heldout_loss(model, plan, families, sources, cfg, rank, world, device):
    """{"heldout/text": mean loss, ...} over all held-out tokens, the same on every rank."""
    sums = torch.zeros(2, len(SOURCES), dtype=torch.float64, device=device)
    for step in range(plan.steps if plan else 0):
        for batch in micro_batches(
            plan, families, step, rank, world, cfg.micro_batch_tokens, sources
        ):
            if parallel.stopping():
                return {}
            batch = batch.to(device)
            sums[0] += by_source(token_losses(model, batch), batch, len(SOURCES))
            sums[1] += by_source(batch.labels != IGNORE, batch, len(SOURCES))
            parallel.beat(watched=True)
    total, count = sum_over_ranks(sums)
    return {f"heldout/{s}": (total[i] / count[i]).item() for i, s in enumerate(SOURCES) if count[i]}


def main(cfg):
    check_range(cfg, ("max_bad_steps",))
    check_choice(cfg, mix=("tokens", "rows", "all"))
    if cfg.dry_run:
        return dry_run.show(cfg)
    rank, world, device = parallel.init(cfg.device)
    model = Llama.from_pretrained(cfg.init_from, "meta")  # shapes only, until shard
    check_settings(cfg, model.config)
    files = [f for f in f"{cfg.text},{cfg.chat}".split(",") if f]
    if cfg.mixture:
        files = [cfg.mixture, *files_of(read_mixture(cfg.mixture))]
    run = resume.identity(cfg, files)
    if resume.finished(cfg.out_dir, run):
        return print0(f"{cfg.out_dir}: this run has ended already")
    describe_run(cfg, __file__)

    tokenizer = Tokenizer(cfg.init_from)
    tokenizer.check_fits(model.config.vocab_size)
    mixed = load_mixed(cfg, tokenizer)
    families, sources, names = mixed.families, mixed.sources, mixed.names
    lengths = cfg.max_length, cfg.batch_tokens
    plan = Curriculum(families.sizes, mixed.groups, *lengths, cfg.epochs, cfg.seed)
    parallel.check_same(plan.packed, "the packed rows")
    held = (None, [], [])
    settings = tokenizer, cfg.max_length, cfg.max_skipped, cfg.token_cache
    texts = load_text(cfg.heldout_text, *settings)[0] if cfg.heldout_text else Families([])
    chats = load_chat(cfg.heldout_chat, *settings)[0] if cfg.heldout_chat else Families([])
    if both := texts + chats:
        which = [0] * len(texts) + [1] * len(chats)
        held = (Plan(both.sizes, *lengths, 1, 0), both, which)

    resume.check_space(cfg.out_dir, model, plan.steps, cfg.keep_last, cfg.keep_every)
    model = parallel.shard(model, device, cfg.dtype, cfg.recompute, cfg.replicas)
    load_weights(model, cfg.init_from)
    optimizer = build_optimizer(model, cfg.lr, cfg.weight_decay)
    start = resume.load(cfg.out_dir, model, optimizer, run, cfg.background)
    keep = {"keep_last": cfg.keep_last, "keep_every": cfg.keep_every}
    log = Metrics(cfg.out_dir, start, device, model.config)
    seen = tokens_by_source(plan, range(start), mixed)
    print0(f"{cfg.out_dir}: step {start} of {plan.steps}, rows {plan.fill:.1%} full, {world} ranks")

    parallel.catch_stop_signals()  # until here a signal ends the run at once: nothing to save yet
    bar = tqdm(range(start, plan.steps), "steps", plan.steps, initial=start, disable=rank != 0)
    for step in bar:
        micro = micro_batches(plan, families, step, rank, world, cfg.micro_batch_tokens, sources)
        micro = [batch.to(device) for batch in micro]
        # Every rank divides by the targets of all ranks and micro-batches, known before the first
        # backward: uneven micro-batches then add up to exactly one big batch.
        targets = [by_source(batch.labels != IGNORE, batch, len(names)) for batch in micro]
        targets = sum_over_ranks(sum(targets))  # (number of sources,)
        total = torch.zeros(len(names), dtype=torch.float64, device=device)
        for i, batch in enumerate(micro):
            parallel.beat(watched=step > start + 1)  # a hang is told from what a step took so far
            if parallel.stopping():  # on any rank, so on all of them
                break
            model.set_requires_gradient_sync(i == len(micro) - 1)  # reduce gradients once per step
            losses = token_losses(model, batch)
            (losses.sum() * world / sum(targets)).backward()  # FSDP averages over the ranks
            total += by_source(losses.detach(), batch, len(names))
        if parallel.stopping():  # in the last one, too: what they have added up is dropped
            parallel.beat(watched=False)
            if step > start and step % cfg.save_every:
                resume.save(cfg.out_dir, step, model, optimizer, run, **keep)
            resume.wait()
            return print0(f"\nstopped before step {step}; the same command goes on from here")

        grad_norm = optimizer.grad_norm()  # of all ranks; clipping is part of the update
        total = sum_over_ranks(total)
        values = {"loss": (sum(total) / sum(targets)).item(), "grad_norm": grad_norm.item()}
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, plan.steps, cfg.lr, cfg.warmup, cfg.schedule)
            group["step"] = step  # counts updates that are left out, too: as after a resume
        if is_finite(values):
            optimizer.step(scale=(cfg.grad_clip / grad_norm).clamp(max=1))
        else:
            resume.wait()  # if the run ends here, the state that is being written shall be whole
        optimizer.zero_grad()

        last = step + 1 == plan.steps
        log.count(families[i] for packed in plan.rows(step) for i in packed)
        seen += tokens_by_source(plan, [step], mixed)
        values |= {
            f"loss/{s}": (t / n).item() for s, t, n in zip(names, total, targets, strict=True) if n
        }
        values |= {f"tokens/{s}": n for s, n in zip(names, seen.tolist(), strict=True) if n}
        if (step + 1) % cfg.eval_every == 0 or last:
            parallel.beat(watched=step - cfg.eval_every >= start)
            values |= heldout_loss(model, *held, cfg, rank, world, device)
            if parallel.agreed:
                resume.wait()
                return print0(f"\nstopped while step {step} was measured; the same command goes on "
                              "from the last state")  # fmt: skip
        row = log.log(step, **values, lr=group["lr"])
        log.check_bad_steps(cfg.max_bad_steps)
        bar.set_postfix(log.shown(row), refresh=False)
        if (step + 1) % cfg.save_every == 0 and not last:
            parallel.beat(watched=False)
            resume.save(cfg.out_dir, step + 1, model, optimizer, run, cfg.background, **keep)

    parallel.beat(watched=False)
    save_pretrained(model, cfg.out_dir, cfg.init_from)
    resume.finish(cfg.out_dir, run, cfg.keep_every)
    if rank == 0:
        plot_metrics(cfg.out_dir)
    print0(f"{cfg.out_dir}: done; lowest held-out loss: {log.best() or 'not measured'}")


if __name__ == "__main__":
    with parallel.clean_exit():
        main(parse(Config))
