"""Makes the judge before its training: sample/base, able to read requests and to write JSON.

    python sample/new_judge.py --base sample/base --out out/new_judge
    ./sample/make_judge.sh       # trains it on the verdicts of the exact judge

Its tokenizer is the base's and, behind it, what the requests of judge.py and the replies of
judge_server.py hold besides: words, and two kinds of long tokens. A line that every request has is
one token: it never changes, and as words such lines would be two thirds of what the judge reads.
So is what stands between two values of a reply, such as `", "Correctness": "`: as words they would
come back with other blanks. Beside the folder's usual files stands drills.jsonl, chats that train
comparing numbers before the judge meets a solution.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for scripts
from judge import OF_SOLUTIONS, PROMPTS, build_request
from sample import exam, judge_server
from sample.new_base import CONTROL, PIECE, ROLES, UNKNOWN
from sample.world import chat_row, write

KEY = r'(?:\{|", )"[A-Z][a-z ]*": "'  # opens a value of a reply, and closes the one before it
END = r'"\}'
INIT_STD = 0.09  # rows of about the length of the trained ones
DRILLS = 12_000


def constant_lines() -> list[str]:
    """The lines of the requests that are the same every time, the longest first."""
    lines = set()
    for prompt in map(PROMPTS.get, OF_SOLUTIONS):
        blank = prompt.format(question="\0", reference="\0", answer="\0")
        lines |= {line.strip() for line in blank.split("\n") if "\0" not in line}
    return sorted(lines - {""}, key=lambda line: (-len(line), line))


def examples() -> list[tuple[str, str]]:
    """(request, reply) for every kind of verdict there is."""
    question, solution, answer = exam.exercise("operating profit", Random(0))
    written = [
        solution,
        solution.replace(f"Answer: {answer}", "Answer: 0"),
        f"{solution} Answer: 0",
        solution.replace(" = ", " - "),  # other words, the same numbers
        "no step at all",
    ]
    found = []
    for text in written:
        for kind in OF_SOLUTIONS:
            parts = question, f"{solution}\n{answer}", text
            request = build_request(kind, 1, *parts, "", 1, 0)
            reply = judge_server.reply(request)["choices"][0]["message"]["content"]
            found.append((request["messages"][0]["content"], reply))
    return found


def build_tokenizer(base: Tokenizer) -> Tokenizer:
    """The base's tokens under their old ids, then the new ones."""
    piece = "|".join([*map(re.escape, constant_lines()), KEY, END, PIECE])
    known = sorted(base.get_vocab(), key=base.get_vocab().get)
    texts = [text for example in examples() for text in example]
    new = {found for text in texts for found in re.findall(piece, text)}
    tokens = [*known, *sorted(new.difference(known))]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(piece), "removed", invert=True)
    tokenizer.decoder = decoders.Sequence([
        decoders.WordPiece(prefix="##", cleanup=False),  # joins words with blanks
        decoders.Fuse(),
        decoders.Replace(Regex(r" (?=[.,:?\]])|(?<=\[) "), ""),  # up to here the base's
        decoders.Replace(Regex(rf'(?<=": ") | (?={KEY}|{END})'), ""),
    ])  # fmt: skip
    tokenizer.post_processor = base.post_processor
    added = sorted(base.get_added_tokens_decoder().items())
    tokenizer.add_special_tokens([token for _, token in added])
    return tokenizer


def grow(known: torch.Tensor, tokens: list[str], read: set[str], seed: int) -> torch.Tensor:
    """Embeddings (V, D) of the tokens: the base's of what it has read, random ones of all else.

    What a model never reads is only ever pushed away: of the base's rows for the words of finance
    any two have a cosine of 0.999 and more, and a copy of one word would be as good as another's.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(tokens), known.shape[1], generator=generator) * INIT_STD
    for i, token in enumerate(tokens[: len(known)]):
        if token in read:
            rows[i] = known[i]
    return rows


def drills(count: int, rng: Random) -> list[dict]:
    """Chats that train what a verdict rests on: which numbers of two lists are the same?

    A judged solution shows a few comparisons in 200 tokens, a drill as many in 40.
    """
    rows = []
    for _ in range(count):
        ours = [str(rng.randint(1, exam.LARGEST)) for _ in range(rng.randint(1, 6))]
        theirs = [n if rng.random() < 0.6 else str(rng.randint(1, exam.LARGEST)) for n in ours]
        asked = f"{', '.join(ours)} and {', '.join(theirs)}"
        rows.append(chat_row(asked, f"{', '.join(judge_server.compared(ours, theirs))}."))
    return rows


def save(base: Path, data: Path, out: Path, seed: int) -> None:
    """A Hugging Face folder: what transformers and the train scripts load; and drills.jsonl."""
    write({"drills.jsonl": drills(DRILLS, Random(seed))}, out)
    tokenizer = build_tokenizer(Tokenizer.from_file(str(base / "tokenizer.json")))
    tokenizer.save(str(out / "tokenizer.json"))
    for name in ("generation_config", "special_tokens_map", "tokenizer_config"):
        shutil.copy(base / f"{name}.json", out)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = tokenizer.get_vocab_size()
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    texts = [path.read_text(encoding="utf-8") for path in sorted(data.glob("base_*.jsonl"))]
    read = {*CONTROL, *ROLES, *re.findall(PIECE, "".join(texts))}
    tokens = [tokenizer.id_to_token(i) for i in range(config["vocab_size"])]
    weights, name = load_file(base / "model.safetensors"), "model.embed_tokens.weight"
    weights[name] = grow(weights[name], tokens, read, seed)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the sample world's judge, untrained.")
    parser.add_argument("--base", default="sample/base", help="the folder it is made from")
    parser.add_argument("--data", default="sample/data", help="what the base has read")
    parser.add_argument("--out", default="out/new_judge", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the new rows and the drills")
    args = parser.parse_args()
    save(Path(args.base), Path(args.data), Path(args.out), args.seed)
