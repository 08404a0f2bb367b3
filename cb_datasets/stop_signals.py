"""SIGTERM and SIGHUP end a command as an error does: what it has open is closed, and what it has begun is removed.

Slurm and `kill` send the first, a terminal that is closed sends the second. A signal that the caller has this process
ignore, as `nohup` does with SIGHUP, stays ignored. The second signal of a kind kills at once.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(SystemExit):
    """Raised by a signal, wherever the program is; the exit code is the shell's, 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


@contextmanager
def stop_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise [`Stopped`] inside the block. Only for the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(number)

    handled = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
    previous = {each: signal.signal(each, stop) for each in handled}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
