"""Bad inputs: logs and results that a stage left behind, and what a judge replies."""

import json
import time

from judging import completion, stepwise
from making import (
    CORRECT,
    EVAL,
    EVAL_JUDGE,
    EXACT,
    EXPORT,
    JUDGING,
    PAIRS,
    SAMPLE,
    URL,
    Case,
    append,
    curate,
    cut,
    edit,
    line,
    nothing,
    put,
    remove,
    row,
    words,
)

ANSWERS = "scored/answers.jsonl"
TRAJECTORIES, VERDICTS = "reward/trajectories.jsonl", "reward/verdicts.jsonl"
COMPARE = words("evaluate.py compare scored other", {})
REPORT = words("evaluate.py report a=scored", {"out_dir": "out"})
KEYS = "First incorrect step", "Reasoning up to incorrect", "Step correction"


def log(name, command, make, pattern, code=1):
    return Case("logs", name, command, make, pattern, code)


def trajectory(name, pattern, command=None, **changes):
    return log(name, command or EXACT(verdicts="new.jsonl"), row(TRAJECTORIES, **changes),
               TRAJECTORIES + pattern)  # fmt: skip


def verdict(name, pattern, command=None, **changes):
    return log(name, command or PAIRS(), row(VERDICTS, **changes), VERDICTS + pattern)


def reply(name, pattern, judge, command=None, code=0):
    command = command or JUDGING(verdicts="new.jsonl", asks=1, stepwise="wrong")
    return Case("judge replies", name, command, nothing, pattern, code, judge)


def always(content, finish="stop"):
    """A judge that says the same to everything."""
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda number, body, good: completion(text, finish)


def sent(status, headers=None, raw=b""):
    """An endpoint that sends this status and these bytes to everything."""
    return lambda number, body, good: (status, headers or {}, raw)


def of_steps(content):
    """A judge whose outcomes are right, and who says this about steps."""

    def judge(number, body, good):
        stepwise = "First incorrect step" in body["messages"][0]["content"]
        return completion(content if stepwise else good)

    return judge


def slow(number, body, good):
    time.sleep(1.5)
    return completion(good)


def invalid(reason):
    return rf"20 solutions = 0 correct \+ 0 wrong \+ 20 skipped \[20 invalid: {reason}\]"


def steps(reason):
    return rf"15 wrong solutions = .* \+ \d+ skipped \[\d+ invalid: {reason}"


def left(reason):
    return rf"the judge at {URL} left \d+ solutions without a reply, the first with: {reason}"


OUTCOME = {"Justification": "j", "Correctness": "correct"}
NONE = dict.fromkeys(KEYS, "") | {"Justification": "j"}
SCORE = curate("score", base_url=URL, model="j", backoff_s=0.01, retries=1, asks=1)
EXERCISES = curate("exercises", base_url=URL, model="j", backoff_s=0.01, retries=1, asks=1)
LISTS = {k: [] for k in ("Questions", "Scenario", "Exhibit", "Answer Choices", "Answer")}
SERVER = {"base_url": URL, "model": "m", "retries": 1, "backoff_s": 0.01}
GARBAGE = bytes(range(256))

LOGS = [
    log("no trajectories", EXACT(), remove(TRAJECTORIES), TRAJECTORIES + ": no such file"),
    log("no trajectories for pairs", PAIRS(), remove(TRAJECTORIES),
        TRAJECTORIES + ": no such file"),
    log("trajectories are foreign", EXACT(), put(TRAJECTORIES, '{"text": "a"}\n'),
        TRAJECTORIES + ":1: id: missing; the row has text"),
    log("trajectories torn inside", PAIRS(), line(TRAJECTORIES, '{"id": "q0/1", "pro'),
        TRAJECTORIES + ":2: not json"),
    log("trajectories torn at the end", EXACT(verdicts="new.jsonl"), cut(TRAJECTORIES, 0.99),
        r"19 solutions = ", 0),
    trajectory("a trajectory twice", ":2: id: 'q0/0' is there twice", id="q0/0"),
    trajectory("a prompt that is a string", ":2: prompt: must be a list, not a string", prompt="a"),
    trajectory("a prompt that is answered", ": q0/1: prompt: must end with a turn of the user",
               prompt=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
    trajectory("no finish", ":2: finish: missing", finish=...),
    trajectory("a sample that is text", ":2: sample: must be an integer, not a string", sample="1"),
    trajectory("an answer that is a number", ":2: answer: must be a string", PAIRS(), answer=40),
    trajectory("a solution that is a number", ":2: solution: must be a string", solution=40),
    trajectory("kinds that no judge knows", ".*kinds", kinds=["truth"]),
    trajectory("half a surrogate pair", ":2: text: holds a lone surrogate", text="\ud83d"),
    log("samples of another policy", SAMPLE(out_dir="reward"), nothing,
        TRAJECTORIES + r": q0/0: \w+ is .*, this run has .*: take another --out_dir"),
    log("no verdicts", PAIRS(), remove(VERDICTS), VERDICTS + ": no such file"),
    log("verdicts are foreign", PAIRS(), put(VERDICTS, '{"id": "a", "score": 1}\n'),
        VERDICTS + ":1: trajectory: missing; the row has id, score"),
    log("trajectories as verdicts", EXPORT(format="chats", verdicts="trajectories.jsonl"), nothing,
        TRAJECTORIES + ":1: trajectory: missing"),
    log("verdicts torn inside", PAIRS(), line(VERDICTS, "{"), VERDICTS + ":2: not json"),
    log("verdicts torn at the end", JUDGING(stepwise="wrong"), append(VERDICTS, '{"id": "q'),
        r"notice: reward/verdicts.jsonl: incomplete last line removed", 0),
    log("verdicts of another judge", JUDGING(model="other"), nothing,
        r"verdicts.jsonl: q0/0/outcome/1: was asked of another judge or with other settings"),
    log("not json at the end of verdicts", EXACT(), append(VERDICTS, "null\n"),
        VERDICTS + r":\d+: must be an object, not null"),
    verdict("a verdict twice", r":\d+: id: 'q0/0/outcome/1' is there twice", id="q0/0/outcome/1"),
    verdict("an unknown kind", ":2: kind: 'truth'", kind="truth"),
    verdict("a finding of other keys", ":2: parsed: ", parsed={"verdict": "good"}),
    verdict("a finding that is a list", ":2: parsed: must be an object", parsed=[1]),
    verdict("a finding that is no word", ":2: parsed: ", kind="outcome", parsed={
            "Justification": "j", "Correctness": 1}),
    verdict("a wrong step without its place", ":2: first_error: ", kind="stepwise", first_error=...,
            parsed=NONE),
    verdict("no reply", ":2: raw: ", JUDGING(stepwise="wrong"), raw=None),
    verdict("usage as text", ":2: usage: must be an object", JUDGING(), usage="many"),
    verdict("attempts as text", ":2: attempts: must be an integer", EXPORT(format="chats"),
            attempts="1"),
    log("solutions changed behind the judge's back", PAIRS(scp_per_prompt=9),
        row(TRAJECTORIES, text="Step 1: other. Answer: 41"),
        r"\d+ wrong solutions for pairs .* skipped",
        0),
    log("no pairs to export", EXPORT(), remove("reward/pairs.jsonl"),
        "reward/pairs.jsonl: no such f"),
    log("pairs that are foreign", EXPORT(), put("reward/pairs.jsonl", '{"text": "a"}\n'),
        "reward/pairs.jsonl:1: prompt: missing; the row has text"),
    log("pairs of no prefix's end", EXPORT(), row("reward/pairs.jsonl", ends_turn={"chosen": 1}),
        "reward/pairs.jsonl:2: ends_turn: chosen and rejected must be true or false"),
    log("no continuations", PAIRS(corrections="self"), nothing,
        "reward/continuations.jsonl: no such file"),
    log("foreign continuations", PAIRS(corrections="self"),
        put("reward/continuations.jsonl", '{"id": "a"}\n'),
        r"reward/continuations.jsonl:1: \w+: miss"),
    log("corrections of a foreign log", CORRECT(verdicts="pairs.jsonl"), nothing,
        r"reward/pairs.jsonl:1: \w+: missing"),
    log("an empty log of verdicts", PAIRS(), put(VERDICTS, ""),
        r"no pair can be made of these verd"),
    log("foreign answers", EVAL(), put("out/answers.jsonl", '{"id": "a", "text": "b"}\n'),
        r"out/answers.jsonl: a: is no answer; take another"),
    log("torn answers", EVAL(out_dir="scored"), append("scored/answers.jsonl", '{"id": "a'),
        r"notice: scored/answers.jsonl: incomplete last line removed", 0),
    log("answers twice", EVAL(out_dir="scored"),
        lambda folder: append(ANSWERS, (folder / ANSWERS).read_bytes())(folder),
        r"scored/answers.jsonl:\d+: id: .* is there twice"),
    log("a torn result", COMPARE, cut("scored/results.json"),
        r"scored/results.json:\d+: not valid"),
    log("a foreign result", COMPARE, put("scored/results.json", '{"acc": 1}'),
        r"scored/results.json: init_from: missing; the row has acc"),
    log("a result without its way", COMPARE, edit("scored/results.json", tasks={"arc": {}}),
        r"scored/results.json: tasks: arc: asked: missing"),
    log("results asked in different ways", COMPARE, nothing, r"arc: cannot be compared: \w+ is "),
    log("samples are gone", EVAL_JUDGE(), remove("scored/samples_mt_bench.jsonl"),
        r"scored/samples_mt_bench.jsonl: no such file"),
    log("samples are foreign", EVAL_JUDGE(),
        put("scored/samples_mt_bench.jsonl", '{"text": "a"}\n'),
        r"scored/samples_mt_bench.jsonl:1: doc: missing; the row has text"),
    log("samples without id", REPORT, row("scored/samples_arc.jsonl", doc={"query": "a"}),
        r"scored/samples_arc.jsonl:2: doc: .*id"),
    log("nothing for a judge", EVAL_JUDGE(out_dir="other"), nothing,
        r"other/results.json: tasks: none of them is for this judge"),
    # ---- replies ----
    reply("garbage", invalid("reply is not one JSON object"), always("¿ \x00 ♦ <json>")),
    reply("half JSON", invalid("reply is not one JSON object"),
          always('{"Justification": "j", "Corr')),
    reply("two objects", invalid("reply is not one JSON object"), always(json.dumps(OUTCOME) * 2)),
    reply("a key twice", invalid("reply is not one JSON object"),
          always('{"Justification": "j", "Correctness": "wrong", "Correctness": "correct"}')),
    reply("a list", invalid("reply has other keys than asked for"), always([OUTCOME])),
    reply("other keys", invalid("reply has other keys than asked for"),
          always({"verdict": "good"})),
    reply("a key too many", invalid("reply has other keys.*"), always(OUTCOME | {"Score": "1"})),
    reply("another word", invalid("Correctness is neither correct nor wrong"),
          always(OUTCOME | {"Correctness": "maybe"})),
    reply("a value that is no text", invalid("reply has a value that is not plain text"),
          always(OUTCOME | {"Correctness": True})),
    reply("nothing", invalid("reply is not one JSON object"), always("")),
    reply("cut off", invalid("reply ended by length"), always(json.dumps(OUTCOME), "length")),
    reply("filtered", invalid("reply ended by content_filter"), always("", "content_filter")),
    reply("nested deep", invalid("reply is not one JSON object"), always("[" * 90_000)),
    reply("quotes that are not in the text", steps("quotes are not in the solution"),
          of_steps(stepwise("", "Step 7: what nobody wrote.", "Step 7: better."))),
    reply("a step without correction", steps("a step without correction"),
          of_steps(stepwise("", "Step 2: BAD .", ""))),
    reply("keys of the other question", steps("reply has other keys"),
          of_steps(json.dumps(OUTCOME))),
    reply("a score as a word", r"12 rows = 0 kept \+ 12 skipped \[12 no valid score\]",
          always({"Justification": "j", "Score": "five"}), SCORE),
    reply("a score of nine", r"12 rows = 0 kept \+ 12 skipped \[12 no valid score\]",
          always({"Justification": "j", "Score": 9}), SCORE),
    reply("lists of unequal length", r"out.jsonl: 12 rows = .*12 skipped \[12 ",
          always(LISTS | {"Justification": "j", "Questions": ["a"]}), EXERCISES),
    reply("a rating of eleven",
          r"mt_bench replies = 0 judged .*invalid: rating is not from 1 to 10",
          always("good [[11]]"), EVAL_JUDGE(asks=1)),
    reply("two ratings", r"mt_bench replies = 0 judged .*invalid: several ratings",
          always("[[1]] or [[2]]"), EVAL_JUDGE(asks=1)),
    reply("401", left("HTTP 401"), sent(401, {}, b"who are you"), code=1),
    reply("404", left("HTTP 404"), sent(404), code=1),
    reply("a redirect", left("HTTP 302"), sent(302, {"Location": "http://127.0.0.1:9/"}), code=1),
    reply("400 to everything", r"the judge at .* refuses 20 solutions, the first with: HTTP 400",
          sent(400, {}, b"no such field"), code=1),
    reply("500", left("HTTP 500: out of memory .2 tries."), sent(500, {}, b"out of memory"),
          code=1),
    reply("no chat completion", left("the reply is not a chat completion"), sent(200, {}, b"{}"),
          code=1),
    reply("bytes", left("the reply is not a chat completion"), sent(200, {}, GARBAGE), code=1),
    reply("html", left("the reply is not a chat completion"), sent(200, {}, b"<html>"), code=1),
    reply("no word", left(".*tries"), sent(None), code=1),
    reply("no HTTP", left(".*tries"), sent(None, {}, GARBAGE), code=1),
    reply("no reply in time", left("timed out"), slow,
          JUDGING(verdicts="new.jsonl", timeout_s=0.3, retries=0), 1),
    reply("nobody there", left(".*refused").replace(URL, "http://127.0.0.1:9/v1"), None,
          JUDGING(verdicts="new.jsonl", base_url="http://127.0.0.1:9/v1"), 1),
    reply("404 to a sampler",
          rf"{URL} left 4 of 4 requests without a reply, the first with: HTTP 404",
          sent(404), SAMPLE(**SERVER), 1),
    reply("400 to an evaluation", r".*HTTP 400", sent(400), EVAL(mode="generate", **SERVER), 1),
    reply("401 to an evaluation", r".*left 12 of 12 prompts without a reply.*HTTP 401", sent(401),
          EVAL(mode="generate", **SERVER), 1),
    reply("401 to a corpus", r"the judge at .*left 12 texts without a reply.*HTTP 401", sent(401),
          SCORE, 1),
]  # fmt: skip
