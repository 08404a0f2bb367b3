"""Pushes a folder as one tagged commit of a private repository: the Hub has the old release or the new one.

Files uploaded before the commit are not yet part of the repository. The commit names its parent, so the Hub rejects a
concurrent push, which is then retried on top of the first.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id


# HTTP status of a commit whose parent is no longer the head of the branch.
CONFLICTS = (409, 412)
# Base class of the errors that a request may raise, from whichever HTTP library this version of the client uses.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
ATTEMPTS = 6


class PushError(ValueError):
    """Raised with the reason why a push failed, and the state of the Hub."""


@dataclass(frozen=True)
class PushTarget:
    """Destination of a release.

    Args:
        repo_id (`str`): `owner/name`.
        repo_type (`str`, *optional*, defaults to `"dataset"`): `dataset` or `model`.
        revision (`str`, *optional*): Branch, created from `main` if it does not exist. `main` if left out.
        create_pr (`bool`, *optional*, defaults to `False`): Propose the release as a pull request, without a tag.
        tag (`str`, *optional*): Name of the release; the next of `v1`, `v2`, ... if left out. A tag is never moved.
        gated (`bool`, *optional*, defaults to `False`): Require access requests, approved manually.
    """

    repo_id: str
    repo_type: str = "dataset"
    revision: str | None = None
    create_pr: bool = False
    tag: str | None = None
    gated: bool = False

    def __post_init__(self) -> None:
        check_repository(self.repo_id)
        for flag, name in (("--revision", self.revision), ("--tag", self.tag)):
            if name is not None:
                check_revision(name, flag)


def check_revision(name: str, flag: str) -> None:
    """Check that a text can name a branch or a tag.

    Raises:
        PushError: If it cannot.
    """
    if not re.fullmatch(r"\w[\w./-]*", name, re.ASCII) or ".." in name or name.endswith(("/", ".", ".lock")):
        raise PushError(f"{flag}: {name!r} is no name of a branch or a tag. Take letters, digits, `.`, `-` and `/`.")


def check_repository(repo_id: str, flag: str | None = None) -> None:
    """Check that a text can name a repository of the Hub.

    Raises:
        PushError: If it cannot.
    """
    try:
        validate_repo_id(repo_id)
        valid = "/" in repo_id
    except HFValidationError:
        valid = False
    if not valid:
        place = f"{flag}: " if flag else ""
        raise PushError(f"{place}{repo_id!r} is no repository of the Hub. Name it as owner/name.")


@dataclass(frozen=True)
class PushResult:
    """Result of a push."""

    commit: str
    url: str
    tag: str | None
    pull_request: str | None


def token_in_use() -> str:
    """The token of the environment: `HF_TOKEN`, or that of `hf auth login`.

    Raises:
        PushError: If there is none.
    """
    token = get_token()
    if token is None:
        raise PushError("no token: run `hf auth login`, or set HF_TOKEN to a token with write access.")
    return token


def push_folder(folder: Path, target: PushTarget, token: str, is_owned: Callable[[str], bool]) -> PushResult:
    """Push the files of a folder as a release to a private repository, in one commit.

    Args:
        folder (`Path`): The release folder.
        target ([`PushTarget`]): The destination. A repository that does not exist is created, private.
        token (`str`): A token with write access.
        is_owned (`Callable[[str], bool]`): Whether a file in the repository belongs to a release. Such files are
            deleted if the new release does not have them; all others stay.

    Raises:
        PushError: If the repository is public, access is refused, the tag exists, or there were too many conflicts.
    """
    api = HfApi(token=token)
    # The repository may be made public at any time, so it is checked before the upload, before every attempt to
    # commit, and after the commit: the last check cannot prevent the leak, but reports it.
    with _readable_errors(target, token):
        _prepare_repository(api, target)
        _require_private(api, target, "nothing was sent")
        if target.tag in _tags(api, target):
            raise PushError(f"{target.repo_id} has the tag {target.tag}, and a tag is never moved: use another name.")
        commit = _commit(api, folder, target, is_owned)
        _require_private(api, target, f"it was made public during the push, and has commit {commit.oid}")
        tag = None if target.create_pr else _tag(api, target, commit.oid)
    return PushResult(commit.oid, f"{api.endpoint}/{_path(target)}", tag, commit.pr_url)


def _path(target: PushTarget) -> str:
    return f"datasets/{target.repo_id}" if target.repo_type == "dataset" else target.repo_id


def _prepare_repository(api: HfApi, target: PushTarget) -> None:
    """Create the repository and the branch if they do not exist, and gate the repository if requested."""
    repository: dict[str, Any] = {"repo_id": target.repo_id, "repo_type": target.repo_type}
    try:
        api.repo_info(**repository)
    except RepositoryNotFoundError:
        api.create_repo(**repository, private=True, exist_ok=True)
    # Settings and branches of a public repository are left alone as well.
    _require_private(api, target, "nothing was sent")
    if target.gated:
        api.update_repo_settings(**repository, gated="manual")
    if target.revision is not None and not api.revision_exists(**repository, revision=target.revision):
        api.create_branch(**repository, branch=target.revision, exist_ok=True)


def _require_private(api: HfApi, target: PushTarget, state: str) -> None:
    if api.repo_info(target.repo_id, repo_type=target.repo_type).private is not True:
        raise PushError(
            f"{target.repo_id} is not private ({state}). Make it private in its settings, or use another repository."
        )


def _commit(api: HfApi, folder: Path, target: PushTarget, is_owned: Callable[[str], bool]) -> CommitInfo:
    """Commit all files of the folder on top of the current head, and again if the head has moved."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for attempt in range(ATTEMPTS):
        _require_private(api, target, "nothing was sent")
        info = api.repo_info(target.repo_id, repo_type=target.repo_type, revision=target.revision)
        existing = api.list_repo_files(target.repo_id, repo_type=target.repo_type, revision=info.sha)
        stale = [CommitOperationDelete(path) for path in existing if is_owned(path) and path not in files]
        try:
            return api.create_commit(
                target.repo_id,
                [*(CommitOperationAdd(name, path) for name, path in files.items()), *stale],
                commit_message="Release",
                repo_type=target.repo_type,
                revision=target.revision,
                create_pr=target.create_pr,
                parent_commit=info.sha,
            )
        except HfHubHTTPError as error:
            if error.response.status_code not in CONFLICTS:
                raise
            # Exponential backoff with jitter, so that concurrent pushes do not collide again.
            time.sleep(random.uniform(0, 0.5 * 2**attempt))
    raise PushError(
        f"{target.repo_id}: {ATTEMPTS} attempts failed because others pushed. It has their last release. Push again."
    )


def _tags(api: HfApi, target: PushTarget) -> dict[str, str]:
    """Commit of each tag."""
    refs = api.list_repo_refs(target.repo_id, repo_type=target.repo_type)
    return {tag.name: tag.target_commit for tag in refs.tags}


def _tag(api: HfApi, target: PushTarget, commit: str) -> str:
    """Tag a commit, and return the tag. Without a given name, a commit that has a tag keeps it."""
    for _ in range(ATTEMPTS):
        tags = _tags(api, target)
        numbers = [int(name[1:]) for name in tags if name[:1] == "v" and name[1:].isdecimal()]
        of_commit = [name for name, tagged in tags.items() if tagged == commit]
        # Pushing unchanged files creates no new commit, and the existing one needs no second tag.
        if target.tag is None and of_commit:
            return of_commit[0]
        tag = target.tag or f"v{max(numbers, default=0) + 1}"
        try:
            api.create_tag(target.repo_id, tag=tag, revision=commit, repo_type=target.repo_type)
            return tag
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            # A concurrent push took the tag: try the next number, but never another name than the given one.
            if target.tag is not None:
                break
    raise PushError(f"{target.repo_id}: commit {commit} was pushed, but its tag is taken: tag it yourself.")


@contextmanager
def _readable_errors(target: PushTarget, token: str) -> Iterator[None]:
    """Turn errors of the Hub client into a [`PushError`] of one line that never contains the token."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise PushError("HF_HUB_OFFLINE is set: unset it to push.") from None
    except (RepositoryNotFoundError, LocalTokenNotFoundError):
        raise PushError(f"{target.repo_id}: it does not exist, or this token has no access to it.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        why = {401: "the token is invalid", 403: "the token has no write access"}.get(status)
        message = " ".join((error.server_message or str(error)).split()).replace(token, "***")
        raise PushError(
            f"{target.repo_id}: {why or message[:300]} (HTTP {status}). Fix that and push again."
        ) from None
    except (OSError, HTTP_ERROR, RuntimeError) as error:  # the client raises RuntimeError for a failed upload
        message = " ".join(str(error).split()).replace(token, "***")
        raise PushError(f"{target.repo_id}: the connection failed ({message[:200]}). Push again.") from None
