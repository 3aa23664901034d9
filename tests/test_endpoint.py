import json
import re
import threading
import time
from email.utils import formatdate
from http.client import IncompleteRead

import pytest
from judging import asked, completion, numbers, rows_of, run_judge, serving, url, write_solutions

import endpoint
import reward
from config import UserError

KEY = "sk-not-for-any-file-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_the_request_holds_question_reference_and_answer_and_the_key_only_in_its_header(out):
    with serving() as server:
        run_judge(out, server, model="m")
    for path, headers, body in server.seen:
        assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
        assert set(body) == {"model", "messages", "temperature", "max_tokens", "seed"}
        (message,) = body["messages"]
        for part in ("<question>\nQuestion q", "<reference>\n40\n</reference>", "<answer>\nStep 1"):
            assert part in message["content"]
        assert KEY not in json.dumps(body) and body["model"] == "m"
    stepwise = [m for m in asked(server) if "First incorrect step" in m]
    assert len(stepwise) == 10 and not any("Correctness" in m for m in stepwise)


def faulty(number, body, good):
    """Every fault in turn, and a good reply in between."""
    half = len(good) // 2
    faults = [
        (500, {}, {"error": {"message": "inside"}}),
        (429, {"Retry-After": "0"}, {"error": {"message": "slow down"}}),
        (None, {}, b""),
        (200, {}, b"<html>hello</html>"),
        (200, {}, b'{"choices": []}'),
        (200, {"Content-Length": "9999"}, json.dumps(completion(good)).encode()[:half]),
        (503, {"Retry-After": formatdate(time.time() - 5, usegmt=True)}, b""),
        (408, {}, b"\xff\xfe"),
        (None, {}, b"no HTTP\r\n\r\n"),
        (200, {"Transfer-Encoding": "chunked", "Content-Length": ""}, b"40\r\nabc"),
    ]
    return completion(good) if number % 2 else faults[number // 2 % len(faults)]


@pytest.fixture
def out(tmp_path):
    return write_solutions(tmp_path)


def test_a_faulty_endpoint_loses_nothing(out, capsys):
    with serving(faulty) as server:
        run_judge(out, server, retries=20)
    verdicts = rows_of(out / "verdicts.jsonl")
    assert len(verdicts) == 35 and all(v["parsed"] for v in verdicts)
    assert len(set(asked(server))) == 25  # and what got a reply was not asked again
    assert len(server.seen) == 25 + sum(v["tries"] - 1 for v in verdicts if v["tries"])
    assert numbers(capsys.readouterr().out)["solutions"] == (20, 20, 0)


def test_a_judge_that_is_down_stops_the_run_and_a_resume_asks_only_what_is_missing(out, capsys):
    def dies(number, body, good):
        return completion(good) if number < 9 else (503, {}, b"gone")

    with serving(dies) as server:
        with pytest.raises(UserError, match="HTTP 503: gone.*goes on"):
            run_judge(out, server, retries=1, concurrency=2)
    first, before = asked(server)[:9], (out / "verdicts.jsonl").read_bytes()
    assert len(server.seen) < 20  # it did not try all the rest
    total, used, skipped = numbers(capsys.readouterr().out)["solutions"]
    assert total == 20 == used + skipped and used >= 9
    with serving() as server:
        run_judge(out, server)
    assert not set(first) & set(asked(server)) and len(server.seen) == 25 - 9
    after = (out / "verdicts.jsonl").read_bytes()
    assert after.startswith(before) and len(rows_of(out / "verdicts.jsonl")) == 35
    with serving() as server:
        run_judge(out, server)
    assert not server.seen and (out / "verdicts.jsonl").read_bytes() == after


def test_nobody_listening_is_one_clear_line(out):
    with serving() as server:
        address = url(server)
    with pytest.raises(UserError, match=f"judge at {address} left 20 solutions.*[Rr]efused"):
        run_judge(out, base_url=address, retries=1, concurrency=2)


def test_a_run_that_is_left_does_not_wait_for_its_requests(monkeypatch):
    """Ctrl-C closes the generator while requests hang in their pauses: minutes with patience."""
    hanging = threading.Event()

    def post(body, cfg, key):
        return body or hanging.wait()

    monkeypatch.setattr(endpoint, "post", post)
    replies = endpoint.ask_http([1, 0, 0], reward.Judge(concurrency=2), "")
    assert next(replies) == (0, 1)
    leaving = threading.Thread(target=replies.close)
    leaving.start()
    leaving.join(10)
    still_there = leaving.is_alive()
    hanging.set()
    assert not still_there


def test_what_a_server_says_stands_in_one_line():
    assert endpoint.one_line("out of\r\n memory \x1b[1m\x80") == "out of memory ?[1m?"
    assert len(endpoint.one_line("a" * 5000)) == 300


def test_a_slow_judge_is_given_up_after_the_timeout(out):
    def slow(number, body, good):
        time.sleep(0.3 if number == 0 else 0)
        return completion(good)

    with serving(slow) as server:
        run_judge(out, server, timeout_s=0.1, concurrency=1)
    assert len(rows_of(out / "verdicts.jsonl")) == 35 and len(server.seen) == 26


def test_a_reply_that_drips_is_given_up_after_the_timeout():
    class Drip:
        left = 30

        def read1(self, n):
            time.sleep(0.01)
            self.left -= 1
            return b" " * bool(self.left)

    with pytest.raises(TimeoutError):
        endpoint.read_body(Drip(), time.monotonic() + 0.05)


def test_a_refusal_that_breaks_off_is_a_refusal_all_the_same(out):
    class Broken:
        def __init__(self, error):
            self.error = error

        def read1(self, n):
            raise self.error

    errors = TimeoutError("timed out"), ConnectionResetError("reset"), IncompleteRead(b"")
    for error in errors:
        said = endpoint.what_it_says(Broken(error), time.monotonic() + 1)
        assert said == f"({error})"

    def breaks_off(number, body, good):
        if number % 3:
            chunk = b"40\r\nabc"  # 64 bytes are announced
            return 503, {"Transfer-Encoding": "chunked", "Content-Length": ""}, chunk
        return completion(good)

    with serving(breaks_off) as server:
        run_judge(out, server, concurrency=1)
    assert len(rows_of(out / "verdicts.jsonl")) == 35


NUMBERS = {"prompt_tokens": 10, "completion_tokens": 3}


@pytest.mark.parametrize(
    "usage, kept",
    [
        (NUMBERS | {"total_tokens": 13, "cost": 0.1, "details": {"cached": 4}}, None),
        (NUMBERS | {"prompt_tokens": float("nan")}, {"completion_tokens": 3}),
        (NUMBERS | {"completion_tokens": float("inf")}, {"prompt_tokens": 10}),
        (NUMBERS | {"x\0": 1, "\ud800": 2}, NUMBERS),
        ({"prompt_tokens": "10", "completion_tokens": -3, "total_tokens": True}, {}),
        ({"prompt_tokens": 10**30, "completion_tokens": 3.0}, {}),
        (json.loads("[" * 100 + "]" * 100), {}),
        ("many", {}),
        (None, {}),
    ],
)
def test_of_usage_only_counts_are_kept_so_that_the_log_can_be_read_again(out, usage, kept):
    with serving(lambda number, body, good: completion(good) | {"usage": usage}) as server:
        run_judge(out, server)
        run_judge(out, server)
    assert len(server.seen) == 25
    found = {json.dumps(v["usage"]) for v in rows_of(out / "verdicts.jsonl") if v["tries"]}
    assert found == {json.dumps(NUMBERS | {"total_tokens": 13} if kept is None else kept)}


@pytest.mark.parametrize(
    "choice",
    [
        {"finish_reason": "\0"},
        {"finish_reason": "\ud800"},
        {"finish_reason": "st\x1bop"},
        {"finish_reason": 1},
        {"message": {"content": ["text"]}},
        {"message": None},
        {"logprobs": {"content": [{"logprob": 10**400}]}},
        {"logprobs": {"content": [{"logprob": float("nan")}]}},
        {"logprobs": {"content": [{"logprob": None}]}},
        {"logprobs": {"content": [{}]}},
        {"logprobs": [1]},
    ],
)
def test_what_is_no_chat_completion_is_refused_with_these_words(choice):
    reply = completion("text")
    reply["choices"][0] |= choice
    with pytest.raises(ValueError, match="the reply is not a chat completion"):
        endpoint.read_reply(json.dumps(reply).encode())


def test_log_probs_and_text_are_read_as_they_come():
    reply = completion("caf\u00e9 \ud83d\ude00 \ud800", None)  # nothing says that it is complete
    assert endpoint.read_reply(json.dumps(reply).encode()) == {
        "raw": "caf\u00e9 \U0001f600 \ufffd", "finish": "unknown", "usage": NUMBERS,
        "logprobs": None,
    }  # fmt: skip
    reply["choices"][0]["logprobs"] = {"content": [{"logprob": -0.5}, {"logprob": 0}]}
    found = endpoint.read_reply(json.dumps(reply).encode())
    assert found["logprobs"] == [-0.5, 0.0]


def test_retry_after_is_obeyed(out, monkeypatch):
    pauses = []
    monkeypatch.setattr(endpoint.time, "sleep", pauses.append)
    later = formatdate(time.time() + 100, usegmt=True)
    waits = ["7", later, "soon", "1e9", "-3", "nan", "Mon, 01 Jan 99999999999 00:00:00 GMT"]

    def busy(number, body, good):
        if number < len(waits):
            return 429, {"Retry-After": waits[number]}, b""
        return completion(good)

    with serving(busy) as server:
        run_judge(out, server, concurrency=1, retries=len(waits))
    assert pauses[0] == 7 and 95 < pauses[1] <= 100 and pauses[3] == endpoint.LONGEST_PAUSE
    assert all(0 < pauses[i] < 1 for i in (2, 4, 5, 6))  # no time named: our own pause


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_a_refusal_of_everything_stops_at_once(out, status):
    with serving(lambda *_: (status, {"Location": "http://127.0.0.1:9/"}, b"no")) as server:
        with pytest.raises(UserError, match=f"HTTP {status}"):
            run_judge(out, server, concurrency=2)
    assert len(server.seen) <= 2


def test_a_request_the_endpoint_refuses_stops_no_run_and_is_asked_again_next_time(out, capsys):
    def picky(number, body, good):
        if "Question q3" in body["messages"][0]["content"]:
            return 400, {}, {"error": {"message": "too long"}}
        return completion(good)

    with serving(picky) as server:
        run_judge(out, server)
    text = capsys.readouterr().out
    assert numbers(text)["solutions"] == (20, 16, 4) and "[4 refused]" in text
    assert re.search("refuses 4 solutions, the first with: HTTP 400.*too long", text)
    assert len(rows_of(out / "verdicts.jsonl")) == 28
    with serving() as server:
        run_judge(out, server)
    assert len(server.seen) == 5 and len(rows_of(out / "verdicts.jsonl")) == 35


def test_a_judge_that_refuses_everything_is_an_error(out):
    with serving(lambda *_: (400, {}, {"error": {"message": "no such model"}})) as server:
        with pytest.raises(UserError, match="refuses 20 solutions.*no such model"):
            run_judge(out, server, concurrency=2)  # a row of refusals is no dead endpoint
    assert len(server.seen) == 15


def test_the_key_is_in_no_file_and_no_message(out, capsys):
    def echo(number, body, good):
        if number % 2:
            return completion(json.dumps(json.loads(good) | {"Justification": f"key {KEY}"}))
        return 500, {}, {"error": {"message": f"bad key {KEY}"}}

    with serving(echo) as server:
        run_judge(out, server)
    with serving(lambda *_: (401, {}, f"who is {KEY}?".encode())) as server:
        with pytest.raises(UserError) as error:
            run_judge(out, server, verdicts="other.jsonl")
    reward.pairs(reward.Pairs(out_dir=str(out)))
    said = "".join(capsys.readouterr()) + str(error.value)
    written = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    assert "[key]" in said and KEY not in said and KEY.encode() not in written
    assert b"key [key]" in written


@pytest.mark.parametrize("value", ["sk-two words", "sk-line\nbreak", "sk-\u00e9\u00e9"])
def test_an_impossible_key_is_refused_without_showing_it(out, monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with serving() as server, pytest.raises(UserError, match="OPENAI_API_KEY") as error:
        run_judge(out, server)
    assert "sk-" not in str(error.value) and not server.seen


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/passwd",
        "localhost:80",
        "http://",
        "ftp://x/v1",
        "http://[::1/v1",
        "http://x:1e5",
    ],
)
def test_only_web_addresses_are_asked(out, address):
    with pytest.raises(UserError, match="--base_url"):
        run_judge(out, base_url=address)
