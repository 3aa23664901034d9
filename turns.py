"""Other tools' messages -> ours, and what training demands of them.

{"role": "developer", "content": [{"type": "text", "text": ".."}]}     OpenAI
{"from": "gpt", "value": "..", "weight": 1.0}                          sharegpt
-> {"role": "system" | "user" | "assistant", "content": "..", "weight"?: 0 | 1}
"""

from itertools import pairwise

from config import UserError
from jsonl import TYPES

ROLES = {role: role for role in ("system", "user", "assistant")}
ROLES |= {"developer": "system", "human": "user"}
ROLES |= dict.fromkeys("gpt chatgpt bot model bard bing claude".split(), "assistant")
TOOLS = ("tool", "function", "function_call", "tool_call", "observation", "ipython")


class Unusable(Exception):
    """A row of a known shape that is of no use; says the phrase that it is counted by."""


def text_of(row, name):
    """A column as text, "" where there is none. UserError if it holds neither text nor number."""
    value = row.get(name)
    if value is None or isinstance(value, str):
        return value or ""
    if type(value) not in (int, float):
        kind = TYPES.get(type(value), "another type")
        raise UserError(f"{name}: must be a string, not {kind}")
    return str(value)


def turn(role, content):
    return {"role": role, "content": content}


def as_turns(prompt):
    """A prompt, which may be a text, as messages."""
    return [turn("user", prompt)] if isinstance(prompt, str) else prompt


def content_of(message):
    """What a message says: one text, or OpenAI's list of parts."""
    name = "content" if "content" in message else "value"
    if not isinstance(message.get(name), list):
        return text_of(message, name)
    parts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
             for part in message[name]]  # fmt: skip
    if not all(isinstance(part, str) for part in parts):
        raise Unusable("holds parts that are no text")
    return "\n".join(parts)


def turns_of(value, name, role="", system=""):
    """Our messages of other messages (role and content, or from and value) or of one. With a role
    it may be a text. system: of a column of its own, for want of one among the messages."""
    if role and (value is None or isinstance(value, str)):
        value = turn(role, value or "")
    value, turns = [value] if isinstance(value, dict) else value, []
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise UserError(f"{name}: must be a list of messages")
    for message in value:
        said, weight = str(message.get("role", message.get("from"))).lower(), message.get("weight")
        if said in TOOLS or message.get("tool_calls") or message.get("function_call"):
            raise Unusable("holds tool calls")
        if said not in ROLES:
            raise Unusable("a turn of an unknown role")
        turns.append(turn(ROLES[said], content_of(message)))
        if ROLES[said] == "assistant" and weight is not None:
            if weight not in (0, 1):
                raise Unusable("a weight other than 0 and 1")
            turns[-1]["weight"] = int(weight)
    turns = [m for m in turns if m["role"] != "system" or m["content"].strip()]
    if system.strip() and (not turns or turns[0]["role"] != "system"):
        turns.insert(0, turn("system", system))
    return turns


def check_turns(turns, last):
    """Unusable unless user and assistant alternate after a system turn, `last` ends them and none
    is empty: what training demands of messages (jsonl.check_messages)."""
    roles = [message["role"] for message in turns]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    if not roles:
        raise Unusable("holds no turn")
    if "system" in roles:
        raise Unusable("a system turn that is not the first")
    if roles[0] == "assistant":
        raise Unusable("starts with the assistant")
    if any(role == following for role, following in pairwise(roles)):
        raise Unusable("user and assistant do not alternate")
    if roles[-1] != last:
        raise Unusable(f"ends with the {roles[-1]}")
    if empty := next((m["role"] for m in turns if not m["content"].strip()), ""):
        raise Unusable("an empty reply" if empty == "assistant" else "an empty question")
