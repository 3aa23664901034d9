"""What a checkpoint still knows and has learned, without asking it anything: losses of texts.

    python benchmarks/losses.py --init_from out/demo/cpt_it --out losses.json \\
        --files PARTS/heldout_finance_text.jsonl,PARTS/heldout_general_chat.jsonl \\
        --cloze PARTS/cloze_text.jsonl

Mean -log p over the trained tokens of each file (of a chat: the assistant's), in nats; of a cloze,
points: how often the first of CHOICES sentences, the true one, is the likeliest. Writes
{"heldout_finance_text": ..., "cloze_text": ...}.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for scripts
import parallel
from checkpoint import load_weights
from config import UserError, parse
from data import load_chat, load_text
from jsonl import write_text
from model import Llama
from packing import IGNORE, collate
from tokenizer import Tokenizer
from train_cpt import token_losses

CHOICES = 4  # sentences of each question of a cloze


@dataclass
class Config:
    init_from: str = "sample/base"  # checkpoint folder
    files: str = ""  # rows {"text"} or {"messages"}: NAME_text.jsonl or NAME_chat.jsonl, commas
    cloze: str = ""  # rows {"text"}: a true sentence, then CHOICES - 1 false ones, and so on
    out: str = "losses.json"  # written
    max_length: int = 256  # tokens of a row at most
    device: str = "auto"  # cpu or cuda


@torch.no_grad()
def losses_of(model, families, device):
    """-log p of each family's trained tokens, and their number: (F,), (F,)."""
    sums, counts = [], []
    for i in range(0, len(families), 64):
        batch = collate([families[k] for k in range(i, min(i + 64, len(families)))]).to(device)
        sizes = batch.cu_seqlens.diff().tolist()
        sums += [part.double().sum() for part in token_losses(model, batch).split(sizes)]
        counts += [(part != IGNORE).sum() for part in batch.labels.split(sizes)]
    return torch.stack(sums), torch.stack(counts)


def main(cfg):
    device = parallel.init(cfg.device)[2]
    model = parallel.shard(Llama.from_pretrained(cfg.init_from, "meta"), device, "float32")
    load_weights(model, cfg.init_from)
    tokenizer, found = Tokenizer(cfg.init_from), {}
    for file in filter(None, [*cfg.files.split(","), cfg.cloze]):
        name, kind = Path(file).stem, Path(file).stem.rpartition("_")[2]
        if kind not in ("text", "chat"):
            raise UserError(f"{file}: its name must end with _text or _chat")
        load = load_text if kind == "text" else load_chat
        sums, counts = losses_of(model, load(file, tokenizer, cfg.max_length)[0], device)
        if file == cfg.cloze:
            if len(sums) % CHOICES:
                raise UserError(f"{file}: {len(sums)} sentences are no groups of {CHOICES}")
            true = sums.view(-1, CHOICES).argmin(1) == 0
            found[name] = 100 * true.double().mean().item()
        else:
            found[name] = (sums.sum() / counts.sum()).item()
    write_text(Path(cfg.out), json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    with parallel.clean_exit():
        main(parse(Config))
