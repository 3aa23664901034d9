"""A step of curate.py that is killed again and again, and started again until it ends:

    python tests/killing.py SEED decontaminate --data ... --out ...

Each life ends at a random moment, or before a random one of its calls that change what is on the
disk. The number of kills is printed.
"""

import contextlib
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import corpus  # noqa: E402
import curate  # noqa: E402


def dying_after(calls):
    """Kill this process before the call of that number."""
    left = [calls]

    def counted(function):
        def call(*args, **named):
            left[0] -= 1
            if left[0] <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **named)

        return call

    os.fsync = counted(os.fsync)
    for name in ("replace", "unlink", "write_text"):
        setattr(Path, name, counted(getattr(Path, name)))


def live(argv, calls):
    """One run of the step in a process of its own; calls: after which it dies, or None."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        if calls:
            dying_after(calls)
        curate.main(argv)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def main(seed, argv):
    corpus.EVERY, corpus.BLOCK_ROWS = 0, 8
    rng, kills = random.Random(seed), 0
    while True:
        by_time = rng.random() < 0.5
        pid = live(argv, None if by_time else rng.randint(1, 9))
        if by_time:
            time.sleep(rng.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)  # one that has ended does not feel it
        status = os.waitpid(pid, 0)[1]
        if status != signal.SIGKILL:
            break
        kills += 1
    if status:
        sys.exit("the step failed")
    print(f"{kills} kills")


if __name__ == "__main__":
    if sys.argv[2] == "stats":
        with contextlib.suppress(ImportError):
            import matplotlib.pyplot  # noqa: F401  once, not in every life
    main(int(sys.argv[1]), sys.argv[2:])
