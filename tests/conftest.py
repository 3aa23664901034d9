import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests fork processes

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pytest  # noqa: E402
from tiny import write_checkpoint, write_rows, write_tokenizer  # noqa: E402

import kernels  # noqa: E402, F401  before any test imports triton, so that it interprets
from tokenizer import Tokenizer  # noqa: E402


@pytest.fixture(scope="module", params=["llama3", "chatml"])
def folder(request, tmp_path_factory):
    """A tiny checkpoint of each template."""
    return write_checkpoint(tmp_path_factory.mktemp(request.param) / "ck", request.param)


@pytest.fixture(scope="module")
def simple(tmp_path_factory):
    """A tiny checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("plain") / "ck")


@pytest.fixture(params=["llama3", "chatml"])
def tokenizer(request, tmp_path):
    """A tiny tokenizer of each template."""
    write_tokenizer(tmp_path / "tokenizer", request.param)
    return Tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def llama3(tmp_path):
    """A tiny tokenizer of the Llama 3 template."""
    write_tokenizer(tmp_path / "llama3")
    return Tokenizer(tmp_path / "llama3")


@pytest.fixture(scope="module")
def rows_dir(tmp_path_factory):
    """Rows of three tasks: choices of texts, labels, exams."""
    from evaluating import arc_rows, exam_rows, label_rows

    out = tmp_path_factory.mktemp("rows")
    write_rows(out / "arc.jsonl", arc_rows(30))
    write_rows(out / "fpb.jsonl", label_rows(24))
    write_rows(out / "reasoning.jsonl", exam_rows(8))
    return out
