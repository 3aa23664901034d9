"""Sampling from a Llama with a KV cache, many prompts at a time.

    waiting -> prefill (packed, each prompt once) -> slots 0 .. A-1 of the cache -> decode: one
    forward gives one token to each -> the finished leave, the next ones enter

Continuous batching: no sequence waits for the longest answer of its batch. `schedule` says whose
turn it is, knowing nothing of a model; `stream` makes the tokens: a prefill by Llama.forward, one
more token for all by decode.py. The active sequences always fill the first slots, so that a step
reads the cache in place: who leaves is replaced by the last one. The n samples of a prompt share
one prefill; the others start from a copy of its cache slot.

    python generate.py --prompt "What is a bond?" --temperature 0.7 --max_new_tokens 64
    python generate.py --init_from out/demo/aligned --chat
"""

import sys
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

import parallel
from config import UserError, check_range, parse
from decode import block_weights, decode_step
from model import KVCache, Llama
from tokenizer import Tokenizer

PREFILL_TOKENS = 8192  # prompt tokens per prefill forward: bounds its activations
# Bounds the cache, whatever slots are asked for: 32 GiB for Llama-3 8B in bf16 (128 KiB a token),
# which fits an 80 GB GPU beside the weights, and 64 slots of 4,096 tokens.
CACHE_TOKENS = 2**18


@dataclass
class Config:
    init_from: str = "sample/base"  # checkpoint directory (config.json + safetensors + tokenizer)
    prompt: str = ""  # one user message; its answer is printed
    chat: bool = False  # talk in the terminal instead; Ctrl-D ends
    temperature: float = 0.0  # 0 = greedy; 1 = the model's own distribution
    top_p: float = 1.0  # keep the likeliest tokens up to this probability mass
    max_new_tokens: int = 256  # longest answer, in tokens
    seed: int = 0  # same seed, same answer
    dtype: str = "auto"  # float32, bfloat16, or auto: bfloat16 on a GPU
    device: str = "auto"  # auto, cpu or cuda


@dataclass
class Completion:
    ids: list[int] = field(default_factory=list)  # without the stop token
    logprobs: list[float] = field(default_factory=list)  # untempered; the stop token's included
    finish: str | None = None  # "stop" | "length"; None while tokens are still coming


@dataclass
class Sequence:
    """Sample k of prompt i on its way. Its cache slot is its place in the list of active ones."""

    prompt: int
    sample: int
    position: int  # of the next token that goes into the model
    room: int  # tokens it may still write
    out: Completion = field(default_factory=Completion)
    token: int = -1  # sampled last, not yet in the cache
    uniforms: np.ndarray | None = None  # one random number per token to come


def choose(logits, uniforms, temperature, top_p):
    """Next tokens (A,) and their untempered log-probs (A,) from logits (A, V), uniforms (A,) < 1
    (None at temperature 0).

    Inverse CDF: the token is where the cumulated probability passes the sequence's own uniform
    number, so it does not depend on the other rows. Top-p (arXiv:1904.09751) keeps the smallest
    set of tokens with at least that mass, always with the likeliest one.
    """
    logits = logits.float()
    logprobs = logits.log_softmax(-1)  # (A, V)
    if temperature == 0:
        tokens = logits.argmax(-1)  # (A,); two log-probs may be equal where the logits are not
    else:
        # The likeliest token's logit is 0 before the division: a tiny temperature cannot overflow.
        shifted = logprobs - logprobs.amax(-1, keepdim=True)
        probs = (shifted.double() / temperature).softmax(-1)
        if top_p < 1:
            falling = probs.sort(dim=-1, descending=True).values
            kept = falling.cumsum(-1) - falling < top_p  # (A, V); the first one always
            least = falling.masked_fill(~kept, 2.0).amin(-1, keepdim=True)
            probs = probs.masked_fill(probs < least, 0.0)
        # Cumulated in the order of the vocabulary: sorted, two tokens of almost equal probability
        # would change places by rounding alone, and batch size would change the sample.
        cdf = probs.cumsum(-1)
        target = uniforms[:, None] * cdf[:, -1:]
        # right=True skips tokens of probability 0; the clamp: the product may round up to the sum
        tokens = torch.searchsorted(cdf, target, right=True).clamp_(max=cdf.shape[1] - 1).squeeze(1)
    return tokens, logprobs.gather(1, tokens[:, None]).squeeze(1)


def prefill(model, cache, prompts, slots):
    """Write prompts (lists of ids) to their cache slots; logits (B, V) after their last tokens."""
    device = next(model.parameters()).device
    logits, start = [], 0
    while start < len(prompts):
        end, tokens = start, 0
        while end < len(prompts) and (end == start or tokens + len(prompts[end]) <= PREFILL_TOKENS):
            tokens += len(prompts[end])
            end += 1
        rows = [torch.tensor(ids) for ids in prompts[start:end]]
        lengths = torch.tensor([0] + [len(row) for row in rows])
        logits.append(
            model(
                torch.cat(rows).to(device),  # (N,)
                torch.cat([torch.arange(len(row)) for row in rows]).to(device),  # (N,)
                lengths.cumsum(0).to(device, torch.int32),  # (B + 1,)
                cache=cache,
                slots=torch.tensor(slots[start:end], device=device),
            )
        )
        start = end
    return torch.cat(logits)  # (B, V)


def admit(model, cache, prompts, entering, start, kept, more):
    """Bring the prompts of the entering sequences into slots start, start + 1, ...

    kept: (prompt index, its logits (V,)) of a prompt whose samples did not all fit last time, or
    None; the cache's last slot holds it. more: will the last prompt be asked for again? Returns
    logits (A, V), a row per sequence, and the next kept.
    """
    members = {}  # prompt -> slots of its entering samples
    for slot, seq in enumerate(entering, start):
        members.setdefault(seq.prompt, []).append(slot)
    spare = cache.slots - 1
    last_logits = {}
    if kept and kept[0] in members:
        cache.copy_slot(spare, members[kept[0]], len(prompts[kept[0]]))
        last_logits[kept[0]] = kept[1]
    new = [i for i in members if i not in last_logits]
    if new:
        rows = prefill(model, cache, [prompts[i] for i in new], [members[i][0] for i in new])
        last_logits |= dict(zip(new, rows, strict=True))
    for i in new:
        if members[i][1:]:
            cache.copy_slot(members[i][0], members[i][1:], len(prompts[i]))
    last = entering[-1].prompt
    if last in new and more:
        cache.copy_slot(members[last][0], [spare], len(prompts[last]))
    return torch.stack([last_logits[seq.prompt] for seq in entering]), (last, last_logits[last])


def schedule(waiting, slots, move):
    """Continuous batching. Yields (turn, start): the sequences that are to get one token each.

    start: None for all active ones; else the turn's sequences are new and take the slots start,
    start + 1, ... The caller sets `out.finish` of those that are done; they leave, and for each
    gap move(src, dst, length) is called: slot dst becomes what slot src holds.
    waiting: deque of Sequences, taken from its left.
    """
    active = []
    while waiting or active:
        # Every admission is a forward of its own: let a sixteenth of the slots run empty first.
        free, start = slots - len(active), None
        if waiting and free >= min(max(1, slots // 16), len(waiting)):
            turn, start = [waiting.popleft() for _ in range(min(free, len(waiting)))], len(active)
            active += turn
        yield (active if start is None else turn), start
        for slot in reversed(range(len(active))):
            if active[slot].out.finish:
                last = active.pop()
                if slot < len(active):
                    move(len(active), [slot], last.position)
                    active[slot] = last


def check(model, prompts, max_new_tokens, temperature, top_p, n, slots):
    """Raises UserError for settings or prompts that cannot be sampled from."""
    if not (0 <= temperature < float("inf") and 0 < top_p <= 1):
        raise UserError(
            f"temperature {temperature}, top_p {top_p}: need temperature >= 0 and 0 < top_p <= 1"
        )
    least = max_new_tokens if isinstance(max_new_tokens, int) else min(max_new_tokens, default=1)
    if min(least, n, slots) < 1:
        raise UserError(f"max_new_tokens {least}, n {n}, slots {slots}: each must be at least 1")
    context = model.config.max_position_embeddings
    for i, ids in enumerate(prompts):
        if not 0 < len(ids) < context:
            name = f"prompt {i}" if len(prompts) > 1 else "the prompt"
            raise UserError(
                f"{name} has {len(ids)} tokens, but the model's context is {context} "
                "(max_position_embeddings) and the answer needs room too: shorten the prompt"
            )


def sequences(model, prompts, max_new_tokens, wanted):
    """A deque of the wanted (prompt, sample) pairs as Sequences, those of a prompt in a row."""
    if isinstance(max_new_tokens, int):
        max_new_tokens = [max_new_tokens] * len(prompts)
    context = model.config.max_position_embeddings
    room = [min(m, context - len(p)) for m, p in zip(max_new_tokens, prompts, strict=True)]
    return deque(Sequence(i, k, len(prompts[i]), room[i]) for i, k in sorted(wanted))


def uniform(seq, seed):
    """The random number of the sequence's next token."""
    if seq.uniforms is None:
        # Philox counts from a key, so sample k of prompt i owns its numbers: neither the batch nor
        # the order of the sequences can change them.
        key = np.array([seed % 2**64, seq.sample], dtype=np.uint64)
        seq.uniforms = np.random.Generator(np.random.Philox(key=key)).random(seq.room)
    return seq.uniforms[len(seq.out.ids)]


def record(seq, token, logprob, stop_ids):
    """Add a chosen token to its sequence, and say if that was the last."""
    if logprob != logprob:
        raise UserError("the model's logits are not finite: the checkpoint has diverged")
    seq.out.logprobs.append(logprob)
    seq.token = token
    if token in stop_ids:
        seq.out.finish = "stop"
    else:
        seq.out.ids.append(token)
        seq.room -= 1
        seq.out.finish = None if seq.room else "length"


@torch.inference_mode()
def stream(
    model,
    prompts,
    stop_ids,
    max_new_tokens,
    temperature=0.0,
    top_p=1.0,
    n=1,
    seeds=None,
    slots=64,
    wanted=None,
):
    """Yields (prompt index, sample index, Completion so far) after every token of every sequence.

    The Completion is the same object each time and is final once `finish` is set. wanted: the
    (prompt index, sample index) pairs to make, None = samples 0 .. n-1 of every prompt. Other
    arguments as for generate().
    """
    check(model, prompts, max_new_tokens, temperature, top_p, n, slots)
    if wanted is None:
        wanted = [(i, k) for i in range(len(prompts)) for k in range(n)]
    if not wanted:
        return
    seeds = list(range(len(prompts))) if seeds is None else seeds
    waiting = sequences(model, prompts, max_new_tokens, wanted)
    longest = max(seq.position + seq.room for seq in waiting)
    # Where a prompt has several samples, one slot more keeps it while some are still entering.
    spare = int(len({seq.prompt for seq in waiting}) < len(waiting))
    slots = min(slots, len(waiting), max(1, CACHE_TOKENS // longest - spare))
    weight = next(model.parameters())
    cache = KVCache(model.config, slots + spare, longest, weight.dtype, weight.device)
    blocks, kept, uniforms = block_weights(model), None, None
    for turn, start in schedule(waiting, slots, cache.copy_slot):
        if start is None:
            tokens, positions = [seq.token for seq in turn], [seq.position for seq in turn]
            logits = decode_step(model, blocks, cache, tokens, positions)
            for seq in turn:
                seq.position += 1
        else:
            more = bool(waiting) and waiting[0].prompt == turn[-1].prompt
            logits, kept = admit(model, cache, prompts, turn, start, kept, more)
        if temperature > 0:
            uniforms = [uniform(seq, seeds[seq.prompt]) for seq in turn]
            uniforms = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
        tokens, logprobs = choose(logits, uniforms, temperature, top_p)
        for seq, token, logprob in zip(turn, tokens.tolist(), logprobs.tolist(), strict=True):
            record(seq, token, logprob, stop_ids)
            yield seq.prompt, seq.sample, seq.out


def generate(
    model,
    prompts,
    stop_ids,
    max_new_tokens,
    temperature=0.0,
    top_p=1.0,
    n=1,
    seeds=None,
    slots=64,
    progress=None,
):
    """n sampled continuations of every prompt: a list per prompt of n Completions.

    prompts: lists of token ids, BOS included. stop_ids: ids that end an answer. max_new_tokens:
    longest answer, one number or a list with one per prompt. seeds: one int per prompt (default 0,
    1, ...); sample k of prompt i depends on (seeds[i], k) only, not on batch size, slots or order.
    slots: sequences decoded together, fewer where as many times the longest prompt + answer would
    exceed CACHE_TOKENS. progress: title of a progress bar, None for none.
    Raises UserError for a prompt that leaves no room in the context.
    """
    done = [[None] * n for _ in prompts]
    with tqdm(total=len(prompts) * n, desc=progress, disable=progress is None, unit="seq") as bar:
        for i, k, completion in stream(
            model, prompts, stop_ids, max_new_tokens, temperature, top_p, n, seeds, slots
        ):
            if completion.finish:
                done[i][k] = completion
                bar.update()
    return done


def answer(model, tokenizer, messages, cfg, seed):
    """Print the answer to a conversation as it comes; returns its text."""
    shown = ""
    for _, _, completion in stream(
        model,
        [tokenizer.prompt(messages)],
        tokenizer.stop_ids,
        cfg.max_new_tokens,
        cfg.temperature,
        cfg.top_p,
        seeds=[seed],
    ):
        text = tokenizer.decode(completion.ids)
        if completion.finish or not text.endswith("\ufffd"):  # half a character: wait for the rest
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print()
    if completion.finish == "length":
        print(f"(cut off after {len(completion.ids)} tokens)", file=sys.stderr)
    return shown


def chat(model, tokenizer, cfg):
    """Conversation in the terminal until Ctrl-D; the oldest turns go when the context is full."""
    # Bytes that are no UTF-8 become surrogates, which the tokenizer refuses: one line, not the end
    sys.stdin.reconfigure(errors="surrogateescape")
    messages = []
    while True:
        try:
            text = input("> ")
        except EOFError:
            print()
            return
        if not text.strip():
            continue
        messages.append({"role": "user", "content": text})
        room = model.config.max_position_embeddings - 1
        try:
            while len(messages) > 1 and len(tokenizer.prompt(messages)) > room:
                del messages[:2]
            reply = answer(model, tokenizer, messages, cfg, cfg.seed + len(messages))
        except UserError as error:  # longer than the context, no UTF-8: say so, go on talking
            print(f"error: {error}", file=sys.stderr)
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": reply})


def load(path, device="auto", dtype="auto", ranks=False):
    """(model, tokenizer) of a checkpoint folder, ready to sample. UserError under torchrun, unless
    ranks=True: then every rank gets the whole model, for work of its own."""
    _, world, device = parallel.init(device)
    if world > 1 and not ranks:
        raise UserError("sampling runs as a single process: python, not torchrun")
    tokenizer = Tokenizer(path)
    model = Llama.from_pretrained(path, device, parallel.auto_dtype(dtype, device)).eval()
    tokenizer.check_fits(model.config.vocab_size)
    return model, tokenizer


def main(cfg):
    check_range(cfg, ("max_new_tokens",), ("temperature",))
    if not cfg.chat and not cfg.prompt.strip():
        raise UserError('nothing to answer: give --prompt "some text", or --chat')
    model, tokenizer = load(cfg.init_from, cfg.device, cfg.dtype)
    if cfg.chat:
        chat(model, tokenizer, cfg)
    else:
        answer(model, tokenizer, [{"role": "user", "content": cfg.prompt}], cfg, cfg.seed)


if __name__ == "__main__":
    with parallel.clean_exit():
        main(parse(Config))
