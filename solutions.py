"""What the policy writes: whole solutions (sample), and ways on from a right beginning (correct).

    sample    question                                   -> n solutions        trajectories.jsonl
    correct   question + the steps before a wrong one    -> n continuations    continuations.jsonl

Either from the checkpoint itself, each prompt read once for its n samples (generate.py) and the
prompts spread over the ranks of torchrun, or from an OpenAI-compatible server that holds the
exported checkpoint (vLLM and the like). Sample k of a prompt draws its random numbers by the seed,
the prompt's id and k alone, so stopping, more samples or more ranks change nothing that is there,
and in fp32 no sample depends on which others it was decoded with. In bf16 it may: another batch
rounds elsewhere (5 of 120 samples of the sample world's model changed).
"""

import contextlib
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import parallel
from checkpoint import barrier, sha_of_weights
from config import UserError, check_range
from endpoint import Unanswered, ask_http, check_endpoint
from extract import judged_by_rule
from generate import load, stream
from jsonl import check_messages, notice, read_jsonl
from judge import decided
from logs import (
    CONTINUATION,
    TRAJECTORY,
    VERDICT,
    absorb,
    append_to,
    part_of,
    read_log,
    read_trajectories,
    tally,
)
from model import Llama
from pairs import prefix_id, prefix_of, wrong_step
from tokenizer import Beginning, Tokenizer


@dataclass
class Policy:
    init_from: str = "out/cpt"  # checkpoint that writes the solutions
    out_dir: str = "out/reward"  # folder of the logs
    samples: int = 4  # per prompt (torchrun would take --n for one of its own flags)
    temperature: float = 1.0  # 1 = the model's own distribution
    top_p: float = 1.0  # keep the likeliest tokens up to this probability mass
    max_new_tokens: int = 512  # a longer solution is cut off and makes no pair
    slots: int = 64  # sequences decoded together
    seed: int = 0  # another seed, other solutions
    base_url: str = ""  # an OpenAI-compatible server that holds init_from: it samples instead
    model: str = ""  # what the server calls the checkpoint; key from $OPENAI_API_KEY only
    concurrency: int = 32  # requests in flight at the server
    retries: int = 6  # of a request that fails on its way
    backoff_s: float = 1.0  # pause before the first retry, doubled with each
    timeout_s: float = 600.0  # of one request
    dtype: str = "auto"  # float32, bfloat16, or auto: bfloat16 on a GPU
    device: str = "auto"  # auto, cpu or cuda


@dataclass
class Sample(Policy):
    prompts: str = "sample/data/exam_train.jsonl"  # rows {"id", "source", "prompt", "answer"}


@dataclass
class Correct(Policy):
    samples: int = 8  # continuations of each right beginning
    verdicts: str = "verdicts.jsonl"  # log in out_dir that says where solutions go wrong


@dataclass
class Job:
    """One prompt to continue; its samples `missing` are not in the log yet."""

    id: str
    messages: list[dict]
    prefix: str = ""  # beginning of the assistant's turn
    answer: str = ""  # of the reference
    missing: tuple[int, ...] = ()

    def seed(self, seed, k=None):
        """A number of 63 bits that belongs to this prompt, or to its sample k."""
        name = f"{seed}/{self.id}" + ("" if k is None else f"/{k}")
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 1


# ---- the two writers: (job, k, {"text", "finish", "logprobs"}) as they come ----------------------


def prompt_ids(job, tokenizer):
    """Ids up to where the policy goes on: cut on ids, as joined text may merge across the cut."""
    parts = tokenizer.chat_parts(job.messages, add_generation_prompt=True)
    return tokenizer.join([[*parts, (Beginning(job.prefix), False)]])[0][0]


def write_here(model, tokenizer, cfg, jobs):
    """From the checkpoint."""
    ids = [prompt_ids(job, tokenizer) for job in jobs]
    events = stream(
        model, ids, tokenizer.stop_ids, cfg.max_new_tokens, cfg.temperature, cfg.top_p, cfg.samples,
        [job.seed(cfg.seed) for job in jobs], cfg.slots,
        wanted=[(i, k) for i, job in enumerate(jobs) for k in job.missing],
    )  # fmt: skip
    for i, k, out in events:
        if out.finish:
            control = not tokenizer.special.isdisjoint(out.ids)  # shown as text, not swallowed
            text = tokenizer.decode(out.ids, skip_special=not control)
            yield jobs[i], k, {
                "text": text, "finish": "control token" if control else out.finish,
                "logprobs": [round(x, 5) for x in out.logprobs],
            }  # fmt: skip


def write_there(cfg, jobs, works):
    """From the server. UserError, when all that came has been handed over, if some did not come.

    works: whether it has answered before. Then a request that it refuses is at fault, and becomes
    an empty solution; of a server that refuses everything the model's name may be.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    check_endpoint(cfg.base_url, key)
    bodies, places = [], [(job, k) for job in jobs for k in job.missing]
    failed, refused = [], []
    for job, k in places:
        body = {"model": cfg.model, "messages": job.messages, "temperature": cfg.temperature}
        body |= {"top_p": cfg.top_p, "max_tokens": cfg.max_new_tokens, "logprobs": True}
        if job.prefix:
            body["messages"] = [*job.messages, {"role": "assistant", "content": job.prefix}]
            body |= {"add_generation_prompt": False, "continue_final_message": True}  # vLLM's names
        bodies.append(body | {"seed": job.seed(cfg.seed, k) >> 32})
    answered = 0
    for i, reply in ask_http(bodies, cfg, key):
        if isinstance(reply, Unanswered):
            failed.append(str(reply))
            refused += [i] if reply.refused else []
            continue
        answered += 1
        written = {"text": reply["raw"], "finish": reply["finish"], "logprobs": reply["logprobs"]}
        yield *places[i], written
    for i in refused if answered or works else ():
        yield *places[i], {"text": "", "finish": "refusal", "logprobs": None}
        answered += 1
    if answered < len(bodies):
        raise UserError(
            f"{cfg.base_url} left {len(bodies) - answered:,} of {len(bodies):,} requests without a "
            f"reply, the first with: {failed[0]}. All replies are kept: the same command goes on"
        )


def whole_text(prefix, text):
    """A beginning and its continuation as one text; a tokenizer may have dropped the blank."""
    touching = prefix and text and not (prefix[-1].isspace() or text[0].isspace())
    return f"{prefix} {text}" if touching else prefix + text


# ---- filling a log -------------------------------------------------------------------------------


def check_policy(cfg):
    """UserError for settings that cannot be; then joins the other ranks."""
    check_range(
        cfg,
        ("samples", "max_new_tokens", "slots", "concurrency", "timeout_s"),
        ("temperature", "retries", "backoff_s"),
    )
    if cfg.base_url and not cfg.model:
        raise UserError("--base_url needs --model: what the server calls the checkpoint")
    rank, _, _ = parallel.init(cfg.device, parallel.PATIENCE)
    return rank


def settings_of(cfg, tokenizer, device):
    """What a sample depends on beside its prompt: written into every record."""
    names = "seed", "temperature", "top_p", "max_new_tokens"
    found = {name: getattr(cfg, name) for name in names}
    found |= {"policy_sha": sha_of_weights(cfg.init_from), "template_sha": tokenizer.template_sha}
    if cfg.base_url:
        return found | {"sampler": f"http:{cfg.model}", "dtype": ""}
    dtype = str(parallel.auto_dtype(cfg.dtype, device)).removeprefix("torch.")
    return found | {"sampler": "generate.py", "dtype": dtype}


def fitting(jobs, cfg, tokenizer):
    """(jobs that leave room in the model's context, number of the others)."""
    context = Llama.from_pretrained(cfg.init_from, "meta").config.max_position_embeddings
    kept = [job for job in jobs if len(prompt_ids(job, tokenizer)) < context]
    return kept, len(jobs) - len(kept)


def fill(cfg, name, fields, jobs, tokenizer, check, record_of):
    """Write the samples of all jobs that a log lacks; {id: record} of the whole log, rank 0's.

    check(record): UserError if a record in the log is not of this run's prompts.
    record_of(job, k, written): the record of a new sample, without the settings.
    """
    rank, world, device = parallel.init(cfg.device, parallel.PATIENCE)
    if cfg.base_url and world > 1:
        raise UserError("a server is asked by a single process: python, not torchrun")
    path, settings = Path(cfg.out_dir) / name, settings_of(cfg, tokenizer, device)

    def lacking(records):
        for record in records.values():
            for key, value in settings.items():
                if record.get(key) != value:
                    raise UserError(f"{path}: {record['id']}: {key} is {record.get(key)!r}, this "
                                    f"run has {value!r}: take another --out_dir")  # fmt: skip
            check(record)
        for job in jobs:
            job.missing = tuple(k for k in range(cfg.samples) if f"{job.id}/{k}" not in records)
        return [job for job in jobs if job.missing]

    with contextlib.ExitStack() as stack:
        records, add = {}, None
        if rank == 0:
            records, add = stack.enter_context(append_to(path, fields))
            absorb(path, fields, records, add)
        mine = parallel.on_rank0(lacking, records)[rank::world]
        if rank != 0:
            _, add = stack.enter_context(append_to(part_of(path, rank), fields))
        if cfg.base_url:
            events = write_there(cfg, mine, works=bool(records))
        elif mine:
            model, _ = load(cfg.init_from, cfg.device, cfg.dtype, ranks=True)
            events = write_here(model, tokenizer, cfg, mine)
        total = sum(len(job.missing) for job in mine)
        for job, k, written in tqdm(events if mine else (), cfg.__class__.__name__.lower(), total,
                                    unit=" solutions", disable=rank != 0):  # fmt: skip
            # The strict reader refuses NUL; the mark in its place keeps the text out of the pairs.
            written["text"] = written["text"].replace("\0", "\ufffd")
            add({"id": f"{job.id}/{k}", "sample": k} | record_of(job, k, written) | settings)
        barrier()
        if rank == 0:
            absorb(path, fields, records, add)
        return records


# ---- sample --------------------------------------------------------------------------------------


def read_prompts(path):
    """({id: row with prompt as messages}, number of rows without a reference answer)."""
    rows, skipped = {}, 0
    fields = {"id": str, "source?": str, "prompt": (str, list), "answer?": str, "solution?": str}
    for line, row in read_jsonl(path, fields):
        if isinstance(row["prompt"], str):
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        check_messages(row["prompt"], f"{path}:{line}", last="user", name="prompt")
        if row["id"] in rows:
            raise UserError(f"{path}:{line}: id: {row['id']!r} is there twice")
        if (row.get("answer") or "").strip():
            rows[row["id"]] = row
        else:
            skipped += 1
    return rows, skipped


def sample(cfg):
    """Solutions of every prompt -> trajectories.jsonl; those already there are kept."""
    rank = check_policy(cfg)
    tokenizer, (rows, without) = Tokenizer(cfg.init_from), read_prompts(cfg.prompts)
    jobs = [Job(name, row["prompt"]) for name, row in rows.items()]
    jobs, too_long = fitting(jobs, cfg, tokenizer)
    counts = Counter({"to sample": len(jobs), "without reference answer": without})
    counts["longer than the context"] = too_long
    if rank == 0:
        tally("prompts", counts, ["to sample"])
    if not jobs:
        raise UserError(f"{cfg.prompts}: holds no prompt that can be sampled")

    def check(record):
        row = rows.get(record["id"].rpartition("/")[0])
        fields = "prompt", "answer", "solution"
        if row and any((record.get(f) or "") != (row.get(f) or "") for f in fields):
            raise UserError(f"{cfg.out_dir}/trajectories.jsonl: {record['id']}: {cfg.prompts} has "
                            "another prompt, answer or solution of this id: take another "
                            "--out_dir")  # fmt: skip

    def record_of(job, k, written):
        row = rows[job.id]
        record = {"source": row.get("source") or "", "prompt": row["prompt"]}
        record |= {"answer": row["answer"]} | written
        record |= judged_by_rule(written["text"], row["answer"])
        return record | ({"solution": row["solution"]} if row.get("solution") else {})

    records = fill(cfg, "trajectories.jsonl", TRAJECTORY, jobs, tokenizer, check, record_of)
    if rank == 0:
        solutions = [records[f"{job.id}/{k}"] for job in jobs for k in range(cfg.samples)]
        right = sum(record["correct"] for record in solutions)
        cut = sum(record["finish"] != "stop" for record in solutions)
        print(f"{cfg.out_dir}/trajectories.jsonl: {len(solutions):,} solutions, {right:,} with the "
              f"reference's final answer by rule, {cut:,} cut off")  # fmt: skip


# ---- correct -------------------------------------------------------------------------------------


def beginnings(cfg, counts):
    """A Job for what is right of each wrong solution, equal ones once; `counts` gets a word for
    every solution."""
    out, jobs, policies = Path(cfg.out_dir), {}, set()
    verdicts = decided(read_log(out / cfg.verdicts, VERDICT))
    for record in read_trajectories(out / "trajectories.jsonl").values():
        span, reason = wrong_step(record, verdicts)
        if span and not record.get("answer"):
            span, reason = None, "without reference answer"
        if span:
            prefix = prefix_of(record["text"], span)
            name = prefix_id(record["id"].rpartition("/")[0], prefix)
            reason = "with a beginning that another has" if name in jobs else "to continue"
            jobs[name] = Job(name, record["prompt"], prefix, record["answer"])
            policies.add(record.get("policy_sha"))
        counts[reason] += 1
    if policies - {sha_of_weights(cfg.init_from)}:
        notice(f"{cfg.init_from} is not the policy that wrote the solutions: the corrections will "
               "not be its own")  # fmt: skip
    return list(jobs.values())


def correct(cfg):
    """Continuations from where wrong solutions were still right -> continuations.jsonl.

    The first step of one that arrives at the reference's answer corrects the wrong step in the
    policy's own words (Step-DPO, arXiv:2406.18629): `reward.py pairs --corrections self`.
    """
    rank = check_policy(cfg)
    tokenizer, counts = Tokenizer(cfg.init_from), Counter()
    path = Path(cfg.out_dir) / "continuations.jsonl"
    jobs, too_long = fitting(beginnings(cfg, counts), cfg, tokenizer)
    counts["to continue"] -= too_long
    counts["longer than the context"] = too_long
    if rank == 0:
        tally("solutions", counts, ["to continue"])
    if not jobs:
        raise UserError(f"{path.parent / cfg.verdicts}: locates no wrong step to be corrected")

    by_id = {job.id: job for job in jobs}

    def check(record):
        job = by_id.get(record["id"].rpartition("/")[0])
        if job and (record.get("prompt"), record.get("answer")) != (job.messages, job.answer):
            raise UserError(f"{path}: {record['id']}: is of another prompt or answer than "
                            "trajectories.jsonl: take another --out_dir")  # fmt: skip

    def record_of(job, k, written):
        record = {"prompt_id": job.id.rpartition("/")[0], "prompt": job.messages}
        record |= {"answer": job.answer, "prefix": job.prefix} | written
        return record | judged_by_rule(whole_text(job.prefix, written["text"]), job.answer)

    records = fill(cfg, path.name, CONTINUATION, jobs, tokenizer, check, record_of)
    if rank == 0:
        right = [
            any(records[f"{job.id}/{k}"]["correct"] for k in range(cfg.samples)) for job in jobs
        ]
        print(f"{path}: {sum(right):,} of {len(jobs):,} beginnings have a continuation with the "
              "reference's final answer")  # fmt: skip
