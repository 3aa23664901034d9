"""A judge for the sample world behind an OpenAI-compatible endpoint, so that reward.py meets HTTP.

    python sample/judge_server.py --port 0        # prints its URL: http://127.0.0.1:PORT
    curl URL/v1/chat/completions -d '{"model": "world", "messages": [...]}'

It stands where the paper has GPT-4o (arXiv:2501.04961 section 5.3) and plays the same two parts,
told apart by the keys the prompt asks for: it compares a final answer with the reference ("FAP":
Justification, Correctness), or it finds the first incorrect step and corrects it ("SCP"). It reads
<question>, <reference> and <answer> from the last user message and works the exercise out itself.

    --fault down|slow|429|garbage    misbehaves instead: every second request fails in that way
"""

import argparse
import json
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for scripts
from sample import exam

LARGEST_REQUEST = 1 << 20  # bytes
LONGEST = 90  # words of a justification; the prompt allows 100
FAULTS = ("down", "slow", "429", "garbage")
SLOW = 30.0  # seconds; longer than a client should wait


def tagged(text: str, tag: str) -> str:
    """What stands between the last <tag> and </tag>; ValueError if nothing does."""
    # the last pair: instructions in front may mention the tags by name
    found = re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", text, re.S)
    if not found:
        raise ValueError(f"the prompt has no <{tag}>...</{tag}>")
    return found[-1].strip()


def key(question: str, reference: str) -> tuple[list[str], str]:
    """The right steps and answer: worked out, or for a foreign question read from the reference."""
    if (worked := exam.solve(question)) is not None:
        return worked
    steps = [reference[a:b] for a, b in exam.split_steps(reference)]
    answer = exam.final_answer(reference) or reference.strip()
    return [step for step in steps if step.startswith("Step ")], answer


def compared(ours: list[str], theirs: list[str]) -> list[str]:
    """`["41 and 40 differ", "5 and 5 agree"]`: so a model reasons before it says what follows."""
    return [
        f"{a} and {b} {'agree' if a == b else 'differ'}" for a, b in zip(ours, theirs, strict=True)
    ]


def judge_outcome(question: str, reference: str, answer: str) -> dict[str, str]:
    """FAP: is the one final answer of the solution the reference answer?"""
    _, expected = key(question, reference)
    final = exam.final_answer(answer)
    if final is None:
        return {
            "Justification": "The solution does not give exactly one final answer.",
            "Correctness": "wrong",
        }
    (words,) = compared([final], [expected])
    return {
        "Justification": f"The final answer and the reference answer, {words}.",
        "Correctness": "correct" if final == expected else "wrong",
    }


def compare_steps(number: int, written: str, right: str) -> str:
    """`Step 1: 46 and 6 differ, 5 and 5 agree.`: a step's numbers against the right step's."""
    ours, theirs = (re.findall(r"\d+", step.partition(":")[2]) for step in (written, right))
    if len(ours) != len(theirs):
        return f"Step {number} is built otherwise."
    said = compared(ours, theirs)
    if ours == theirs and (written != right or not ours):
        said.append("the words differ" if written != right else "the words agree")
    return f"Step {number}: {', '.join(said)}."


def judge_steps(question: str, reference: str, answer: str) -> dict[str, str]:
    """SCP: the first incorrect step, the prefix before it, both quoted, and one corrected step.

    All three are empty where no step is wrong, or only the final line is. The justification goes
    through the steps up to the wrong one.
    """
    steps, expected = key(question, reference)
    wrong = exam.first_error(answer, steps, expected)
    spans = exam.split_steps(answer)
    right = [*steps, f"Answer: {expected}"]  # what follows a right beginning
    found = 0 <= wrong < min(len(right), len(spans))
    if found and wrong == len(steps):  # a step too many; the answer itself is no step
        found = answer[slice(*spans[wrong])].startswith("Step")
    said = []
    for i, ((start, end), step) in enumerate(zip(spans, steps, strict=False)):
        if not found or i <= wrong:
            said.append(compare_steps(i + 1, answer[start:end], step))
    why = " ".join(" ".join(said).split()[-LONGEST:])
    why += f" Step {wrong + 1} is wrong." if found else " No step is wrong."
    quotes = "", "", ""
    if found:
        start, end = spans[wrong]
        quotes = answer[start:end], answer[:start].strip(), right[wrong]
    step, before, correction = quotes
    return {
        "Justification": why.strip(),
        "First incorrect step": step,
        "Reasoning up to incorrect": before,
        "Step correction": correction,
    }


def reply(request: dict) -> dict:
    """The body of a chat completion; ValueError says what is wrong with the request."""
    turns = request.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("messages must be a list of objects")
    asked = [turn.get("content") for turn in turns if turn.get("role") == "user"]
    if not asked or not isinstance(asked[-1], str):
        raise ValueError("messages must end with a user message of text")
    parts = [tagged(asked[-1], tag) for tag in ("question", "reference", "answer")]
    prompt = "\n".join(str(turn.get("content")) for turn in turns)
    judge = judge_steps if "First incorrect step" in prompt else judge_outcome
    content = json.dumps(judge(*parts), ensure_ascii=False)
    read, written = (len(re.findall(r"\w+|[^\w\s]", t)) for t in (prompt, content))
    return {
        "id": "chatcmpl-world",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": str(request.get("model", "world")),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
        },
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps the connection open between requests
    fault = ""
    served = count()

    def do_POST(self):
        try:
            size = int(self.headers.get("Content-Length", 0))
            if self.path != "/v1/chat/completions":
                return self.error(404, f"no such path: {self.path}")
            if size > LARGEST_REQUEST:
                self.close_connection = True
                return self.error(413, f"the request is larger than {LARGEST_REQUEST} bytes")
            body = self.rfile.read(size)
            if self.fault and next(self.served) % 2 == 0:
                return self.misbehave()
            request = json.loads(body)
            if not isinstance(request, dict):
                raise ValueError("the body must be a json object")
            self.send(200, reply(request))
        except (ValueError, RecursionError) as e:
            self.error(400, str(e))

    def misbehave(self):
        if self.fault == "down":
            self.error(503, "the judge is down")
        elif self.fault == "429":
            self.error(429, "too many requests", {"Retry-After": "0"})
        elif self.fault == "slow":
            time.sleep(SLOW)
            self.close_connection = True
        else:
            garbage = {"message": {"content": '{"Correctness": "perh'}, "finish_reason": "stop"}
            self.send(200, {"choices": [garbage]})

    def error(self, status, message, headers=None):
        kind = "invalid_request_error" if status < 429 else "server_error"
        self.send(status, {"error": {"message": message, "type": kind, "code": status}}, headers)

    def send(self, status, body, headers=None):
        content = json.dumps(body, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass  # thousands of requests: silence


def serve(port: int = 0, fault: str = "") -> ThreadingHTTPServer:
    """A server bound to 127.0.0.1, not started: call serve_forever(). Port 0 takes a free one."""
    handler = type("Handler", (Handler,), {"fault": fault, "served": count()})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    return server


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the sample world's judge on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=8377, help="0 takes a free port")
    parser.add_argument("--fault", default="", choices=["", *FAULTS], help="misbehave like this")
    args = parser.parse_args()
    server = serve(args.port, args.fault)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
