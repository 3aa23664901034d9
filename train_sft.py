"""Instruction tuning: the answers of chats, and nothing else, carry loss.

    python train_sft.py                                        the sample world, on whatever is here
    torchrun --nproc_per_node 8 train_sft.py --init_from out/cpt --chat chat.jsonl --lr 5e-6

    loss = -(sum of log-probs over assistant tokens and turn ends) / (their number on all ranks)

With --pairs it trains on the chosen side of preference pairs: the control that tells what
preference alignment adds to having seen good answers.
"""

from dataclasses import dataclass

import torch
from tqdm import tqdm

import dry_run
import parallel
import resume
from checkpoint import load_weights, save_pretrained
from config import check_range, parse
from data import load_chat, load_pairs
from metrics import Metrics, describe_run, is_finite, plot_metrics
from model import Llama
from optim import build_optimizer, check_settings, lr_at
from packing import IGNORE, Plan, micro_batches, size
from parallel import print0, sum_over_ranks
from tokenizer import Tokenizer


@dataclass
class Config:
    init_from: str = "sample/base"  # checkpoint folder: config.json, safetensors, tokenizer.json
    out_dir: str = "out/sft"  # the trained folder; a stopped run goes on from here
    chat: str = "sample/data/sft.jsonl"  # {"messages"} rows, files comma separated
    pairs: str = ""  # preference pairs, in place of chat: train on their chosen side
    heldout_chat: str = "sample/data/sft_heldout.jsonl"  # measured, never trained; "" = none
    token_cache: str = "out/tokens"  # folder of what is tokenised already; may be deleted
    max_length: int = 256  # tokens of a packed row; longer chats are skipped and counted
    batch_tokens: int = 1024  # tokens per step, over all ranks and micro-batches
    micro_batch_tokens: int = 1024  # tokens per rank in one forward: as many as fit
    epochs: float = 2.0  # passes over the chats
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


def loss_sum(model, batch):
    """Summed (not mean) token loss, so that micro-batches with unequal targets add up exactly."""
    row = (batch.input_ids, batch.position_ids, batch.cu_seqlens)
    return -model(*row, batch.labels, batch.parent, common_gradient=True).sum()


@torch.no_grad()
def heldout_loss(model, plan, families, cfg, rank, world, device):
    """{"heldout/chat": mean loss} over all held-out targets, the same on every rank."""
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for step in range(plan.steps if plan else 0):
        for batch in micro_batches(plan, families, step, rank, world, cfg.micro_batch_tokens):
            if parallel.stopping():
                return {}
            batch = batch.to(device)
            sums[0] += loss_sum(model, batch)
            sums[1] += (batch.labels != IGNORE).sum()
            parallel.beat(watched=True)
    total, count = sum_over_ranks(sums)
    return {"heldout/chat": (total / count).item()} if count else {}


def main(cfg):
    check_range(cfg, ("max_bad_steps",))
    if cfg.dry_run:
        return dry_run.show(cfg)
    rank, world, device = parallel.init(cfg.device)
    model = Llama.from_pretrained(cfg.init_from, "meta")  # shapes only, until shard
    check_settings(cfg, model.config)
    files = [f for f in (cfg.pairs or cfg.chat).split(",") if f]
    run = resume.identity(cfg, files)
    if resume.finished(cfg.out_dir, run):
        return print0(f"{cfg.out_dir}: this run has ended already")
    describe_run(cfg, __file__)

    tokenizer = Tokenizer(cfg.init_from)
    tokenizer.check_fits(model.config.vocab_size)
    settings = tokenizer, cfg.max_length, cfg.max_skipped, cfg.token_cache
    if cfg.pairs:  # a family is prompt, chosen, rejected: leave the last one out
        families = [members[:2] for members in load_pairs(files, *settings)[0]]
    else:
        families, _ = load_chat(files, *settings)
    sizes = list(map(size, families)) if cfg.pairs else families.sizes
    plan = Plan(sizes, cfg.max_length, cfg.batch_tokens, cfg.epochs, cfg.seed)
    parallel.check_same(plan.packed, "the packed rows")
    held = (None, [])
    if cfg.heldout_chat:
        chats, _ = load_chat(cfg.heldout_chat, *settings)
        held = (Plan(chats.sizes, cfg.max_length, cfg.batch_tokens, 1, 0), chats)

    resume.check_space(cfg.out_dir, model, plan.steps, cfg.keep_last, cfg.keep_every)
    model = parallel.shard(model, device, cfg.dtype, cfg.recompute, cfg.replicas)
    load_weights(model, cfg.init_from)
    optimizer = build_optimizer(model, cfg.lr, cfg.weight_decay)
    start = resume.load(cfg.out_dir, model, optimizer, run, cfg.background)
    keep = {"keep_last": cfg.keep_last, "keep_every": cfg.keep_every}
    log = Metrics(cfg.out_dir, start, device, model.config)
    print0(f"{cfg.out_dir}: step {start} of {plan.steps}, rows {plan.fill:.1%} full, {world} ranks")

    parallel.catch_stop_signals()  # until here a signal ends the run at once: nothing to save yet
    bar = tqdm(range(start, plan.steps), "steps", plan.steps, initial=start, disable=rank != 0)
    for step in bar:
        micro = micro_batches(plan, families, step, rank, world, cfg.micro_batch_tokens)
        micro = [batch.to(device) for batch in micro]
        # Every rank divides by the targets of all ranks and micro-batches, known before the first
        # backward: uneven micro-batches then add up to exactly one big batch.
        targets = sum_over_ranks(sum((batch.labels != IGNORE).sum() for batch in micro))
        total = torch.zeros((), dtype=torch.float64, device=device)
        for i, batch in enumerate(micro):
            parallel.beat(watched=step > start + 1)  # a hang is told from what a step took so far
            if parallel.stopping():  # on any rank, so on all of them
                break
            model.set_requires_gradient_sync(i == len(micro) - 1)  # reduce gradients once per step
            loss = loss_sum(model, batch)
            (loss * world / targets).backward()  # FSDP averages over the ranks
            total += loss.detach()
        if parallel.stopping():  # in the last one, too: what they have added up is dropped
            parallel.beat(watched=False)
            if step > start and step % cfg.save_every:
                resume.save(cfg.out_dir, step, model, optimizer, run, **keep)
            resume.wait()
            return print0(f"\nstopped before step {step}; the same command goes on from here")

        grad_norm = optimizer.grad_norm()  # of all ranks; clipping is part of the update
        values = {"loss": (sum_over_ranks(total) / targets).item(), "grad_norm": grad_norm.item()}
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
