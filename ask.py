"""Getting the answers: log-probs of choices, or replies, each asked for once.

    rows -> prompts -> answers that are in the log; the others from the model, longest first
         -> one sample per row, under lm-evaluation-harness's names

An answer is filed under the hash of everything it depends on: the weights, the tokenizer, the ids
of prompt and choices, the length limit. So an evaluation that was killed goes on where it was, and
another scorer or other tasks ask nothing again.
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import packing
import prompts
from config import UserError
from endpoint import Unanswered, ask_http, check_endpoint
from generate import stream
from jsonl import sha

ANSWER = {"id": str, "logprobs?": list, "text?": str, "finish?": str}  # a line of answers.jsonl
# MT-Bench's temperatures (FastChat's): what is to be creative is sampled, the rest greedy
TEMPERATURE = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}


@dataclass
class Asker:
    """Who answers, and where the answers are kept."""

    cfg: Any  # evaluate.Config
    identity: dict  # what tells this model from any other
    records: dict  # the log: hash -> answer
    add: Any  # add(record) appends to it
    model: Any = None  # None: the server answers
    tokenizer: Any = None
    device: Any = None

    def key(self, *asked):
        return sha([self.identity, *asked])


# Log-likelihoods -----------------------------------------------------------------------------


def choice_families(pairs, limit):
    """Families of one row's (context, choice) pairs: an equal context once, else documents.

    lm-eval keeps the last `limit` + 1 tokens of context + choice. Where choices of different
    length then leave different contexts, nothing can be shared. UserError: no context is left.
    """
    heads = [(context + c)[-(limit + 1) :][: -len(c)] for context, c in pairs]
    choices = [c for _, c in pairs]
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
    """Yields (index of the family, summed log-prob of each of its scored segments) as they come.

    Longest first and side by side in rows of about batch_tokens: like lengths share a forward,
    and what does not fit in memory fails at once.
    """
    sizes = [packing.size(family) for family in families]
    order, start = sorted(range(len(families)), key=lambda i: -sizes[i]), 0
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
                yield i, [value for value, is_choice in scored if is_choice]
            bar.update(tokens)
            start = stop


def ask_choices(asker, task, way, rows, shots, title):
    """[(arguments, resps, log-probs of the choices, truncated)], one per row."""
    limit, tokenizer = asker.model.config.max_position_embeddings, asker.tokenizer
    asked = [prompts.encode_choices(tokenizer, task, way, row, shots) for row in rows]
    keys = [asker.key("choices", pairs) for pairs in asked]
    families, owner, parts = [], [], {}  # parts: key -> [log-probs of each of its families]
    for row, key, pairs in zip(rows, keys, asked, strict=True):
        if key not in asker.records and key not in parts:
            try:
                found = choice_families(pairs, limit)
            except UserError as e:
                raise UserError(f"row {row['id']}: choices: {e}") from None
            families += found
            owner += [(key, i) for i in range(len(found))]
            parts[key] = [None] * len(found)
    for i, values in score_families(
        asker.model, families, asker.cfg.batch_tokens, asker.device, title
    ):
        key, part = owner[i]
        parts[key][part] = values
        if all(parts[key]):
            asker.add({"id": key, "logprobs": [value for values in parts[key] for value in values]})
    answers = []
    for key, pairs in zip(keys, asked, strict=True):
        scores = asker.records[key]["logprobs"]
        texts = [[tokenizer.decode(ids, skip_special=False) for ids in pair] for pair in pairs]
        pairs_of = [[value, None] for value in scores]  # lm-eval's (log-prob, is greedy)
        truncated = max(len(context) + len(c) for context, c in pairs) > limit + 1
        answers.append((texts, [[pair] for pair in pairs_of], scores, truncated))
    return answers


# Replies -------------------------------------------------------------------------------------


def local_replies(asker, jobs, new_tokens, title):
    """{key: {"text", "finish"}} of jobs {key: (ids, temperature)}, logged as they come."""
    model, tokenizer = asker.model, asker.tokenizer
    with tqdm(total=len(jobs), desc=title, unit="reply", disable=title is None) as bar:
        for temperature in sorted({t for _, t in jobs.values()}):
            # Longest first: what does not fit in memory fails at once
            mine = sorted(
                (k for k in jobs if jobs[k][1] == temperature), key=lambda k: -len(jobs[k][0])
            )
            events = stream(
                model, [jobs[k][0] for k in mine], tokenizer.stop_ids, new_tokens, temperature,
                seeds=[int(k[:15], 16) for k in mine], slots=asker.cfg.slots,
            )  # fmt: skip
            for i, _, out in events:
                if out.finish:
                    asker.add(
                        {
                            "id": mine[i],
                            "text": clean(tokenizer.decode(out.ids)),
                            "finish": out.finish,
                        }
                    )
                    bar.update()


def server_replies(asker, jobs, new_tokens, title):
    """The same from an OpenAI-compatible server; jobs {key: (messages, temperature)}.

    UserError, when all that came is in the log, if some did not come.
    """
    cfg, failed = asker.cfg, []
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    check_endpoint(cfg.base_url, key)
    names, bodies = list(jobs), []
    for name, (said, temperature) in jobs.items():
        body = {"model": cfg.model, "messages": said, "temperature": temperature}
        bodies.append(body | {"max_tokens": new_tokens, "seed": int(name[:7], 16)})
    replies = ask_http(bodies, cfg, key)
    for i, reply in tqdm(replies, title, len(bodies), unit="reply", disable=title is None):
        if isinstance(reply, Unanswered):
            failed.append(f"row of prompt {names[i][:10]}: {reply}")
        else:
            asker.add({"id": names[i], "text": clean(reply["raw"]), "finish": reply["finish"]})
    if missing := [name for name in names if name not in asker.records]:
        raise UserError(f"{cfg.base_url} left {len(missing):,} of {len(names):,} prompts without a "
                        f"reply, the first with: {failed[0] if failed else 'not asked'}. All "
                        "replies are kept: the same command goes on")  # fmt: skip


def clean(text):
    """The strict reader of a log refuses NUL."""
    return text.replace("\0", "\ufffd")


def replies_to(asker, task, way, rows, shots, said, title):
    """[(prompt as text, {"text", "finish"}, truncated)] for the last user turns `said` of rows."""
    asked, jobs = [], {}
    for row, words in zip(rows, said, strict=True):
        warm = TEMPERATURE.get(row.get("category"), 0.0) if task.answer == "chat" else 0.0
        truncated = False
        if asker.model is None:
            prompt = prompts.messages(task, way, row, shots, words)
            shown = "\n\n".join(f"{m['role']}: {m['content']}" for m in prompt)
        else:
            ids = prompts.encode_prompt(asker.tokenizer, task, way, row, shots, words)
            room = asker.model.config.max_position_embeddings
            limit = max(room // 2, room - way.max_new_tokens)  # a small context: half and half
            truncated = len(ids) > limit
            # The end of a prompt holds the question: cut behind BOS, and counted
            prompt = ids[:1] + ids[1 - limit :] if truncated else ids
            shown = asker.tokenizer.decode(prompt, skip_special=False)
        key = asker.key("reply", prompt, way.max_new_tokens, warm)
        asked.append((shown, key, truncated, warm))
        if key not in asker.records:
            jobs[key] = prompt, warm
    if jobs:
        ask = server_replies if asker.model is None else local_replies
        ask(asker, jobs, way.max_new_tokens, title)
    kwargs = {"do_sample": False, "max_gen_toks": way.max_new_tokens}
    return [
        ([shown, kwargs if not warm else kwargs | {"do_sample": True, "temperature": warm}],
         asker.records[key], truncated)
        for shown, key, truncated, warm in asked
    ]  # fmt: skip


def ask_replies(asker, task, way, rows, shots, title):
    """[(arguments, resps, replies, truncated, finish)], one per row; a chat has several replies."""
    turns = [row["turns"] if task.answer == "chat" else [prompts.question(task, way, row)]
             for row in rows]  # fmt: skip
    talks = [[turn[0]] for turn in turns]  # user, assistant, user ...
    answers = [([], [], [], False, "stop") for _ in rows]
    for k in range(max(map(len, turns))):
        here = [i for i, turn in enumerate(turns) if k < len(turn)]
        if k:
            for i in here:
                talks[i] += [answers[i][2][-1], turns[i][k]]
        said = [talks[i] for i in here]
        name = title and (f"{title}, turn {k + 1}" if k else title)
        found = replies_to(asker, task, way, [rows[i] for i in here], shots, said, name)
        for i, (argument, reply, truncated) in zip(here, found, strict=True):
            text = reply.get("text") or ""
            if not way.chat_template and way.style == "direct" and asker.model:
                text = text.split("\n\n")[0]  # a plain continuation ends with a blank line
            arguments, resps, texts, cut, finish = answers[i]
            arguments.append(argument)
            resps.append([text])
            texts.append(text)
            finish = finish if finish != "stop" else reply["finish"]
            answers[i] = arguments, resps, texts, cut or truncated, finish
    return answers


# Samples -------------------------------------------------------------------------------------


def samples_of(asker, task, way, rows, shots, scorer, title):
    """The sample log of rows: one entry each, scored by a module with answers.py's functions."""
    samples = []
    if way.mode == "loglikelihood":
        found = ask_choices(asker, task, way, rows, shots, title)
        for row, (arguments, resps, scores, truncated) in zip(rows, found, strict=True):
            prediction, values = scorer.judge_choices(task, row, scores)
            entry = sample(row, arguments, resps, [pair for [pair] in resps], prediction, values)
            samples.append(entry | {"strict": prediction, "truncated": truncated, "finish": None})
        return samples
    found = ask_replies(asker, task, way, rows, shots, title)
    for row, (arguments, resps, texts, truncated, finish) in zip(rows, found, strict=True):
        reply = "\n\n".join(texts)
        prediction, strict, values = scorer.judge_reply(task, row, reply, way.style)
        entry = sample(row, arguments, resps, [prediction], prediction, values)
        samples.append(entry | {"strict": strict, "truncated": truncated, "finish": finish})
    return samples


def sample(row, arguments, resps, filtered, prediction, values):
    """One line of samples_TASK.jsonl, under lm-eval's names, so that its viewers show it.

    The prompt's hash covers the text as the model saw it, template and system message included, and
    the choices: equal hashes mean that two checkpoints were asked the same.
    """
    prompts_of = arguments[:1] if "turns" in row else arguments  # later ones hold its own replies
    asked = [[part for part in parts if isinstance(part, str)] for parts in prompts_of]
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
