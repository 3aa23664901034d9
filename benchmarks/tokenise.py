"""Text -> tokens -> packed rows: how fast and in how much memory, against the tokenizers library.

    OMP_NUM_THREADS=1 python benchmarks/tokenise.py --data TEXT.jsonl --tokenizer DIR

rate     the library's encode_batch on texts that are in memory, with as many threads as ours has
         processes; ours from the file of rows to token files, families, a plan and every packed
         row once; in the order A B B A on the same texts, each in a fresh process
memory   the file repeated to --gigabytes, tokenised: the resident memory of all processes
         together (proportional, so that what they share counts once), sampled all the time
reading  the token file from its mapping, and as packed rows

Both sides have a first round on a few texts that is not counted. The result goes to
benchmarks/results/tokenise.json.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from config import parse
from jsonl import read_jsonl

SCRIPT = Path(__file__).resolve()


@dataclass
class Config:
    data: str = "sample/data/cpt.jsonl"  # {"text"} rows
    tokenizer: str = "sample/base"  # checkpoint folder
    threads: int = 2  # of the library, and processes of ours
    megabytes: float = 64.0  # of text in each round
    gigabytes: float = 1.0  # of text whose memory is watched
    max_length: int = 8192  # tokens of a packed row
    arm: str = ""  # one of the measurements, for the processes that this script starts


def repeated(source, target, size):
    """A file of rows repeated to about `size` bytes; a number in front makes each text another."""
    lines, written, number = source.read_bytes().splitlines(), 0, 0
    with open(target, "wb") as file:
        while written < size:
            for line in lines:
                number += 1
                line = line.replace(b'{"text": "', b'{"text": "%d ' % number, 1)
                written += file.write(line + b"\n")
                if written >= size:
                    break
    return target


def library(cfg):
    """encode_batch alone, in blocks of 16 MB: smaller ones keep its threads waiting at each end."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(f"{cfg.tokenizer}/tokenizer.json")
    blocks, size = [[]], 0
    for _, row in read_jsonl(cfg.data, {"text": str}):
        blocks[-1].append(row["text"])
        size += len(row["text"].encode())
        if size > len(blocks) * 2**24:
            blocks.append([])
    encoder.encode_batch(blocks[0][:20])
    start, tokens = time.perf_counter(), 0
    for block in filter(None, blocks):
        tokens += sum(len(e.ids) for e in encoder.encode_batch(block, add_special_tokens=False))
    return {"seconds": time.perf_counter() - start, "bytes": size, "tokens": tokens}


def ours(cfg):
    """From the file of rows to every packed row."""
    from data import Families, FileFamilies
    from packing import Plan, collate
    from token_files import tokenise
    from tokenizer import Tokenizer

    tokenizer = Tokenizer(cfg.tokenizer)
    tokenizer.encode("a first text")
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        tokens = tokenise("text", cfg.data, tokenizer, cache, cfg.threads)
        tokenised = time.perf_counter() - start
        files = [FileFamilies("text", tokens, cfg.max_length, tokenizer.bos_id)]
        families = Families(files)
        plan = Plan(families.sizes, cfg.max_length, 8 * cfg.max_length, 1, 0)
        planned = time.perf_counter() - start
        count = 0
        for step in range(plan.steps):
            for row in plan.rows(step):
                count += len(collate([families[i] for i in row]).input_ids)
        total = time.perf_counter() - start
        read = time.perf_counter()
        for _ in range(20):
            np.add.reduce(tokens.ids.view(np.uint64 if len(tokens.ids) % 4 == 0 else np.uint16))
        read = 20 * tokens.ids.nbytes / (time.perf_counter() - read)
        rows = count * tokens.ids.itemsize / (total - planned)
        return {"seconds": total, "tokenise_s": tokenised, "plan_s": planned - tokenised,
                "rows_s": total - planned, "tokens": len(tokens.ids), "fill": plan.fill,
                "mapped_bytes_per_s": read, "rows_tokens_per_s": count / (total - planned),
                "rows_bytes_per_s": rows}  # fmt: skip


def family_of(pid):
    """A process and all below it."""
    found = [pid]
    try:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += family_of(int(child))
    except OSError:
        pass
    return found


def resident(pid):
    """Proportional resident memory of a process and all below it, bytes."""
    total = 0
    for process in family_of(pid):
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            total += 1024 * int(text.split("Pss:")[1].split()[0])
        except (OSError, IndexError):
            pass
    return total


def memory(cfg, file):
    """Largest resident memory while a large file becomes token files."""
    peak, ended = 0, threading.Event()
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, str(SCRIPT.parent.parent / "token_files.py"), str(file),
                   "--tokenizer", cfg.tokenizer, "--token_cache", cache,
                   "--workers", str(cfg.threads)]  # fmt: skip
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

        def watch():
            nonlocal peak
            while not ended.wait(0.05):
                peak = max(peak, resident(process.pid))

        threading.Thread(target=watch).start()
        said = process.communicate()[0]
        ended.set()
        assert process.returncode == 0, said
        seconds = time.perf_counter() - start
    return {"bytes": file.stat().st_size, "seconds": seconds, "peak_bytes": peak}


def main(cfg):
    if cfg.arm:
        return print(json.dumps({"library": library, "ours": ours}[cfg.arm](cfg)))
    from benchmarks.measure import RESULTS, about, there_and_back

    source, rounds = Path(cfg.data), {"library": [], "ours": []}
    with tempfile.TemporaryDirectory() as scratch:
        some = repeated(source, Path(scratch) / "some.jsonl", cfg.megabytes * 1e6)
        for arm in there_and_back(["library", "ours"]):
            words = ["--data", some, "--tokenizer", cfg.tokenizer, "--threads", cfg.threads,
                     "--max_length", cfg.max_length, "--arm", arm]  # fmt: skip
            parallel = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(cfg.threads)}
            words = [sys.executable, str(SCRIPT), *map(str, words)]
            done = subprocess.run(
                words, env=os.environ | parallel, stdout=subprocess.PIPE, text=True, check=True
            )
            rounds[arm].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{arm:<8}{rounds[arm][-1]['seconds']:8.2f} s", flush=True)
        some.unlink()
        large = repeated(source, Path(scratch) / "large.jsonl", cfg.gigabytes * 1e9)
        watched = memory(cfg, large)
    best = {arm: min(r["seconds"] for r in found) for arm, found in rounds.items()}
    ratio = best["library"] / best["ours"]
    text = rounds["library"][0]["bytes"]
    fastest = min(rounds["ours"], key=lambda r: r["seconds"])
    print(f"text to packed rows {text / best['ours'] / 1e6:.1f} MB/s, encode_batch alone", end=" ")
    print(f"{text / best['library'] / 1e6:.1f} MB/s: {ratio:.2f} times its rate (goal 0.90)")
    print(f"{watched['bytes'] / 1e9:.2f} GB of rows in {watched['seconds']:.0f} s", end=", ")
    print(f"peak {watched['peak_bytes'] / 1e9:.3f} GB resident (goal 0.5)")
    print(
        f"read from the mapping {fastest['mapped_bytes_per_s'] / 1e9:.1f} GB/s (goal 1)", end=", "
    )
    print(f"as packed rows {fastest['rows_tokens_per_s'] / 1e6:.0f} M tokens/s", end=", ")
    print(f"{fastest['fill']:.2%} full")
    settings = {"threads": cfg.threads, "max_length": cfg.max_length, "text_bytes": text}
    result = {"about": about(), "settings": settings, "rounds": rounds, "ratio": ratio,
              "memory": watched}  # fmt: skip
    (RESULTS / "tokenise.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(parse(Config))
