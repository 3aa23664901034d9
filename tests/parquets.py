"""A stand-in for pyarrow.parquet, so that the tests of parquet files need no package."""

import json
import sys
from pathlib import Path
from types import ModuleType


class Table(list):
    def to_pylist(self):
        return list(self)


def read_table(path):
    try:
        return Table(json.loads(Path(path).read_bytes().removeprefix(b"PAR1")))
    except ValueError:
        raise ValueError("Parquet magic bytes not found\nin footer") from None


def fake_parquet(monkeypatch):
    """Puts the stand-in in pyarrow's place for one test. Returns write(path, rows)."""
    package, module = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    package.parquet, module.read_table = module, read_table
    monkeypatch.setitem(sys.modules, "pyarrow", package)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)

    def write(path, rows):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"PAR1" + json.dumps(rows).encode())
        return path

    return write
