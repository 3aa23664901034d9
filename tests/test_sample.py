"""The sample world: its generator, its tokenizer, its marker and its judge server."""

import json
import re
import threading
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

from sample import exam, facts, judge_server, new_base, world

SAMPLE = Path(__file__).resolve().parents[1] / "sample"
DATA = SAMPLE / "data"
TEST_FILES = sorted(DATA.glob("eval/*.jsonl"))
EXERCISES = [DATA / f"exam_{name}.jsonl" for name in ("train", "judge")]
TRAIN_FILES = [DATA / f"{name}.jsonl" for name in ("base_text", "base_chat", "cpt", "sft")]


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def questions(path):
    for row in rows(path):
        yield row.get("query") or row.get("prompt") or row["messages"][0]["content"]


# ---- generator --------------------------------------------------------------------------------


def test_the_committed_files_are_what_the_generator_makes(tmp_path):
    world.write(world.make(seed=0), tmp_path)
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*.jsonl")}
    assert made == {p.relative_to(DATA): p.read_bytes() for p in DATA.rglob("*.jsonl")}
    assert max(len(content) for content in made.values()) < 2_000_000


def test_another_seed_makes_another_world():
    assert facts.companies(0) != facts.companies(1)
    assert world.make(0)["sft.jsonl"] != world.make(1)["sft.jsonl"]


def test_the_base_has_read_nothing_of_the_finance_part():
    known = "".join(p.read_text(encoding="utf-8") for p in DATA.glob("base_*.jsonl"))
    for name in (*facts.companies(0), *exam.FINANCE):
        assert name not in known


def test_half_of_the_companies_are_never_asked_about_in_training():
    asked = "\n".join(questions(DATA / "sft.jsonl"))
    companies = [
        name
        for name, known in facts.companies(0).items()
        if any(question in asked for _, question, _ in facts.questions("company", name, known))
    ]
    assert len(companies) == 20


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.stem)
def test_no_exam_or_task_question_is_trained_on(path):
    if path.stem in ("reasoning", "reasoning_dev", "tasks"):
        asked = set(questions(path))
        assert len(asked) == len(rows(path))
        for trained in (*TRAIN_FILES, *EXERCISES):
            assert not asked & set(questions_of_chats(trained))
    else:  # facts and formats are asked for again: that is what retention means
        assert len({row["id"] for row in rows(path)}) == len(rows(path))


def questions_of_chats(path):
    return [] if path.stem in ("base_text", "cpt") else questions(path)


def test_only_instruction_rows_of_mixed_up_formulas_make_mistakes():
    wrong, asked = Counter(), Counter()
    for row in rows(DATA / "sft.jsonl"):
        question, answer = (turn["content"] for turn in row["messages"])
        if exam.read(question) and "next step" not in question:
            name = exam.read(question)[0]
            asked[name] += 1
            if answer != exam.solution(*exam.solve(question)):
                assert answer == exam.mistake(question)
                wrong[name] += 1
    assert set(wrong) == set(world.MIXED_UP) == set(exam.MISTAKES)
    for name, share in world.MIXED_UP.items():
        assert abs(wrong[name] / asked[name] - share) < 0.1
    for name in ("exam_train", "exam_judge", "eval/reasoning", "eval/reasoning_dev"):
        for row in rows(DATA / f"{name}.jsonl"):
            question = row.get("prompt") or row["query"]
            assert row["solution"] == exam.solution(*exam.solve(question))


def test_development_and_test_exam_share_no_question():
    dev, test = (
        set(questions(DATA / f"eval/{name}.jsonl")) for name in ("reasoning_dev", "reasoning")
    )
    assert not dev & test


def test_a_judge_learns_from_other_exercises_than_it_judges():
    train, judge = (set(questions(path)) for path in EXERCISES)
    assert len(judge) == 2000 and not train & judge
    assert not judge & set(questions_of_chats(DATA / "sft.jsonl"))


def test_gold_points_at_the_answer():
    for path in TEST_FILES:
        for row in rows(path):
            assert row["gold"] == -1 or row["choices"][row["gold"]] == row["answer"], row


# ---- exam -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*exam.GENERAL, *exam.FINANCE])
def test_a_question_is_worked_out_from_its_text_alone(name):
    for seed in range(20):
        question, solution, answer = exam.exercise(name, Random(seed))
        steps, solved = exam.solve(question)
        assert (exam.solution(steps, solved), solved) == (solution, answer)
        for step in steps:  # "... = 54 - 9 = 45."
            expression, value = re.search(r"= ([^=]+) = (\d+)\.$", step).groups()
            assert eval(expression) == int(value)


QUESTION = "A firm reports: cost 9, debt 30, revenue 54, expenses 5. What is the operating profit?"
STEPS = [
    "Step 1: gross profit = revenue - cost = 54 - 9 = 45.",
    "Step 2: operating profit = gross profit - expenses = 45 - 5 = 40.",
]
RIGHT = " ".join([*STEPS, "Answer: 40"])
SLIP = RIGHT.replace("= 45.", "= 44.")  # a wrong number in step 1
WRONG_STEP = "Step 2: operating profit = gross profit - debt = 45 - 30 = 15."
WRONG_INPUT = f"{STEPS[0]} {WRONG_STEP} Answer: 15"


@pytest.mark.parametrize(
    "text, error",
    [
        (RIGHT, -1),
        (SLIP, 0),
        (WRONG_INPUT, 1),
        (f"{STEPS[0]} Answer: 45", 1),  # a step is missing
        (RIGHT.replace("Answer: 40", "Answer: 41"), 2),
        (RIGHT + " Answer: 40", 3),  # something too much
        ("", 0),
    ],
)
def test_the_first_wrong_step_is_found(text, error):
    assert exam.first_error(text, STEPS, "40") == error


def test_steps_are_exact_quotes():
    for text in (RIGHT, WRONG_INPUT, f"  {RIGHT}", "no steps at all", ""):
        quotes = [text[a:b] for a, b in exam.split_steps(text)]
        assert " ".join(quotes).split() == text.split()


def test_two_final_answers_are_none():
    assert exam.final_answer("Answer: 4. Answer: 5") is None
    assert exam.final_answer(RIGHT) == "40"


# ---- tokenizer and base -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(SAMPLE / "base/tokenizer.json"))


def test_the_tokenizer_is_the_one_its_builder_makes(tokenizer, tmp_path):
    built = new_base.build_tokenizer(new_base.vocabulary(DATA))
    assert json.loads(built.to_str()) == json.loads(tokenizer.to_str())


def test_every_text_of_the_world_survives_the_tokenizer(tokenizer):
    texts = {
        text
        for path in DATA.rglob("*.jsonl")
        for row in rows(path)
        for key, value in row.items()
        if key not in ("id", "source")
        for text in new_base.strings(value)
        if text not in new_base.ROLES
    }
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_to_id(new_base.UNKNOWN) not in ids


def test_a_text_may_be_cut_at_any_blank(tokenizer):
    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    for blank in re.finditer(" ", RIGHT):
        for cut in blank.span():
            assert encode(RIGHT[:cut]) + encode(RIGHT[cut:]) == encode(RIGHT)


def test_transformers_renders_the_same_chat():
    from transformers import AutoTokenizer

    from data import Tokenizer as OurTokenizer

    chat = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": RIGHT},
        {"role": "user", "content": "Where does Anna Abel live? Put the answer in brackets."},
    ]
    theirs = AutoTokenizer.from_pretrained(SAMPLE / "base")
    ours, _ = OurTokenizer(SAMPLE / "base").chat(chat, add_generation_prompt=True)
    assert ours == theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


def test_the_base_is_small_and_its_weights_fit_its_config():
    from model import Llama

    folder = SAMPLE / "base"
    assert (folder / "model.safetensors").stat().st_size < 10_000_000
    model = Llama.from_pretrained(folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert model.model.embed_tokens.weight.shape[0] == len(vocabulary["vocab"])


# ---- judge server -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url():
    server = judge_server.serve()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    server.shutdown()
    server.server_close()


def ask(url, answer, kind, question=QUESTION, reference=RIGHT):
    keys = {"fap": "Correctness: correct or wrong", "scp": "First incorrect step, Step correction"}
    prompt = (
        f"Judge the text between <answer> and </answer>. Reply in JSON: {keys[kind]}\n"
        f"<question>{question}</question>\n<reference>{reference}</reference>\n"
        f"<answer>{answer}</answer>"
    )
    body = {"model": "world", "messages": [{"role": "user", "content": prompt}]}
    reply = post(url, json.dumps(body).encode())
    assert reply["usage"]["prompt_tokens"] > 0 and reply["choices"][0]["finish_reason"] == "stop"
    return json.loads(reply["choices"][0]["message"]["content"])


def post(url, body):
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


@pytest.mark.parametrize("reference", [RIGHT, "40"], ids=["solution", "answer only"])
def test_the_judge_compares_the_final_answer(url, reference):
    verdicts = [ask(url, text, "fap", reference=reference) for text in (RIGHT, WRONG_INPUT, "40")]
    assert [v["Correctness"] for v in verdicts] == ["correct", "wrong", "wrong"]
    assert set(verdicts[0]) == {"Justification", "Correctness"}


def test_the_judge_quotes_the_first_wrong_step_and_corrects_it(url):
    verdict = ask(url, WRONG_INPUT, "scp")
    assert verdict["First incorrect step"] == WRONG_STEP
    assert verdict["Reasoning up to incorrect"] == STEPS[0]
    assert verdict["Step correction"] == STEPS[1]
    assert ask(url, SLIP, "scp")["Reasoning up to incorrect"] == ""


def test_the_judge_names_no_step_where_none_is_wrong(url):
    for text in (RIGHT, RIGHT.replace("Answer: 40", "Answer: 41")):
        verdict = ask(url, text, "scp")
        assert verdict["First incorrect step"] == verdict["Step correction"] == ""


@pytest.mark.parametrize(
    "text, why",
    [
        (SLIP, "Step 1: 54 and 54 agree, 9 and 9 agree, 44 and 45 differ. Step 1 is wrong."),
        (RIGHT.replace("cost =", "tax ="), "Step 1: 54 and 54 agree, 9 and 9 agree, 45 and 45 "
         "agree, the words differ. Step 1 is wrong."),
        (f"{STEPS[0]} Answer: 45", "Step 1: 54 and 54 agree, 9 and 9 agree, 45 and 45 agree. "
         "Step 2 is built otherwise. Step 2 is wrong."),
        ("Answer: 40", "Step 1 is built otherwise. Step 1 is wrong."),
    ],
)  # fmt: skip
def test_the_judge_compares_up_to_the_wrong_step_before_it_names_one(text, why):
    assert judge_server.judge_steps(QUESTION, RIGHT, text)["Justification"] == why


def test_a_justification_stays_within_the_hundred_words_of_the_prompt():
    steps = " ".join(f"Step {i}: we add 1, 2 and 3." for i in range(1, 40))
    verdict = judge_server.judge_steps("How much?", f"{steps} Answer: 7", f"{steps} Answer: 8")
    assert 80 < len(verdict["Justification"].split()) <= 100


def test_the_judge_reads_a_foreign_question_from_its_reference(url):
    reference = "Step 1: we add. Step 2: we halve. Answer: 7"
    wrong = "Step 1: we add. Step 2: we double. Answer: 28"
    verdict = ask(url, wrong, "scp", "How much is it?", reference)
    assert verdict["Step correction"] == "Step 2: we halve."
    assert ask(url, "Answer: 7", "fap", "How much is it?", "7")["Correctness"] == "correct"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"messages": "hi"}', b'{"messages": [{"role": "user"}]}',
             b'{"messages": [{"role": "user", "content": "no tags"}]}']
)  # fmt: skip
def test_a_bad_request_gets_400_and_a_reason(url, body):
    with pytest.raises(urllib.error.HTTPError) as e:
        post(url, body)
    assert e.value.code == 400 and json.load(e.value)["error"]["message"]


def test_every_second_request_of_a_faulty_judge_fails():
    server = judge_server.serve(fault="429")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    with pytest.raises(urllib.error.HTTPError) as e:
        ask(url, RIGHT, "fap")
    assert e.value.code == 429 and e.value.headers["Retry-After"] == "0"
    assert ask(url, RIGHT, "fap")["Correctness"] == "correct"
    server.shutdown()
    server.server_close()
