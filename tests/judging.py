"""For the tests of the judge: an endpoint that can misbehave, and solutions written by hand."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from conftest import ROOT
from tiny import write_rows

import reward
from extract import final_answer
from jsonl import read_jsonl, sha


def answer_of(prompt):
    """What a good judge of the texts below says: a solution is wrong if it holds `BAD`."""
    if "<passage>" in prompt:
        return reading_of(prompt)
    reference, text = (
        re.search(rf"<{tag}>\n(.*?)\n</{tag}>", prompt, re.S)[1] for tag in ("reference", "answer")
    )
    if "First incorrect step" not in prompt:
        right = final_answer(text) == reference.splitlines()[-1]
        return {"Justification": "j", "Correctness": "correct" if right else "wrong"}
    steps = re.split(r"\s(?=Step)", text)
    bad = next((i for i, step in enumerate(steps) if "BAD" in step), None)
    if bad is None:
        quotes = "", "", ""
    else:
        quotes = steps[bad], " ".join(steps[:bad]), f"Step {bad + 1}: mended."
    keys = "First incorrect step", "Reasoning up to incorrect", "Step correction"
    return {"Justification": "j"} | dict(zip(keys, quotes, strict=True))


def passage(prompt):
    """The text that curate.py's judge is shown."""
    return re.search(r"<passage>\n(.*)\n</passage>", prompt, re.S)[1]


def reading_of(prompt):
    """What a good judge of a text says: `[quality 3]` is worth 3, one without such a mark 0, and
    exercises look like book_exercise's."""
    text = passage(prompt)
    if '"Score"' in prompt:
        marked = re.search(r"\[quality (\d)\]", text)
        return {"Justification": "j", "Score": int(marked[1]) if marked else 0}
    form = r"^Exercise \d+\. (.*)\n((?:[A-Z]\. .*\n)*)Answer: (.*)$"
    found = [(q, "", "", c.splitlines(), a) for q, c, a in re.findall(form, text, re.M)]
    columns = [list(column) for column in zip(*found, strict=True)] or [[]] * 5
    names = "Questions", "Scenario", "Exhibit", "Answer Choices", "Answer"
    return {"Justification": "j"} | dict(zip(names, columns, strict=True))


def book_exercise(number, question, choices, answer):
    lines = [f"{letter}. {choice}" for letter, choice in zip("ABCDE", choices, strict=False)]
    return "\n".join([f"Exercise {number}. {question}", *lines, f"Answer: {answer}"])


def stepwise(before, step, correction):
    """A reply that quotes a wrong step and corrects it."""
    keys = "Reasoning up to incorrect", "First incorrect step", "Step correction"
    return json.dumps(
        {"Justification": "j"} | dict(zip(keys, (before, step, correction), strict=True))
    )


def completion(content, finish="stop", **message):
    message = {"role": "assistant", "content": content} | message
    usage = {"prompt_tokens": 10, "completion_tokens": 3}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = self.number = len(self.server.seen)
            self.server.seen.append((self.path, dict(self.headers), body))
        good = json.dumps(answer_of(body["messages"][-1]["content"]))
        result = self.server.misbehave(number, body, good)
        status, headers, reply = result if isinstance(result, tuple) else (200, {}, result)
        raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        if status is None:  # the connection closes, without a word or behind bytes that are no HTTP
            self.wfile.write(raw)
            return
        self.send_response(status)
        headers = {"Content-Length": str(len(raw))} | headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # with the default of 5 the ninth connection waits for a second

    def handle_error(self, request, client_address):
        pass  # a client that gave up waiting


def well(number, body, good):
    return completion(good)


@contextmanager
def serving(misbehave=well, handler=Handler):
    server = Server(("127.0.0.1", 0), handler)
    server.seen, server.misbehave, server.lock = [], misbehave, threading.Lock()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def url(server):
    return f"http://127.0.0.1:{server.server_port}/v1"


TEXTS = [
    "Step 1: fine. Step 2: fine too. Answer: 40",
    "Step 1: fine. Step 2: BAD . Answer: 41",
    "Step 1: BAD really. Step 2: so so. Answer: 42",
    "Step 1: fine. Step 2: BAD . Answer: 41",  # word for word the second one
]


def trajectory(prompt, k, text, **changes):
    final = final_answer(text)
    record = {"id": f"{prompt}/{k}", "source": "s", "answer": "40", "sample": k, "text": text}
    record |= {"prompt": [{"role": "user", "content": f"Question {prompt}?"}], "final": final}
    record |= {"correct": final == "40", "finish": "stop", "seed": 0, "temperature": 1.0}
    return record | {"policy_sha": "p", "template_sha": "t"} | changes


def write_solutions(folder):
    """Five prompts of four solutions each. Returns the folder."""
    rows = [trajectory(f"q{i}", k, text) for i in range(5) for k, text in enumerate(TEXTS)]
    write_rows(folder / "trajectories.jsonl", rows)
    return folder


def run_judge(out, server=None, **changes):
    settings = {"backoff_s": 0.001, "timeout_s": 5.0, "base_url": server and url(server)}
    settings |= {"stepwise": "wrong"} | changes  # FinDAP's way: fewer requests to count
    reward.judge(reward.Judge(out_dir=str(out), **{k: v for k, v in settings.items() if v}))


def rows_of(path):
    return [row for _, row in read_jsonl(path, {})]


def asked(server):
    """The requests that reached the judge, as comparable strings."""
    return [json.dumps(body, sort_keys=True) for _, _, body in server.seen]


def numbers(text):
    """{first words: (total, used, skipped)} of the lines `5 prompts ... = 3 used + ... skipped`."""
    found = {}
    for line in text.splitlines():
        if match := re.match(r"([\d,]+) (.*?) = (.*) \+ ([\d,]+) skipped", line):
            used = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) ", match[3] + " ")]
            found[match[2]] = int(match[1]), sum(used), int(match[4])
    return found


def adds_up(text):
    """Every such line in a text: total = used + skipped, and the reasons make up what is skipped.
    Returns numbers(text)."""
    found = numbers(text)
    for line in text.splitlines():
        if " skipped" in line and " = " in line:
            what = re.match(r"[\d,]+ (.*?) = ", line)[1]
            total, used, skipped = found[what]
            reasons = re.search(r" skipped \[(.*)\]$", line)
            named = re.findall(r"(?:^|, )([\d,]+) ", reasons[1]) if reasons else []
            assert total == used + skipped, line
            assert sum(int(n.replace(",", "")) for n in named) == skipped, line
    assert found
    return found


# ---- steps of curate.py that are killed ----------------------------------------------------------


class Slow:
    """A judge that takes a moment, and finds nonsense in one of seven texts at first."""

    def __init__(self, pause=0.002):
        self.pause = pause

    def __call__(self, number, body, good):
        time.sleep(self.pause)
        nonsense = len(passage(body["messages"][0]["content"])) % 7 == 0 and body["seed"] == 0
        return completion("hm" if nonsense else good)


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def command(step, folder, server, **changes):
    words = [sys.executable, "curate.py", step, "--data", f"{folder}/in.jsonl"]
    changes = {"out": folder / "out.jsonl", "base_url": url(server), "backoff_s": 0.01} | changes
    words += [str(word) for name, value in changes.items() for word in (f"--{name}", value)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip


def killed_and_resumed(step, folder, server, kills, seed):
    """Runs of a step that are killed (SIGKILL) when their log has so many lines, the last is not.
    -> (its exit code, what it printed, hashes of the requests in the log at each kill)"""
    log, rng, known = folder / "out.verdicts.jsonl", random.Random(seed), []
    for limit in [*kills, None]:
        process = command(step, folder, server)
        reader = []
        thread = threading.Thread(target=lambda p=process: reader.append(p.stdout.read()))  # noqa: B023
        thread.start()
        while limit and process.poll() is None and lines(log) < limit:
            time.sleep(0.002)
        if limit:
            time.sleep(rng.random() * 0.05)
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        thread.join()
        if limit:
            assert process.returncode == -9
            raw = log.read_bytes().rpartition(b"\n")[0].splitlines()
            known.append((len(server.seen), {json.loads(line)["request_sha"] for line in raw}))
    return process.returncode, reader[0].decode(), known


def check_never_asked_again(server, known):
    """What was in the log at a kill was not sent after it (8 may have been on their way)."""
    shas = [sha(body) for _, _, body in server.seen]
    for sent, logged in known:
        assert logged and not logged & set(shas[sent:])
    assert len(shas) - len(set(shas)) <= 8 * len(known)
