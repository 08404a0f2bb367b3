"""Download of a source's published files: pinned by commit, verified by hash, stored in the cache.

    DOWNLOADS = (
        Download("hf://datasets/someone/prompts@<commit>/data/train.parquet", "data/train.parquet", "<sha256>"),
        Download("https://raw.githubusercontent.com/someone/prompts/<commit>/more.csv", "more.csv"),
    )

The result is a folder of files, read like a local copy. A file is moved into the folder only when it is complete and
its hash is verified, so no file in the folder is partial, and an interrupted download resumes with the missing files.

- Files of the Hub go through the Hub's own cache: files that are already cached are not fetched again, `HF_ENDPOINT`,
  `HF_TOKEN` and `HF_HUB_OFFLINE` have their usual meaning, and the folder holds symbolic links into that cache.
- All other files are fetched without a token.
- A file without a known hash is pinned by its commit alone. The first download then records the hash beside the file,
  and every later run compares with it.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


_HUB_FILE = re.compile(r"hf://datasets/([^@]+)@([0-9a-f]{40})/(.+)")
_OR_LOCAL = "or pass data_dir with a local copy"


@dataclass(frozen=True)
class Download:
    """One published file of a source.

    Args:
        url (`str`): `hf://datasets/<repo>@<commit>/<path>`, or an `https://` URL with the commit in its path.
        path (`str`): Path relative to the data folder.
        sha256 (`str`, *optional*): Expected hash.
    """

    url: str
    path: str
    sha256: str | None = None

    @property
    def revision(self) -> str:
        """The commit in the URL.

        Raises:
            ValueError: If there is none; a branch or a tag may move.
        """
        commit = re.search(r"[@/]([0-9a-f]{40})/", self.url)
        if commit is None:
            raise ValueError(f"{self.url} names no commit. Pin it.")
        return commit[1]


def revision_of(downloads: Sequence[Download]) -> str:
    """The commit of all files; several different commits are joined by "+"."""
    return "+".join(dict.fromkeys(download.revision for download in downloads))


def fetch(downloads: Sequence[Download], folder: Path) -> None:
    """Fetch the files that are missing below `folder`, and verify all of them.

    Raises:
        FileNotFoundError: If a file cannot be fetched: offline, no connection, no access, no such file.
        ValueError: If a file does not have the expected hash.
    """
    for download in downloads:
        target = folder / download.path
        if target.is_file():
            _verify(target, download, target)
        else:
            _fetch_file(download, target)


def _fetch_file(download: Download, target: Path) -> None:
    from huggingface_hub.utils import WeakFileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(f"{target}.lock"):
        if target.is_file():
            return  # another process has fetched it in the meantime
        incomplete = Path(f"{target}.incomplete")
        incomplete.unlink(missing_ok=True)  # left behind by an interrupted run
        try:
            _download_to(incomplete, download)
            _verify(incomplete, download, target)
            os.replace(incomplete, target)
        finally:
            incomplete.unlink(missing_ok=True)


def _download_to(file: Path, download: Download) -> None:
    """Write the content of the URL to `file`, resuming after broken connections."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.file_download import http_get

    on_hub = _HUB_FILE.fullmatch(download.url)
    try:
        if on_hub:
            repo_id, revision, filename = on_hub.groups()
            cached = hf_hub_download(repo_id, filename, repo_type="dataset", revision=revision)
            file.symlink_to(Path(cached).resolve())
        else:
            with open(file, "wb") as stream:
                http_get(download.url, stream, displayed_filename=download.path)
    # Not only errors of `huggingface_hub`: those of its HTTP client come through unwrapped, and the client varies.
    except Exception as error:
        raise FileNotFoundError(_explain_failure(download, error)) from error


def _verify(file: Path, download: Download, target: Path) -> None:
    """Delete and refuse a file with another hash than expected; `target` is its final path in the folder."""
    with open(file, "rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    record = Path(f"{target}.sha256")
    expected = download.sha256 or (record.read_text(encoding="ascii").strip() if record.is_file() else None)
    if expected is None:
        record.write_text(f"{actual}\n", encoding="ascii")
    elif actual != expected:
        # Delete the content in the Hub's cache, not only the link to it: otherwise a retry would find the same bytes.
        file.resolve().unlink()
        hashes = f"has the sha256 {actual}, not {expected}"
        raise ValueError(f"{target}, from {download.url}, {hashes}, and was deleted. Try again, {_OR_LOCAL}.")


def _explain_failure(download: Download, error: Exception) -> str:
    """One line that says why a file cannot be fetched, and what to do."""
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    on_hub = _HUB_FILE.fullmatch(download.url)
    repository = on_hub[1] if on_hub else ""
    if isinstance(error, GatedRepoError):
        page = f"https://huggingface.co/datasets/{repository}"
        return f"{repository} is gated: accept its terms on {page}, then `hf auth login` or set HF_TOKEN; {_OR_LOCAL}."
    if isinstance(error, RepositoryNotFoundError):
        return f"The Hub shows you no dataset {repository}. Check `hf auth whoami` and HF_ENDPOINT, {_OR_LOCAL}."
    if is_offline_mode():
        return f"{download.url} is not in the cache, and HF_HUB_OFFLINE is set. Unset it for one run, {_OR_LOCAL}."
    # The last error of the Hub's client only says "not in the cache"; the reason of the failed fetch is its cause.
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
    return f"{download.url} could not be fetched ({reason}). Check the connection and try again, {_OR_LOCAL}."
