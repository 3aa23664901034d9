"""paper.py: the table holds what the paper says of itself."""

from paper import PAPER, read_table
from tasks import FINEVAL, TASKS


def beaten(names, column):
    """The tasks on which Llama-Fin is ahead of a column."""
    return [name for name in names if PAPER[name].llama_fin > getattr(PAPER[name], column)]


def test_every_task_has_its_reference_measured_the_papers_way():
    assert tuple(PAPER) == FINEVAL
    for name, reference in PAPER.items():
        task = TASKS[name]
        assert reference.metric == task.metrics[0], name
        assert reference.way == {"direct": "d", "cot": "c"}[task.style], name
        assert all(-100 <= score <= 100 for score in reference[3:]), name


def test_listed_sizes_sum_to_the_known_total():
    assert sum(reference.n for reference in PAPER.values()) == 77_656


def test_the_papers_comparisons_follow_from_the_table():
    """These counts were made from the paper's own table: a shifted column would break them."""
    similar = [n for n in FINEVAL if TASKS[n].novelty == "similar"]
    finance = [n for n in FINEVAL if TASKS[n].novelty == "novel" and TASKS[n].capability == "tasks"]
    assert len(beaten(finance, "llama3")) == 12 and len(finance) == 17
    assert set(similar) - set(beaten(similar, "gpt4o")) == {"fomc"}
    assert beaten(["cfa_challenge"], "no_pa") and not beaten(["cfa_challenge"], "gpt4o")


def test_ratings_are_points_like_everything_else():
    assert 10 < PAPER["mt_bench"].palmyra < PAPER["mt_bench"].gpt4o <= 100


def test_the_table_is_read_column_by_column():
    found = read_table("task n way metric a b c d e\n\nfpb 970 d acc 1 2 3 -4.5 5\n")
    assert found["fpb"]._asdict() == {
        "n": 970, "way": "d", "metric": "acc", "llama_fin": 1, "no_pa": 2, "llama3": 3,
        "gpt4o": -4.5, "palmyra": 5,
    }  # fmt: skip
