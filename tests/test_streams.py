"""A stream is a whole safetensors file on the disk, and holds one tensor at a time."""

import errno
import hashlib
import os
import time
import weakref

import pytest
import torch

import streams

A = {"a": (torch.float32, (5000,))}


def test_a_stream_is_flushed_when_whole_and_leaves_nothing_of_a_longer_file(tmp_path, monkeypatch):
    file, sizes, fsync = tmp_path / "x.safetensors", [], os.fsync
    file.write_bytes(b"x" * 99_999)
    monkeypatch.setattr(os, "fsync", lambda fd: (sizes.append(os.fstat(fd).st_size), fsync(fd)))
    fds = len(os.listdir("/proc/self/fd"))
    note = streams.stream(file, A, [torch.ones(5000)])
    assert sizes == [note["bytes"]] == [file.stat().st_size]
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_block_is_hashed_before_its_memory_is_filled_again(tmp_path, monkeypatch):
    class Slow:
        def __init__(self, real=hashlib.sha256):
            self.real = real()
            self.hexdigest = self.real.hexdigest

        def update(self, block):
            time.sleep(0.02)
            self.real.update(block)

    monkeypatch.setattr(streams, "BLOCK_BYTES", 4096)
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "sha256", Slow)
        note = streams.stream(tmp_path / "x", A, [torch.randn(5000)])
    assert note["sha256"] == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EACCES])
def test_only_a_file_system_that_cannot_write_directly_gets_another_try(
    tmp_path, monkeypatch, code
):
    real, tries = os.open, []

    def no_direct(path, flags, *mode):
        if str(path).endswith("x"):
            tries.append(flags)
            if flags & os.O_DIRECT:
                raise OSError(code, os.strerror(code))
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", no_direct)
    if code == errno.EINVAL:
        note = streams.stream(tmp_path / "x", A, [torch.ones(5000)])
        assert (tmp_path / "x").stat().st_size == note["bytes"] and len(tries) == 2
    else:
        with pytest.raises(OSError, match="Permission denied"):
            streams.stream(tmp_path / "x", A, [torch.ones(5000)])
        assert len(tries) == 1


def test_a_tensor_of_another_dtype_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="announced as"):
        streams.stream(tmp_path / "x", A, [torch.ones(5000, dtype=torch.float64)])


def test_the_bytes_of_a_tensor_are_gone_before_the_next_is_made(tmp_path):
    alive = []

    def made():
        for _ in range(3):
            assert not any(ref() is not None for ref in alive)
            t = torch.ones(5000)
            alive.append(weakref.ref(t.untyped_storage()))
            yield t
            del t

    streams.stream(tmp_path / "x", {n: (torch.float32, (5000,)) for n in "abc"}, made())


def test_an_error_without_words_gets_some_and_sync_names_its_file(tmp_path):
    with pytest.raises(OSError) as e, streams.named("f"):
        raise OSError("odd")
    assert e.value.strerror == "odd" and e.value.filename == "f"


def test_sync_names_its_file(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as e:
        streams.sync(tmp_path)
    assert e.value.filename == str(tmp_path)
