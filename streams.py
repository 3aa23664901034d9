"""safetensors files written as a stream: first the header, as names, shapes and dtypes are known,
then one tensor after the other, so that memory holds one. The sha256 is taken on the way.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import mmap
import os
from concurrent.futures import ThreadPoolExecutor

import torch

BLOCK_BYTES = 2**24  # written and hashed at a time
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

flushing = []  # what is being flushed, on any thread


def stream(file, specs, tensors, metadata=()):
    """Write a safetensors file, header first and then one tensor after the other, to the disk.

    specs {name: (dtype, shape)}, known beforehand; tensors: an iterable of CPU tensors in the same
    order. Returns {"bytes", "sha256"}. OSError with the file's name.
    """
    header, end = {"__metadata__": {"format": "pt"} | dict(metadata)}, 0
    for name, (dtype, shape) in specs.items():
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": DTYPES[dtype], "shape": [*shape], "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # so that the tensors lie aligned
    digest, size = hashlib.sha256(), 0
    with named(file), ThreadPoolExecutor(1) as pool:
        fd = open_direct(file)
        try:
            hashed = None
            for block in blocks(chunks(len(raw).to_bytes(8, "little") + raw, specs, tensors)):
                if hashed:
                    hashed.result()
                # On another core, while this one writes the block and fills the next
                hashed = pool.submit(digest.update, block)
                size += len(block)
                write_all(fd, block)
            hashed.result()
            flush(fd)
        finally:
            os.close(fd)
    return {"bytes": size, "sha256": digest.hexdigest()}


def open_direct(file):
    """Open a file to write to it past the page cache, if its file system can: twice as fast."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(file, flags | getattr(os, "O_DIRECT", 0), 0o666)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
    return os.open(file, flags, 0o666)


def write_all(fd, block):
    """Write a block; of what is not aligned, a tail or the rest of a short write, not directly."""
    while block:
        if len(block) % mmap.PAGESIZE:
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        block = block[os.write(fd, block) :]


def blocks(chunks):
    """The bytes of all chunks in aligned memory of BLOCK_BYTES; each is good while the next is
    filled, and no longer."""
    memory, other = (memoryview(mmap.mmap(-1, BLOCK_BYTES)) for _ in range(2))
    filled = 0
    for chunk in chunks:
        chunk = memoryview(chunk)
        while chunk:
            taken = min(len(chunk), BLOCK_BYTES - filled)
            memory[filled : filled + taken] = chunk[:taken]
            chunk, filled = chunk[taken:], filled + taken
            if filled == BLOCK_BYTES:
                yield memory
                memory, other, filled = other, memory, 0
        del chunk  # and with it the tensor, before the next one is made
    if filled:
        yield memory[:filled]


def chunks(head, specs, tensors):
    """The bytes of a safetensors file: its head, then each tensor's."""
    yield head
    tensors = iter(tensors)
    for name, spec in specs.items():
        tensor = next(tensors)
        if (tensor.dtype, tuple(tensor.shape)) != (spec[0], tuple(spec[1])):
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}, announced as {spec}")
        yield tensor.contiguous().view(-1).view(torch.uint8).numpy()
        del tensor  # before the next one is made


def flush(fd):
    """os.fsync, seen by the watchdog (parallel.watch_all): a slow disk is no hang."""
    flushing.append(fd)
    try:
        os.fsync(fd)
    finally:
        flushing.remove(fd)


@contextlib.contextmanager
def named(file):
    """Let an OSError tell which file it is about; that of a full disk does not."""
    try:
        yield
    except OSError as e:
        raise OSError(e.errno, e.strerror or str(e), str(e.filename or file)) from None


def sync(*paths):
    """Flush files and folders to the disk."""
    for path in paths:
        with named(path):
            fd = os.open(path, os.O_RDONLY)
            try:
                flush(fd)
            finally:
                os.close(fd)
