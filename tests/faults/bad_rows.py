"""Bad inputs: rows that are json, but not what training, sampling or evaluation asks for."""

from making import (
    CASES_OF,
    CPT,
    DPO,
    EVAL,
    SAMPLE,
    SFT,
    TOKENS,
    Case,
    each,
    nothing,
    put,
    remove,
    row,
    show,
    words,
)

USER, REPLY = {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}
LONG = "one two of the " * 60  # more than a packed row takes
END = r"\d+ trained"


def fields(name, command, make, pattern, code=1):
    return Case("fields", name, command, make, pattern, code)


def question(name, command, make, pattern, code=1):
    return Case("evaluation rows", name, command, make, pattern, code)


def text(name, pattern, command=None, **changes):
    return fields(name, command or CPT(), row("text.jsonl", **changes), r"text.jsonl:2: " + pattern)


def chat(name, messages, pattern, command=None):
    make = row("chat.jsonl", messages=messages)
    return fields(name, command or SFT(), make, r"chat.jsonl:2: messages" + pattern)


def pair(name, pattern, command=None, **changes):
    make = row("pairs.jsonl", **changes)
    return fields(name, command or DPO(), make, r"pairs.jsonl:2: " + pattern)


def prompt(name, pattern, **changes):
    return fields(name, SAMPLE(), row("prompts.jsonl", **changes), r"prompts.jsonl:2: " + pattern)


def left_out(name, pattern, **changes):
    """One row of a task: left out and counted, the others are asked."""
    pattern = r"eval/arc.jsonl: 12 rows = 11 used \+ 1 left out; .*arc.jsonl:2: " + pattern
    return question(name, EVAL(), row("eval/arc.jsonl", **changes), pattern, 0)


def case(name, pattern, **changes):
    make = row("cases.jsonl", **changes)
    return question(name, CASES_OF(), make, r"cases.jsonl:2: " + pattern)


PREPARE = words("evaluate.py prepare", {}, "arc", "raw", "rows")

ROWS = [
    text("a text is missing", "text: missing; the row has words", text=..., words="a"),
    text("a text is null", "text: must be a string, not null", text=None),
    text("a text is empty", "text: is empty", text=""),
    text("a text of blanks", "text: is empty", TOKENS(), text=" \n\t"),
    text("a text is a number", "text: must be a string, not an integer", text=5),
    text("a text is a list", "text: must be a string, not a list", TOKENS(), text=["a"]),
    text("a chat among texts", "text: missing; the row has messages", text=..., messages=[USER]),
    fields("messages are missing", SFT(),
           row("chat.jsonl", messages=..., prompt="a", completion="b"),
           r"chat.jsonl:2: messages: missing; the row has prompt, completion"),
    chat("messages are null", None, ": must be a list, not null"),
    chat("messages are empty", [], ": is empty"),
    chat("messages are a string", "one", ": must be a list, not a string"),
    chat("a message is a string", ["one"], r"\[0\]: must be an object, not a string"),
    chat("a message without role", [{"content": "a"}],
         r"\[0\]: role: missing; the row has content"),
    chat("a message without content", [USER, {"role": "assistant"}], r"\[1\]: content: missing"),
    chat("content is null", [USER, REPLY | {"content": None}], r"\[1\]: content: must be a string"),
    chat("content is parts", [USER | {"content": [{"type": "text", "text": "a"}]}, REPLY],
         r"\[0\]: content: must be a string, not a list"),
    chat("content is empty", [USER, REPLY | {"content": " "}], r"\[1\]: content: is empty"),
    chat("a role is a number", [{"role": 1, "content": "a"}], r"\[0\]: role: must be a string"),
    chat("the assistant begins", [REPLY, USER, REPLY], r"\[0\]: role: 'assistant' where 'user'"),
    chat("two users in a row", [USER, USER, REPLY], r"\[1\]: role: 'user' where 'assistant'"),
    chat("a system text inside", [USER, USER | {"role": "system"}, REPLY],
         r"\[1\]: role: 'system'"),
    chat("a tool speaks", [USER, REPLY | {"role": "tool"}], r"\[1\]: role: 'tool' where"),
    chat("sharegpt's names", [{"from": "human", "value": "a"}], r"\[0\]: role: missing; .*from"),
    chat("an unknown key", [USER, REPLY | {"tool_calls": []}], r"\[1\]: tool_calls: not supported"),
    chat("weight 2", [USER, REPLY | {"weight": 2}], r"\[1\]: weight: 0 or 1"),
    chat("a weight as text", [USER, REPLY | {"weight": "0"}], r"\[1\]: weight: 0 or 1"),
    chat("a weight of the user", [USER | {"weight": 1}, REPLY],
         r"\[0\]: weight: .*assistant turns"),
    chat("the user ends", [USER, REPLY, USER], ": must end with a turn of the assistant"),
    chat("only a system text", [USER | {"role": "system"}], ": must end with a turn"),
    chat("the user ends, shown", [USER], ": must end with a turn of the assistant", show()),
    fields("nothing in a chat is trained", SFT(max_skipped=0.1),
           row("chat.jsonl", messages=[USER, REPLY | {"weight": 0}]),
           r"12 rows = 11 used \+ 1 skipped \[1 without a trained token: chat.jsonl:2\]", 0),
    fields("a chat longer than a row", SFT(max_skipped=0.1),
           row("chat.jsonl", messages=[USER, REPLY | {"content": LONG}]),
           r"12 rows = 11 used \+ 1 skipped \[1 longer than 96 tokens: chat.jsonl:2\]", 0),
    fields("too many long chats", SFT(),
           row("chat.jsonl", messages=[USER, REPLY | {"content": LONG}]),
           r"chat.jsonl: 1 of 12 rows cannot be used; at most 5% may be skipped"),
    fields("a long chat, shown", show(max_length=96),
           row("chat.jsonl", messages=[USER, REPLY | {"content": LONG}]),
           r"chat.jsonl:2: skipped, longer than 96 tokens", 0),
    pair("a prompt is missing", "prompt: missing; the row has chosen, rejected", prompt=...),
    pair("a prompt is a number", "prompt: must be a string or a list, not a number", prompt=1.5),
    pair("a prompt is empty", "prompt: is empty", prompt=[]),
    pair("chosen is null", "chosen: must be a string or a list, not null", chosen=None),
    pair("rejected is empty", "rejected: is empty", rejected=""),
    pair("a prompt ends on the assistant", "prompt: must end with a turn of the user",
         prompt=[USER, REPLY]),
    pair("chosen is a whole conversation", "chosen: must hold one assistant message, not 2",
         chosen=[USER, REPLY]),
    pair("chosen is the user's", r"chosen\[1\]: role: 'user' where 'assistant'", chosen=[USER]),
    pair("a prefix without ends_turn", "ends_turn: missing; a reply that continues", prefix="one"),
    pair("ends_turn of one side", "ends_turn: rejected must be true or false",
         ends_turn={"chosen": True}),
    pair("ends_turn as text", "ends_turn: chosen must be true or false",
         ends_turn={"chosen": "no", "rejected": "no"}),
    pair("ends_turn is a list", "ends_turn: must be an object, not a list", ends_turn=[True, True]),
    pair("a prefix is a number", "prefix: must be a string, not an integer", prefix=3),
    pair("pairs for instruction tuning", "chosen: missing",
         SFT(chat="", pairs="pairs.jsonl"), chosen=...),
    fields("chosen = rejected", DPO(max_skipped=0.1),
           row("pairs.jsonl", chosen="one", rejected="one"),
           r"12 rows = 11 used \+ 1 skipped \[1 with chosen and rejected of the same tokens: "
           r"pairs.jsonl:2\]", 0),
    fields("chosen = rejected everywhere", DPO(),
           row("pairs.jsonl", None, chosen="one", rejected=" one "),
           r"pairs.jsonl: 12 of 12 rows cannot be used"),
    fields("a pair longer than a row", DPO(max_skipped=0.1), row("pairs.jsonl", chosen=LONG),
           r"12 rows = 11 used \+ 1 skipped \[1 longer than 96 tokens: pairs.jsonl:2\]", 0),
    prompt("an id is missing", "id: missing; the row has source", id=...),
    prompt("an id is a number", "id: must be a string, not an integer", id=7),
    prompt("an id twice", "id: 'p0' is there twice", id="p0"),
    prompt("a prompt is null", "prompt: must be a string or a list, not null", prompt=None),
    prompt("a prompt that is answered", "prompt: must end with a turn of the user",
           prompt=[USER, REPLY]),
    prompt("an answer is a number", "answer: must be a string, not an integer", answer=4),
    fields("a prompt without answer", SAMPLE(), row("prompts.jsonl", answer=...),
           r"4 prompts = 3 to sample \+ 1 skipped \[1 without reference answer\]", 0),
    fields("a prompt longer than the context", SAMPLE(), row("prompts.jsonl", prompt=LONG),
           r"4 prompts = 3 to sample \+ 1 skipped \[1 longer than the context\]", 0),
    fields("no prompt has an answer", SAMPLE(), row("prompts.jsonl", None, answer=""),
           r"prompts.jsonl: holds no prompt that can be sampled"),
    # ---- evaluation ----
    left_out("gold out of range", "gold: 9 is outside the 3 choices", gold=9),
    left_out("gold is negative", "gold: -1 is outside the 3 choices", gold=-1),
    left_out("gold is true", "gold: must be an integer, not true or false", gold=True),
    left_out("gold as text", "gold: must be an integer, not a string", gold="1"),
    left_out("gold is missing", "gold: missing", gold=...),
    left_out("choices are missing", "choices: missing", choices=...),
    left_out("one choice", "choices: needs at least two texts", choices=["good"], gold=0),
    left_out("two equal choices", "choices: two of them are equal", choices=["a", "a "], gold=0),
    left_out("choices are numbers", "choices: needs at least two texts", choices=[1, 2], gold=0),
    left_out("another answer than gold's", r"answer: 'x' is not choices\[1\]", answer="x"),
    left_out("a question is empty", "query: is empty", query=""),
    left_out("a question is null", "query: must be a string, not null", query=None),
    left_out("an id is a list", "id: must be a string or an integer, not a list", id=["r1"]),
    left_out("an id twice", "id: 'r0' occurs twice", id="r0"),
    question("no ids at all", EVAL(), row("eval/arc.jsonl", None, id=...), r"arc .* 12 ", 0),
    question("no row can be used", EVAL(), row("eval/arc.jsonl", None, gold=9),
             r"eval/arc.jsonl: none of its 12 rows can be used; the first: eval/arc.jsonl:1: gold"),
    question("another task's labels", EVAL(tasks="fpb"),
             row("eval/fpb.jsonl", None, choices=["yes", "no"], gold=0, answer="yes"),
             r"eval/fpb.jsonl: holds rows of another task, not of fpb: choices: yes, no in 12"),
    question("an exam without solution", EVAL(tasks="reasoning"),
             row("eval/reasoning.jsonl", solution=...),
             r"eval/reasoning.jsonl: 4 rows = 3 used \+ 1 left out; .*:2: solution: missing", 0),
    question("a conversation of one turn", EVAL(tasks="mt_bench"),
             row("eval/mt_bench.jsonl", turns=["a"], query="a"),
             r"eval/mt_bench.jsonl: 2 rows = 1 used \+ 1 left out; .*:2: turns: needs two", 0),
    question("a question longer than the context", EVAL(), row("eval/arc.jsonl", query=LONG),
             r"arc", 0),
    question("no such file of a task", EVAL(), remove("eval/arc.jsonl"),
             r"arc: no eval/arc.jsonl. Get .* then python evaluate.py prepare arc"),
    question("tags for other words", EVAL(tasks="ner"),
             put("eval/ner.jsonl",
                 '{"query": "a", "answer": "b", "text": "a b c", "label": ["O"]}\n'),
             r"eval/ner.jsonl: none of its 1 rows can be used.*label: needs one tag per word"),
    case("a label beyond the steps", "label: 2 is no step of 0 to 1, nor -1", label=2),
    case("a label is true", "label: must be an integer, not true or false", label=True),
    case("no steps", "steps: is empty", steps=[]),
    case("a step is a number", "steps: every step must be text", steps=["a", 1]),
    case("a case twice", "id: 'c0' is there twice", id="c0"),
    case("a case without problem", "problem: missing; the row has id", problem=...),
    question("a source that is not there", PREPARE, nothing,
             r"raw: no such file or folder; needed"),
    question("a source of other rows", PREPARE, put("raw/test.jsonl", '{"words": 1}\n'),
             r"raw.*(none|no rows|missing)"),
    question("a source torn", PREPARE, put("raw/test.jsonl", '{"question": \n{}\n'),
             r"raw/test.jsonl:1: not json"),
    question("a source of broken parquet", PREPARE, put("raw/test.parquet", b"PAR1" + bytes(40)),
             r"raw/test.parquet: not readable as parquet"),
    question("a fine task beside a bad one", EVAL(tasks="arc,fpb"),
             each(remove("eval/fpb.jsonl")), r"warning: fpb was not run: no eval/fpb.jsonl", 0),
]  # fmt: skip
