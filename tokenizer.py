r"""Text and chats -> token ids, in such a way that no text can become a control token.

    llama3   <|begin_of_text|> <|start_header_id|> user <|end_header_id|> \n\n Hi <|eot_id|> ...
    chatml   <|im_start|> user\n Hi <|im_end|> \n ...

A chat is put together from ids: control tokens by number, contents encoded with special-token
matching off. A rendered string is never tokenised, so a user who types "<|eot_id|>" sends letters
and punctuation. No Jinja runs: the two formats are built in, and the checkpoint's own template only
says which system text they carry. On ordinary text the ids equal those of transformers'
apply_chat_template (benchmarks/llama3_tokenizer.py).
"""

import hashlib
import json
import re
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Encoder

from config import UserError, read_json
from jsonl import notice

# name: the control tokens it needs: opening of a turn, ..., end of a turn, end of a text document
FORMATS = {
    "llama3": (
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|end_of_text|>",
    ),  # fmt: skip
    "chatml": ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
}
# Fingerprints of the Jinja templates whose output the built-in formats are known to reproduce.
KNOWN = {
    "065d2c5e13237e5d": "Llama 3",
    "09945ba847120d6b": "Llama 3, first release: always with a generation prompt",
    "dedbb6d2e327db04": "Llama 3, as sample/base writes it",
    "5a8655e3739aa735": "Llama 3.1 and 3.3",
    "77450cea795aa476": "Llama 3.2",
    "711863d9666538c8": "ChatML",
    "b85639e34583e459": "SmolLM2",
}
# Llama 3.1 and later open every system text with two dates. The day's own would change all ids
# overnight, so it is the one the templates fall back to: apply_chat_template(date_string=...).
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
CHATML_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"<{]+)<\|im_end\|>")
PROBE = [{"role": "user", "content": "u"}, {"role": "assistant", "content": " a "}]


class Beginning(str):
    """A part of a reply that somebody else goes on with. A pre-tokenizer may divide white space by
    what follows it (GPT-2's does): a blank line that ends a text is one token, before a word it is
    two. So one that ends in white space is encoded before a word."""


def optional_json(path):
    return read_json(path) if path.exists() else {}


def chat_template(folder):
    """The folder's Jinja template as a string, "" without one. Read, never run."""
    if (path := folder / "chat_template.jinja").exists():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{path}: cannot be read: {e}") from None
    path = folder / "tokenizer_config.json"
    found = optional_json(path).get("chat_template") or ""
    if isinstance(found, list):  # older form: [{"name", "template"}]
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default", "" if len(named) == len(found) else None)
    if not isinstance(found, str):
        raise UserError(f"{path}: chat_template: must be text, or a list of name and template")
    return found


def fingerprint(template):
    """Sixteen hex digits of a template, blind to white space and to how \\n is written."""
    return hashlib.sha256(re.sub(r"\\n|\s", "", template).encode()).hexdigest()[:16]


def load_encoder(path):
    """tokenizer.json -> (encoder that sees no control token in a text, {name: id}, special ids)."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; a checkpoint folder holds a tokenizer.json")
    try:
        encoder = Encoder.from_file(str(path))
    except Exception as e:  # the library raises bare Exception
        raise UserError(f"{path}: not a tokenizer file: {e}") from None
    added = encoder.get_added_tokens_decoder()
    # encode_special_tokens covers "special" tokens only: an added token without that mark (Qwen's
    # <tool_call>) would still be found inside a text, so every one is marked.
    encoder.add_special_tokens([AddedToken(t.content, special=True) for t in added.values()])
    encoder.encode_special_tokens = True
    encoder.no_truncation()
    encoder.no_padding()
    ids = {token.content: i for i, token in added.items()}
    return encoder, ids, {i for i, token in added.items() if token.special}


class Tokenizer:
    """The tokenizer of a Hugging Face folder. UserError if its files or format are not understood.

    template     "llama3" or "chatml", found from the control tokens
    bos_id       stands exactly once at the head of every sequence; None = never (ChatML)
    turn_end_id  closes a turn; trained in every assistant turn
    text_end_id  closes a document of continual pretraining
    stop_ids     where generation ends: every end token the folder names, and the two above
    system       system text of a chat that brings none (None: no system turn then)
    sha          of tokenizer.json; template_sha of the chat format, whatever the vocabulary
    """

    def __init__(self, path):
        self.path = folder = Path(path)
        self.encoder, self.ids, self.special = load_encoder(folder / "tokenizer.json")
        self.control = frozenset(self.ids.values())
        self.sha = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
        self.vocab_size = max(self.encoder.get_vocab().values()) + 1
        self.template = next((t for t, names in FORMATS.items() if {*names} <= {*self.ids}), None)
        if self.template is None:
            wanted = "; ".join(f"{name} needs {' '.join(t)}" for name, t in FORMATS.items())
            raise UserError(
                f"{folder}/tokenizer.json: neither chat format fits its tokens: {wanted}"
            )
        self.turn_end_id, self.text_end_id = (self.ids[t] for t in FORMATS[self.template][-2:])
        self.bos_id = self.ids["<|begin_of_text|>"] if self.template == "llama3" else None
        self.stop_ids = self._stop_ids()
        self.preamble, self.system = self._system_text()
        chats = [
            self.chat_parts(PROBE),
            self.chat_parts([{"role": "system", "content": "s"}] + PROBE),
        ]
        shown = [
            [self.encoder.id_to_token(p) if type(p) is int else p for p, _ in c] for c in chats
        ]
        self.template_sha = hashlib.sha256(json.dumps(shown).encode()).hexdigest()

    def _stop_ids(self):
        found = {self.turn_end_id, self.text_end_id, self.ids.get("<|eom_id|>")}
        for name in ("generation_config.json", "config.json"):
            eos = optional_json(self.path / name).get("eos_token_id")
            for i in eos if isinstance(eos, list) else [eos]:
                if i is not None and (type(i) is not int or i < 0):
                    raise UserError(f"{self.path / name}: eos_token_id: {i!r} is not a token id")
                found.add(i)
        eos = optional_json(self.path / "tokenizer_config.json").get("eos_token")
        name = eos.get("content") if isinstance(eos, dict) else eos
        if name is not None and not isinstance(name, str):
            raise UserError(f"{self.path}/tokenizer_config.json: eos_token: {eos!r} is not a token")
        found.add(self.encoder.token_to_id(name or ""))
        return frozenset(found - {None})

    def _system_text(self):
        """(text before every system text, system text of a chat without one), from the template."""
        jinja = chat_template(self.path)
        if jinja and fingerprint(jinja) not in KNOWN:
            notice(
                f"{self.path}: unknown chat template; the built-in {self.template} format is used. "
                "Compare its ids with transformers' before relying on them."
            )
        if "Cutting Knowledge Date" in jinja:
            return DATES, ""
        system = CHATML_SYSTEM.search(jinja) if self.template == "chatml" else None
        return "", system and system.group(1)

    def check_fits(self, vocab_size):
        """UserError if the tokenizer has ids beyond an embedding of vocab_size rows."""
        if self.vocab_size > vocab_size:
            raise UserError(
                f"{self.path}/tokenizer.json: ids up to {self.vocab_size - 1} do not fit an "
                f"embedding of {vocab_size} rows (config.json: vocab_size)"
            )

    def encode(self, text):
        """Ids of a text, control tokens in it spelt out as ordinary text."""
        return self.join([[(text, True)]])[0][0]

    def decode(self, ids, skip_special=True):
        skip = self.special if skip_special else ()
        # The encoder's own flag would also drop added tokens that are text: all are marked.
        return self.encoder.decode([i for i in ids if i not in skip], skip_special_tokens=False)

    def join(self, rows):
        """Rows of parts (id or text, trained) -> (ids, trained) per row, in one threaded call."""
        texts = [piece for parts in rows for piece, _ in parts if isinstance(piece, str)]
        open_end = [isinstance(text, Beginning) and text[-1:].isspace() for text in texts]
        texts = [text + "x" if cut else text for text, cut in zip(texts, open_end, strict=True)]
        try:
            found = self.encoder.encode_batch_fast(texts, add_special_tokens=False)
            encoded = (e.ids[: len(e.ids) - cut] for e, cut in zip(found, open_end, strict=True))
        except TypeError:  # what the library says to a lone surrogate: a byte that was no UTF-8
            raise UserError("the text is not valid UTF-8") from None
        joined = []
        for parts in rows:
            ids, trained = [], []
            for piece, mark in parts:
                new = next(encoded) if isinstance(piece, str) else [piece]
                if isinstance(piece, str) and not self.control.isdisjoint(new):
                    raise UserError(f"{self.path}/tokenizer.json: turns text into a control token: "
                                    f"{piece[:60]!r}")  # fmt: skip
                ids += new
                trained += [mark] * len(new)
            joined.append((ids, trained))
        return joined

    def head(self):
        return [] if self.bos_id is None else [(self.bos_id, False)]

    def text_parts(self, text):
        """A document of continual pretraining: BOS + text + end of text, all of it trained."""
        return [*self.head(), (text, True), (self.text_end_id, True)]

    def said(self, text):
        """The Llama-3 templates trim contents; ChatML keeps them as they are."""
        return text.strip() if self.template == "llama3" else text

    def reply_parts(self, text, trim=True):
        """The words of an assistant and their turn end, all trained: what follows a prompt."""
        return [(self.said(text) if trim else text, True), (self.turn_end_id, True)]

    def chat_parts(self, messages, add_generation_prompt=False):
        """Parts of a conversation. Trained: assistant words with their turn end, unless weight 0.

        What stands before an assistant's words is encoded on its own, never together with them:
        the ids of a prompt are a prefix of the ids of the chat, whatever the words start with.
        """
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        parts = self.head()
        for message in messages:
            role, text = message["role"], self.said(message["content"])
            opening, mark = self.opening(role), False
            if role == "assistant":
                mark = message.get("weight", 1) != 0
            else:
                text = opening.pop()[0] + (self.preamble if role == "system" else "") + text
            parts += [*opening, (text, mark), (self.turn_end_id, mark)]
            if self.template == "chatml":
                parts.append(("\n", False))
        return parts + (self.opening("assistant") if add_generation_prompt else [])

    def opening(self, role):
        """Parts that open a turn; the last one is the white space that touches the content."""
        if role not in ("system", "user", "assistant"):
            raise UserError(f"role {role!r}: must be system, user or assistant")
        if self.template == "chatml":
            return [(self.ids["<|im_start|>"], False), (f"{role}\n", False)]
        start, end = self.ids["<|start_header_id|>"], self.ids["<|end_header_id|>"]
        return [(start, False), (role, False), (end, False), ("\n\n", False)]

    def chat(self, messages, add_generation_prompt=False):
        """[{"role", "content", "weight"?}] -> (ids with BOS, trained: a bool per id)."""
        return self.join([self.chat_parts(messages, add_generation_prompt)])[0]

    def prompt(self, messages):
        """Ids up to and including the assistant header; a str is one user message."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.chat(messages, add_generation_prompt=True)[0]

    def text(self, text):
        return self.join([self.text_parts(text)])[0][0]
