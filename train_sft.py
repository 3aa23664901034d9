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

import parallel
import resume
from checkpoint import load_weights, save_pretrained
from config import UserError, parse
from data import load_chat, load_pairs
from metrics import Metrics, describe_run, plot_metrics
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
    device: str = "auto"  # cpu or cuda
    eval_every: int = 200  # steps between held-out losses
    save_every: int = 500  # steps between states to resume from
    max_skipped: float = 0.05  # share of unusable rows above which the run does not start
    seed: int = 0  # order of the rows


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
            batch = batch.to(device)
            sums[0] += loss_sum(model, batch)
            sums[1] += (batch.labels != IGNORE).sum()
    total, count = sum_over_ranks(sums)
    return {"heldout/chat": (total / count).item()} if count else {}


def main(cfg):
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

    model = parallel.shard(model, device, cfg.dtype, cfg.recompute)
    load_weights(model, cfg.init_from)
    optimizer = build_optimizer(model, cfg.lr, cfg.weight_decay)
    start = resume.load(cfg.out_dir, model, optimizer, run)
    log = Metrics(cfg.out_dir, start, device, model.config)
    print0(f"{cfg.out_dir}: step {start} of {plan.steps}, rows {plan.fill:.1%} full, {world} ranks")

    parallel.catch_stop_signals()  # until here a signal ends the run at once: nothing to save yet
    bar = tqdm(range(start, plan.steps), "steps", plan.steps, initial=start, disable=rank != 0)
    for step in bar:
        micro = micro_batches(plan, families, step, rank, world, cfg.micro_batch_tokens)
        micro = [batch.to(device) for batch in micro]
        # Every rank divides by the targets of all ranks and micro-batches, known before the first
        # backward: uneven micro-batches then add up to exactly one big batch.
        targets = sum((batch.labels != IGNORE).sum() for batch in micro)
        stop = torch.tensor(len(parallel.stop_signals), device=device)
        targets, stop = sum_over_ranks(torch.stack([targets, stop]))
        if stop:
            if step > start:
                resume.save(cfg.out_dir, step, model, optimizer, run)
            return print0(f"\nstopped before step {step}; the same command goes on from here")

        total = torch.zeros((), dtype=torch.float64, device=device)
        for i, batch in enumerate(micro):
            model.set_requires_gradient_sync(i == len(micro) - 1)  # reduce gradients once per step
            loss = loss_sum(model, batch)
            (loss * world / targets).backward()  # FSDP averages over the ranks
            total += loss.detach()
        grad_norm = optimizer.grad_norm()  # of all ranks; clipping is part of the update
        if not grad_norm.isfinite():
            raise UserError(f"step {step}: the gradient is {grad_norm.item()}; lower --lr")
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, plan.steps, cfg.lr, cfg.warmup, cfg.schedule)
        optimizer.step(scale=(cfg.grad_clip / grad_norm).clamp(max=1))
        optimizer.zero_grad()

        last = step + 1 == plan.steps
        log.count(families[i] for packed in plan.rows(step) for i in packed)
        values = {"loss": (sum_over_ranks(total) / targets).item(), "grad_norm": grad_norm.item()}
        if (step + 1) % cfg.eval_every == 0 or last:
            values |= heldout_loss(model, *held, cfg, rank, world, device)
        row = log.log(step, **values, lr=group["lr"])
        bar.set_postfix(
            loss=f"{row['loss']:.3f}", tok_s=f"{row['tokens_per_second']:.0f}", refresh=False
        )
        if (step + 1) % cfg.save_every == 0 and not last:
            resume.save(cfg.out_dir, step + 1, model, optimizer, run)

    save_pretrained(model, cfg.out_dir, cfg.init_from)
    resume.finish(cfg.out_dir, run)
    if rank == 0:
        plot_metrics(cfg.out_dir)
    print0(f"{cfg.out_dir}: done")


if __name__ == "__main__":
    with parallel.clean_exit():
        main(parse(Config))
