"""Preference pairs out of judged solutions: by outcome (FAP) and by process (SCP).

    FAP   question                             chosen: a correct solution   rejected: a wrong one
    SCP   question + prefix + "next step?"     chosen: the judge's step     rejected: the wrong one

arXiv:2501.04961 section 5.3. SCP has two layouts: the paper's asks for the next step in the user
message, and each step is a whole answer; the continuation goes on from the prefix within the
assistant's turn (arXiv:2406.18629), and a step ends the turn only if it is the solution's last.
"""

from math import lcm

from judge import locate

NEXT_STEP = "What is the next step?"


def by_solution(logged):
    """{(trajectory id, kind): its last verdict}: asking ends with the first valid one."""
    return {(verdict["trajectory"], verdict["kind"]): verdict for verdict in logged.values()}


def fap_pairs(name, members, verdicts, cfg, rng):
    """Pairs by outcome of one prompt's solutions: (pairs, the word under which it is counted)."""
    sides = {"correct": {}, "wrong": {}}  # text -> (trajectory, verdict): equal texts once
    for record in members:
        verdict = verdicts.get((record["id"], "outcome"))
        if verdict and verdict["parsed"]:
            side = sides[verdict["parsed"]["Correctness"]]
            side.setdefault(" ".join(record["text"].split()), (record, verdict))
    correct, wrong = (rng.sample(list(s.values()), len(s)) for s in sides.values())
    if not correct or not wrong:
        return [], ("all wrong" if wrong else "all correct") if correct or wrong else "not judged"
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


def scp_pair(record, verdict, layout):
    """The pair of one located wrong step, in the paper's layout or as a continuation."""
    text, parsed = record["text"], verdict["parsed"]
    start, end = locate(text, parsed["Reasoning up to incorrect"], parsed["First incorrect step"])
    pair = {"kind": "scp", "prompt": record["prompt"], "prefix": "", "rejected": text[start:end]}
    pair |= {"chosen": verdict["correction"], "ends_turn": {"chosen": True, "rejected": True}}
    if layout == "paper":
        *before, asked = record["prompt"]
        parts = asked["content"], text[:start].strip(), NEXT_STEP
        glue = "\n" if "\n" in asked["content"] + text else " "
        asked = {"role": "user", "content": glue.join(filter(None, parts))}
        pair["prompt"] = [*before, asked]
    elif text[:start].strip():
        # Spaces belong to the word behind them: most tokenizers cut there, and so did the policy.
        pair["prefix"] = text[:start].rstrip(" \t")
        glue = text[len(pair["prefix"]) : start]
        pair |= {"chosen": glue + pair["chosen"], "rejected": glue + pair["rejected"]}
    if layout == "continuation":
        last = not text[end:].strip()
        pair["ends_turn"] = {"chosen": last, "rejected": last}
    return pair | {"from": [record["id"]], "verdict": verdict["id"]}


def scp_pairs(name, members, verdicts, cfg, rng, counts):
    """Pairs by process of one prompt's wrong solutions; `counts` gets a word for each of them."""
    found = {}
    for record in members:
        outcome = verdicts.get((record["id"], "outcome"))
        if not outcome or not outcome["parsed"] or outcome["parsed"]["Correctness"] == "correct":
            continue
        verdict = verdicts.get((record["id"], "stepwise"))
        if not verdict or not verdict["parsed"]:
            counts["without a valid stepwise verdict"] += 1
        elif verdict["first_error"] < 0:
            counts["without a wrong step"] += 1
        else:
            pair = scp_pair(record, verdict, cfg.layout)
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
