"""Training files -> token files: what a tokenizer makes of a file, made once, read memory-mapped.

    python token_files.py web.jsonl --kind text --tokenizer out/cpt       (training does it itself)

CACHE/KEY/  ids.bin      (T,) uint16 or uint32: the sequences of all rows, one after the other
            trained.bin  (T,) bool; a text has none, as all of it is trained
            lengths.bin  (S,) int32: tokens of each sequence; a pair has three
            lines.bin    (R,) int64: the line of each row in the training file
            meta.json    what it was made from, and the size of each file

KEY is a hash of everything the ids depend on: the bytes of the training file, tokenizer and chat
format, this code. So a file is never stale, and CACHE may be deleted at any time. A folder gets its
name when it is complete; processes that want the same one wait for the first to make it.

Neither torch nor the model is imported here: large files are read by several processes, each of
which starts in a moment and holds little more than the tokenizer.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from config import UserError, check_choice, check_range, parse, read_json
from jsonl import LINE_CAP, ends_torn, notice, open_lines, parse_line, sha, sha_of_file, torn
from kinds import KINDS, SEQUENCES
from tokenizer import Tokenizer

BLOCK = 2**20  # bytes of lines that are encoded at a time
ALONE = 8 * 2**20  # bytes of a file up to which starting other processes takes longer than it saves
CODE = ("token_files.py", "kinds.py", "tokenizer.py", "jsonl.py")  # what the ids depend on
ARRAYS = ("ids", "trained", "lengths", "lines")


# Parts -> arrays ---------------------------------------------------------------------------------


class Tokens(NamedTuple):
    """The token file of a training file, or a block of one."""

    ids: np.ndarray  # (T,) uint16 or uint32
    trained: np.ndarray  # (T,) bool; (0,) for texts
    lengths: np.ndarray  # (S,) int32
    lines: np.ndarray  # (R,) int64


def dtypes(vocab_size):
    """The dtype of each array of Tokens."""
    ids = np.uint16 if vocab_size <= 2**16 else np.uint32
    return dict(zip(ARRAYS, map(np.dtype, (ids, bool, np.int32, np.int64)), strict=True))


def nothing(vocab_size):
    """Tokens of no row."""
    return Tokens(*(np.zeros(0, kind) for kind in dtypes(vocab_size).values()))


def encode_rows(kind, rows, lines, where, tokenizer):
    """Rows, already checked, as Tokens; `where` is the file that errors name."""
    if not rows:
        return nothing(tokenizer.vocab_size)
    parts_of = KINDS[kind][1]
    parts = [parts_of(row, f"{where}:{n}", tokenizer) for row, n in zip(rows, lines, strict=True)]
    try:
        sequences = tokenizer.join([one for row in parts for one in row])
    except UserError as e:
        if len(rows) == 1:
            raise UserError(f"{where}:{lines[0]}: {e}") from None
        for row, line in zip(rows, lines, strict=True):  # one of them it was: which?
            encode_rows(kind, [row], [line], where, tokenizer)
        raise
    lengths = [len(ids) for ids, _ in sequences]
    ids, trained = (list(chain.from_iterable(part)) for part in zip(*sequences, strict=True))
    arrays = ids, trained if kind != "text" else [], lengths, lines
    kinds = dtypes(tokenizer.vocab_size).values()
    tokens = Tokens(*(np.array(a, kind) for a, kind in zip(arrays, kinds, strict=True)))
    heads = np.cumsum(tokens.lengths, dtype=np.int64) - tokens.lengths
    check_bos(tokens.ids, heads[:: SEQUENCES[kind]], tokenizer.bos_id, where, lines)
    return tokens


def check_bos(ids, heads, bos_id, where, lines):
    """UserError unless every row has exactly one BOS, at its head."""
    if bos_id is None:  # a format without BOS
        return
    found = np.flatnonzero(ids == bos_id)
    if not np.array_equal(found, heads):
        wrong = np.setxor1d(found, heads)[0]
        row = np.searchsorted(heads, wrong, side="right") - 1
        raise UserError(
            f"{where}:{lines[max(0, row)]}: BOS (id {bos_id}) must stand once, at the head of a "
            f"sequence; there are {len(found)} in {len(heads)} sequences"
        )


def line_blocks(path):
    """Raw lines of a file, about BLOCK bytes at a time: (number of the first line, [bytes])."""
    with open_lines(path) as file:
        number, lines, size = 1, [], 0
        while raw := file.readline(LINE_CAP + 1):
            lines.append(raw)
            size += len(raw)
            if size >= BLOCK:
                yield number, lines
                number, lines, size = number + len(lines), [], 0
                if len(raw) > LINE_CAP:
                    return  # its reader refuses it
        if lines:
            yield number, lines


def encode_lines(kind, where, first, lines, tokenizer):
    """Raw lines as Tokens. UserError on the first bad row; `first` is the number of line 0."""
    rows, numbers = [], []
    for number, raw in enumerate(lines, first):
        if len(raw) <= LINE_CAP and (not raw.strip() or torn(raw)):
            continue  # data.load tells of a last line that is torn
        rows.append(parse_line(raw, KINDS[kind][0], f"{where}:{number}"))
        numbers.append(number)
    return encode_rows(kind, rows, numbers, where, tokenizer)


# Several processes -------------------------------------------------------------------------------


def send(stream, head, *pieces):
    """A message: a line of json, then as many bytes as it says."""
    stream.write(json.dumps(head).encode() + b"\n")
    for piece in pieces:
        stream.write(piece)
    stream.flush()


def worker(kind, where, folder):
    """Encode blocks of lines from stdin to stdout until there are no more."""
    for number in (signal.SIGINT, signal.SIGTERM):  # whoever started this decides when it ends
        signal.signal(number, signal.SIG_IGN)
    tokenizer, reader = Tokenizer(folder), sys.stdin.buffer
    with contextlib.suppress(BrokenPipeError):  # it was killed
        while head := reader.readline():
            head = json.loads(head)
            lines = [reader.read(size) for size in head["sizes"]]
            if list(map(len, lines)) != head["sizes"]:
                break
            try:
                tokens = encode_lines(kind, where, head["first"], lines, tokenizer)
            except UserError as e:
                send(sys.stdout.buffer, {"error": str(e)})
            else:
                pieces = [array.tobytes() for array in tokens]
                send(sys.stdout.buffer, {"sizes": list(map(len, pieces))}, *pieces)
    os._exit(0)  # without flushing into a pipe that nobody reads


class Workers:
    """Processes that encode blocks of lines. torch is in none of them, and nothing is forked."""

    def __init__(self, kind, path, tokenizer, count):
        command = [sys.executable, __file__, "worker", kind, str(path), str(tokenizer.path)]
        alone = os.environ | {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        alone["RANK"] = "-1"  # what is to be noticed, whoever started them says once
        self.path, self.kinds = path, dtypes(tokenizer.vocab_size).values()
        self.all = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     env=alone) for _ in range(count)]  # fmt: skip
        self.free = SimpleQueue()
        for process in self.all:
            self.free.put(process)

    def encode(self, first, lines):
        """Tokens of one block, by whichever process is free. UserError as that one says."""
        process = self.free.get()
        try:
            send(process.stdin, {"first": first, "sizes": list(map(len, lines))}, *lines)
            head = json.loads(process.stdout.readline())
            pieces = [process.stdout.read(size) for size in head.get("sizes", ())]
            if list(map(len, pieces)) != head.get("sizes", []):
                raise OSError  # it died while it wrote
        except (OSError, ValueError):
            raise UserError(f"{self.path}: a process that tokenises it died; out of memory? "
                            "The same command starts anew") from None  # fmt: skip
        finally:
            self.free.put(process)
        if "error" in head:
            raise UserError(head["error"])
        return Tokens(*(np.frombuffer(p, kind) for p, kind in zip(pieces, self.kinds, strict=True)))

    def close(self):
        for process in self.all:
            process.kill()
            process.wait()


def encoded_blocks(kind, path, tokenizer, count):
    """(Tokens, bytes of their lines) of a file, block by block in its order, by `count` workers."""
    blocks = line_blocks(path)
    if count <= 1:
        for first, lines in blocks:
            yield encode_lines(kind, path, first, lines, tokenizer), sum(map(len, lines))
        return
    workers = Workers(kind, path, tokenizer, count)
    pool, running = ThreadPoolExecutor(count), deque()
    try:
        for first, lines in blocks:
            running.append((pool.submit(workers.encode, first, lines), sum(map(len, lines))))
            if len(running) > 2 * count:
                future, size = running.popleft()
                yield future.result(), size
        for future, size in running:
            yield future.result(), size
    finally:
        workers.close()
        pool.shutdown(cancel_futures=True)


# Files -------------------------------------------------------------------------------------------


def key_of(kind, path, tokenizer):
    """Everything that the ids of a file depend on."""
    here = Path(__file__).parent
    return {
        "file": sha_of_file(path), "kind": kind, "tokenizer": tokenizer.sha,
        "format": [tokenizer.template_sha, tokenizer.preamble, tokenizer.system],
        "code": [sha_of_file(here / name) for name in CODE], "tokenizers": version("tokenizers"),
    }  # fmt: skip


def read(folder, kinds):
    """The Tokens of a folder, memory-mapped; None if it is not there or not whole."""
    try:
        sizes = read_json(folder / "meta.json")["bytes"]
        files = {name: folder / f"{name}.bin" for name in ARRAYS}
        if any(file.stat().st_size != sizes[name] for name, file in files.items()):
            return None
    except (UserError, OSError, KeyError):
        return None
    # An empty file cannot be mapped
    return Tokens(*(np.memmap(files[name], kinds[name], "r") if sizes[name]
                    else np.zeros(0, kinds[name]) for name in ARRAYS))  # fmt: skip


def write(folder, kind, path, tokenizer, key, count):
    """Fill a folder with the token files of a training file, all on the disk at the end."""
    total = os.path.getsize(path)
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in ARRAYS]
        bar = stack.enter_context(tqdm(total=total, desc=f"tokenising {Path(path).name}", unit="B",
                                       unit_scale=True, delay=5, mininterval=1))  # fmt: skip
        for tokens, size in encoded_blocks(kind, path, tokenizer, count):
            for file, array in zip(files, tokens, strict=True):
                file.write(array.data)
            assert len(tokens.ids) == tokens.lengths.sum(), path
            assert len(tokens.lengths) == SEQUENCES[kind] * len(tokens.lines), path
            bar.update(size)
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        sizes = {name: file.tell() for name, file in zip(ARRAYS, files, strict=True)}
    meta = {"path": str(path), "made_from": key, "bytes": sizes}
    with open(folder / "meta.json", "w") as file:
        file.write(json.dumps(meta, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def tokenise(kind, path, tokenizer, cache, workers=None):
    """The Tokens of a training file, from CACHE or made now. cache "": made now, in memory.

    Whoever comes first makes it, other ranks and runs wait. UserError on the first bad row.
    """
    if not cache:
        blocks = [tokens for tokens, _ in encoded_blocks(kind, path, tokenizer, 1)]
        blocks.append(nothing(tokenizer.vocab_size))
        return Tokens(*map(np.concatenate, zip(*blocks, strict=True)))
    open_lines(path).close()  # an error here names the file
    before, kinds = os.stat(path), dtypes(tokenizer.vocab_size)
    key = key_of(kind, path, tokenizer)
    folder = Path(cache) / sha(key)[:32]
    if workers is None:
        workers = 1 if before.st_size <= ALONE else min(16, os.cpu_count())
    if (found := read(folder, kinds)) is None:
        with only_one(folder.with_suffix(".lock")):
            if (found := read(folder, kinds)) is None:
                make(folder, kind, path, tokenizer, key, workers, before)
                found = read(folder, kinds)
    return found


@contextlib.contextmanager
def only_one(path):
    """Wait until no other process is inside. The file stays: who removes a lock lets two in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make(folder, kind, path, tokenizer, key, workers, before):
    """Publish a folder of token files. It is written under a name of its own: where locks do not
    reach from one machine to another, two may be at it, and the first one to end counts."""
    mine = f"{folder.name}.{socket.gethostname()}"
    for left in folder.parent.glob(f"{mine}.*.tmp"):  # by a run that was killed
        shutil.rmtree(left)
    if folder.exists():
        notice(f"{folder}: not whole; made again")
        shutil.rmtree(folder)
    temporary = folder.with_name(f"{mine}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        write(temporary, kind, path, tokenizer, key, workers)
        after = os.stat(path)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise UserError(f"{path}: changed while it was tokenised; the same command starts anew")
        with contextlib.suppress(OSError):  # there is one by now, with the same bytes
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class Config:
    kind: str = "text"  # text, chat or pair
    tokenizer: str = "sample/base"  # checkpoint folder whose tokenizer and chat format are used
    token_cache: str = "out/tokens"  # folder of token files
    workers: int = 0  # processes; 0 = one per core, up to 16


def main(words):
    if not words or words[0].startswith("-"):
        parse(Config, words)
        raise UserError("usage: python token_files.py FILE --kind text --tokenizer DIR; see --help")
    path, cfg = words[0], parse(Config, words[1:])
    check_choice(cfg, kind=tuple(KINDS))
    check_range(cfg, (), ("workers",))
    tokenizer = Tokenizer(cfg.tokenizer)
    tokens = tokenise(cfg.kind, path, tokenizer, cfg.token_cache, cfg.workers or None)
    if not len(tokens.lines):
        raise UserError(f"{path}: holds no rows")
    if ends_torn(path):
        notice(f"{path}: incomplete last line, left out: was its writer stopped?")
    print(f"{path}: {len(tokens.lines):,} rows, {len(tokens.ids):,} tokens in {cfg.token_cache}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    else:
        try:
            main(sys.argv[1:])
        except UserError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit("\ninterrupted")
