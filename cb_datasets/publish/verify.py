"""Verifies a pushed release by loading it as a user would: from the Hub, in a new process with an empty cache.

`load_dataset` returns an old copy from the cache if access fails, so loading it here would prove nothing.
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


# Variables that would point the new process at an existing cache, or take it offline.
_REMOVED_VARIABLES = (
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_XET_CACHE",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
)


def read_back(repo_id: str, commit: str, manifest: dict, token: str) -> None:
    """Load every configuration of a release and compare the hashes of its rows with the manifest.

    Raises:
        PushError: If the release does not load, or its rows differ.
    """
    expected = {
        f"{config}/{split}": [record["rows"], record["rows_sha256"]]
        for config, splits in manifest["configs"].items()
        for split, record in splits.items()
    }
    with tempfile.TemporaryDirectory() as home:
        environment = {name: value for name, value in os.environ.items() if name not in _REMOVED_VARIABLES}
        environment |= {"HF_HOME": home, "HF_TOKEN": token, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-m", __name__, repo_id, commit, *manifest["configs"]]
        process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode != 0:
        # The last line of a traceback is the exception itself.
        why = (process.stderr.strip().splitlines() or ["no reason given"])[-1].replace(token, "***")
        raise PushError(f"{repo_id}: commit {commit} was pushed, but does not load: {why[:300]}")
    # Libraries may print before the result, which is the last line.
    loaded = json.loads(process.stdout.splitlines()[-1])
    wrong = sorted(name for name in expected if loaded.get(name) != expected[name])
    wrong += sorted(set(loaded) - set(expected))
    if wrong:
        raise PushError(f"{repo_id}: commit {commit} has other rows than were pushed, in {', '.join(wrong)}.")


def read_files_back(repo_id: str, commit: str, manifest: dict, token: str) -> None:
    """Download the files of a model release and compare their hashes with the manifest.

    Raises:
        PushError: If a file differs.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, record in manifest["files"].items():
            path = hf_hub_download(repo_id, name, revision=commit, local_dir=folder, token=token)
            if sha256(Path(path)) != record["sha256"]:
                raise PushError(f"{repo_id}: commit {commit} has another {name} than was pushed.")


def main() -> None:
    """Print `{config/split: [rows, hash]}` of a dataset on the Hub as JSON."""
    import datasets

    from .folder import hash_rows

    repo_id, commit, *configs = sys.argv[1:]
    datasets.disable_progress_bars()
    loaded = {}
    for config in configs:
        for split, rows in datasets.load_dataset(repo_id, config, revision=commit).items():
            loaded[f"{config}/{split}"] = [len(rows), hash_rows(rows)]
    sys.stdout.write(json.dumps(loaded) + "\n")


if __name__ == "__main__":
    main()
