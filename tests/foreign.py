"""Rows as other tools and releases write them, in their published schemas, for test_shapes.py."""


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


OURS = {
    "text": {"text": " a bond\n", "source": "web", "url": "https://a.b/c", "title": None},
    "chat": {"messages": [system("s"), user("q"), assistant("a", weight=0), user("r"),
                          assistant("b", weight=1)], "id": 7},
    "prompt": {"id": "e-1", "source": "exams", "prompt": "what is 1 + 1?", "answer": "2",
               "solution": "1 + 1 = 2"},
    "asked": {"id": "e-2", "source": "exams", "prompt": [system("s"), user("q")], "answer": "2"},
    "pair": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "trl": {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
    "fap": {"id": "p/fap/0", "kind": "fap", "prompt": [user("q")], "prefix": "", "chosen": "a",
            "rejected": "b", "ends_turn": {"chosen": True, "rejected": True}, "verdict": "v"},
    "scp": {"id": "p/scp/0", "kind": "scp", "prompt": [user("q")], "prefix": "Step 1: x\n",
            "chosen": "a", "rejected": "a", "ends_turn": {"chosen": True, "rejected": False}},
    "spaces": {"prompt": "q", "prefix": "Step 1:", "chosen": " a", "rejected": "a",
               "ends_turn": {"chosen": False, "rejected": False}},
}  # fmt: skip
CHAT = {"messages": [user("q"), assistant("a")]}
TALK = {"messages": [system("s"), user("q"), assistant("a"), user("r"), assistant("b")]}
PAIR = {"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
ROUND = [system("s"), user("q"), assistant("x"), user("r")]
STEPS = {"prompt": "q", "prefix": "Let's think.\nStep 1:", "chosen": " a", "rejected": " b",
         "ends_turn": {"chosen": False, "rejected": False}}  # fmt: skip
EXERCISE = {"questions": "Which?", "scenario": "Acme grows.", "exhibit": None, "material": "m1",
            "answer_choices": "A. one\nB. two", "answer": "B", "gpt4_answerable": True,
            "gpt4_answerable_without_choices": None}  # fmt: skip

FOREIGN = [
    # OpenAI
    ({"messages": [{"role": "developer", "content": "s"}, {**user("q"), "name": "Ann"},
                   assistant("a", tool_calls=None, refusal=None), user("r"),
                   assistant([{"type": "text", "text": "b1"}, {"type": "text", "text": "b2"}])],
      "tools": []},
     {"messages": [*TALK["messages"][:4], assistant("b1\nb2")]}),
    ({"messages": [user("q"), assistant("x", weight=0), user("r"), assistant("b", weight=None)]},
     {"messages": [user("q"), assistant("x", weight=0), user("r"), assistant("b")]}),
    ({"input": {"messages": [user("q")], "tools": [], "parallel_tool_calls": True},
      "preferred_output": [assistant("a")], "non_preferred_output": [assistant("b")]}, PAIR),
    # TRL
    ({"prompt": "q", "completion": "a"}, CHAT),
    ({"prompt": ROUND, "completion": [assistant("b")]}, {"messages": [*ROUND, assistant("b")]}),
    ({"system": "s", "prompt": "q", "completion": "a"},
     {"messages": [system("s"), user("q"), assistant("a")]}),
    ({"id": "7", "system": "s", "prompt": "q", "answer": "2"},
     {"id": "7", "prompt": [system("s"), user("q")], "answer": "2", "source": "rows"}),
    ({"prompt": "q", "completion": "a", "label": True}, CHAT | {"label": True}),
    ({"chosen": [*ROUND, assistant("a")], "rejected": [*ROUND, assistant("b")]},
     PAIR | {"prompt": ROUND}),
    # UltraFeedback, whose messages are the chosen conversation once more
    ({"prompt": "q", "prompt_id": "f0", "chosen": [user("q"), assistant("a")],
      "rejected": [user("q"), assistant("b")], "messages": [user("q"), assistant("a")],
      "score_chosen": 8.5, "score_rejected": 2.0},
     PAIR | {"prompt_id": "f0", "score_chosen": 8.5, "score_rejected": 2.0}),
    # alpaca and its relatives
    ({"instruction": "q", "input": "", "output": "a", "text": "Below is q. a"}, CHAT),
    ({"instruction": "Fix it:", "input": "  x = 1", "output": "a"},
     {"messages": [user("Fix it:\n  x = 1"), assistant("a")]}),
    ({"instruction": "r", "input": None, "output": "b", "system": "s", "history": [["q", "a"]]},
     TALK),
    ({"instruction": "q", "context": "c", "response": "a", "category": "open_qa"},
     {"messages": [user("q\nc"), assistant("a")], "category": "open_qa"}),
    ({"query": "q", "response": "a", "type": "GSM", "original_question": "o"},
     CHAT | {"type": "GSM", "original_question": "o"}),
    ({"id": "flan.1", "system_prompt": "s", "question": "q", "response": "a"},
     {"messages": [system("s"), user("q"), assistant("a")], "id": "flan.1"}),
    ({"problem": "q", "solution": "a", "lang": "python"}, CHAT | {"lang": "python"}),
    ({"instruction": "q", "input": "i", "chosen": "a", "rejected": "b"},
     {"prompt": [user("q\ni")], "chosen": "a", "rejected": "b"}),
    # sharegpt
    ({"id": "x_1", "conversations": [{"from": "system", "value": "s"},
                                     {"from": "human", "value": "q", "weight": 0.0},
                                     {"from": "gpt", "value": "a", "weight": 1.0}]},
     {"messages": [system("s"), user("q"), assistant("a", weight=1)], "id": "x_1"}),
    ({"conversations": [{"from": "user", "value": "q"}, {"from": "ChatGPT", "value": "a"},
                        {"from": "human", "value": "r"}, {"from": "bard", "value": "b"}],
      "system": "s", "tools": "[]"}, TALK | {"tools": "[]"}),
    ({"conversations": [{"from": "system", "value": " "}, {"from": "human", "value": "q"},
                        {"from": "gpt", "value": "a"}]}, CHAT),
    ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
                        {"from": "bing", "value": "x"}, {"from": "human", "value": "r"}],
      "system": "another", "chosen": {"from": "gpt", "value": "a"},
      "rejected": {"from": "gpt", "value": "b"}}, PAIR | {"prompt": ROUND}),
    # FinDAP's pairs and Step-DPO's
    ({"prompt": "q", "chosen": "a", "rejected": "b", "answer": "7"}, OURS["pair"]),
    ({"dataset": "MATH", "prompt": "q", "initial_reason_steps": "Let's think.\nStep 1:",
      "chosen": " a", "rejected": " b", "full_chosen": " a\nStep 2: ..", "answer": "7",
      "full_rejected": " b\nStep 2: .."}, STEPS | {"dataset": "MATH"}),
    # FinTrain's exercises, GSM8K, MATH, FLARE
    (EXERCISE, {"prompt": "Acme grows.\n\nWhich?\n\nA. one\nB. two", "answer": "B",
                "source": "rows", "material": "m1", "gpt4_answerable": True,
                "gpt4_answerable_without_choices": None}),
    ({"question": "How many?", "answer": "6 * 3 = <<6*3=18>>18\n#### 18\n"},
     {"prompt": "How many?", "answer": "18", "source": "rows",
      "solution": "6 * 3 = <<6*3=18>>18\n#### 18\n"}),
    ({"question": "Which?", "context": "Acme grows.", "answer": 7, "ticker": "ACM"},
     {"prompt": "Acme grows.\n\nWhich?", "answer": "7", "source": "rows", "ticker": "ACM"}),
    ({"id": "test/1", "problem": "q", "solution": "s", "answer": "7", "level": 2},
     {"prompt": "q", "answer": "7", "solution": "s", "id": "test/1", "source": "rows", "level": 2}),
    ({"id": "f1", "query": "q", "answer": "a", "text": "t", "choices": ["a", "b"], "gold": 0},
     CHAT | {"id": "f1"}),
    ({"query": "q", "answer": None, "text": "t", "choices": ["b", "a"], "gold": 1}, CHAT),
]  # fmt: skip

# Rows of known shapes that are of no use, and rows of none
TOOL = {"role": "tool", "content": "18", "tool_call_id": "c"}
PICTURE = {"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}
USELESS = [
    ({"messages": [user("q"), assistant(None, tool_calls=[{"id": "c"}]), TOOL, assistant("a")]},
     "holds tool calls"),
    ({"messages": [user("q"), assistant(None, function_call={"name": "f"}), assistant("a")]},
     "holds tool calls"),
    ({"messages": [user("q"), TOOL, assistant("a")]}, "holds tool calls"),
    ({"messages": [user("q"), assistant("I look it up.", tool_calls=[{"id": "c"}])]},
     "holds tool calls"),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{}"},
                        {"from": "observation", "value": "1"}, {"from": "gpt", "value": "a"}]},
     "holds tool calls"),
    ({"messages": [user([PICTURE]), assistant("a")]}, "holds parts that are no text"),
    ({"messages": [user("q"), assistant([{"type": "thinking", "text": "hm"}])]},
     "holds parts that are no text"),
    ({"messages": [user([{"type": "text", "text": None}]), assistant("a")]},
     "holds parts that are no text"),
    ({"conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}],
      "images": ["a.png"]}, "holds parts that are no text"),
    ({"messages": [{"role": "critic", "content": "q"}, assistant("a")]},
     "a turn of an unknown role"),
    ({"messages": [user("q"), assistant("a", weight=0.5)]}, "a weight other than 0 and 1"),
    ({"messages": [user("q"), assistant("a", weight=0)]}, "no turn that is trained"),
    ({"messages": []}, "holds no turn"),
    ({"messages": [system("s")]}, "holds no turn"),
    ({"messages": [user("q"), assistant("a"), system("s")]}, "a system turn that is not the first"),
    ({"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "q"}]},
     "starts with the assistant"),
    ({"messages": [user("q"), user("r"), assistant("a")]}, "user and assistant do not alternate"),
    ({"messages": [user("q"), assistant("a"), user("r")]}, "ends with the user"),
    ({"messages": [user("q"), assistant(None)]}, "an empty reply"),
    ({"messages": [user(" "), assistant("a")]}, "an empty question"),
    ({"instruction": "q", "input": "", "output": "\n"}, "an empty reply"),
    ({"instruction": "", "input": None, "output": "a"}, "an empty question"),
    ({"instruction": "q", "output": "b", "history": [["", "x"]]}, "an empty question"),
    ({"instruction": "q", "input": "", "output": "a", "kto_tag": False},
     "a reply that is marked as bad"),
    ({"prompt": "q", "completion": "a", "label": False}, "a reply that is marked as bad"),
    ({"query": "q", "answer": "", "choices": ["a"], "gold": -1}, "an empty reply"),
    ({"prompt": "q", "answer": None}, "a prompt without an answer"),
    ({"prompt": "q"}, "a prompt without an answer"),
    ({"prompt": "q", "answer": " \n"}, "a prompt without an answer"),
    ({"prompt": [user("q"), assistant("x")], "answer": "a"}, "ends with the assistant"),
    (EXERCISE | {"answer": None}, "a prompt without an answer"),
    ({"question": "q", "choices": ["x", "y"], "answer": 1}, "a question whose choices stand apart"),
    ({"text": " \n"}, "an empty text"),
    ({"text": None}, "an empty text"),
    ({"prompt": "q", "chosen": "a", "rejected": ""}, "an empty reply"),
    ({"prompt": "q", "chosen": None, "rejected": "b"}, "an empty reply"),
    ({"prompt": "", "chosen": "a", "rejected": "b"}, "an empty question"),
    ({"chosen": "a", "rejected": "b"}, "an empty question"),
    ({"prompt": "q", "chosen": " a", "rejected": "a\n"}, "chosen and rejected are the same"),
    ({"chosen": [*ROUND, assistant("a")], "rejected": [user("other"), assistant("b")]},
     "chosen and rejected part before their last turns"),
    ({"chosen": [user("q")], "rejected": [user("r")]}, "holds no turn"),
    ({"prompt": [user("q")], "chosen": [assistant("a"), user("r"), assistant("c")],
      "rejected": [assistant("b")]}, "a reply of a pair that is not one turn of the assistant"),
    ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "human", "value": "a"},
      "rejected": {"from": "gpt", "value": "b"}},
     "a reply of a pair that is not one turn of the assistant"),
    ({"prompt": [user("q"), assistant("x")], "chosen": "a", "rejected": "b"},
     "ends with the assistant"),
]  # fmt: skip
ODD = [
    ({"words": "x", "label": 1}, "no known shape; the row has words, label"),
    ({}, "no known shape; the row has no keys"),
    ({"input_ids": [1, 2], "labels": [1, 2]}, "input_ids: holds tokens, not text; get the text"),
    ({"messages": None}, "messages: must be a list of messages"),
    ({"input": "q", "preferred_output": [], "non_preferred_output": []}, "input: messages: must"),
    ({"messages": "hello"}, "messages: must be a list of messages"),
    ({"conversations": ["hello"]}, "conversations: must be a list of messages"),
    ({"messages": [user(3.5), assistant({"a": 1})]}, "content: must be a string, not an object"),
    ({"instruction": "q", "output": ["a", "b"]}, "output: must be a string, not a list"),
    ({"instruction": "q", "output": "a", "history": ["q", "a"]}, "history: must be a list of"),
    ({"instruction": "q", "output": "a", "history": 7}, "history: must be a list of"),
    ({"question": "q", "answer": True}, "answer: must be a string, not true or false"),
    ({"prompt": "q", "chosen": 1, "rejected": 2}, "chosen: must be a list of messages"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "prefix": "Step 1"}, "ends_turn: chosen: mis"),
    (OURS["scp"] | {"ends_turn": {"chosen": 1, "rejected": True}}, "ends_turn: chosen: must be tr"),
    (OURS["scp"] | {"ends_turn": "no"}, "a pair: ends_turn: must be an object"),
]  # fmt: skip
