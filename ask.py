"""The model is asked: prompts, log-likelihoods of choices, replies."""

import numpy as np
import torch
from tqdm import tqdm

import packing
from answers import judge_choices, judge_reply
from config import UserError
from generate import generate
from jsonl import sha

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
