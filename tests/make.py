"""Make as a user runs it, in the environment that runs the tests."""

import os
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Make in the checkout; what the environment needs counts as installed."""
    ready = [word for name in ("", "-agentdojo", "-sources") for word in ("-o", f"{sys.prefix}/.ready{name}")]
    command = ["make", "--no-print-directory", *ready, f"VENV={sys.prefix}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)
