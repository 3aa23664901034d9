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
# Kinds of answers that have no blank line in them
ONE_PARAGRAPH = ("label", "letter", "text", "blank", "number", "short", "entities", "exact", "exam")


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
    left_out: list = None  # "row ID: reason" of rows that could not be asked, of the task at hand

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
        raise UserError(f"choices: one of {max(map(len, choices))} tokens exceeds the model's "
                        f"context of {limit}")  # fmt: skip
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
    """[(arguments, resps, log-probs of the choices, truncated)], one per row; None of a row that
    cannot be asked, with the reason in asker.left_out."""
    limit, tokenizer = asker.model.config.max_position_embeddings, asker.tokenizer
    asked = []  # (key, (context, choice) pairs) of each row, None of one that cannot be asked
    families, owner, parts = [], [], {}  # parts: key -> [log-probs of each of its families]
    for row in rows:
        try:
            pairs = prompts.encode_choices(tokenizer, task, way, row, shots)
            found = choice_families(pairs, limit)
        except UserError as e:
            asker.left_out.append(f"row {row['id']}: {e}")
            asked.append(None)
            continue
        asked.append((key := asker.key("choices", pairs), pairs))
        if key not in asker.records and key not in parts:
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
    for row_asked in asked:
        if row_asked is None:
            answers.append(None)
            continue
        key, pairs = row_asked
        scores = asker.records[key]["logprobs"]
        seen = [((context + c)[-(limit + 1) : -len(c)], c) for context, c in pairs]
        texts = [[tokenizer.decode(ids, skip_special=False) for ids in pair] for pair in seen]
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

    -> {key: why the server refuses it}: prompts that it would refuse another time, too. UserError,
    when all that came is in the log, if others did not come, or if it refuses everything.
    """
    cfg, failed, refused = asker.cfg, [], {}
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    check_endpoint(cfg.base_url, key)
    names, bodies = list(jobs), []
    for name, (said, temperature) in jobs.items():
        body = {"model": cfg.model, "messages": said, "temperature": temperature}
        bodies.append(body | {"max_tokens": new_tokens, "seed": int(name[:7], 16)})
    replies = ask_http(bodies, cfg, key)
    for i, reply in tqdm(replies, title, len(bodies), unit="reply", disable=title is None):
        if not isinstance(reply, Unanswered):
            asker.add({"id": names[i], "text": clean(reply["raw"]), "finish": reply["finish"]})
        elif reply.refused:
            refused[names[i]] = str(reply)
        else:
            failed.append(str(reply))
    missing = [name for name in names if name not in asker.records]
    if len(missing) > len(refused) or missing and not asker.records:
        first = (failed or [*refused.values()] or ["not asked"])[0]
        raise UserError(f"{cfg.base_url} left {len(missing):,} of {len(names):,} prompts without a "
                        f"reply, the first with: {first}. All replies are kept: the same command "
                        "goes on")  # fmt: skip
    return refused


def clean(text):
    """The strict reader of a log refuses NUL."""
    return text.replace("\0", "\ufffd")


def shortened(ids, limit):
    """A prompt of at most `limit` ids: cut in the middle, as instructions stand at its beginning
    and the question at its end."""
    head = limit // 4
    return ids if len(ids) <= limit else ids[:head] + ids[head - limit :]


def replies_to(asker, task, way, rows, shots, said, title):
    """[(argument, {"text", "finish"}, truncated)] for the last user turns `said` of rows; None of a
    row that cannot be asked, with the reason in asker.left_out."""
    asked, jobs, refused = [], {}, {}
    for row, words in zip(rows, said, strict=True):
        warm = TEMPERATURE.get(row.get("category"), 0.0) if task.answer == "chat" else 0.0
        truncated = False
        try:
            if asker.model is None:
                prompt = prompts.messages(task, way, row, shots, words)
                shown = "\n\n".join(f"{m['role']}: {m['content']}" for m in prompt)
            else:
                ids = prompts.encode_prompt(asker.tokenizer, task, way, row, shots, words)
                room = asker.model.config.max_position_embeddings
                limit = max(room // 2, room - way.max_new_tokens)  # a small context: half and half
                prompt, truncated = shortened(ids, limit), len(ids) > limit
                shown = asker.tokenizer.decode(prompt, skip_special=False)
        except UserError as e:
            asker.left_out.append(f"row {row['id']}: {e}")
            asked.append(None)
            continue
        key = asker.key("reply", prompt, way.max_new_tokens, warm)
        kwargs = {"do_sample": warm > 0, "max_gen_toks": way.max_new_tokens}
        asked.append((key, [shown, kwargs | ({"temperature": warm} if warm else {})], truncated))
        if key not in asker.records:
            jobs[key] = prompt, warm
    if jobs and asker.model is None:
        refused = server_replies(asker, jobs, way.max_new_tokens, title)
    elif jobs:
        local_replies(asker, jobs, way.max_new_tokens, title)
    found = []
    for row, row_asked in zip(rows, asked, strict=True):
        if row_asked and row_asked[0] in refused:
            asker.left_out.append(f"row {row['id']}: refused: {refused[row_asked[0]]}")
            row_asked = None
        key, argument, truncated = row_asked or (None, None, None)
        found.append(row_asked and (argument, asker.records[key], truncated))
    return found


def ask_replies(asker, task, way, rows, shots, title):
    """[(arguments, resps, replies, truncated, finish)], one per row; a chat has several replies."""
    turns = [row["turns"] if task.answer == "chat" else [prompts.question(task, way, row)]
             for row in rows]  # fmt: skip
    talks = [[turn[0]] for turn in turns]  # user, assistant, user ...
    answers = [([], [], [], False, "stop") for _ in rows]
    for k in range(max(map(len, turns))):
        here = [i for i, turn in enumerate(turns) if k < len(turn) and answers[i]]
        if k:
            for i in here:
                talks[i] += [answers[i][2][-1], turns[i][k]]
        name = title and (f"{title}, turn {k + 1}" if k else title)
        said = [talks[i] for i in here]
        found = replies_to(asker, task, way, [rows[i] for i in here], shots, said, name)
        for i, row_found in zip(here, found, strict=True):
            if row_found is None:
                answers[i] = None
                continue
            argument, reply, truncated = row_found
            text, ended = reply.get("text") or "", reply["finish"]
            if not way.chat_template and way.style == "direct" and task.answer in ONE_PARAGRAPH:
                # Without a template nothing else ends an answer: the model writes the next question
                first, more, _ = text.partition("\n\n")
                text, ended = first, "stop" if more else ended
            arguments, resps, texts, cut, finish = answers[i]
            finish = finish if finish != "stop" else ended
            answers[i] = ([*arguments, argument], [*resps, [text]], [*texts, text],
                          cut or truncated, finish)  # fmt: skip
    return answers


# Samples -------------------------------------------------------------------------------------


def samples_of(asker, task, way, rows, shots, scorer, title):
    """The sample log of rows: one entry each, scored by a module with answers.py's functions."""
    samples = []
    if way.mode == "loglikelihood":
        found = ask_choices(asker, task, way, rows, shots, title)
        for row, row_found in zip(rows, found, strict=True):
            if row_found is None:
                continue
            arguments, resps, scores, truncated = row_found
            prediction, values = scorer.judge_choices(task, row, scores)
            entry = sample(row, arguments, resps, [pair for [pair] in resps], prediction, values)
            samples.append(entry | {"strict": prediction, "truncated": truncated, "finish": None})
        return samples
    found = ask_replies(asker, task, way, rows, shots, title)
    for row, row_found in zip(rows, found, strict=True):
        if row_found is None:
            continue
        arguments, resps, texts, truncated, finish = row_found
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
