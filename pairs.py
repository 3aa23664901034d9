"""Preference pairs out of judged solutions: by outcome (FAP) and by process (SCP).

    FAP   question                             chosen: a correct solution   rejected: a wrong one
    SCP   question + prefix + "next step?"     chosen: a corrected step     rejected: the wrong one

arXiv:2501.04961 section 5.3. SCP has two layouts: the paper's asks for the next step in the user
message, and each step is a whole answer; the continuation goes on from the prefix within the
assistant's turn (arXiv:2406.18629), and a step ends the turn only if it is the solution's last.
The corrected step is the judge's, or the policy's own: the first of a continuation of the prefix
that arrives at the right answer (`reward.py correct`).
"""

import random
from collections import Counter
from dataclasses import dataclass
from math import lcm
from pathlib import Path

from config import UserError, check_choice, check_range
from extract import final_answers
from jsonl import sha, write_jsonl
from judge import decided, split_steps, unusable, wrong_span
from kinds import pair_parts
from logs import CONTINUATION, VERDICT, read_log, read_trajectories, tally
from tokenizer import Tokenizer

NEXT_STEP = "What is the next step?"


@dataclass
class Pairs:
    out_dir: str = "out/reward"  # holds trajectories.jsonl and the verdicts; gets the pairs
    verdicts: str = "verdicts.jsonl"  # log in out_dir to build on
    pairs: str = "pairs.jsonl"  # written in out_dir: rows for train_dpo.py and train_sft.py --pairs
    fap_per_prompt: int = 2  # pairs by outcome, at most
    scp_per_prompt: int = 2  # pairs by process, at most
    layout: str = "paper"  # of SCP: paper asks for the next step, continuation goes on mid-turn
    corrections: str = "judge"  # who writes the chosen steps: judge, or self (reward.py correct)
    agreed: bool = False  # use only solutions on whose outcome judge and rule agree
    flawed: bool = False  # let right answers with a wrong step on the way be chosen, too
    length_ratio: float = 0.0  # longest reply of a pair over the other, in words; 0 = any
    max_length: int = 0  # tokens of prompt + chosen + rejected, as train_dpo.py counts; 0 = any
    tokenizer: str = ""  # checkpoint folder, for --max_length
    balance: bool = False  # as many FAP as SCP pairs: some of the more frequent kind are left out
    seed: int = 0  # chooses among the possible pairs


# ---- what the verdicts say of one solution -------------------------------------------------------


def standing(record, verdicts, cfg):
    """ "correct", "wrong", or why a solution is not used."""
    if reason := unusable(record):
        return reason
    if not (record.get("answer") or "").strip():
        return "without reference answer"
    if len(final_answers(record["text"])) > 1:
        return "with two final answers"
    outcome = verdicts.get((record["id"], "outcome"))
    if not outcome or not outcome["parsed"]:
        return "without a valid verdict" if outcome else "not judged"
    word, rule = outcome["parsed"]["Correctness"], record.get("correct")
    if cfg.agreed and rule is not None and rule != (word == "correct"):
        return "on which judge and rule disagree"
    steps = verdicts.get((record["id"], "stepwise"))
    if word == "correct" and not cfg.flawed and steps and steps["parsed"]:
        return word if steps["first_error"] < 0 else "right with a wrong step"
    return word


def wrong_step(record, verdicts):
    """((start, end) of the first wrong step of a wrong solution, None), or (None, why not)."""
    outcome = verdicts.get((record["id"], "outcome"))
    if not outcome or not outcome["parsed"] or outcome["parsed"]["Correctness"] == "correct":
        return None, "not judged wrong"
    verdict = verdicts.get((record["id"], "stepwise"))
    if not verdict or not verdict["parsed"]:
        return None, "without a valid stepwise verdict"
    if verdict["first_error"] < 0:
        return None, "without a wrong step"
    span = wrong_span(record["text"], verdict["parsed"])
    return span, None if span else "changed since it was judged"


def prefix_of(text, span):
    """What stands before a step. Spaces belong to the word behind: most tokenizers cut there."""
    return text[: span[0]].rstrip(" \t") if text[: span[0]].strip() else ""


def prefix_id(prompt_id, prefix):
    """The name of a right beginning of a solution: equal ones are continued once."""
    return f"{prompt_id}/{sha(prefix)[:12]}"


# ---- FAP -----------------------------------------------------------------------------------------


def fap_pairs(name, members, verdicts, cfg, rng):
    """Pairs by outcome of one prompt's solutions: (pairs, the word under which it is counted).

    members: its solutions as (trajectory, "correct" | "wrong").
    """
    sides = {"correct": {}, "wrong": {}}  # text -> (trajectory, verdict): equal texts once
    for record, word in members:
        verdict = verdicts[record["id"], "outcome"]
        sides[word].setdefault(" ".join(record["text"].split()), (record, verdict))
    correct, wrong = (rng.sample(list(s.values()), len(s)) for s in sides.values())
    if not correct or not wrong:
        return [], "all wrong" if wrong else "all correct" if correct else "no usable solution"
    pairs, many = [], len(correct) * len(wrong)
    for j in range(min(cfg.fap_per_prompt, many)):
        # Every combination once, each solution as seldom as possible.
        good, verdict = correct[j % len(correct)]
        bad, other = wrong[(j + j // lcm(len(correct), len(wrong))) % len(wrong)]
        pair = {"id": f"{name}/fap/{j}", "kind": "fap", "prompt": good["prompt"], "prefix": ""}
        pair |= {"chosen": good["text"], "rejected": bad["text"]}
        pair |= {"ends_turn": {"chosen": True, "rejected": True}, "from": [good["id"], bad["id"]]}
        pairs.append(pair | {"verdict": verdict["id"], "verdict_rejected": other["id"]})
    return pairs, "paired" if pairs else "beyond --fap_per_prompt"


# ---- SCP -----------------------------------------------------------------------------------------


def own_step(continuations, wrong):
    """(first step, is it the last one, its continuation's id) of the first continuation that gets
    it right with another step than the wrong one; None if there is none."""
    for record in continuations:
        steps = [] if unusable(record) or not record["correct"] else split_steps(record["text"])
        step = record["text"][slice(*steps[0])] if steps else ""
        if step and step.split() != wrong.split():
            return step, len(steps) == 1, record["id"]
    return None


def scp_pair(record, verdict, span, step, last, layout):
    """The pair of one wrong step and its correction, in the paper's layout or as a continuation.

    last: whether the correction ends the solution.
    """
    text, (start, end) = record["text"], span
    pair = {"kind": "scp", "prompt": record["prompt"], "prefix": "", "rejected": text[start:end]}
    pair |= {"chosen": step, "ends_turn": {"chosen": True, "rejected": True}}
    if layout == "paper":
        *before, asked = record["prompt"]
        parts = asked["content"], text[:start].strip(), NEXT_STEP
        glue = "\n" if "\n" in asked["content"] + text else " "
        asked = {"role": "user", "content": glue.join(filter(None, parts))}
        pair["prompt"] = [*before, asked]
    elif prefix := prefix_of(text, span):
        glue = text[len(prefix) : start]
        pair |= {"prefix": prefix, "chosen": glue + step, "rejected": glue + pair["rejected"]}
    if layout == "continuation":
        pair["ends_turn"] = {"chosen": last, "rejected": not text[end:].strip()}
    return pair | {"from": [record["id"]], "verdict": verdict["id"]}


def scp_pairs(name, members, verdicts, continuations, cfg, rng, counts):
    """Pairs by process of one prompt's wrong solutions; `counts` gets a word for each of them.

    continuations: {id of a prefix: its continuations}, None if the judge's corrections are used.
    """
    found = {}
    for record in (record for record, word in members if word == "wrong"):
        span, reason = wrong_step(record, verdicts)
        if span is None:
            counts[reason] += 1
            continue
        verdict = verdicts[record["id"], "stepwise"]
        step, own = verdict["correction"], None
        last = bool(final_answers(step))  # it gives the answer, whatever the wrong step did
        if continuations is not None:
            tried = continuations.get(prefix_id(name, prefix_of(record["text"], span)), [])
            behind = record["text"][span[0] :]  # the whole step: a judge may quote less, or more
            written = own_step(tried, behind[slice(*split_steps(behind)[0])])
            if written is None:
                counts["without an own way to the answer" if tried else "not continued"] += 1
                continue
            step, last, own = written
        pair = scp_pair(record, verdict, span, step, last, cfg.layout)
        pair |= {"correction": own} if own else {}
        words = {key: " ".join(str(pair[key]).split()) for key in ("chosen", "rejected")}
        key = str(pair["prompt"]), " ".join(pair["prefix"].split()), words["rejected"]
        if words["chosen"] == words["rejected"]:
            counts["with a correction that changes nothing"] += 1
        elif key in found:
            counts["with a step that another pair has"] += 1
        else:
            found[key] = pair
    chosen = rng.sample(list(found.values()), min(cfg.scp_per_prompt, len(found)))
    counts["paired"] += len(chosen)
    counts["beyond --scp_per_prompt"] += len(found) - len(chosen)
    return [{"id": f"{name}/scp/{j}"} | pair for j, pair in enumerate(chosen)]


# ---- the stage -----------------------------------------------------------------------------------


def too_long(rows, cfg):
    """ids of the pairs that are too long or too uneven, with the reason."""
    found, ratio = {}, cfg.length_ratio
    for pair in rows if ratio else ():
        few, many = sorted(len(pair[side].split()) for side in ("chosen", "rejected"))
        if many > ratio * few:
            found[pair["id"]] = "beyond --length_ratio"
    if cfg.max_length:
        tokenizer = Tokenizer(cfg.tokenizer)
        for pair in rows:
            ids = tokenizer.join(pair_parts(pair, pair["id"], tokenizer))
            # The last prompt token opens both replies instead of closing the prompt: data.py
            if sum(len(part) for part, _ in ids) - 1 > cfg.max_length:
                found[pair["id"]] = "beyond --max_length"
    return found


def select(rows, cfg):
    """(the pairs that are kept, why the others are not)."""
    counts, seen, kept, lengths = Counter(), set(), [], too_long(rows, cfg)
    for pair in rows:
        key = sha([pair[name] for name in ("prompt", "prefix", "chosen", "rejected")])
        if reason := lengths.get(pair["id"]) or ("the same as another" if key in seen else None):
            counts[reason] += 1
        else:
            kept.append(pair)
        seen.add(key)
    if cfg.balance:
        kinds = Counter(pair["kind"] for pair in kept)
        many = max(("fap", "scp"), key=kinds.__getitem__)
        extra = [pair["id"] for pair in kept if pair["kind"] == many]
        extra = random.Random(cfg.seed).sample(extra, 2 * len(extra) - len(kept))
        counts["left out by --balance"] = len(extra)
        kept = [pair for pair in kept if pair["id"] not in set(extra)]
    return kept, counts


def pairs(cfg):
    """Trajectories and verdicts -> pairs.jsonl, the same bytes for the same seed."""
    check_choice(cfg, layout=("paper", "continuation"), corrections=("judge", "self"))
    check_range(cfg, (), ("fap_per_prompt", "scp_per_prompt", "length_ratio", "max_length"))
    if cfg.max_length and not cfg.tokenizer:
        raise UserError("--max_length counts tokens: name a checkpoint folder by --tokenizer")
    out, prompts, rows, used = Path(cfg.out_dir), {}, [], Counter()
    verdicts = decided(read_log(out / cfg.verdicts, VERDICT))
    for record in read_trajectories(out / "trajectories.jsonl").values():
        word = standing(record, verdicts, cfg)
        used[word] += 1
        members = prompts.setdefault(record["id"].rpartition("/")[0], [])
        members += [(record, word)] if word in ("correct", "wrong") else []
    continuations = None
    if cfg.corrections == "self":
        continuations, log = {}, read_log(out / "continuations.jsonl", CONTINUATION)
        for record in sorted(log.values(), key=lambda record: record["sample"]):
            continuations.setdefault(record["id"].rpartition("/")[0], []).append(record)
    fap, scp = Counter(), Counter()
    for name, members in sorted(prompts.items()):
        members.sort(key=lambda member: member[0]["sample"])
        rng = random.Random(f"{cfg.seed}/{name}")
        made, word = fap_pairs(name, members, verdicts, cfg, rng)
        fap[word] += 1
        rows += made + scp_pairs(name, members, verdicts, continuations, cfg, rng, scp)
    tally("solutions", used, ["correct", "wrong"])
    tally("prompts for pairs by outcome (FAP)", fap, ["paired"])
    tally("wrong solutions for pairs by process (SCP)", scp, ["paired"])
    rows, dropped = select(rows, cfg)
    kinds = Counter(pair["kind"].upper() for pair in rows)
    tally("pairs", kinds + dropped, ["FAP", "SCP"])
    if not rows:
        raise UserError("no pair can be made of these verdicts: see the reasons above")
    write_jsonl(out / cfg.pairs, rows)
    print(f"{out / cfg.pairs}: {len(rows):,} pairs")
