"""tasks.py: every entry is whole."""

import tasks


def test_every_task_is_described_in_full():
    for name, task in tasks.TASKS.items():
        assert task.capability in tasks.CAPABILITIES, name
        assert task.kind in ("general", "domain", "reasoning"), name
        assert task.novelty in ("similar", "novel") and task.style in ("direct", "cot"), name
        assert task.mode in ("generate", "loglikelihood") and task.source and task.title, name
        assert task.metrics and 0 < task.max_new_tokens, name
