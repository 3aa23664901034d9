"""answers.jsonl: every prompt is asked once, whatever stops the run, and servers reply too."""

import json
import sys

import judging
import pytest
from evaluating import CHAT, config, label_rows, run
from judging import completion, serving, url
from test_evaluate import command
from tiny import sentences, write_checkpoint, write_rows

import ask
import evaluate
import results
from config import UserError


@pytest.fixture(autouse=True)
def policy(monkeypatch):
    """The test server is a model here, no judge."""
    monkeypatch.setattr(judging, "answer_of", lambda prompt: {})


def log_of(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


@pytest.fixture
def counted(monkeypatch):
    """Number of prompts and families that a model was really asked."""
    asked = {"reply": 0, "choices": 0}
    stream, score = ask.stream, ask.score_families

    def counting_stream(model, prompts, *args, **settings):
        asked["reply"] += len(prompts)
        yield from stream(model, prompts, *args, **settings)

    def counting_score(model, families, *args):
        asked["choices"] += len(families)
        yield from score(model, families, *args)

    monkeypatch.setattr(ask, "stream", counting_stream)
    monkeypatch.setattr(ask, "score_families", counting_score)
    return asked


def test_nothing_is_asked_twice(simple, rows_dir, tmp_path, counted):
    first = run(simple, rows_dir, tmp_path, tasks="arc,fpb")
    assert counted == {"reply": 24, "choices": 30}
    assert run(simple, rows_dir, tmp_path, tasks="arc,fpb") == first
    run(simple, rows_dir, tmp_path, tasks="fpb", scorer="pixiu")
    assert counted == {"reply": 24, "choices": 30}
    assert len({record["id"] for record in log_of(tmp_path)}) == len(log_of(tmp_path)) == 54


def test_other_stop_ids_are_another_question(rows_dir, tmp_path, counted):
    folder = write_checkpoint(tmp_path / "ck")
    run(folder, rows_dir, tmp_path, tasks="fpb")
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [5]}))
    run(folder, rows_dir, tmp_path, tasks="fpb")
    assert counted["reply"] == 48


def test_equal_prompts_are_asked_once(simple, tmp_path, counted):
    rows = [row | {"id": f"{i}{k}"} for i, row in enumerate(label_rows(4)) for k in "ab"]
    write_rows(tmp_path / "fpb.jsonl", rows)
    run(simple, tmp_path, tmp_path, tasks="fpb")
    run(simple, tmp_path, tmp_path, tasks="fpb", mode="loglikelihood")
    assert counted == {"reply": 4, "choices": 4}
    assert len(results.read_samples(tmp_path, "fpb")) == 8


@pytest.mark.parametrize("change", [{"max_new_tokens": 4}, {"system": "be brief"},
                                    {"chat_template": False}, {"dtype": "bfloat16"}])  # fmt: skip
def test_another_way_of_asking_is_another_question(simple, rows_dir, tmp_path, counted, change):
    run(simple, rows_dir, tmp_path, tasks="fpb")
    run(simple, rows_dir, tmp_path, tasks="fpb", **change)
    assert counted["reply"] == 48


def test_other_weights_in_the_same_folder_are_asked_anew(rows_dir, tmp_path, counted):
    one = run(write_checkpoint(tmp_path / "ck"), rows_dir, tmp_path / "out", tasks="arc")
    two = run(write_checkpoint(tmp_path / "ck", seed=1), rows_dir, tmp_path / "out", tasks="arc")
    assert counted["choices"] == 60
    assert one != two


@pytest.mark.parametrize("tasks", ["arc", "fpb"])
@pytest.mark.parametrize("after", [1, 7, 20])
def test_a_killed_run_goes_on_with_what_is_missing(
    simple, rows_dir, tmp_path, counted, monkeypatch, tasks, after
):
    whole = run(simple, rows_dir, tmp_path / "whole", tasks=tasks)
    append = evaluate.append_to

    class Killed(BaseException):
        pass

    def dying(*args):
        return Dying(append(*args))

    class Dying:
        def __init__(self, log):
            self.log = log

        def __enter__(self):
            records, add = self.log.__enter__()

            def limited(record):
                if len(records) == after:
                    raise Killed
                add(record)

            return records, limited

        def __exit__(self, *error):
            return self.log.__exit__(*error)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "append_to", dying)
        with pytest.raises(Killed):
            run(simple, rows_dir, tmp_path / "cut", tasks=tasks, batch_tokens=64, slots=3)
    assert len(log_of(tmp_path / "cut")) == after
    with open(tmp_path / "cut" / "answers.jsonl", "a") as file:
        file.write('{"id": "half a li')  # a kill may leave that
    counted.update(reply=0, choices=0)
    assert run(simple, rows_dir, tmp_path / "cut", tasks=tasks) == whole
    total = len(results.read_samples(tmp_path / "whole", tasks))
    assert counted["reply" if tasks == "fpb" else "choices"] == total - after
    for name in ("prediction", "resps"):
        a, b = ([s[name] for s in results.read_samples(tmp_path / d, tasks).values()]
                for d in ("whole", "cut"))  # fmt: skip
        assert a == pytest.approx(b) if name == "prediction" else len(a) == len(b)


def test_what_other_ranks_left_after_a_kill_is_taken_over(simple, rows_dir, tmp_path, counted):
    run(simple, rows_dir, tmp_path, tasks="fpb")
    lines = (tmp_path / "answers.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_text("".join(lines[:10]))
    (tmp_path / "answers.rank1.jsonl").write_text("".join(lines[8:20]))
    counted.update(reply=0)
    run(simple, rows_dir, tmp_path, tasks="fpb")
    assert counted["reply"] == 4 and not (tmp_path / "answers.rank1.jsonl").exists()


def test_a_row_whose_options_are_scored_apart_is_logged_when_all_are(simple, tmp_path, counted):
    rows = [{"id": f"w{i}", "query": f"{text} _ is good", "text": f"{text} _ is good",
             "answer": "bond", "choices": ["share", "bond"], "gold": 1}
            for i, text in enumerate(sentences(6))]  # fmt: skip
    write_rows(tmp_path / "winogrande.jsonl", rows)
    one = run(simple, tmp_path, tmp_path / "a", tasks="winogrande", batch_tokens=8)
    assert counted["choices"] == 12 and len(log_of(tmp_path / "a")) == 6
    assert one == run(simple, tmp_path, tmp_path / "b", tasks="winogrande")


def test_a_plain_reply_ends_with_a_blank_line(simple, rows_dir, tmp_path, monkeypatch):
    def says_more(asker, jobs, new_tokens, title):
        for key in jobs:
            asker.add({"id": key, "text": "positive\n\nText: more\nnegative", "finish": "stop"})

    monkeypatch.setattr(ask, "local_replies", says_more)
    run(simple, rows_dir, tmp_path, tasks="fpb", chat_template=False)
    assert {s["resps"][0][0] for s in results.read_samples(tmp_path, "fpb").values()} == {
        "positive"
    }


# Conversations


def test_the_second_turn_of_a_chat_answers_the_first_reply(simple, tmp_path):
    write_rows(tmp_path / "mt_bench.jsonl", CHAT)
    entry = run(simple, tmp_path, tmp_path, tasks="mt_bench")["mt_bench"]
    assert entry["score"] is None and entry["metric"] == "judge" and entry["n"] == 2
    for sample in results.read_samples(tmp_path, "mt_bench").values():
        (first, _), (second, settings) = sample["arguments"]
        [reply], _ = sample["resps"]
        assert sample["doc"]["turns"][0] in first and reply in second
        assert second.index(reply) < second.index(sample["doc"]["turns"][1])
        assert settings["do_sample"] == (sample["doc"]["category"] == "writing")


def test_a_sampled_chat_is_the_same_in_any_batch(simple, tmp_path):
    write_rows(tmp_path / "mt_bench.jsonl", CHAT)
    for out, slots in (("a", 1), ("b", 8)):
        run(simple, tmp_path, tmp_path / out, tasks="mt_bench", slots=slots)
    one, two = (results.read_samples(tmp_path / out, "mt_bench") for out in "ab")
    assert [s["resps"] for s in one.values()] == [s["resps"] for s in two.values()]


def test_a_sampled_chat_is_the_same_in_any_order_of_rows(simple, tmp_path):
    for out, rows in (("a", CHAT), ("b", CHAT[::-1])):
        (tmp_path / out).mkdir()
        write_rows(tmp_path / out / "mt_bench.jsonl", rows)
        run(simple, tmp_path / out, tmp_path / out, tasks="mt_bench")
    one, two = (results.read_samples(tmp_path / out, "mt_bench") for out in "ab")
    assert {k: s["resps"] for k, s in one.items()} == {k: s["resps"] for k, s in two.items()}


def test_another_temperature_is_another_question(simple, tmp_path, counted):
    for category in ("writing", "math", "stem"):
        write_rows(tmp_path / "mt_bench.jsonl", [CHAT[0] | {"category": category}])
        run(simple, tmp_path, tmp_path / "out", tasks="mt_bench")
    assert counted["reply"] == 6


def test_two_checkpoints_are_paired_on_a_chat_though_their_second_prompts_differ(simple, tmp_path):
    write_rows(tmp_path / "mt_bench.jsonl", CHAT)
    other = write_checkpoint(tmp_path / "ck", seed=5)
    for folder, out in ((simple, "a"), (other, "b")):
        run(folder, tmp_path, tmp_path / out, tasks="mt_bench")
    left, right = results.paired(tmp_path / "a", tmp_path / "b", "mt_bench")
    assert left[0]["arguments"][1] != right[0]["arguments"][1] and len(left) == 2


# Servers


def says(text="positive", finish="stop"):
    return lambda number, body, good: completion(text, finish)


def served(server, rows_dir, out, **changes):
    at = {"base_url": url(server), "model": "policy", "backoff_s": 0.001} | changes
    return run("no such folder", rows_dir, out, **at)


def test_a_server_replies_in_place_of_a_checkpoint(rows_dir, tmp_path):
    with serving(says()) as server:
        found = served(server, rows_dir, tmp_path, tasks="fpb", system="be brief")
        assert found["fpb"]["score"] == pytest.approx(100 / 3, abs=1e-3)
        served(server, rows_dir, tmp_path, tasks="fpb", system="be brief")
        assert len(server.seen) == 24  # the second time everything was in the log
        body = server.seen[0][2]
    assert body["temperature"] == 0 and body["max_tokens"] == 8 and body["model"] == "policy"
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    sample = next(iter(results.read_samples(tmp_path, "fpb").values()))
    assert sample["finish"] == "stop" and "be brief" in sample["arguments"][0][0]


def test_options_are_asked_for_by_letter_at_a_server(rows_dir, tmp_path):
    with serving(says("B")) as server:
        with pytest.raises(UserError, match="arc: a server gives no log-probs"):
            served(server, rows_dir, tmp_path, tasks="arc")
        found = served(server, rows_dir, tmp_path, tasks="arc", mode="generate")
    rows = results.read_samples(tmp_path, "arc").values()
    gold = [sample["doc"]["gold"] == 1 for sample in rows]
    assert found["arc"]["score"] == pytest.approx(100 * sum(gold) / len(gold), abs=1e-3)
    assert all(s["prediction"] == s["doc"]["choices"][1] for s in rows)


def test_a_failing_server_loses_nothing_that_came(rows_dir, tmp_path):
    def fails(number, body, good):
        return completion("positive") if number < 9 else (503, {}, "busy")

    with serving(fails) as server:
        with pytest.raises(UserError, match=r"left 1\d of 24 prompts without a reply.*503"):
            served(server, rows_dir, tmp_path, tasks="fpb", retries=0, concurrency=2)
    assert 9 <= len(log_of(tmp_path)) < 14


def test_a_prompt_the_server_refuses_is_left_out_and_counted(rows_dir, tmp_path, capsys):
    def picky(number, body, good):
        if "Text" in body["messages"][-1]["content"] or number % 6 == 0:
            return 400, {}, {"error": {"message": "context length exceeded"}}
        return completion("positive")

    with serving(picky) as server:
        found = served(server, rows_dir, tmp_path, tasks="fpb")["fpb"]
    assert found["rows"] == {"in": 24, "used": 20, "left_out": {"refused": 4}} and found["n"] == 20
    assert "24 rows = 20 used + 4 left out; the first: " in capsys.readouterr().out
    with serving(lambda number, body, good: (400, {}, "no")) as server:
        with pytest.raises(UserError, match="left 24 of 24 prompts without a reply.*HTTP 400"):
            served(server, rows_dir, tmp_path / "none", tasks="fpb")


def test_a_reply_cut_off_is_counted(rows_dir, tmp_path):
    with serving(says("positive", "length")) as server:
        found = served(server, rows_dir, tmp_path, tasks="fpb")
    assert found["fpb"]["finish_length"] == 24


def test_a_first_reply_cut_off_counts_though_the_second_is_whole(tmp_path):
    def says_less(number, body, good):
        return completion("one", "stop" if len(body["messages"]) > 1 else "length")

    write_rows(tmp_path / "mt_bench.jsonl", CHAT)
    with serving(says_less) as server:
        assert (
            served(server, tmp_path, tmp_path, tasks="mt_bench")["mt_bench"]["finish_length"] == 2
        )


def test_a_chain_of_thought_is_read_as_one(rows_dir, tmp_path):
    reply = "At first sight positive, but no. Selection: [[negative]]"
    with serving(says(reply)) as server:
        served(server, rows_dir, tmp_path, tasks="fpb", style="cot")
    samples = list(results.read_samples(tmp_path, "fpb").values())
    assert {(s["strict"], s["prediction"]) for s in samples} == {("negative", "negative")}
    assert "Selection: [[X]]" in samples[0]["arguments"][0][0]


def test_nul_in_a_reply_leaves_a_log_that_can_be_read(rows_dir, tmp_path):
    with serving(says("posi\0tive")) as server:
        for _ in range(2):
            served(server, rows_dir, tmp_path, tasks="fpb")
    assert next(iter(results.read_samples(tmp_path, "fpb").values()))["resps"] == [
        ["posi\ufffdtive"]
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": ""}, "--base_url needs --model"),
        ({"chat_template": False}, "its own chat template"),
        ({"base_url": "ftp://x"}, "must be like http"),
    ],
)
def test_a_server_is_asked_in_one_way_only(rows_dir, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        at = {"base_url": "http://127.0.0.1:9/v1", "model": "policy", "tasks": "fpb"} | change
        evaluate.main(config("no such folder", rows_dir, tmp_path, **at))


def test_two_ranks_go_on_where_one_was_killed(simple, rows_dir, tmp_path):
    one = run(simple, rows_dir, tmp_path / "a", tasks="arc,fpb")
    run(simple, rows_dir, tmp_path / "b", tasks="fpb", limit=10)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    flags = ["--init_from", simple, "--data", rows_dir, "--tasks", "arc,fpb", "--device", "cpu"]
    done = command(*flags, "--max_new_tokens", 8, "--out_dir", tmp_path / "b", launcher=torchrun)
    assert done.returncode == 0, done.stderr
    assert results.read_result(tmp_path / "b")["tasks"] == one
    assert len(log_of(tmp_path / "b")) == 54 and not list(tmp_path.glob("b/answers.rank*"))
