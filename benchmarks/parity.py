"""Our Llama against transformers on a real checkpoint: logits, argmax, greedy tokens.

    python benchmarks/parity.py --init_from out/smollm2 --text finance.jsonl

Takes the first rows {"text"} of a file, up to --tokens in all, in fp32. Exit code 1 on a mismatch.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import UserError, parse
from generate import generate
from jsonl import read_jsonl
from model import Llama
from tokenizer import Tokenizer


@dataclass
class Config:
    init_from: str = "sample/base"  # checkpoint folder
    text: str = "sample/data/cpt_heldout.jsonl"  # {"text"} rows
    tokens: int = 400  # tokens whose logits are compared
    greedy: int = 60  # tokens that each of 4 prompts is continued by
    tolerance: float = 2e-4  # largest difference of a logit


@torch.no_grad()
def main(cfg):
    tokenizer = Tokenizer(cfg.init_from)
    theirs = AutoModelForCausalLM.from_pretrained(cfg.init_from, dtype=torch.float32).eval()
    ours = Llama.from_pretrained(cfg.init_from).eval()
    documents, left = [], cfg.tokens
    for _, row in read_jsonl(cfg.text, {"text": str}):
        ids = tokenizer.text(row["text"])[:-1][:left]
        documents, left = [*documents, torch.tensor(ids)], left - len(ids)
        if not left:
            break
    lengths = torch.tensor([0, *map(len, documents)])
    positions = torch.cat([torch.arange(len(ids)) for ids in documents])
    packed = ours(torch.cat(documents), positions, lengths.cumsum(0).int())  # (N, V), one row
    alone = torch.cat([theirs(ids[None]).logits[0] for ids in documents])
    gap = (packed - alone).abs().max().item()
    agree = (packed.argmax(-1) == alone.argmax(-1)).float().mean().item()
    print(f"{len(packed)} tokens in {len(documents)} packed documents: logits differ by at most "
          f"{gap:.1e} (they reach {alone.abs().max():.0f}), argmax equal {agree:.2%}")  # fmt: skip

    prompts = [tokenizer.prompt(f"What is {x}?") for x in ("a bond", "inflation", "revenue", "2+2")]
    replies = generate(ours, prompts, tokenizer.stop_ids, max_new_tokens=cfg.greedy)
    equal = tokens = 0
    for ids, reply in zip(prompts, replies, strict=True):
        stop = sorted(tokenizer.stop_ids)
        full = theirs.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=cfg.greedy, eos_token_id=stop
        )[0, len(ids) :].tolist()
        tokens += len(reply[0].ids)
        equal += reply[0].ids == [t for t in full if t not in tokenizer.stop_ids]
    print(f"{equal} of {len(prompts)} greedy replies are equal, {tokens} tokens in all")
    if gap > cfg.tolerance or agree < 1 or equal < len(prompts):
        raise UserError("the two implementations differ")


if __name__ == "__main__":
    try:
        main(parse(Config))
    except UserError as e:
        sys.exit(f"error: {e}")
