"""ask.py and prompts.py on tiny random checkpoints."""

import pytest
import torch
from evaluating import run

import ask
import prompts
import results
from config import UserError
from model import Llama
from prompts import Way
from tasks import TASKS
from tokenizer import Tokenizer


def loglikelihood(model, ids, n):
    """Log-prob of the last n of ids, one plain forward over all of them."""
    ids = torch.tensor(ids)
    cu_seqlens = torch.tensor([0, len(ids) - 1], dtype=torch.int32)
    logits = model(ids[:-1], torch.arange(len(ids) - 1), cu_seqlens)
    logprobs = logits.double().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return logprobs[-n:].sum().item()


# Log-likelihoods


@torch.no_grad()
@pytest.mark.parametrize("chat", [True, False])
def test_log_likelihoods_equal_scoring_each_choice_alone(folder, rows_dir, tmp_path, chat):
    run(folder, rows_dir, tmp_path, tasks="arc", chat_template=chat, batch_tokens=300)
    tokenizer, model = Tokenizer(folder), Llama.from_pretrained(folder).eval()
    head = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for sample in results.read_samples(tmp_path, "arc").values():
        row = sample["doc"]
        for choice, [[got, _]] in zip(row["choices"], sample["resps"], strict=True):
            if chat:
                context = tokenizer.prompt(row["query"])
                ids = context + tokenizer.encode(choice)
                # the white space that ends the header is scored with the choice
                space = "\n\n" if tokenizer.template == "llama3" else "\n"
                n = len(ids) - len(context) + len(tokenizer.encode(space))
            else:
                ids = head + tokenizer.encode(f"{row['query']} {choice}")
                n = len(ids) - len(head + tokenizer.encode(row["query"]))
            assert got == pytest.approx(loglikelihood(model, ids, n), abs=1e-4)


def way(**changes):
    settings = {"mode": "loglikelihood", "style": "direct", "fewshot": 0, "chat_template": True,
                "system": "", "max_new_tokens": 0}  # fmt: skip
    return Way(**settings | changes)


def choices_of(tokenizer, row, name="arc", shots=(), **changes):
    """(context, [choice ids]) of a row whose choices share their context."""
    pairs = prompts.encode_choices(tokenizer, TASKS[name], way(**changes), row, shots)
    assert all(context == pairs[0][0] for context, _ in pairs)
    return pairs[0][0], [ids for _, ids in pairs]


def test_trailing_spaces_of_the_context_move_to_the_choice(folder):
    tokenizer = Tokenizer(folder)
    row = {"id": "0", "query": "the cost  \n", "choices": ["good", "bad"]}
    context, choices = choices_of(tokenizer, row, chat_template=False)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    assert context == bos + tokenizer.encode("the cost")
    assert tokenizer.decode(choices[0]) == "  \n good"
    joint = tokenizer.encode("the cost  \n good")
    assert choices[0] == joint[len(tokenizer.encode("the cost")) :]


def test_one_bos_or_none(folder):
    tokenizer, row = Tokenizer(folder), {"id": "0", "query": "the cost", "choices": ["a", "b"]}
    for chat in (True, False):
        asked = way(chat_template=chat, system="be good")
        whole = prompts.encode_prompt(tokenizer, TASKS["arc"], asked, row, (), "the cost")
        context, _ = choices_of(tokenizer, row, chat_template=chat, system="be good")
        for ids in (whole, context):
            assert "be good" in tokenizer.decode(ids)
            if tokenizer.bos_id is not None:
                assert ids[0] == tokenizer.bos_id and ids.count(tokenizer.bos_id) == 1


def test_a_long_context_is_cut_from_the_left_per_choice():
    context, choices = list(range(100, 120)), [[1, 2], [3, 4, 5]]
    pairs = [(context, choice) for choice in choices]
    whole = ask.choice_families(pairs, 64)
    assert len(whole) == 1 and len(whole[0]) == 3  # a parent and two children
    cut = ask.choice_families(pairs, 10)
    assert len(cut) == 2
    for family, choice in zip(cut, choices, strict=True):
        assert family[0].input_ids.tolist() == (context + choice)[-11:-1]
        assert family[0].labels[-len(choice) :].tolist() == choice
        assert (family[0].labels[: -len(choice)] == -100).all()
    with pytest.raises(UserError, match="exceeds the model's context of 2"):
        ask.choice_families(pairs, 2)


def test_a_context_of_one_token_is_scored_too():
    families = ask.choice_families([([7], [1, 2]), ([7], [3])], 64)
    assert [family[0].input_ids.tolist() for family in families] == [[7, 1], [7]]


BLANK = {"id": "b", "query": "the cost of _ is good", "text": "the cost of _ is good",
         "answer": "share", "choices": ["bond", "share"], "gold": 1}  # fmt: skip


@torch.no_grad()
def test_a_blank_scores_what_follows_it_after_each_filler(simple):
    tokenizer, model = Tokenizer(simple), Llama.from_pretrained(simple).eval()
    pairs = prompts.encode_choices(
        tokenizer, TASKS["winogrande"], way(chat_template=False), BLANK, ()
    )
    for (context, ids), filler in zip(pairs, BLANK["choices"], strict=True):
        assert tokenizer.decode(context) == f"the cost of {filler}"
        assert tokenizer.decode(ids) == " is good"
    scored = dict(ask.score_families(model, ask.choice_families(pairs, 99), 64, "cpu", None))
    for (context, ids), [value] in zip(pairs, scored.values(), strict=True):
        assert value == pytest.approx(loglikelihood(model, context + ids, len(ids)), abs=1e-4)


# Examples, instructions, options


SHOTS = [
    {"id": "1", "query": "one ?\nAnswer:", "answer": "A", "subject": "x"},
    {"id": "2", "query": "two ?\nAnswer:", "answer": "B", "subject": "y"},
    {"id": "3", "query": "three ?\nAnswer:", "answer": "C", "subject": "x"},
    {"id": "4", "query": "four ?\nAnswer:", "answer": "D", "subject": "x"},
]
MMLU_ROW = {"id": "m", "query": "five ?\nAnswer:", "answer": "A", "subject": "x",
            "choices": ["A", "B"], "gold": 0}  # fmt: skip


def test_plain_examples_are_the_first_of_the_subject_under_one_description():
    text = prompts.plain(TASKS["mmlu"], way(chat_template=False, fewshot=2), MMLU_ROW, SHOTS,
                         MMLU_ROW["query"])  # fmt: skip
    assert text == ("The following are multiple choice questions (with answers) about x.\n\n"
                    "one ?\nAnswer: A\n\nthree ?\nAnswer: C\n\nfive ?\nAnswer:")  # fmt: skip


def test_in_a_chat_every_example_is_two_turns():
    said = prompts.messages(TASKS["mmlu"], way(fewshot=2), MMLU_ROW, SHOTS, MMLU_ROW["query"])
    assert [m["role"] for m in said] == "system user assistant user assistant user".split()
    assert [m["content"] for m in said][1:] == ["one ?\nAnswer:", "A", "three ?\nAnswer:", "C",
                                                "five ?\nAnswer:"]  # fmt: skip


def test_too_few_examples_are_an_error_and_not_fewer():
    with pytest.raises(UserError, match="examples: 3 about x, not 4"):
        prompts.plain(TASKS["mmlu"], way(fewshot=4), MMLU_ROW, SHOTS, "")


def test_a_blank_is_filled_in_its_examples():
    shown = prompts.plain(TASKS["winogrande"], way(chat_template=False, fewshot=1), BLANK, [BLANK],
                          "the cost of bond")  # fmt: skip
    assert shown == "the cost of share is good\n\nthe cost of bond"


def test_options_are_listed_where_a_reply_is_asked_for():
    row = {"id": "0", "query": "Question: why ?\nAnswer:", "text": "why ?", "answer": "so",
           "choices": ["so", "not so"], "gold": 0}  # fmt: skip
    asked = way(mode="generate")
    said = prompts.question(TASKS["arc"], asked, row)
    assert "why ?\nA. so\nB. not so\n" in said and said.endswith("Answer:")
    assert prompts.example(TASKS["arc"], asked, row) == (said, "A")
    assert prompts.question(TASKS["arc"], way(), row) == row["query"]


def test_a_chain_of_thought_is_asked_for_unless_a_system_message_is_given():
    direct, cot = way(mode="generate"), way(mode="generate", style="cot")
    assert prompts.instructions(TASKS["fpb"], direct, {}) == ""
    assert "[[" in prompts.instructions(TASKS["fpb"], cot, {})
    assert prompts.instructions(TASKS["arc"], cot, {}) == prompts.reasoning(TASKS["mmlu"])
    mine = way(mode="generate", style="cot", system="mine")
    both = f"mine\n\n{prompts.reasoning(TASKS['fpb'])}"  # the form to answer in is never lost
    assert prompts.instructions(TASKS["fpb"], mine, {}) == both
    assert prompts.instructions(TASKS["cfa_easy"], cot, {}) == TASKS["cfa_easy"].system
    shas = {prompts.instructions_sha(TASKS["fpb"], w) for w in (direct, cot, mine)}
    assert len(shas) == 3


def test_a_row_without_what_its_prompt_names_is_an_error():
    row = {k: v for k, v in MMLU_ROW.items() if k != "subject"}
    with pytest.raises(UserError, match="subject: missing"):
        prompts.plain(TASKS["mmlu"], way(), row, (), "")


def test_a_long_prompt_keeps_its_instruction_and_its_question():
    ids = list(range(100))
    assert ask.shortened(ids, 100) == ids
    assert ask.shortened(ids, 20) == [*range(5), *range(85, 100)]


def test_a_system_message_of_a_chat_ends_with_the_blank_line_of_its_description():
    said = prompts.messages(TASKS["mmlu"], way(), MMLU_ROW, (), "x")
    assert said[0]["content"] == (
        "The following are multiple choice questions (with answers) about x.\n\n"
    )
    assert prompts.messages(TASKS["arc"], way(system="be good"), BLANK, (), "x")[0] == {
        "role": "system", "content": "be good"}  # fmt: skip
