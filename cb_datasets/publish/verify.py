"""A release as somebody else loads it: from the Hub, in a process of its own, without anything in a cache.

`load_dataset` serves an old copy from the cache when access fails, so nothing less proves that the release is there.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from huggingface_hub import hf_hub_download

from ..files import sha256
from .push import PushError


# Would lead to a cache that is not fresh, or to no network.
_LEFT_OUT = (
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_XET_CACHE",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
)


def read_back(repo_id: str, commit: str, manifest: dict, token: str) -> None:
    """Load every configuration of a release and compare it with its manifest, row by row.

    Raises:
        PushError: If the Hub gives other rows, or none.
    """
    told = {
        f"{config}/{split}": [part["rows"], part["rows_sha256"]]
        for config, splits in manifest["configs"].items()
        for split, part in splits.items()
    }
    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT}
        environment |= {"HF_HOME": home, "HF_TOKEN": token, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-m", __name__, repo_id, commit, *manifest["configs"]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1].replace(token, "***")
        raise PushError(f"{repo_id}: commit {commit} is there, but does not load: {why[:300]}")
    found = json.loads(done.stdout.splitlines()[-1])
    wrong = sorted(name for name in told if found.get(name) != told[name]) + sorted(set(found) - set(told))
    if wrong:
        raise PushError(f"{repo_id}: commit {commit} gives other rows than were pushed, in {', '.join(wrong)}.")


def read_files_back(repo_id: str, commit: str, manifest: dict, token: str) -> None:
    """Download the files of a model's release and compare each with its manifest.

    Raises:
        PushError: If the Hub gives other files.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, told in manifest["files"].items():
            path = hf_hub_download(repo_id, name, revision=commit, local_dir=folder, token=token)
            if sha256(Path(path)) != told["sha256"]:
                raise PushError(f"{repo_id}: commit {commit} gives another {name} than was pushed.")


def main() -> None:
    """Print `{config/split: [rows, hash]}` of a dataset on the Hub."""
    import datasets

    from .folder import hash_of_rows

    repo_id, commit, *configs = sys.argv[1:]
    datasets.disable_progress_bars()
    found = {}
    for config in configs:
        for split, rows in datasets.load_dataset(repo_id, config, revision=commit).items():
            found[f"{config}/{split}"] = [len(rows), hash_of_rows(rows)]
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
