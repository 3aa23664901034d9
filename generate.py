"""Sampling from a Llama with a KV cache, many prompts at a time.

    waiting -> prefill (packed, each prompt once) -> slots 0 .. A-1 of the cache -> decode: one
    forward gives one token to each -> the finished leave, the next ones enter

Continuous batching: no sequence waits for the longest answer of its batch. The n samples of a
prompt share one prefill; the others start from a copy of its cache slot.

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
    uniforms: np.ndarray  # one random number per token to come
    out: Completion = field(default_factory=Completion)
    token: int = -1  # sampled last, not yet in the cache


def choose(logits, uniforms, temperature, top_p):
    """Next tokens (A,) and their untempered log-probs (A,) from logits (A, V), uniforms (A,) < 1.

    Inverse CDF: the token is where the cumulated probability passes the sequence's own uniform
    number, so it does not depend on the other rows. Top-p (arXiv:1904.09751) keeps the smallest
    set of tokens with at least that mass, always with the likeliest one.
    """
    logprobs = logits.float().log_softmax(-1)  # (A, V)
    if temperature == 0:
        tokens = logprobs.argmax(-1)  # (A,)
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


def admit(model, cache, prompts, n, entering, start, kept):
    """Bring the prompts of the entering sequences into slots start, start + 1, ...

    kept: (prompt index, its logits (V,)) of a prompt whose samples did not all fit last time, or
    None; the cache's last slot holds it. Returns logits (A, V), a row per sequence, and the next
    kept.
    """
    members = {}  # prompt -> slots of its entering samples
    for slot, seq in enumerate(entering, start):
        members.setdefault(seq.prompt, []).append(slot)
    spare = cache.k.shape[1] - 1
    last_logits = {}
    if kept and kept[0] in members:
        cache.copy_slot(spare, members[kept[0]])
        last_logits[kept[0]] = kept[1]
    new = [i for i in members if i not in last_logits]
    if new:
        rows = prefill(model, cache, [prompts[i] for i in new], [members[i][0] for i in new])
        last_logits |= dict(zip(new, rows, strict=True))
    for i in new:
        if members[i][1:]:
            cache.copy_slot(members[i][0], members[i][1:])
    last = entering[-1].prompt
    if last in new and entering[-1].sample < n - 1:
        cache.copy_slot(members[last][0], [spare])
    return torch.stack([last_logits[seq.prompt] for seq in entering]), (last, last_logits[last])


def decode(model, cache, active):
    """One more token into every sequence; logits (A, V)."""
    device = next(model.parameters()).device
    rows = torch.tensor([(seq.token, seq.position) for seq in active], device=device)
    cu_seqlens = torch.arange(len(active) + 1, device=device, dtype=torch.int32)
    for seq in active:
        seq.position += 1
    # Without `slots` row r is slot r: the cache is read in place, not gathered.
    return model(rows[:, 0].contiguous(), rows[:, 1].contiguous(), cu_seqlens, cache=cache)


def leave(cache, active):
    """Drop the finished from the active list; the last ones move into the slots that fall free."""
    for slot in reversed(range(len(active))):
        if active[slot].out.finish:
            moved = active.pop()
            if slot < len(active):
                cache.copy_slot(len(active), [slot])
                active[slot] = moved


def check(model, prompts, max_new_tokens, temperature, top_p, n, slots):
    """Raises UserError for settings or prompts that cannot be sampled from."""
    if not (0 <= temperature < float("inf") and 0 < top_p <= 1):
        raise UserError(
            f"temperature {temperature}, top_p {top_p}: need temperature >= 0 and 0 < top_p <= 1"
        )
    if min(max_new_tokens, n, slots) < 1:
        raise UserError(
            f"max_new_tokens {max_new_tokens}, n {n}, slots {slots}: each must be at least 1"
        )
    context = model.config.max_position_embeddings
    for i, ids in enumerate(prompts):
        if not 0 < len(ids) < context:
            name = f"prompt {i}" if len(prompts) > 1 else "the prompt"
            raise UserError(
                f"{name} has {len(ids)} tokens, but the model's context is {context} "
                "(max_position_embeddings) and the answer needs room too: shorten the prompt"
            )


@torch.no_grad()
def stream(
    model, prompts, stop_ids, max_new_tokens, temperature=0.0, top_p=1.0, n=1, seeds=None, slots=64
):
    """Yields (prompt index, sample index, Completion so far) after every token of every sequence.

    The Completion is the same object each time and is final once `finish` is set. Arguments as
    for generate().
    """
    check(model, prompts, max_new_tokens, temperature, top_p, n, slots)
    if not prompts:
        return
    seeds = list(range(len(prompts))) if seeds is None else seeds
    context = model.config.max_position_embeddings
    room = [min(max_new_tokens, context - len(ids)) for ids in prompts]
    weight = next(model.parameters())
    longest = max(len(ids) + more for ids, more in zip(prompts, room, strict=True))
    # With several samples one slot more keeps the prompt whose samples are still entering.
    spare = int(n > 1)
    slots = min(slots, len(prompts) * n, max(1, CACHE_TOKENS // longest - spare))
    cache = KVCache(model.config, slots + spare, longest, weight.dtype, weight.device)
    waiting = deque((i, k) for i in range(len(prompts)) for k in range(n))
    active, kept = [], None
    while waiting or active:
        # Every admission is a forward of its own: let a sixteenth of the slots run empty first.
        free = slots - len(active)
        if waiting and free >= min(max(1, slots // 16), len(waiting)):
            turn = []
            for _ in range(min(free, len(waiting))):
                i, k = waiting.popleft()
                # Philox counts from a key, so sample k of prompt i owns its numbers: neither the
                # batch nor the order of the sequences can change them.
                key = np.array([seeds[i] % 2**64, k], dtype=np.uint64)
                uniforms = np.random.Generator(np.random.Philox(key=key)).random(room[i])
                turn.append(Sequence(i, k, len(prompts[i]), room[i], uniforms))
            logits, kept = admit(model, cache, prompts, n, turn, len(active), kept)
            active += turn
        else:
            turn = list(active)
            logits = decode(model, cache, turn)
        uniforms = [seq.uniforms[len(seq.out.ids)] for seq in turn]
        uniforms = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
        tokens, logprobs = choose(logits, uniforms, temperature, top_p)
        for seq, token, logprob in zip(turn, tokens.tolist(), logprobs.tolist(), strict=True):
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
            yield seq.prompt, seq.sample, seq.out
        leave(cache, active)


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

    prompts: lists of token ids, BOS included. stop_ids: ids that end an answer. seeds: one int per
    prompt (default 0, 1, ...); sample k of prompt i depends on (seeds[i], k) only, not on batch
    size, slots or order. slots: sequences decoded together, fewer where as many times the longest
    prompt + answer would exceed CACHE_TOKENS. progress: title of a progress bar, None for none.
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


def load(path, device="auto", dtype="auto"):
    """(model, tokenizer) of a checkpoint folder, ready to sample. UserError under torchrun."""
    _, world, device = parallel.init(device)
    if world > 1:
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
