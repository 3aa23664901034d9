"""Preference data in the forms that other tools read: `python reward.py export --format FORMAT`.

trl           pairs for TRL's DPOTrainer: its explicit form, as messages; or with --tokenizer as
              rendered strings, each of them checked: TRL trains on the ids of train_dpo.py
              (benchmarks/dpo.py compares with TRL itself)
processbench  {"id", "generator", "problem", "steps", "final_answer_correct", "label"} (of
              arXiv:2412.06559) + "answer", "solution": label = index of the first wrong step, -1 if
              there is none; the last step, which holds the answer, where only that is wrong
trl_stepwise  {"prompt", "completions", "labels"} for a process reward model: true up to the first
              wrong step, false from it on
chats         {"messages"}: every request with its valid reply once, to train a judge

A reply that goes on from a prefix is always a string: as messages TRL would close the turn behind
the prefix. A step that does not end the turn cannot be said to TRL at all, which puts an end token
behind every reply: such pairs are counted and left out (the paper's layout of SCP has none). As
messages in ChatML TRL trains the line break behind the turn's end, too; as strings it does not.

A solution with a right answer gets a label only if its steps were judged: they may be wrong all the
same.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as Encoder

from config import UserError, check_choice
from jsonl import check_messages, read_jsonl, sha, write_jsonl
from judge import build_request, decided, request_parts, split_steps, unusable
from kinds import KINDS, assistant_text, pair_parts
from logs import VERDICT, read_log, read_trajectories, tally
from tokenizer import Tokenizer, optional_json

SIDES = "chosen", "rejected"
MID_TURN = "that do not end the turn, which TRL cannot train"


@dataclass
class Export:
    out_dir: str = "out/reward"  # holds trajectories.jsonl, the verdicts, the pairs
    verdicts: str = "verdicts.jsonl"  # log in out_dir to build on
    pairs: str = "pairs.jsonl"  # pairs in out_dir (trl)
    format: str = "trl"  # trl, processbench, trl_stepwise or chats
    tokenizer: str = ""  # checkpoint folder of the policy: trl rows as strings in its chat format
    file: str = ""  # what is written; "" = OUT_DIR/FORMAT.jsonl


# ---- pairs: each writer yields rows and counts what it leaves out, by reason ---------------------


def as_messages(row, where):
    """A pair in TRL's explicit conversational form, or the reason why it has none."""
    prompt = row["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    check_messages(prompt, where, last="user", name="prompt")
    if row.get("prefix"):
        raise UserError(f"{where}: prefix: a reply that goes on from it is written as a string: "
                        "name the policy's folder with --tokenizer")  # fmt: skip
    ends = row.get("ends_turn") or dict.fromkeys(SIDES, True)
    if any(type(ends.get(side)) is not bool for side in SIDES):
        raise UserError(f"{where}: ends_turn: chosen and rejected must be true or false")
    if not all(ends.values()):
        return MID_TURN
    replies = {side: assistant_text(row[side], where, side) for side in SIDES}
    return {"prompt": prompt} | {
        side: [{"role": "assistant", "content": text}] for side, text in replies.items()
    }


class Renderer:
    """A chat format as strings, and what TRL makes of them: it encodes the prompt, and the prompt
    joined with a reply, as one text each, in which control tokens and BOS are found by name."""

    def __init__(self, folder):
        self.tokenizer = Tokenizer(folder)
        self.encoder = Encoder.from_file(str(Path(folder) / "tokenizer.json"))
        self.encoder.no_truncation()
        self.encoder.no_padding()
        self.names = {i: name for name, i in self.tokenizer.ids.items()}
        self.end = self.names[self.tokenizer.turn_end_id]
        eos = optional_json(Path(folder) / "tokenizer_config.json").get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        if eos != self.end:
            raise UserError(f"{folder}/tokenizer_config.json: eos_token: TRL ends replies with "
                            f"{eos}, this chat format with {self.end}; change it")  # fmt: skip
        adds_bos = self.encoder.encode("").ids == [self.tokenizer.bos_id]
        self.skip = 1 if adds_bos else 0  # parts of a prompt that TRL's tokenizer writes itself

    def render(self, row, where):
        """A pair as strings, or the reason why TRL would train it on other ids."""
        parts = pair_parts(row, where, self.tokenizer)
        prompt, *replies = self.tokenizer.join(parts)
        prompt, replies = prompt[0], [ids for ids, _ in replies]
        parts[0] = parts[0][self.skip :]
        texts = ["".join(self.names.get(piece, piece) for piece, _ in part) for part in parts]
        if not all(text.endswith(self.end) for text in texts[1:]):
            return MID_TURN
        seen = self.encoder.encode_batch([texts[0], *(texts[0] + text for text in texts[1:])])
        if [e.ids for e in seen] != [prompt, *(prompt + ids for ids in replies)]:
            return "that TRL would cut into other tokens"
        replies = [text.removesuffix(self.end) for text in texts[1:]]  # TRL adds it
        return {"prompt": texts[0]} | dict(zip(SIDES, replies, strict=True))


def trl_rows(cfg, counts):
    """Pairs as TRL loads them: all as messages or all as strings, as a file holds one type only."""
    path = Path(cfg.out_dir) / cfg.pairs
    renderer = Renderer(cfg.tokenizer) if cfg.tokenizer else None
    for line, row in read_jsonl(path, KINDS["pair"][0]):
        where = f"{path}:{line}"
        made = renderer.render(row, where) if renderer else as_messages(row, where)
        counts[made if isinstance(made, str) else "written"] += 1
        if not isinstance(made, str):
            yield {"id": str(row.get("id") or line)} | made


# ---- steps --------------------------------------------------------------------------------------


def first_wrong(record, outcome, stepwise):
    """(index of a solution's first wrong step or -1, its steps), or why nobody knows."""
    if reason := unusable(record):
        return reason
    for kind, verdict in (("answer", outcome), ("steps", stepwise)):
        if verdict is None:
            return f"with {kind} not judged"
        if not verdict["parsed"]:
            return f"with {kind} judged invalidly: {verdict['reason']}"
    steps = [record["text"][start:end] for start, end in split_steps(record["text"])]
    label = stepwise["first_error"]
    if label < 0 and outcome["parsed"]["Correctness"] == "wrong":
        label = len(steps) - 1
    return (label, steps) if label < len(steps) else "with a wrong step beyond its last one"


def judged_solutions(cfg, counts):
    """(trajectory, its outcome verdict, index of the first wrong step or -1, steps) ..."""
    records = read_trajectories(Path(cfg.out_dir) / "trajectories.jsonl")
    verdicts = decided(read_log(Path(cfg.out_dir) / cfg.verdicts, VERDICT))
    for name, record in records.items():
        outcome = verdicts.get((name, "outcome"))
        found = first_wrong(record, outcome, verdicts.get((name, "stepwise")))
        counts[found if isinstance(found, str) else "written"] += 1
        if not isinstance(found, str):
            yield record, outcome, *found


def processbench_rows(cfg, counts):
    for record, outcome, label, steps in judged_solutions(cfg, counts):
        row = {"id": record["id"], "generator": record.get("policy_sha") or ""}
        row |= {"problem": request_parts(record)[0], "steps": steps}
        row |= {"final_answer_correct": outcome["parsed"]["Correctness"] == "correct"}
        row |= {"label": label, "answer": record.get("answer") or ""}
        yield row | {"solution": record.get("solution") or ""}


def trl_stepwise_rows(cfg, counts):
    for record, _, label, steps in judged_solutions(cfg, counts):
        labels = [label < 0 or i < label for i in range(len(steps))]
        yield {"prompt": request_parts(record)[0], "completions": steps, "labels": labels}


# ---- verdicts -----------------------------------------------------------------------------------


def request_text(record, verdict):
    """What a judge was asked, built again from the solution, or why it cannot be."""
    asked = verdict.get("settings")
    if record is None:
        return None, "on unknown solutions"
    if not asked:
        return None, "without the settings of their request"
    attempt = verdict["attempts"]
    settings = asked["model"], asked["max_tokens"], asked["seed"] - attempt + 1
    body = build_request(verdict["kind"], attempt, *request_parts(record), *settings)
    if sha(body) != verdict["request_sha"]:
        return None, "on another request than this code makes"
    return body["messages"], None


def chat_rows(cfg, counts):
    records = read_trajectories(Path(cfg.out_dir) / "trajectories.jsonl")
    written = set()
    for verdict in read_log(Path(cfg.out_dir) / cfg.verdicts, VERDICT).values():
        reason = None if verdict["parsed"] else f"invalid: {verdict['reason']}"
        if not reason and verdict["request_sha"] in written:
            reason = "on a solution with the same text"
        if not reason:
            messages, reason = request_text(records.get(verdict["trajectory"]), verdict)
        counts[reason or "written"] += 1
        if not reason:
            written.add(verdict["request_sha"])
            yield {"messages": [*messages, {"role": "assistant", "content": verdict["raw"]}]}


FORMATS = {
    "trl": ("pairs", trl_rows),
    "processbench": ("solutions", processbench_rows),
    "trl_stepwise": ("solutions", trl_stepwise_rows),
    "chats": ("verdicts", chat_rows),
}


def export(cfg):
    """Write a file in one of FORMATS; rows in = written + skipped by reason, printed."""
    check_choice(cfg, format=tuple(FORMATS))
    if cfg.tokenizer and cfg.format != "trl":
        raise UserError(f"--tokenizer is of --format trl, not of {cfg.format}")
    what, rows_of = FORMATS[cfg.format]
    path = Path(cfg.file or Path(cfg.out_dir) / f"{cfg.format}.jsonl")
    counts = Counter()
    rows = list(rows_of(cfg, counts))
    tally(what, counts, ["written"])
    if not rows:
        raise UserError(f"{cfg.out_dir}: nothing to write as {cfg.format}: see the reasons above")
    write_jsonl(path, rows)
    print(f"{path}: {len(rows):,} rows")
