"""Makes the untrained base: a word-level tokenizer and a tiny Llama with random weights.

    python sample/new_base.py --data sample/data --out out/new_base
    ./sample/make_base.sh        # trains it on the general part: the shipped sample/base

The tokenizer has one token for each word, number and punctuation mark of the world, and the
control tokens and chat layout of Llama-3. White space carries nothing: it is dropped on the way in
and put back on the way out, so a text may be cut at any blank without changing its tokens.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
           "<|eot_id|>"]  # fmt: skip
ROLES = ["system", "user", "assistant"]
UNKNOWN = "<unk>"
PIECE = r"\w+|[^\w\s]"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SHAPE = {  # Hugging Face names; 0.9M parameters
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
INIT_STD = 0.05


def strings(value):
    """Every string inside a row."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def vocabulary(data: Path) -> list[str]:
    """Every word the world uses, in alphabetical order; numbers up to 99 whether used or not."""
    words = {str(number) for number in range(100)} | set(ROLES)
    for path in sorted(data.rglob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for key in ("id", "source"):
                row.pop(key, None)
            for text in strings(row):
                words.update(re.findall(PIECE, text))
    return sorted(words)


def build_tokenizer(words: list[str]) -> Tokenizer:
    tokens = [*CONTROL, UNKNOWN, *words]
    ids = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    # "removed" with invert drops what lies between the matches: the white space
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "removed", invert=True)
    tokenizer.decoder = decoders.Sequence([
        decoders.WordPiece(prefix="##", cleanup=False),  # joins words with blanks
        decoders.Fuse(),
        decoders.Replace(Regex(r" (?=[.,:?\]])|(?<=\[) "), ""),
    ])  # fmt: skip
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    bos = CONTROL[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, ids[bos])]
    )
    return tokenizer


def weights(vocab_size: int, seed: int) -> dict[str, torch.Tensor]:
    """Random weights under the names of Hugging Face; the tied head is not stored."""
    generator = torch.Generator().manual_seed(seed)
    d, f = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    kv = d // SHAPE["num_attention_heads"] * SHAPE["num_key_value_heads"]
    shapes = {"model.embed_tokens": (vocab_size, d)}
    for i in range(SHAPE["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {f"{layer}.self_attn.{name}_proj": (d, d) for name in "qo"}
        shapes |= {f"{layer}.self_attn.{name}_proj": (kv, d) for name in "kv"}
        shapes |= {f"{layer}.mlp.{name}_proj": (f, d) for name in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj": (d, f)}
        shapes |= {f"{layer}.{name}_layernorm": (d,) for name in ("input", "post_attention")}
    shapes |= {"model.norm": (d,)}
    return {
        f"{name}.weight": torch.ones(shape)
        if len(shape) == 1  # the norms
        else torch.randn(shape, generator=generator) * INIT_STD
        for name, shape in shapes.items()
    }


def save(out: Path, tokenizer: Tokenizer, seed: int) -> None:
    """A Hugging Face folder: what transformers and the train scripts load."""
    out.mkdir(parents=True, exist_ok=True)
    bos, text_end, eot = (tokenizer.token_to_id(CONTROL[i]) for i in (0, 1, 4))
    vocab_size = tokenizer.get_vocab_size()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        **SHAPE,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": bos,
        "eos_token_id": text_end,
        "torch_dtype": "float32",
    }
    generation = {"bos_token_id": bos, "eos_token_id": [text_end, eot], "do_sample": False}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": CONTROL[0],
        "eos_token": CONTROL[4],
        "unk_token": UNKNOWN,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": SHAPE["max_position_embeddings"],
    }
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer_config),
        ("special_tokens_map.json", {k: tokenizer_config[k] for k in ("bos_token", "eos_token")}),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(out / "tokenizer.json"))
    save_file(weights(vocab_size, seed), out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the untrained base of the sample world.")
    parser.add_argument("--data", default="sample/data", help="the files whose words it must know")
    parser.add_argument("--out", default="out/new_base", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights")
    args = parser.parse_args()
    save(Path(args.out), build_tokenizer(vocabulary(Path(args.data))), args.seed)
