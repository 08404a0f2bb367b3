"""Program of `test_train.py`: a training on a full disk, with and without checkpoints, and then with space.

full_disk_training.py DISK FLAGS...     mounts the disk, prints what came of each training as JSON text

Started in a mount namespace, once for all of them: importing takes longer than any.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.trainers.killed_training import finished, run


CHECKPOINTS = ["--save_strategy", "steps", "--save_steps", "2"]
# How the disk is mounted, and flags of the training.
TRAININGS: dict[str, tuple[str, list[str]]] = {
    "with checkpoints": ("size=48k", CHECKPOINTS),
    "without": ("remount", []),
    "with space": ("remount,size=64m", CHECKPOINTS),
}


def outcome(disk: Path, options: str, flags: list[str]) -> dict[str, Any]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], check=True)
    log = disk.with_suffix(".log")
    log.unlink(missing_ok=True)
    status = finished(run([*flags, "--output_dir", str(disk / "adapter")], disk, log))
    files = [str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file()]
    return {"status": status, "log": log.read_text(), "files": files}


if __name__ == "__main__":
    where, words = Path(sys.argv[1]), sys.argv[2:]
    found = {name: outcome(where, options, words + flags) for name, (options, flags) in TRAININGS.items()}
    sys.stdout.write(json.dumps(found))
