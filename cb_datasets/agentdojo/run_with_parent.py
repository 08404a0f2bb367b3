"""Runs a command for as long as whoever started it lives: `python run_with_parent.py SECONDS COMMAND...`

The standard input is a pipe that the parent holds. However the parent ends, by `kill -9` too, its end of the pipe is
closed then, and the command is asked to stop. What is left of the process group after so many seconds is killed. So
this has to be the leader of a group of its own.

It is run by its path and imports nothing of the package, so that it is there at once.
"""

import os
import signal
import subprocess
import sys
import threading
import time


def main(seconds: float, command: list[str]) -> int:
    """Run the command; its exit code, as a shell tells it."""
    # Who stops the group means the command. To ignore it would be inherited by the command.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    orphaned = threading.Event()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_stop_with_parent, args=(seconds, orphaned), daemon=True).start()
    code = process.wait()
    if orphaned.is_set():
        os.killpg(0, signal.SIGKILL)  # processes that the command left behind, and this one
    return code if code >= 0 else 128 - code


def _stop_with_parent(seconds: float, orphaned: threading.Event) -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the pipe is closed
    orphaned.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(seconds)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
