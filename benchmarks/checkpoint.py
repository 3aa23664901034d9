"""What saving and loading a state costs, against safetensors' own save_file and load_file.

    python benchmarks/checkpoint.py        # writes benchmarks/results/checkpoint.json; 2 GB of disk

Both write the same tensors (fp32 weights and both moments of a random Llama) into fresh files on
the same disk and flush them (fsync); both end with them in the model and the optimizer when they
load. Ours also takes and verifies a sha256 of every byte. Orders there and back again, in rounds.
"""

import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from measure import RESULTS, about, forget_peak, peak_resident, there_and_back  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

import parallel  # noqa: E402
import resume  # noqa: E402
import states  # noqa: E402
import streams  # noqa: E402
from model import Llama, LlamaConfig  # noqa: E402
from optim import build_optimizer  # noqa: E402

ROUNDS = 5
RUN = {"benchmark": "checkpoint"}
CONFIG = {
    "vocab_size": 16_000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "model_type": "llama",
}


def build():
    """A random model and optimizer: (model, optimizer, {name: tensor})."""
    device = parallel.init("cpu")[2]
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_dict(CONFIG))
    model = parallel.shard(model, device, "float32")
    optimizer = build_optimizer(model, 1e-3, 0.1)
    torch.manual_seed(0)
    tensors = {n: parallel.local(t) for n, t in resume.optimizer_state(model, optimizer)}
    with torch.no_grad():
        for t in tensors.values():
            t.uniform_()
    return model, optimizer, {name: t.detach() for name, t in tensors.items()}


def timed(function):
    """Seconds of a call, and what it returns; nothing older waits to be written."""
    os.sync()
    since = time.perf_counter()
    result = function()
    return time.perf_counter() - since, result


def plain_save(tensors, file):
    save_file(tensors, file)
    streams.sync(file, file.parent)


def plain_load(tensors, file):
    for name, t in load_file(file).items():
        tensors[name].copy_(t)


def forget(*files):
    """Drop files from the page cache, as after a restart of the machine."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def saves(folder, model, optimizer, tensors):
    """{arm: [seconds]}, each with deleting what the save before wrote; background: how long the
    call keeps training waiting, and then the thread; "no sha256": to see what that costs."""
    arms = ["plain", "blocking", "no sha256", "background"]
    seconds, real, steps = {arm: [] for arm in (*arms, "thread")}, streams.hashlib, 1
    last = folder / "0.safetensors"
    plain_save(tensors, last)
    for _ in range(ROUNDS):
        for arm in there_and_back(arms):
            steps += 1
            if arm == "plain":
                file, before = folder / f"{steps}.safetensors", last
                took, _ = timed(lambda f=file, old=before: (plain_save(tensors, f), old.unlink()))
                last = file
            else:
                job = (folder / "ours", steps, model, optimizer, RUN)
                how = {"background": arm == "background", "keep_last": 1}
                streams.hashlib = SimpleNamespace(sha256=Unhashed) if arm == "no sha256" else real
                took, _ = timed(lambda job=job, how=how: resume.save(*job, **how))
                streams.hashlib = real
                since = time.perf_counter()
                resume.wait()
                if arm == "background":
                    seconds["thread"].append(time.perf_counter() - since)
            seconds[arm].append(took)
    last.unlink()
    resume.save(folder / "ours", steps + 1, model, optimizer, RUN, keep_last=1)
    return seconds


class Unhashed:
    def update(self, block):
        pass

    def hexdigest(self):
        return "0" * 64


def loads(folder, model, optimizer, tensors, cold):
    """{arm: [seconds]}; "no sha256": ours without verifying, to see what that costs."""
    seconds = {"plain": [], "ours": [], "no sha256": []}
    out, file = folder / "ours", folder / "plain.safetensors"
    plain_save(tensors, file)
    state = states.listed(out)[0]
    files = [file, *state.glob("*.safetensors")]
    verify = states.damage
    for _ in range(ROUNDS):
        for arm in there_and_back(list(seconds)):
            for f in files:
                f.read_bytes()
            if cold:
                forget(*files)
            states.damage = (lambda *_: None) if arm == "no sha256" else verify
            with torch.no_grad():
                if arm == "plain":
                    took, _ = timed(lambda: plain_load(tensors, file))
                else:
                    took, step = timed(lambda: resume.load(out, model, optimizer, RUN))
                    assert step
            states.damage = verify
            seconds[arm].append(took)
    file.unlink()
    return seconds


def peak(folder, model, optimizer, tensors):
    """Peak extra memory of a blocking save, in bytes and in units of the largest tensor."""
    before = forget_peak()
    resume.save(folder / "peak", 1, model, optimizer, RUN)
    extra = peak_resident() - before
    return {"bytes": extra, "largest_tensors": extra / max(t.nbytes for t in tensors.values())}


def main():
    torch.set_num_threads(1)
    folder = ROOT / "out" / "benchmark-checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model, optimizer, tensors = build()
    resume.load(folder / "warm", model, optimizer, RUN, background=True)  # as a run begins
    first, _ = timed(
        lambda: resume.save(folder / "warm", 2, model, optimizer, RUN, background=True)
    )
    resume.wait()
    written = saves(folder, model, optimizer, tensors)
    read = {
        name: loads(folder, model, optimizer, tensors, cold)
        for name, cold in (("cold", True), ("warm", False))
    }
    middle = {arm: statistics.median(times) for arm, times in written.items()}
    middles = {n: {a: statistics.median(t) for a, t in arms.items()} for n, arms in read.items()}
    result = {
        "parameters_mb": sum(p.numel() for p in model.parameters()) * 4 / 1e6,
        "state_mb": sum(t.nbytes for t in tensors.values()) / 1e6,
        "rounds": ROUNDS,
        "save_s": middle,
        "save_speed_of_plain": middle["plain"] / middle["blocking"],
        "save_speed_of_plain_no_sha256": middle["plain"] / middle["no sha256"],
        "stall_of_blocking": middle["background"] / middle["blocking"],
        "first_stall_of_blocking": first / middle["blocking"],
        "load_s": middles,
        "load_speed_of_plain": {n: m["plain"] / m["ours"] for n, m in middles.items()},
        "load_speed_of_plain_no_sha256": {
            n: m["plain"] / m["no sha256"] for n, m in middles.items()
        },
        "peak_of_a_blocking_save": peak(folder, model, optimizer, tensors),
        "all_s": {"save": written, "load": read},
    }
    shutil.rmtree(folder)
    (RESULTS / "checkpoint.json").write_text(json.dumps(result | about(), indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "all_s"}, indent=1))


if __name__ == "__main__":
    main()
