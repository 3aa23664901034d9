"""The judge of a solution: what it is asked, who answers, and how strictly its reply is read.

    outcome  (FAP): is the final answer the reference's?       -> Correctness: correct | wrong
    stepwise (SCP): where does the solution leave the path?    -> quotes and one corrected step
    rating   (MT-Bench): how good is the last reply of a chat? -> [[1]] to [[10]]

A generative reward model in the sense of arXiv:2501.04961 section 5.3: prompted, and always given
the reference answer. Three judges answer the same requests: an OpenAI-compatible endpoint
(endpoint.py), a local checkpoint (a large one, or a small one trained on verdicts), and a
comparison of final answers by rule. Two more kinds are about texts of a corpus (text_prompts.py).
"""

import json
import re
import time
from collections import Counter
from typing import NamedTuple

from config import UserError, unique
from endpoint import Unanswered
from extract import judged_by_rule
from generate import stream
from jsonl import sha
from text_prompts import TEXT_KEYS, TEXT_PROMPTS, misfit, strings

OUTCOME = """\
Below are a question, a reference answer and an answer somebody proposes. Decide whether the \
proposal arrives at the reference's final answer.

<question>
{question}
</question>
<reference>
{reference}
</reference>
<answer>
{answer}
</answer>

Take the final answer out of the reference and out of the proposal (an option letter, a number, a \
short text) and compare the two. Do not solve the question yourself and do not mark the way that \
leads there. A proposal that commits itself to no final answer, or to more than one, is wrong.
Reply with one JSON object and nothing else:
{{"Justification": "<the two final answers and how they compare, at most 100 words>", \
"Correctness": "<correct or wrong>"}}"""

STEPWISE = """\
Below are a question, a reference answer and a solution. Find the step at which the solution \
first goes wrong, and write that step as it should have been.

<question>
{question}
</question>
<reference>
{reference}
</reference>
<answer>
{answer}
</answer>

Reply with one JSON object and nothing else, with these keys:
"Justification": at most 100 words: what is wrong with the step, why everything before it is \
right, and how the correction puts the solution back on its way.
"First incorrect step": the first wrong step, quoted character by character: a step on the way, \
not the final answer.
"Reasoning up to incorrect": everything before that step, quoted character by character; empty if \
the first step is already wrong.
"Step correction": the one step that should follow from the question and the reasoning so far: a \
single correct step, neither a question nor a comment on the task.
If no step on the way is wrong, leave the last three empty."""

RATING = """\
Below are a conversation, a reference for the reply that is due, and the reply an assistant gave. \
Rate that last reply: is it helpful, to the point, correct, thorough enough and as detailed as was \
asked for? Earlier turns count only as what the reply has to fit. If a reference is given, a reply \
that contradicts it is wrong. Length in itself earns nothing.

<question>
{question}
</question>
<reference>
{reference}
</reference>
<answer>
{answer}
</answer>

Explain your judgement in at most 100 words. Then end with the rating, a number from 1 (useless) \
to 10 (could not be better), in double brackets, exactly like this: Rating: [[5]]"""

PROMPTS = {"outcome": OUTCOME, "stepwise": STEPWISE, "rating": RATING} | TEXT_PROMPTS
OF_SOLUTIONS = ("outcome", "stepwise")  # the kinds that make pairs, in the order of asking
KEYS = {
    "outcome": {"Justification", "Correctness"},
    "stepwise": {
        "Justification",
        "First incorrect step",
        "Reasoning up to incorrect",
        "Step correction",
    },
} | TEXT_KEYS
TAG = re.compile(r"<(?=\s*/?\s*(?:question|reference|answer|passage)\b)", re.I)
# No text: control characters, half surrogates, and U+FFFD, which stands for bytes that were none.
BROKEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffd]")
CONTROL = re.compile(r"<\|[^\s|<>]+\|>")  # <|eot_id|> in letters: no solution, whoever wrote it


# ---- the question and its reply -----------------------------------------------------------------


def shield(text):
    """Text that cannot open or close a part of the prompt; every character keeps its place."""
    return TAG.sub("‹", text)


def build_request(kind, attempt, question, reference, answer, model, max_tokens, seed):
    """The body of a chat request. Attempt 1 is greedy, the next ones sample with other seeds."""
    parts = {"question": question, "reference": reference, "answer": answer}
    text = PROMPTS[kind].format(**{name: shield(part) for name, part in parts.items()})
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0.0 if attempt == 1 else 0.7,
        "max_tokens": max_tokens,
        "seed": seed + attempt - 1,
    }


def parse_reply(raw, finish, kind):
    """(object, None) or (None, why it is invalid): one JSON object with exactly its keys."""
    if finish != "stop":
        return None, f"reply ended by {finish}"
    text = raw.rpartition("</think>")[2].strip()  # what a reasoning model said to itself
    if kind == "rating":
        return parse_rating(text)
    fence = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, re.S)
    try:
        parsed = json.loads(fence[1] if fence else text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        return None, "reply is not one JSON object"
    if not isinstance(parsed, dict) or set(parsed) != KEYS[kind]:
        return None, "reply has other keys than asked for"
    if reason := misfit(parsed, kind):
        return None, reason
    if any(map(BROKEN.search, strings(parsed))):
        return None, "reply has a value that is not plain text"
    if kind == "outcome" and parsed["Correctness"] not in ("correct", "wrong"):
        return None, "Correctness is neither correct nor wrong"
    if kind == "stepwise":
        step, correction = parsed["First incorrect step"].strip(), parsed["Step correction"].strip()
        if bool(step) != bool(correction) or not step and parsed["Reasoning up to incorrect"]:
            return None, "a step without correction, or the other way round"
    return parsed, None


def parse_rating(text):
    """The same for a rating: one number in double brackets, from 1 to 10."""
    found = {float(number) for number in re.findall(r"\[\[\s*(\d{1,3}(?:\.\d+)?)\s*\]\]", text)}
    if len(found) != 1:
        return None, "reply has no rating in double brackets" if not found else "several ratings"
    rating = found.pop()
    if not 1 <= rating <= 10:
        return None, "rating is not from 1 to 10"
    return {"Justification": text, "Rating": rating}, None


def quoted(quote):
    """Pattern of a quote: runs of white space count as equal, and it may not begin or end inside a
    word or number."""
    words = quote.split()
    begin = r"(?<!\w)" if re.match(r"\w", words[0]) else ""
    end = r"(?!\w|[.,]\d)" if re.search(r"\w$", words[-1]) else ""
    return begin + r"\s+".join(map(re.escape, words)) + end


def locate(text, prefix, step):
    """(start, end) of the quoted step in a solution, None if the quotes are not in it.

    The prefix must stand directly before the step, and an empty one means the solution's very
    start.
    """
    if not step.strip():
        return None
    before = quoted(prefix) if prefix.strip() else r"\A"
    found = re.search(rf"{before}\s*({quoted(step)})", shield(text))
    return found.span(1) if found else None


def wrong_span(text, parsed):
    """(start, end) in a solution of the wrong step that a stepwise reply quotes, or None."""
    return locate(text, parsed["Reasoning up to incorrect"], parsed["First incorrect step"])


BLANK = r"[^\S\n]"  # a step does not begin in one line and go on in the next
STEP = re.compile(
    rf"\n+|\bstep{BLANK}+\d+{BLANK}*[:.)]|\b(?:(?:the|final){BLANK}+)*answer{BLANK}*:", re.I
)


def split_steps(text):
    """(start, end) of each step of a solution: lines, and within a line whatever begins with
    `Step 3:` or `Answer:`. Marks alone (`##`) go with what follows, at the end with the last."""
    cuts, spans, start = [m.start() for m in STEP.finditer(text)], [], 0
    for end in [*cuts, len(text)]:
        piece = text[start:end]
        if re.search(r"\w", piece) or end == len(text) and piece.strip():
            spans.append((end - len(piece.lstrip()), start + len(piece.rstrip())))
            start = end
    if len(spans) > 1 and not re.search(r"\w", text[slice(*spans[-1])]):  # marks at the end
        spans[-2:] = [(spans[-2][0], spans[-1][1])]
    return spans


# ---- judges that need no endpoint ---------------------------------------------------------------


def ask_exact(bodies, trajectories):
    """The comparison by rule, in the form of a judge's replies."""
    for i, record in enumerate(trajectories):
        rule = judged_by_rule(record["text"], record.get("answer"))
        why = f"The final answer is {rule['final']}, the reference's is {record.get('answer')}."
        parsed = {"Justification": why, "Correctness": "correct" if rule["correct"] else "wrong"}
        reply = {"raw": json.dumps(parsed, ensure_ascii=False), "finish": "stop", "usage": {}}
        yield i, reply | {"latency_s": 0.0, "tries": 1}


def ask_local(bodies, model, tokenizer):
    """The same from a local checkpoint: the request as a user message in its chat template."""
    context = model.config.max_position_embeddings
    groups = {}  # one batch per temperature
    for i, body in enumerate(bodies):
        ids = tokenizer.prompt(body["messages"])
        if len(ids) < context:
            groups.setdefault((body["temperature"], body["max_tokens"]), []).append((i, ids))
        else:
            reason = f"the request is longer than the judge's context of {context}"
            yield i, Unanswered(reason, refused=True)
    start = time.monotonic()
    for (temperature, max_tokens), members in groups.items():
        order, prompts = zip(*members, strict=True)
        # Of the whole request: with one seed the votes on all solutions would draw the same numbers
        seeds = [int(sha(bodies[i])[:15], 16) for i in order]
        for j, _, out in stream(
            model, prompts, tokenizer.stop_ids, max_tokens, temperature, seeds=seeds
        ):
            if out.finish:
                usage = {"prompt_tokens": len(prompts[j]), "completion_tokens": len(out.logprobs)}
                reply = {"raw": tokenizer.decode(out.ids), "finish": out.finish, "usage": usage}
                seconds = round(time.monotonic() - start, 3)
                yield order[j], reply | {"latency_s": seconds, "tries": 1}


# ---- the log of verdicts ------------------------------------------------------------------------


def unusable(record):
    """Why a solution is neither judged nor used, or None."""
    text = record.get("text") or ""
    if record["finish"] != "stop":
        return {"length": "cut off"}.get(record["finish"], f"ended by {record['finish']}")
    if not text.strip():
        return "empty"
    if BROKEN.search(text):
        return "with broken characters"
    return "with a control token" if CONTROL.search(text) else None


def finding(verdict):
    """What a valid verdict says: correct | wrong, a rating, a score, the exercises, or the first
    wrong step's index, -1 = none."""
    if verdict["kind"] == "exercises":
        return json.dumps([verdict["parsed"][name] for name in ("Questions", "Answer")])
    key = {"outcome": "Correctness", "rating": "Rating", "quality": "Score"}.get(verdict["kind"])
    return verdict["parsed"][key] if key else verdict["first_error"]


def decide(verdicts):
    """The verdict that counts among those of one kind on one solution: the first with the most
    frequent finding. Invalid ones have no vote; a tie is no finding (`parsed` null)."""
    votes = Counter(finding(verdict) for verdict in verdicts if verdict["parsed"])
    if not votes:
        return verdicts[-1]
    (found, most), *others = votes.most_common()
    if others and others[0][1] == most:
        return verdicts[-1] | {"parsed": None, "reason": "votes tied"}
    return next(v for v in verdicts if v["parsed"] and finding(v) == found)


def decided(logged):
    """{(trajectory id, kind): the verdict that counts} of a log of verdicts."""
    groups = {}
    for verdict in logged.values():
        groups.setdefault((verdict["trajectory"], verdict["kind"]), []).append(verdict)
    in_order = (sorted(verdicts, key=lambda v: v["attempts"]) for verdicts in groups.values())
    return dict(zip(groups, map(decide, in_order), strict=True))


def request_parts(record):
    """(question, reference, answer) of a trajectory, as a judge reads them."""
    question = record["prompt"][0]["content"]
    if len(record["prompt"]) > 1:
        question = "\n\n".join(f"{m['role']}: {m['content']}" for m in record["prompt"])
    reference = "\n".join(filter(None, [record.get("solution"), record.get("answer")]))
    return question, reference or "(none is given)", record["text"]


class Request(NamedTuple):
    id: str  # of the verdict to come
    kind: str
    attempt: int
    body: dict
    trajectory: dict


def next_request(cfg, model, record, logged):
    """The Request that a trajectory needs next, or None.

    A kind of verdict is asked for until `votes` replies are valid, votes * asks times at most. The
    kinds are a solution's, unless the record has its own `kinds`.
    """
    kinds = record.get("kinds") or OF_SOLUTIONS
    for kind in kinds:
        seen = []
        for attempt in range(1, cfg.votes * cfg.asks + 1):
            name = f"{record['id']}/{kind}/{attempt}"
            body = build_request(
                kind, attempt, *request_parts(record), model, cfg.max_tokens, cfg.seed
            )
            verdict = logged.get(name)
            if verdict is None:
                return Request(name, kind, attempt, body, record)
            if verdict["request_sha"] != sha(body):
                raise UserError(f"{cfg.verdicts}: {name}: was asked of another judge or with other "
                                "settings: take another --verdicts")  # fmt: skip
            seen.append(verdict)
            if sum(verdict["parsed"] is not None for verdict in seen) == cfg.votes:
                break
        verdict = decide(seen)
        if kind == kinds[-1] or not verdict["parsed"] or cfg.stepwise == "none":
            return None
        if cfg.stepwise == "wrong" and verdict["parsed"]["Correctness"] == "correct":
            return None


def read_verdict(request, judge, reply):
    """The record of one reply to one request. Invalid: `parsed` null, `reason` says why."""
    name, kind, attempt, body, record = request
    parsed, reason = parse_reply(reply["raw"], reply["finish"], kind)
    first_error = correction = None
    if parsed and kind == "stepwise":
        span = wrong_span(record["text"], parsed)
        if not parsed["First incorrect step"].strip():
            first_error = -1  # no step on the way is wrong
        elif span is None:
            parsed, reason = None, "quotes are not in the solution"
        else:
            # The step in which the quote begins: a judge may quote half of it
            first_error = sum(end <= span[0] for _, end in split_steps(record["text"]))
            correction = parsed["Step correction"].strip()
    raw = reply["raw"].replace("\0", "\ufffd")  # the strict reader refuses NUL
    verdict = {"id": name, "trajectory": record["id"], "request_sha": sha(body), "judge": judge}
    verdict |= {"kind": kind, "raw": raw, "parsed": parsed, "reason": reason}
    verdict |= {"first_error": first_error, "correction": correction, "attempts": attempt}
    verdict |= {"settings": {k: body[k] for k in ("model", "temperature", "max_tokens", "seed")}}
    verdict |= {"letters": sum(len(message["content"]) for message in body["messages"])}
    return verdict | {name: reply[name] for name in ("finish", "tries", "latency_s", "usage")}
