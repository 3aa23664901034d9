"""Hybrid sharding: copies of the model, each spread over some of the ranks, are one model.

torchrun --nproc_per_node 4 tests/test_hsdp.py jobs.json: each job holds the arguments of step().
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pytest  # noqa: E402
import torch  # noqa: E402
from runs import distance, run, torchrun, weights, write_data  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from tiny import write_checkpoint  # noqa: E402
from torch.distributed.tensor import distribute_tensor  # noqa: E402

import parallel  # noqa: E402
from config import UserError  # noqa: E402
from model import Llama  # noqa: E402
from optim import build_optimizer  # noqa: E402


def row_of(seed):
    """A packed row of three documents, and its labels."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 30, (3,), generator=generator)
    ids = torch.randint(300, (int(lengths.sum()),), generator=generator)
    positions = torch.cat([torch.arange(n) for n in lengths])
    starts = torch.tensor([0, *lengths.cumsum(0)], dtype=torch.int32)
    return (ids, positions, starts), ids.roll(-1)


def step(source, out, replicas, dtype="float32", accum=1, recompute=False):
    """One update on 8 rows, `accum` micro-batches. Gradients, norm, loss and new weights -> out."""
    rank, world, device = parallel.init("cpu")
    meta = Llama.from_pretrained(source, "meta")
    model = parallel.shard(meta, device, dtype, recompute, replicas)
    for name, full in load_file(Path(source) / "model.safetensors").items():
        p = dict(model.named_parameters())[name]
        spread = distribute_tensor(full.to(p.dtype), p.device_mesh, p.placements)
        parallel.local(p).data.copy_(spread.to_local())
    optimizer = build_optimizer(model, 1e-2, 0.1)
    rows = [row_of(seed) for seed in range(8)]
    targets, mine = sum(len(labels) for _, labels in rows), rows[rank::world]
    per, loss = -(-len(mine) // accum), torch.zeros(())
    for i in range(accum):
        model.set_requires_gradient_sync(i == accum - 1)
        losses = [-model(*row, labels=y).sum() for row, y in mine[i * per : (i + 1) * per]]
        (sum(losses) * world / targets).backward()
        loss += sum(x.detach() for x in losses) / targets
    found = {f"grad.{n}": p.grad.full_tensor().float() for n, p in model.named_parameters()}
    found |= {"norm": optimizer.grad_norm()[None], "loss": parallel.sum_over_ranks(loss)[None]}
    optimizer.step()
    found |= {f"new.{n}": p.full_tensor().float() for n, p in model.named_parameters()}
    held = sum(parallel.local(p).numel() for p in model.parameters())
    found["held"] = torch.tensor([float(held)])
    if rank == 0:
        save_file({k: v.contiguous() for k, v in found.items()}, out)


def launched(ranks, folder, jobs):
    """step() of each job on several ranks."""
    file = Path(folder) / "jobs.json"
    file.write_text(json.dumps(jobs, default=str))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
               str(ranks), __file__, str(file)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


ARMS = {"plain": {}, "accum": {"accum": 2}, "recompute": {"recompute": True},
        "bf16": {"dtype": "bfloat16"}}  # fmt: skip


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """{(arm, ranks, replicas): what step() found}"""
    out = tmp_path_factory.mktemp("hsdp")
    source = write_checkpoint(out / "ck", vocab_size=385, tie_word_embeddings=False)
    found = {}
    for ranks, copies in ((1, (1,)), (4, (1, 2, 4))):
        jobs = {
            (arm, ranks, n): {"source": source, "out": out / f"{arm}-{ranks}-{n}.st"} | settings
            for arm, settings in ARMS.items()
            for n in copies
        }
        launched(ranks, out, [job | {"replicas": key[2]} for key, job in jobs.items()])
        found |= {key: load_file(job["out"]) for key, job in jobs.items()}
    return found


def apart(a, b, kind):
    """Largest relative difference of the tensors of a kind."""
    names = [name for name in a if name.startswith(kind)]
    assert names and all(b[name].norm() > 0 for name in names)
    return max(float((a[n] - b[n]).norm() / b[n].norm()) for n in names)


@pytest.mark.parametrize("replicas", [1, 2, 4])
@pytest.mark.parametrize("arm", ["plain", "accum", "recompute"])
def test_copies_times_shards_give_the_gradients_losses_and_weights_of_one_rank(
    steps, arm, replicas
):
    one, four = steps[arm, 1, 1], steps[arm, 4, replicas]
    for kind in ("grad.", "loss", "new."):
        assert apart(four, one, kind) < 1e-5, kind
    assert apart(four, steps["plain", 1, 1], "grad.") < 1e-5


def test_bf16_on_two_copies_has_the_gradients_of_one_copy_within_its_rounding(steps):
    assert apart(steps["bf16", 4, 2], steps["bf16", 4, 1], "grad.") < 5e-3
    assert apart(steps["bf16", 4, 2], steps["plain", 1, 1], "grad.") < 5e-2


def test_each_copy_is_whole_over_its_own_ranks(steps):
    held = {n: float(steps["plain", 4, n]["held"]) for n in (1, 2, 4)}
    whole = float(steps["plain", 1, 1]["held"])
    assert held[4] == whole
    assert whole / 2 <= held[2] < 0.51 * whole and whole / 4 <= held[1] < 0.26 * whole


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_the_norm_of_the_gradient_counts_each_number_once(steps, replicas):
    for arm in ARMS:
        assert apart(steps[arm, 4, replicas], steps[arm, 1, 1], "norm") < 1e-4, arm


def test_ranks_that_do_not_divide_into_copies_are_refused(simple):
    device = parallel.init("cpu")[2]
    for replicas in (0, 2, -1):
        with pytest.raises(UserError, match=f"1 ranks cannot share {replicas} copies"):
            parallel.shard(Llama.from_pretrained(simple, "meta"), device, replicas=replicas)


def test_a_run_on_two_copies_logs_saves_and_resumes_as_one_on_a_single_rank(tmp_path):
    """Loading, export and resume states read the mesh, too."""
    data = write_data(tmp_path / "data")
    one = run("sft", data, tmp_path / "one", gradients=tmp_path / "one.st", save_every=3)
    base = {"stage": "sft", "data": data, "replicas": 2, "save_every": 3}
    whole = base | {"out": tmp_path / "whole", "gradients": tmp_path / "two.st"}
    broken = base | {"out": tmp_path / "broken"}
    torchrun(4, tmp_path, [whole, broken | {"crash_at": 4}, broken])
    assert distance(tmp_path / "two.st", tmp_path / "one.st") < 1e-5
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for name in ("loss", "grad_norm"):
        assert [r[name] for r in rows] == pytest.approx([r[name] for r in one], rel=1e-4)
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")
    new, old = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "one"))
    assert max(float((new[k] - old[k]).norm() / old[k].norm()) for k in old) < 1e-4


if __name__ == "__main__":
    torch.set_num_threads(1)
    with parallel.clean_exit():
        for job in json.loads(Path(sys.argv[1]).read_text()):
            step(**job)
