"""Bad inputs: checkpoint folders whose config, weights or tokenizer are not what they should be."""

import json
import os

import torch
from making import (
    CPT,
    DPO,
    EVAL,
    EXPORT,
    GENERATE,
    SAMPLE,
    SFT,
    TOKENS,
    Case,
    cut,
    directory,
    each,
    edit,
    header,
    index,
    nothing,
    put,
    remove,
    show,
    tensors,
)

EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ONE = b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
DEEP = '{"a": ' + "[" * 90_000 + "]" * 90_000 + "}"


def config(name, pattern, command=None, **changes):
    make = edit("base/config.json", **changes)
    return Case("config", name, command or GENERATE(), make, r"base/config.json: " + pattern)


def weights(name, make, pattern, command=None, code=1):
    return Case("weights", name, command or GENERATE(), make, pattern, code)


def tokenizer(name, make, pattern, command=None, code=1):
    return Case("tokenizer", name, command or GENERATE(), make, pattern, code)


def vocabulary(change):
    """Changes in tokenizer.json, by a function of its json."""

    def make(folder):
        path = folder / "base" / "tokenizer.json"
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))

    return make


def without_control(value):
    value["added_tokens"] = []


def smaller(folder):
    """An embedding of 300 rows, which the config says, too."""
    tensors(lambda t: t.update({EMBED: t[EMBED][:300].clone()}))(folder)
    edit("base/config.json", vocab_size=300)(folder)


def pickled(folder):
    torch.save({}, folder / "base" / "pytorch_model.bin")
    os.unlink(folder / "base" / "model.safetensors")


def other_name(file):
    return lambda full: full | {NORM: file}


CHECKPOINTS = [
    Case("config", "no such folder", GENERATE(init_from="none"), nothing,
         r"none/tokenizer.json: no such file; a checkpoint folder holds"),
    Case("config", "a file in place of a folder", GENERATE(init_from="text.jsonl"), nothing,
         r"text.jsonl"),
    Case("config", "missing", SFT(), remove("base/config.json"),
         r"base: not a checkpoint: it has no config.json"),
    Case("config", "torn", SFT(), cut("base/config.json"), r"base/config.json:1: not valid json"),
    Case("config", "empty", GENERATE(), put("base/config.json", ""),
         r"base/config.json:1: not valid"),
    Case("config", "a list", DPO(), put("base/config.json", "[1]"),
         r"base/config.json: must hold a json object"),
    Case("config", "not UTF-8", EVAL(), put("base/config.json", b'{"a": "\xe9"}'),
         r"base/config.json.*(utf-8|UTF-8)"),
    Case("config", "a folder", CPT(), directory("base/config.json"),
         r"base/config.json: .*directory"),
    Case("config", "a key twice", GENERATE(), put("base/config.json", '{"a": 1, "a": 2}'),
         r"base/config.json.*a: the key is there twice"),
    Case("config", "nested 90,000 deep", GENERATE(), put("base/config.json", DEEP),
         r"base/config.json.*deep"),
    Case("config", "a number of 5,000 digits", GENERATE(),
         put("base/config.json", '{"vocab_size": ' + "9" * 5000 + "}"),
         r"base/config.json.*digits"),
    config("another architecture", "architectures: .*Qwen2ForCausalLM.* is not LlamaForCausalLM",
           SFT(),
           architectures=["Qwen2ForCausalLM"], model_type="qwen2"),
    config("another model type", "architectures: .* is not LlamaForCausalLM", model_type="mistral"),
    config("no hidden size", "hidden_size: must be a positive integer, is None", hidden_size=...),
    config("a negative size", "num_hidden_layers: must be a positive integer, is -2", CPT(),
           num_hidden_layers=-2),
    config("a size of nought", "vocab_size: must be a positive integer, is 0", vocab_size=0),
    config("a size as text", "hidden_size: must be a positive integer, is '32'", hidden_size="32"),
    config("a broken size", "intermediate_size: must be a positive integer, is 48.5",
           intermediate_size=48.5),
    config("a size that is true", "num_attention_heads: must be a positive",
           num_attention_heads=True),
    config("heads that do not divide", "head_dim: hidden_size / heads must be", SFT(),
           hidden_size=33),
    config("an odd head", "head_dim: .* even number", head_dim=7),
    config("key heads that do not divide", "num_key_value_heads: must divide 4", EVAL(),
           num_key_value_heads=3),
    config("unknown rope", "rope_type: 'yarn' is not supported", SAMPLE(),
           rope_scaling={"rope_type": "yarn", "factor": 4.0}),
    config("rope without its factor", "rope_scaling: llama3 needs original_max", DPO(),
           rope_scaling=LLAMA3),
    config("rope as text", "rope_scaling: must be an object", rope_scaling="llama3"),
    config("a negative theta", "rope_theta: must be a number, is -1", rope_theta=-1),
    config("half of a head rotates", "partial_rotary_factor: only 1.0", partial_rotary_factor=0.5),
    config("no epsilon", "rms_norm_eps: must be a number, is 'small'", rms_norm_eps="small"),
    config("biases", "attention_bias: True is not supported", attention_bias=True),
    config("quantised", "quantization_config: .* is not supported",
           quantization_config={"bits": 4}),
    config("another activation", "hidden_act: 'gelu' is not supported", hidden_act="gelu"),
    config("a context of nought", "max_position_embeddings: must be", max_position_embeddings=0),
    config("tied or not, as text", "tie_word_embeddings: must be true or false", SFT(),
           tie_word_embeddings="false"),
    config("an end that is no id", "eos_token_id: 'x' is not a token id", eos_token_id="x"),
    config("a negative end", "eos_token_id: -5 is not a token id", eos_token_id=[-5]),
    Case("config", "a vocabulary of a billion", GENERATE(),
         edit("base/config.json", vocab_size=10**9), r"base: model.embed_tokens.weight: shape"),
    Case("config", "a vocabulary of a billion, trained", SFT(),
         edit("base/config.json", vocab_size=10**9), r"base: model.embed_tokens.weight: shape"),
    Case("config", "a hidden size of a million", EVAL(),
         edit("base/config.json", hidden_size=2**20), r"base: model.*shape"),
    Case("config", "a million blocks", GENERATE(),
         edit("base/config.json", num_hidden_layers=10**6), r"base.*(num_hidden_layers|missing)"),
    weights("missing", remove("base/model.safetensors"),
            r"base: not a checkpoint: neither model.safetensors nor"),
    weights("missing for training", remove("base/model.safetensors"), r"base: not a checkpoint",
            SFT()),
    weights("an empty file", put("base/model.safetensors", b""),
            r"base/model.safetensors: not a readable safetensors file", DPO()),
    weights("cut short", cut("base/model.safetensors", 0.9),
            r"base/model.safetensors: not a readable safetensors file", SFT()),
    weights("cut inside the header", cut("base/model.safetensors", 0.005),
            r"base/model.safetensors: not a readable safetensors file", EVAL()),
    weights("a header longer than the file", header(ONE, 10**6),
            r"base/model.safetensors: not a read"),
    weights("a header of 2^63 bytes", header(ONE, 2**63),
            r"base/model.safetensors: not a readable"),
    weights("a header that is no json", header(b"{no json"),
            r"base/model.safetensors: not a readable"),
    weights("a header with bad offsets", header(ONE), r"base/model.safetensors: not a readable"),
    weights("random bytes", put("base/model.safetensors", bytes(range(256)) * 9),
            r"base/model.safetensors: not a readable", CPT()),
    weights("a folder", directory("base/model.safetensors"), r"base/model.safetensors: "),
    weights("html of a failed download", put("base/model.safetensors", "<html>404</html>"),
            r"base/model.safetensors: not a readable"),
    weights("a git-lfs pointer",
            put("base/model.safetensors",
                "version https://git-lfs.github.com/spec/v1\noid sha256:a\n"),
            r"base/model.safetensors: not a readable"),
    weights("another shape", edit("base/config.json", vocab_size=400),
            r"base: model.embed_tokens.weight: shape \(384, 32\), config.json asks"),
    weights("a tensor less", tensors(lambda t: t.pop(NORM)), r"base: model.norm.weight: missing",
            SFT()),
    weights("a tensor too many", tensors(lambda t: t.update({"model.extra": torch.zeros(2)})),
            r"base: model.extra: a tensor this Llama does not have"),
    weights("a block too many", edit("base/config.json", num_hidden_layers=1),
            r"base: model.layers.1.* a tensor this Llama does not have"),
    weights("no head, not tied", edit("base/config.json", tie_word_embeddings=False),
            r"base: lm_head.weight: missing \(tie_word_embeddings is false\)", EVAL()),
    weights("whole numbers", tensors(lambda t: t.update({NORM: torch.ones(32, dtype=torch.int64)})),
            r"base/model.safetensors: model.norm.weight: dtype I64 is not supported"),
    weights("truth values", tensors(lambda t: t.update({NORM: torch.ones(32, dtype=torch.bool)})),
            r"base/model.safetensors: model.norm.weight: dtype BOOL is not", SFT()),
    weights("NaN", tensors(lambda t: t[EMBED].fill_(float("nan"))),
            r"the model's logits are not finite: the checkpoint has diverged"),
    weights("NaN, trained on", tensors(lambda t: t[EMBED].fill_(float("nan"))),
            r".*(nan|finite)", SFT()),
    weights("NaN, evaluated", tensors(lambda t: t[EMBED].fill_(float("nan"))),
            r".*not finite: the checkpoint has diverged", EVAL()),
    weights("a pickle only", pickled, r"base: pytorch_model.bin is a pickle and not read; convert"),
    weights("an adapter only", each(remove("base/config.json"), remove("base/model.safetensors"),
            put("base/adapter_model.safetensors", "")),
            r"base: not a checkpoint: it has no config"),
    weights("a path in the index", index(other_name("../base/a.safetensors")),
            r"base/model.safetensors.index.json: weight_map: model.norm.weight: '../base/a.safe"),
    weights("an absolute path in the index", index(other_name("/etc/hostname")),
            r"base/model.safetensors.index.json: weight_map: .* is not a plain file name", SFT()),
    weights("two dots in the index", index(other_name("..")),
            r"base/model.safetensors.index.json: weight_map: .* is not a plain file name"),
    weights("a file of the index is missing", index(other_name("b.safetensors")),
            r"base/model.safetensors.index.json: b.safetensors is named here but missing", DPO()),
    weights("a pickle in the index", index(other_name("b.bin"), b_bin=b"\x80\x02}q\x00."),
            r"base/b.bin: "),
    weights("a number in the index", index(other_name(1)),
            r"base/model.safetensors.index.json: weight_map: model.norm.weight: 1 is not a plain"),
    weights("an empty index", index({}),
            r"base/model.safetensors.index.json: weight_map: must map"),
    weights("a list as index", index(["a"]),
            r"base/model.safetensors.index.json: weight_map: must"),
    weights("a torn index", each(index(other_name("a.safetensors")),
            cut("base/model.safetensors.index.json")),
            r"base/model.safetensors.index.json:1: not valid json"),
    weights("a tensor that is not in its file",
            index(lambda full: full | {"model.x": "a.safetensors"}),
            r"base: model.x: a tensor this Llama does not have"),
    weights("a tensor not in the index", index(lambda f: {k: v for k, v in f.items() if k != NORM}),
            r"base: model.norm.weight: missing"),
    tokenizer("missing", remove("base/tokenizer.json"), r"base/tokenizer.json: no such file",
              SFT()),
    tokenizer("missing, to generate", remove("base/tokenizer.json"),
              r"base/tokenizer.json: no such file; a checkpoint folder holds a tokenizer.json"),
    tokenizer("sentencepiece only", each(remove("base/tokenizer.json"),
              put("base/tokenizer.model", b"\n\x0e\n")), r"base/tokenizer.json: no such file",
              TOKENS()),
    tokenizer("torn", cut("base/tokenizer.json"), r"base/tokenizer.json: not a tokenizer file",
              CPT()),
    tokenizer("empty", put("base/tokenizer.json", ""), r"base/tokenizer.json: not a tokenizer",
              show()),
    tokenizer("a list", put("base/tokenizer.json", "[]"), r"base/tokenizer.json: not a tok",
              TOKENS()),
    tokenizer("not UTF-8", put("base/tokenizer.json", b'{"\xe9": 1}'),
              r"base/tokenizer.json: not a"),
    tokenizer("ids beyond the embedding", smaller,
              r"base/tokenizer.json: ids up to \d+ do not fit an embedding of 300 rows", SFT()),
    tokenizer("ids beyond the embedding, to generate", smaller,
              r"base/tokenizer.json: ids up to \d+ do not fit an embedding of 300 rows"),
    tokenizer("no control tokens", vocabulary(without_control),
              r"base/tokenizer.json: neither chat format fits its tokens: llama3 needs", EVAL()),
    tokenizer("unknown template", edit("base/tokenizer_config.json", chat_template="{{ hi }}"),
              r"notice: base: unknown chat template; the built-in llama3 format is used", code=0),
    tokenizer("a template that is not UTF-8", put("base/chat_template.jinja", b"\xe9\xff"),
              r"base/chat_template.jinja.*(utf-8|UTF-8)"),
    tokenizer("a template that is a number", edit("base/tokenizer_config.json", chat_template=5),
              r"base/tokenizer_config.json: chat_template: ", SFT()),
    tokenizer("templates without text", edit("base/tokenizer_config.json",
              chat_template=[{"name": "default"}]), r"base/tokenizer_config.json: chat_template: "),
    tokenizer("templates that are strings", edit("base/tokenizer_config.json", chat_template=["a"]),
              r"base/tokenizer_config.json: chat_template: "),
    tokenizer("a torn tokenizer_config", cut("base/tokenizer_config.json"),
              r"base/tokenizer_config.json:1: not valid json", TOKENS()),
    tokenizer("an end that is a list", edit("base/tokenizer_config.json", eos_token=["a"]),
              r"base/tokenizer_config.json: eos_token: .* is not a token"),
    tokenizer("a torn generation_config", cut("base/generation_config.json"),
              r"base/generation_config.json:1: not valid json", SAMPLE()),
    tokenizer("an end that is true", edit("base/generation_config.json", eos_token_id=True),
              r"base/generation_config.json: eos_token_id: True is not a token id"),
    tokenizer("another end than the format's", edit("base/tokenizer_config.json", eos_token="<x>"),
              r"base/tokenizer_config.json: eos_token: TRL ends replies with",
              EXPORT(tokenizer="base")),
]  # fmt: skip
