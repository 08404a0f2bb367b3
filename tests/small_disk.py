"""Shell scripts that mount small disks, in a namespace of their own: nothing stays mounted."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


def run_in_namespace(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a shell script with `arguments` as `$1`, ...; the test is skipped where mounting is refused."""
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    probe = [*command, 'mount -t tmpfs -o size=4k none "$1"', "sh", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("mounting in a namespace is not permitted here")
    return subprocess.run(
        [*command, script, "sh", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
