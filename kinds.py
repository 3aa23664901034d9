"""The kinds of training rows, and what of each is trained.

    text  {"text"}: BOS + text + end of text, all of it trained
    chat  {"messages": [{"role", "content", "weight"?}]}: assistant words and turn ends trained
    pair  {"prompt", "chosen", "rejected", "prefix"?, "ends_turn"?}: chosen and rejected trained

A row becomes the parts of its token sequences: control tokens by number, texts to be encoded, each
with a mark whether it is trained (tokenizer.py).
"""

from config import UserError
from jsonl import check_messages
from tokenizer import Beginning


def text_parts(row, where, tokenizer):
    return [tokenizer.text_parts(row["text"])]


def chat_parts(row, where, tokenizer):
    check_messages(row["messages"], where, last="assistant")
    return [tokenizer.chat_parts(row["messages"])]


def assistant_text(value, where, name):
    """The text of a chosen or rejected reply: a string, or a list of one assistant message."""
    if isinstance(value, str):
        return value
    if len(value) != 1:
        raise UserError(f"{where}: {name}: must hold one assistant message, not {len(value)}")
    check_messages([{"role": "user", "content": "?"}, *value], where, "assistant", name)
    return value[0]["content"]


def pair_parts(row, where, tokenizer):
    """[prompt, chosen, rejected] of a preference row: canonical (FAP, SCP) or TRL's explicit form.

    Without prefix the replies are whole assistant turns; with one they go on from it, mid-turn.
    Joined on ids: encoding prompt and reply as one text may merge tokens across the cut.
    ends_turn {"chosen": bool, "rejected": bool}: one step of a solution does not end the turn.
    """
    prompt, prefix, ends = row["prompt"], row.get("prefix") or "", row.get("ends_turn")
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    check_messages(prompt, where, last="user", name="prompt")
    if ends is None and prefix:
        raise UserError(f"{where}: ends_turn: missing; a reply that continues a prefix must say it")
    ends = {"chosen": True, "rejected": True} if ends is None else ends
    header = tokenizer.chat_parts(prompt, add_generation_prompt=True)
    parts = [[*header, (Beginning(prefix), False)]]
    for name in ("chosen", "rejected"):
        if type(ends.get(name)) is not bool:
            raise UserError(f"{where}: ends_turn: {name} must be true or false")
        text = assistant_text(row[name], where, name)
        reply = tokenizer.reply_parts(text, trim=not prefix)
        parts.append(reply if ends[name] else reply[:-1])
    return parts


# kind of row: its fields, row -> parts of each of its sequences
KINDS = {
    "text": ({"text": str}, text_parts),
    "chat": ({"messages": list}, chat_parts),
    "pair": ({"prompt": (str, list), "prefix?": str, "chosen": (str, list),
              "rejected": (str, list), "ends_turn?": dict}, pair_parts),
}  # fmt: skip
SEQUENCES = {"text": 1, "chat": 1, "pair": 3}  # of a row
