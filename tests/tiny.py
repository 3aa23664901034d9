"""Tiny checkpoints for the tests: a random Llama and a small real tokenizer, as one HF folder."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from model import Llama, LlamaConfig

CONTROL = {
    "llama3": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ],
    "chatml": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
}
WORDS = "the of profit revenue cost rate bond share price year answer step good bad one two".split()


def write_tokenizer(path, template="llama3"):
    """A byte-level BPE of 330 tokens with the template's control tokens. Returns their ids."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in CONTROL[template]])
    tokenizer.save(str(path / "tokenizer.json"))
    ids = {t: tokenizer.token_to_id(t) for t in CONTROL[template]}
    llama3 = template == "llama3"
    bos, eos = ("<|begin_of_text|>", "<|eot_id|>") if llama3 else ("<|im_start|>", "<|im_end|>")
    names = {"bos_token": bos, "eos_token": eos, "tokenizer_class": "PreTrainedTokenizerFast"}
    (path / "tokenizer_config.json").write_text(json.dumps(names))
    stops = [ids[eos], ids["<|end_of_text|>"]] if llama3 else ids[eos]
    generation = {"bos_token_id": ids[bos], "eos_token_id": stops}
    (path / "generation_config.json").write_text(json.dumps(generation))
    return ids


def tiny_config(**changes):
    """The json of a config.json: 2 layers, hidden 32, 4 query heads on 2 kv heads."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    } | changes


def write_checkpoint(path, template="llama3", seed=0, **changes):
    """A random checkpoint folder that our code and transformers both load. Returns its path."""
    path = Path(path)
    ids = write_tokenizer(path, template)
    raw = tiny_config(**changes)
    raw["eos_token_id"] = ids["<|end_of_text|>" if template == "llama3" else "<|im_end|>"]
    raw["bos_token_id"] = ids["<|begin_of_text|>" if template == "llama3" else "<|im_start|>"]
    (path / "config.json").write_text(json.dumps(raw))
    torch.manual_seed(seed)
    model = Llama(LlamaConfig.from_dict(raw))
    with torch.no_grad():  # larger weights than a real start, so that differences show
        for p in model.parameters():
            p.mul_(8.0) if p.ndim > 1 else p.add_(0.1 * torch.randn_like(p))
    tensors = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def sentences(count, seed=0, low=3, high=20):
    """Random sentences of the tokenizer's words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(low, high))) for _ in range(count)]


def write_rows(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
