"""Runs commands on a full disk, on a read-only one, and with space, and prints what came of each.

Started by `test_disk.py` in a mount namespace, once for all commands: importing takes longer than any of them.
"""

import json
import subprocess
import sys
from pathlib import Path

from tests.cb_datasets.command import run


# A file fills all of the first but the room that is asked for.
FULL = 64 * 1024
STATES = {"full": "size=64k", "read-only": "remount,ro", "free": "remount,rw,size=512m"}


def on_disk(disk: Path, arguments: list[str], room: int) -> dict:
    """Outcome of a command, and the files on the disk, by state of the disk."""
    found = {}
    for state, options in STATES.items():
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], check=True)
        if state == "full":
            (disk / "filler").write_bytes(bytes(FULL - room))
        done = run(*arguments)
        files = [str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file() and path.name != "filler"]
        found[state] = {"status": done.returncode, "errors": done.stderr, "files": files}
    subprocess.run(["umount", disk], check=True)
    return found


if __name__ == "__main__":
    where, commands, space = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    sys.stdout.write(json.dumps({name: on_disk(where, words, space) for name, words in commands.items()}))
