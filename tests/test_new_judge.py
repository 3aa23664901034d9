"""The sample world's judge before its training: its tokenizer, its weights, its drills."""

import re
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer as Encoder

import judge
from jsonl import read_jsonl
from sample import exam, judge_server, new_base, new_judge
from tokenizer import Tokenizer

SAMPLE = Path(__file__).resolve().parents[1] / "sample"
DATA = SAMPLE / "data"
OTHER = ["Step 2: rest = route - distance = 9 - 4 = 5.", "Step 2: We sell 9 eggs of 12."]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    new_judge.save(SAMPLE / "base", DATA, folder, seed=0)
    return folder


def judged():
    """(kind, request, solution, reply) on right and wrong solutions of every finance formula."""
    for _, row in islice(read_jsonl(DATA / "exam_judge.jsonl", {"prompt": str}), 40):
        right, (steps, answer) = row["solution"], exam.solve(row["prompt"])
        written = [right, exam.solution(steps, "0"), right.replace(" = ", " - ", 1)]
        written += [exam.solution([step.replace("= 1", "= 2") for step in steps], answer)]
        written += [exam.solution([steps[0], step], answer) for step in OTHER]
        for text in [*written, "\n\n".join([steps[0], "Answer: 1", "Answer: 2"])]:
            for kind in judge.OF_SOLUTIONS:
                parts = row["prompt"], f"{right}\n{answer}", text
                request = judge.build_request(kind, 1, *parts, "", 1, 0)
                reply = judge_server.reply(request)["choices"][0]["message"]["content"]
                yield kind, request["messages"], text, reply


def test_every_request_and_reply_survives_the_judges_tokenizer(untrained):
    tokenizer = Tokenizer(untrained)
    unknown, wrong = tokenizer.encoder.token_to_id(new_base.UNKNOWN), 0
    for kind, messages, text, reply in judged():
        ids = tokenizer.encode(reply)
        assert unknown not in [*ids, *tokenizer.prompt(messages)]
        raw = tokenizer.decode(ids)
        assert raw == reply
        parsed, reason = judge.parse_reply(raw, "stop", kind)
        assert reason is None
        if step := parsed.get("First incorrect step"):
            wrong += 1
            assert judge.locate(text, parsed["Reasoning up to incorrect"], step)
    assert wrong > 100


def test_a_line_that_every_request_has_costs_the_judge_one_token(untrained):
    tokenizer = Encoder.from_file(str(untrained / "tokenizer.json"))
    for prompt in map(judge.PROMPTS.get, judge.OF_SOLUTIONS):
        text = prompt.format(question="A", reference="A", answer="A")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert len(ids) == len([line for line in text.split("\n") if line.strip()])


def test_the_judge_begins_with_what_the_base_has_read_and_nothing_else_of_it(untrained):
    base, new = (load_file(f / "model.safetensors") for f in (SAMPLE / "base", untrained))
    vocabulary, grown = (
        Encoder.from_file(str(folder / "tokenizer.json")).get_vocab()
        for folder in (SAMPLE / "base", untrained)
    )
    assert vocabulary.items() <= grown.items()
    before, after = (w.pop("model.embed_tokens.weight") for w in (base, new))
    assert all(new[name].equal(weight) for name, weight in base.items())
    read, unread = vocabulary["distance"], [vocabulary[w] for w in ("inventory", "liabilities")]
    assert after[read].equal(before[read])
    one, other = after[unread]
    assert abs(one @ other) < 0.5 * one.norm() * other.norm()


def test_drills_compare_rightly(untrained):
    seen = Counter()
    for _, row in read_jsonl(untrained / "drills.jsonl", {"messages": list}):
        asked, answer = (turn["content"] for turn in row["messages"])
        lists = [numbers.split(", ") for numbers in asked.split(" and ")]
        said = re.findall(r"(\d+) and (\d+) (agree|differ)", answer)
        assert [list(pair) for pair in zip(*[(a, b) for a, b, _ in said], strict=True)] == lists
        for a, b, word in said:
            assert word == ("agree" if a == b else "differ")
            seen[word] += 1
    assert min(seen.values()) > 0.3 * seen.total()
