"""Run a command that is terminated when its parent process exits: `python run_with_parent.py SECONDS COMMAND...`

Standard input is a pipe whose other end the parent holds. However the parent exits, even by `kill -9`, the pipe is
closed, and the process group gets SIGTERM. Processes that are left after SECONDS get SIGKILL. This script must
therefore be the leader of its own process group.

It is run by its path and imports nothing of the package, so that it starts at once.
"""

import os
import signal
import subprocess
import sys
import threading
import time


def main(seconds: float, command: list[str]) -> int:
    """Run the command, and return its exit code in the shell's convention (128 + signal number)."""
    # SIGTERM to the group is meant for the command; this process must outlive it. A handler, not SIG_IGN, which the
    # command would inherit.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    orphaned = threading.Event()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_stop_with_parent, args=(seconds, orphaned), daemon=True).start()
    code = process.wait()
    if orphaned.is_set():
        os.killpg(0, signal.SIGKILL)  # child processes that the command left behind, and this process
    return code if code >= 0 else 128 - code


def _stop_with_parent(seconds: float, orphaned: threading.Event) -> None:
    os.read(0, 1)  # nothing is ever written: it blocks until the pipe is closed
    orphaned.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(seconds)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
