"""tasks.py: every entry is whole, and its published queries are told from every other task's."""

import re
from string import Formatter

import pytest
from published import PUBLISHED

import tasks
from tasks import COT, FINEVAL, TASKS, WORLD

KINDS = "label letter text blank entities summary number short free chat exact exam".split()
METRICS = (
    "acc weighted_f1 macro_f1 mcc balanced_acc acc_norm acc_bytes rouge1 rouge2 rougeL entity_f1 "
    "em f1 judge process"
).split()
SAME_FORM = {"mmlu", "mmlu_finance"}  # one data set and its part


def signed(query):
    """The tasks whose sign a query holds."""
    return {n for n, task in TASKS.items() if task.sign and re.search(task.sign, query, re.I)}


def parts(template):
    return {field for _, field, _, _ in Formatter().parse(template) if field is not None}


def test_every_task_is_described_in_full():
    for name, task in TASKS.items():
        assert task.capability in tasks.CAPABILITIES, name
        assert task.kind in ("general", "domain", "reasoning"), name
        assert task.novelty in ("similar", "novel") and task.style in ("direct", "cot"), name
        assert task.mode in ("generate", "loglikelihood") and task.source and task.title, name
        assert task.metrics and set(task.metrics) <= set(METRICS), name
        assert task.max_new_tokens > 0 and task.answer in KINDS, name
        assert task.judge in ("", "outcome", "rating"), name
        assert bool(task.judge) == ("judge" in task.metrics), name


def test_fineval_has_35_tasks_in_the_papers_groups():
    assert len(FINEVAL) == 35
    groups = [(TASKS[name].novelty, TASKS[name].capability) for name in FINEVAL]
    assert [groups.count(group) for group in dict.fromkeys(groups)] == [5, 4, 17, 1, 8]
    assert TASKS["arc"].capability == "concepts"  # knowledge, though it is no finance


def test_the_world_leaves_out_the_questions_for_choosing_settings():
    assert set(TASKS) == {*FINEVAL, *WORLD, "reasoning_dev"} and not set(FINEVAL) & set(WORLD)
    assert "reasoning_dev" not in WORLD


def test_multiple_choice_is_asked_by_log_likelihood_except_the_exams():
    chosen = [n for n in FINEVAL if TASKS[n].answer in ("letter", "text", "blank")]
    exams = ["cfa_easy", "cfa_challenge"]
    assert len(chosen) == 11
    for name in FINEVAL:
        loglikelihood = name in chosen and name not in exams
        assert (TASKS[name].mode == "loglikelihood") == loglikelihood, name


def test_reasoning_has_room_and_is_asked_for():
    for name in FINEVAL:
        task = TASKS[name]
        if task.style == "cot":
            assert task.max_new_tokens >= 512 and (task.system or task.answer in COT), name
        elif task.answer in ("label", "letter"):
            assert task.max_new_tokens <= 32, name
    assert all("Selection: [[" in text for text in (*COT.values(), tasks.CFA_SYSTEM))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_query_is_told_from_all_other_tasks(name):
    assert signed(PUBLISHED[name]) == {name}


@pytest.mark.parametrize("name", [name for name in FINEVAL if TASKS[name].prompt])
def test_our_own_prompts_are_not_taken_for_another_tasks(name):
    filled = dict.fromkeys("text category a b c d table question evidence".split(), "words")
    query = TASKS[name].prompt.format(**filled)
    assert signed(query) <= ({name} | SAME_FORM if name in SAME_FORM else {name})
    # German's is known by the profile, the stock sets by the day: both stand in the text
    by_text = ("german", "sm_bigdata", "sm_acl", "sm_cikm")
    assert signed(query) or not TASKS[name].sign or name in by_text or name.startswith("cfa_")


def test_prompts_have_no_part_that_prepare_does_not_fill():
    special = {
        "fiqa_sa": {"text", "category"},
        "tatqa": {"table", "text", "question"},
        "financebench": {"evidence", "question"},
        "winogrande": set(),
    }
    letters = {"mmlu": "abcd", "mmlu_finance": "abcd", "cfa_easy": "abc", "cfa_challenge": "abc"}
    for name in FINEVAL:
        task = TASKS[name]
        expected = special.get(name, {"text", *letters.get(name, "")})
        assert parts(task.prompt) == expected, name
        assert parts(task.description) <= {"subject"}, name
        if task.answer in ("label", "letter"):
            assert task.prompt.endswith("Answer:"), name


def test_labels_are_asked_for_by_name():
    for name in FINEVAL:
        task = TASKS[name]
        assert bool(task.labels) == (task.answer == "label" and name != "mlesg"), name
        assert len(set(task.labels)) == len(task.labels)
        for label in task.labels:
            assert re.search(rf"\b{label}\b", task.prompt, re.I), (name, label)


def test_labels_stand_in_the_published_rows_order():
    """PIXIU's scorer takes the first label that it finds, so the order is part of its numbers."""
    ordered = {
        ("positive", "negative", "neutral"): "fpb fiqa_sa",
        ("dovish", "hawkish", "neutral"): "fomc",
        ("complete", "rumour"): "ma",
        ("Rise", "Fall"): "sm_bigdata sm_acl sm_cikm",
        ("good", "bad"): "cra_ccfraud german australian lendingclub",
        ("no", "yes"): "cra_ccf polish taiwan",
        ("yes", "no"): "portoseguro travelinsurance",
    }
    for labels, names in ordered.items():
        assert {TASKS[name].labels for name in names.split()} == {labels}


def test_sources_give_the_hubs_own_misspelt_names_and_its_swapped_file():
    configs = {name: TASKS[name].source for name in FINEVAL}
    assert "CRA-ProtoSeguro," in configs["portoseguro"]
    assert "CRA-Bigdata," in configs["sm_bigdata"]
    assert "cra-travelinsurace" in configs["travelinsurance"]
    assert "holds LendingClub rows" in configs["financebench"]
    # One config for one task
    named = [m[1] for source in configs.values() if (m := re.search(r"config (\S+), or", source))]
    assert len(set(named)) == len(named) == 22
