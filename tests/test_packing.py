import numpy as np
import pytest
import torch

from config import UserError
from packing import (
    IGNORE,
    Curriculum,
    Plan,
    Segment,
    best_fit,
    collate,
    document,
    family,
    micro_batches,
    size,
    targets,
)


def lengths_of(count, seed=0, high=40):
    return np.random.default_rng(seed).integers(1, high, count).tolist()


def documents(lengths):
    """One family per length; every token of them all is unique."""
    starts = np.cumsum([0, *[n + 1 for n in lengths]])
    return [document(np.arange(a, a + n + 1)) for a, n in zip(starts, lengths, strict=False)]


def test_labels_are_the_next_token_and_a_document_s_first_token_is_never_one():
    batch = collate([document([9, 1, 2, 3]), document([9, 4, 5])])
    assert batch.input_ids.tolist() == [9, 1, 2, 9, 4]
    assert batch.labels.tolist() == [1, 2, 3, 4, 5]  # no 9: nothing predicts across documents
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 5] and batch.cu_seqlens.dtype == torch.int32
    assert batch.parent.tolist() == [-1, -1]


def test_only_minus_100_is_ignored_and_token_zero_is_trained():
    (segment,) = document([9, 0, 5, 0], trained=[False, True, False, True])
    assert segment.labels.tolist() == [0, IGNORE, 0] and IGNORE == -100
    assert targets([segment]) == 2


def test_a_family_holds_its_prompt_once_and_every_child_continues_it():
    members = family([9, 1, 2], [[3, 4], [5]])
    batch = collate([document([9, 8]), members], sources=[4, 7])
    #                                      doc | prompt | child | child
    assert batch.input_ids.tolist() == [9] + [9, 1] + [2, 3] + [2]
    assert batch.labels.tolist() == [8] + [-100, -100] + [3, 4] + [5]
    assert batch.position_ids.tolist() == [0] + [0, 1] + [2, 3] + [2]
    assert batch.parent.tolist() == [-1, -1, 1, 1]
    assert batch.source.tolist() == [4, 7, 7, 7]
    assert size(members) == 5 and targets(members) == 3


def test_an_empty_completion_or_a_prompt_of_one_token_is_refused():
    for prompt, completions in (([9, 1], [[2], []]), ([9], [[1]]), ([], [[1]])):
        with pytest.raises(ValueError):
            family(prompt, completions)
    with pytest.raises(ValueError):
        document([9])


def slow_best_fit(lengths, capacity):
    """The definition: longest first, into the open row with the least room that suffices."""
    room, rows = [], []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [r for r in range(len(room)) if room[r] >= lengths[i]]
        row = min(fitting, key=lambda r: room[r], default=len(room))
        if row == len(room):
            room.append(capacity)
            rows.append([])
        room[row] -= lengths[i]
        rows[row].append(i)
    return sorted(room)


@pytest.mark.parametrize("seed", range(5))
def test_packing_is_best_fit_and_keeps_every_family_once_within_the_capacity(seed):
    lengths = lengths_of(300, seed, high=(20, 64, 65, 33, 8)[seed])
    rows = best_fit(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(300))
    room = [64 - sum(lengths[i] for i in row) for row in rows]
    assert min(room) >= 0 and sorted(room) == slow_best_fit(lengths, 64)


def test_half_a_million_documents_pack_without_quadratic_work():
    lengths = lengths_of(500_000, high=2000)
    rows = best_fit(lengths, 8192)
    assert len(rows) == -(-sum(lengths) // 8192)  # nothing wasted; a quadratic search never ends


def test_a_sequence_longer_than_a_row_is_an_error_not_a_silent_cut():
    with pytest.raises(UserError, match="sequence 1 has 65 tokens; a row takes 64"):
        best_fit([3, 65], 64)


def test_an_epoch_shows_every_family_once_and_its_last_step_may_be_short():
    lengths = lengths_of(100)
    plan = Plan(lengths, max_length=40, batch_tokens=170, epochs=2, seed=1)
    assert plan.rows_per_step == 4 and len(plan.packed) % 4 != 0
    assert plan.steps == 2 * plan.steps_per_epoch == 2 * -(-len(plan.packed) // 4)
    epochs = []
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        rows = [row for step in steps for row in plan.rows(step)]
        assert sorted(i for row in rows for i in row) == list(range(100))
        epochs.append(rows)
    assert epochs[0] != epochs[1]
    assert epochs[0] != [r for s in range(plan.steps_per_epoch)
                         for r in Plan(lengths, 40, 170, 2, seed=2).rows(s)]  # fmt: skip
    assert plan.fill == sum(lengths) / (40 * len(plan.packed))


def test_the_rows_of_a_step_do_not_depend_on_what_was_asked_before():
    plan, fresh = (Plan(lengths_of(60), 40, 80, 3, seed=5) for _ in range(2))
    forward = [plan.rows(step) for step in range(plan.steps)]
    assert [fresh.rows(step) for step in reversed(range(plan.steps))] == forward[::-1]


@pytest.mark.parametrize("world", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("micro_batch_tokens", [40, 95, 400])
def test_every_rank_runs_as_many_micro_batches_and_together_they_see_the_same_tokens(
    world, micro_batch_tokens
):
    lengths = lengths_of(90)
    families, plan = documents(lengths), Plan(lengths, 40, 280, 1, seed=0)
    for step in range(plan.steps):
        wanted = collate([families[i] for row in plan.rows(step) for i in row])
        ranks = [
            micro_batches(plan, families, step, rank, world, micro_batch_tokens)
            for rank in range(world)
        ]
        assert len({len(batches) for batches in ranks}) == 1
        seen = [b for batches in ranks for b in batches if b.source[0] >= 0]
        for name in ("input_ids", "labels"):
            found = torch.cat([getattr(b, name) for b in seen])
            assert found.sort().values.equal(getattr(wanted, name).sort().values)
        assert all(len(b.input_ids) <= micro_batch_tokens for b in seen)


def test_a_rank_without_rows_gets_one_token_that_is_not_trained():
    plan = Plan([5], 40, 40, 1, seed=0)
    (batch,) = micro_batches(plan, documents([5]), 0, rank=1, world=2, micro_batch_tokens=40)
    assert batch.labels.tolist() == [IGNORE] and batch.cu_seqlens.tolist() == [0, 1]
    assert batch.source.tolist() == [-1] and batch.parent.tolist() == [-1]


def test_the_source_of_a_family_reaches_its_documents():
    families = documents([3, 4]) + [family([1, 2], [[3], [4]])]
    plan = Plan([size(f) for f in families], 40, 40, 1, seed=0)
    (batch,) = micro_batches(plan, families, 0, 0, 1, 40, sources=[5, 6, 7])
    assert sorted(batch.source.tolist()) == [5, 6, 7, 7, 7]


def test_batches_smaller_than_a_row_and_empty_data_are_errors():
    with pytest.raises(UserError, match="batch_tokens 39 is less than one row"):
        Plan([5], 40, 39, 1, seed=0)
    with pytest.raises(UserError, match="nothing to train on"):
        Plan([], 40, 40, 1, seed=0)
    with pytest.raises(UserError, match="micro_batch_tokens 39 is less than one row"):
        micro_batches(Plan([5], 40, 40, 1, 0), documents([5]), 0, 0, 1, 39)


def test_a_batch_moves_as_a_whole():
    batch = collate([[Segment(np.array([1, 2]), np.array([2, 3]))]])
    moved = batch.to("meta")
    assert {t.device.type for t in vars(moved).values()} == {"meta"}
    assert moved.labels.shape == batch.labels.shape


# ---- a curriculum


def test_a_curriculum_of_one_group_is_its_plan():
    lengths = lengths_of(60)
    plan = Plan(lengths, 40, 80, 3, seed=5)
    whole = Curriculum(lengths, [60], 40, 80, 3, seed=5)
    assert (whole.steps, whole.fill, whole.packed) == (plan.steps, plan.fill, [plan.packed])
    assert [whole.rows(s) for s in range(whole.steps)] == [plan.rows(s) for s in range(plan.steps)]


def test_groups_are_trained_one_after_the_other_each_family_once_an_epoch():
    lengths = lengths_of(90)
    plan = Curriculum(lengths, [50, 40], 40, 80, 2, seed=0)
    first = plan.plans[0].steps
    steps = [[i for row in plan.rows(s) for i in row] for s in range(plan.steps)]
    assert sorted(sum(steps[:first], [])) == sorted([*range(50)] * 2)
    assert sorted(sum(steps[first:], [])) == sorted([*range(50, 90)] * 2)
    assert plan.fill == sum(lengths) / (40 * sum(map(len, plan.packed)))
    with pytest.raises(IndexError):
        plan.rows(plan.steps)
    fresh = Curriculum(lengths, [50, 40], 40, 80, 2, seed=0)
    assert fresh.rows(first + 1) == plan.rows(first + 1)  # whatever was asked before
