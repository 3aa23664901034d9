"""Preference alignment: DPO with an NLL term (FinDAP stage 2; arXiv:2305.18290, arXiv:2404.19733).

    python train_dpo.py                                        the sample world, on whatever is here
    torchrun --nproc_per_node 8 train_dpo.py --init_from out/cpt --pairs pairs.jsonl --lr 5e-7

A pair is a family of packed documents: the prompt once, chosen and rejected as its two children.
The reference is the model before the first step; its log-probs are computed once and kept.

    loss = mean over pairs of -log sigmoid(beta * (margin of the policy - margin of the reference))
         + nll_coef * mean over chosen tokens of -log p

--length_norm takes the mean log-prob of a reply in place of the sum, --loss ipo the mean and a
square in place of the sigmoid (arXiv:2310.12036).
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from tqdm import tqdm

import dry_run
import parallel
import resume
from checkpoint import load_weights, save_pretrained
from config import UserError, check_choice, check_range, parse
from data import load_pairs
from metrics import Metrics, describe_run, is_finite, plot_metrics
from model import Llama
from optim import build_optimizer, check_settings, lr_at
from packing import IGNORE, Plan, micro_batches
from parallel import print0, sum_over_ranks
from reference import pair_index, pair_logps, reference_logps, tolerance
from tokenizer import Tokenizer


@dataclass
class Config:
    init_from: str = "sample/base"  # checkpoint folder: config.json, safetensors, tokenizer.json
    out_dir: str = "out/dpo"  # the trained folder; a stopped run goes on from here
    pairs: str = "sample/data/pairs.jsonl"  # {"prompt", "chosen", "rejected"} rows, comma separated
    heldout_pairs: str = ""  # measured, never trained; "" = none
    loss: str = "sigmoid"  # of the preference: sigmoid (DPO), or ipo, on mean log-probs always
    beta: float = 0.1  # temperature: higher stays closer to the reference
    nll_coef: float = 1.0  # weight of the NLL of the chosen replies; 0 = plain DPO
    nll_norm: str = (
        "tokens"  # mean over the step's chosen tokens (TRL), or over sequence means (RPO)
    )
    length_norm: bool = False  # mean instead of summed log-probs per reply; wants a larger beta
    token_cache: str = "out/tokens"  # folder of what is tokenised already; may be deleted
    max_length: int = 256  # tokens of a row; prompt + chosen + rejected must fit, else skipped
    batch_tokens: int = 2048  # tokens per step, over all ranks and micro-batches
    micro_batch_tokens: int = 2048  # tokens per rank in one forward: as many as fit
    epochs: float = 1.0  # passes over the pairs
    lr: float = 3e-4  # peak learning rate (paper, 8B: 5e-7)
    warmup: float = 0.1  # share of the steps that the rate rises
    schedule: str = "linear"  # then linear, cosine or constant
    weight_decay: float = 0.1  # on matrices
    grad_clip: float = 1.0  # largest global gradient norm
    warn_nats: float = 20.0  # say so when chosen replies have lost this much log-prob
    dtype: str = "auto"  # of the forward pass; master weights are fp32 always
    recompute: bool = False  # recompute activations in the backward pass: less memory, slower
    replicas: int = 1  # copies of the model, each over world / replicas ranks (HSDP)
    device: str = "auto"  # cpu or cuda
    eval_every: int = 50  # steps between held-out losses
    save_every: int = 500  # steps between states to resume from
    keep_last: int = 2  # newest states that stay
    keep_every: int = 0  # states of each so many-th step stay for good; 0 = none
    background: bool = (
        False  # write states while training goes on: a copy more of weights + moments
    )
    max_skipped: float = 0.05  # share of unusable rows above which the run does not start
    max_bad_steps: int = 3  # steps in a row without a finite loss and gradient that end the run
    seed: int = 0  # order of the pairs
    dry_run: int = 0  # ranks to plan for: prints memory, steps and time, and ends


def dpo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """Direct Preference Optimization, eq. 7 of arXiv:2305.18290. All inputs (P,) log-probs -> (P,).

    beta * (policy - reference) acts as the reward that the policy assigns to a reply; the loss is
    the logistic loss of the reward margin, log 2 as long as policy == reference.
    """
    margin = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    return -F.logsigmoid(beta * margin)


def ipo_loss(policy_chosen, policy_rejected, ref_chosen, ref_rejected, beta):
    """Identity Preference Optimization, eq. 17 of arXiv:2310.12036, whose tau is beta. Inputs (P,)
    log-probs, means over the tokens of each reply (what its authors confirmed to TRL) -> (P,).

    The margin is drawn to 1 / (2 beta) and no further; 1 / (2 beta)^2 where policy == reference.
    """
    margin = (policy_chosen - ref_chosen) - (policy_rejected - ref_rejected)
    return (margin - 1 / (2 * beta)) ** 2


SHOWN = "rewards/chosen rewards/rejected rewards/accuracies logps/chosen logps/rejected gap".split()


def step_sums(model, batch, reference, cfg):
    """What a micro-batch adds to its step, summed over its pairs: preference and NLL loss (2,),
    with their gradient, and the values named in SHOWN (6,).

    Rewards are of whole replies, whatever the loss divides by: so TRL logs them under these names,
    and divided by beta they are what a reply has gained or lost.
    """
    logps, tokens = pair_logps(model, batch)  # (P, 2), (P, 2)
    ref = reference[pair_index(batch)]  # (P, 2)
    norm = tokens if cfg.length_norm or cfg.loss == "ipo" else 1
    loss = {"sigmoid": dpo_loss, "ipo": ipo_loss}[cfg.loss]
    losses = loss(*(logps / norm).T, *(ref / norm).T, cfg.beta)  # (P,)
    nll = -logps[:, 0] / (tokens[:, 0] if cfg.nll_norm == "sequence" else 1)
    chosen, rejected = cfg.beta * (logps - ref).T
    gap = (logps - ref).abs().mean(1)
    shown = [chosen, rejected, (chosen > rejected).double(), *logps.T, gap]
    shown = torch.stack([x.detach().double().sum() for x in shown])
    return torch.stack([losses.sum(), nll.sum()]), shown


def step_counts(batch):
    """Pairs and chosen tokens of a micro-batch, (2,)."""
    reply = (batch.parent >= 0).nonzero().flatten()
    doc = torch.arange(len(batch.parent)).repeat_interleave(batch.cu_seqlens.diff().cpu())
    chosen = torch.isin(doc.to(reply.device), reply[::2]) & (batch.labels != IGNORE)
    return torch.stack([torch.tensor(len(reply) // 2, device=reply.device), chosen.sum()])


def step_values(total, pairs, means, cfg):
    """The sums of a step, (8,) over all ranks, as the values that are logged, under TRL's names."""
    preference, nll = (total[:2] / means).tolist()
    name = "loss/ipo" if cfg.loss == "ipo" else "loss/dpo"
    values = {"loss": preference + cfg.nll_coef * nll, name: preference, "loss/nll": nll}
    values |= dict(zip(SHOWN, (total[2:] / pairs).tolist(), strict=True))
    values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
    return values


@torch.no_grad()
def heldout_values(model, plan, families, reference, cfg, rank, world, device):
    """{"heldout/loss": ..., ...} over all held-out pairs, the same on every rank."""
    total = torch.zeros(10, dtype=torch.float64, device=device)
    for step in range(plan.steps if plan else 0):
        for batch in micro_batches(
            plan, families, step, rank, world, cfg.micro_batch_tokens, range(len(families))
        ):
            if parallel.stopping():
                return {}
            batch = batch.to(device)
            losses, shown = step_sums(model, batch, reference, cfg)
            total += torch.cat([step_counts(batch), losses, shown])
            parallel.beat(watched=True)
    total = sum_over_ranks(total)
    if not total[0]:
        return {}
    means = torch.stack([total[0], total[0 if cfg.nll_norm == "sequence" else 1]])
    values = step_values(total[2:], total[0], means, cfg)
    return {f"heldout/{k.replace('/', '_')}": v for k, v in values.items() if "gap" not in k}


def check_values(step, values, cfg, device):
    """UserError if the first step does not begin at the reference; a note when chosen replies fade.

    DPO lowers chosen log-probs happily as long as rejected ones fall faster; past some point the
    model forgets how to answer. More NLL or a higher beta holds against it.
    """
    gap = values.pop("gap")
    if step == 0:
        logps = torch.tensor(values["logps/chosen"])
        near = tolerance(logps, parallel.auto_dtype(cfg.dtype, device))
        if cfg.loss == "ipo":
            name, start, text, slope = "ipo", (2 * cfg.beta) ** -2, "1 / (2 beta)^2", 1 / cfg.beta
        else:
            name, start, text, slope = "dpo", math.log(2), "ln 2", cfg.beta
        loss = values[f"loss/{name}"]
        if gap > near or abs(loss - start) > slope * near + 1e-3:
            raise UserError(
                f"the policy does not begin at the reference: log-probs differ by {gap:.4f}, "
                f"{name.upper()} loss {loss:.4f} is not {text}"
            )
    drop = -values["rewards/chosen"] / cfg.beta  # nats of a whole reply
    if drop > cfg.warn_nats:
        values["fading"] = True
        print0(
            f"\nwarning: step {step}: chosen replies lost {drop:.1f} nats; raise nll_coef or beta"
        )


def main(cfg):
    check_range(cfg, ("max_bad_steps", "beta", "warn_nats"), ("nll_coef",))
    check_choice(cfg, loss=("sigmoid", "ipo"), nll_norm=("tokens", "sequence"))
    if cfg.dry_run:
        return dry_run.show(cfg, common_gradient=False)
    rank, world, device = parallel.init(cfg.device)
    model = Llama.from_pretrained(cfg.init_from, "meta")  # shapes only, until shard
    check_settings(cfg, model.config)
    files = [f for f in cfg.pairs.split(",") if f]
    run = resume.identity(cfg, files)
    if resume.finished(cfg.out_dir, run):
        return print0(f"{cfg.out_dir}: this run has ended already")
    describe_run(cfg, __file__)

    tokenizer = Tokenizer(cfg.init_from)
    tokenizer.check_fits(model.config.vocab_size)
    settings = tokenizer, cfg.max_length, cfg.max_skipped, cfg.token_cache
    families, _ = load_pairs(files, *settings)
    plan = Plan(families.sizes, cfg.max_length, cfg.batch_tokens, cfg.epochs, cfg.seed)
    parallel.check_same(plan.packed, "the packed rows")
    held = (None, [])
    if cfg.heldout_pairs:
        pairs, _ = load_pairs(cfg.heldout_pairs, *settings)
        held = (Plan(pairs.sizes, cfg.max_length, cfg.batch_tokens, 1, 0), pairs)
    if cfg.length_norm and cfg.loss == "sigmoid" and cfg.beta < 1:
        print0(f"note: beta {cfg.beta} is small for length-normalised log-probs; 2 to 10 is usual")

    resume.check_space(cfg.out_dir, model, plan.steps, cfg.keep_last, cfg.keep_every)
    model = parallel.shard(model, device, cfg.dtype, cfg.recompute, cfg.replicas)
    load_weights(model, cfg.init_from)
    optimizer = build_optimizer(model, cfg.lr, cfg.weight_decay)
    # Before resume.load, while the model still is the reference
    reference = reference_logps(model, families, cfg, run, device)  # (number of pairs, 2)
    held += (reference_logps(model, held[1], cfg, run, device) if held[1] else None,)
    start = resume.load(cfg.out_dir, model, optimizer, run, cfg.background)
    keep = {"keep_last": cfg.keep_last, "keep_every": cfg.keep_every}
    log = Metrics(cfg.out_dir, start, device, model.config)
    print0(f"{cfg.out_dir}: step {start} of {plan.steps}, rows {plan.fill:.1%} full, {world} ranks")

    parallel.catch_stop_signals()  # until here a signal ends the run at once: nothing to save yet
    bar = tqdm(range(start, plan.steps), "steps", plan.steps, initial=start, disable=rank != 0)
    for step in bar:
        micro = micro_batches(
            plan, families, step, rank, world, cfg.micro_batch_tokens, range(len(families))
        )
        micro = [batch.to(device) for batch in micro]
        # Every rank divides by the targets of all ranks and micro-batches, known before the first
        # backward: uneven micro-batches then add up to exactly one big batch.
        counts = sum(step_counts(batch) for batch in micro)  # (2,)
        pairs, chosen_tokens = sum_over_ranks(counts)
        means = torch.stack([pairs, pairs if cfg.nll_norm == "sequence" else chosen_tokens])
        weights = torch.tensor([1.0, cfg.nll_coef], device=device) / means  # of preference and NLL
        total = torch.zeros(2 + len(SHOWN), dtype=torch.float64, device=device)
        for i, batch in enumerate(micro):
            parallel.beat(watched=step > start + 1)  # a hang is told from what a step took so far
            if parallel.stopping():  # on any rank, so on all of them
                break
            model.set_requires_gradient_sync(i == len(micro) - 1)  # reduce gradients once per step
            losses, shown = step_sums(model, batch, reference, cfg)
            ((losses * weights).sum() * world).backward()  # FSDP averages over the ranks
            total += torch.cat([losses.detach(), shown])
        if parallel.stopping():  # in the last one, too: what they have added up is dropped
            parallel.beat(watched=False)
            if step > start and step % cfg.save_every:
                resume.save(cfg.out_dir, step, model, optimizer, run, **keep)
            resume.wait()
            return print0(f"\nstopped before step {step}; the same command goes on from here")

        grad_norm = optimizer.grad_norm()  # of all ranks; clipping is part of the update
        values = step_values(sum_over_ranks(total), pairs, means, cfg)
        values["grad_norm"] = grad_norm.item()
        check_values(step, values, cfg, device)
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
            values |= heldout_values(model, *held, cfg, rank, world, device)
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
