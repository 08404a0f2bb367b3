"""A folder -> one commit of a private repository, tagged. The Hub holds the old release or the new one.

What is uploaded before the commit is not part of the repository; the commit names its parent, so a second push at the
same time is refused by the Hub and tried again on top of the first.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)


CONFLICTS = (409, 412)
# What any request may raise, in whichever HTTP library this version of the client uses.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]
ATTEMPTS = 6


class PushError(ValueError):
    """Why a push failed, and what the Hub holds now."""


@dataclass(frozen=True)
class Target:
    """Where a release goes.

    Args:
        repo_id (`str`): `owner/name`.
        repo_type (`str`): `dataset` or `model`.
        revision (`str`, *optional*): A branch; made from `main` if it is not there. `main` if left out.
        create_pr (`bool`): Propose the release as a pull request; it is not tagged.
        tag (`str`, *optional*): Name of the release; the next of `v1`, `v2`, ... if left out. A tag is never moved.
        gated (`bool`): Whoever is not in the repository asks for access, which a person grants.
    """

    repo_id: str
    repo_type: str = "dataset"
    revision: str | None = None
    create_pr: bool = False
    tag: str | None = None
    gated: bool = False


@dataclass(frozen=True)
class Pushed:
    """What the Hub holds now."""

    commit: str
    url: str
    tag: str | None
    pull_request: str | None


def token_in_use() -> str:
    """The token from the standard places: `HF_TOKEN`, or `hf auth login`.

    Raises:
        PushError: If there is none.
    """
    token = get_token()
    if token is None:
        raise PushError("no token: run `hf auth login`, or set HF_TOKEN to a token that may write.")
    return token


def push_folder(folder: Path, target: Target, token: str, is_owned: Callable[[str], bool]) -> Pushed:
    """Make the files of a folder the release in a private repository, in one commit.

    Args:
        folder (`Path`): The release folder.
        target ([`Target`]): Where it goes. A repository that is not there is created, private.
        token (`str`): A token that may write there.
        is_owned (`Callable[[str], bool]`): Whether a file in the repository is part of a release; such files are
            deleted where the new release does not have them. All others stay.

    Raises:
        PushError: If the repository is public, access is refused, the tag exists, or others kept pushing.
    """
    api = HfApi(token=token)
    with _explained(target, token):
        _open(api, target)
        _require_private(api, target, "nothing was sent")
        if target.tag in _tags(api, target):
            raise PushError(f"{target.repo_id} has the tag {target.tag}, and a tag is never moved: name another.")
        commit = _commit(api, folder, target, is_owned)
        _require_private(api, target, f"it was made public meanwhile, and commit {commit.oid} is there")
        tag = None if target.create_pr else _tag(api, target, commit.oid)
    return Pushed(commit.oid, f"{api.endpoint}/{_path(target)}", tag, commit.pr_url)


def _path(target: Target) -> str:
    return f"datasets/{target.repo_id}" if target.repo_type == "dataset" else target.repo_id


def _open(api: HfApi, target: Target) -> None:
    """Create the repository if it is not there, and its branch; close the gate if that is asked for."""
    named: dict[str, Any] = {"repo_id": target.repo_id, "repo_type": target.repo_type}
    try:
        api.repo_info(**named)
    except RepositoryNotFoundError:
        api.create_repo(**named, private=True, exist_ok=True)
    _require_private(api, target, "nothing was sent")
    if target.gated:
        api.update_repo_settings(**named, gated="manual")
    if target.revision is not None and not api.revision_exists(**named, revision=target.revision):
        api.create_branch(**named, branch=target.revision, exist_ok=True)


def _require_private(api: HfApi, target: Target, state: str) -> None:
    if api.repo_info(target.repo_id, repo_type=target.repo_type).private is not True:
        raise PushError(
            f"{target.repo_id} is not private ({state}). Make it private in its settings, or name another repository."
        )


def _commit(api: HfApi, folder: Path, target: Target, is_owned: Callable[[str], bool]) -> CommitInfo:
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    for attempt in range(ATTEMPTS):
        _require_private(api, target, "nothing was sent")
        info = api.repo_info(target.repo_id, repo_type=target.repo_type, revision=target.revision)
        there = api.list_repo_files(target.repo_id, repo_type=target.repo_type, revision=info.sha)
        stale = [CommitOperationDelete(path) for path in there if is_owned(path) and path not in files]
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
            time.sleep(random.uniform(0, 0.5 * 2**attempt))
    raise PushError(f"{target.repo_id}: others kept pushing, {ATTEMPTS} times. The last release of theirs is there.")


def _tags(api: HfApi, target: Target) -> dict[str, str]:
    """Commits by tag."""
    refs = api.list_repo_refs(target.repo_id, repo_type=target.repo_type)
    return {tag.name: tag.target_commit for tag in refs.tags}


def _tag(api: HfApi, target: Target, commit: str) -> str:
    """Tag a commit. Without a name, a commit that has a tag keeps it."""
    for _ in range(ATTEMPTS):
        tags = _tags(api, target)
        numbers = [int(name[1:]) for name in tags if name[:1] == "v" and name[1:].isdecimal()]
        of_commit = [name for name, tagged in tags.items() if tagged == commit]
        if target.tag is None and of_commit:
            return of_commit[0]
        tag = target.tag or f"v{max(numbers, default=0) + 1}"
        try:
            api.create_tag(target.repo_id, tag=tag, revision=commit, repo_type=target.repo_type)
            return tag
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            if target.tag is not None:
                break
    raise PushError(f"{target.repo_id}: commit {commit} is there, but its tag was taken meanwhile: tag it yourself.")


@contextmanager
def _explained(target: Target, token: str) -> Iterator[None]:
    """Say in one line what the Hub refused; the token is in no message."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise PushError("HF_HUB_OFFLINE is set: unset it to push.") from None
    except (RepositoryNotFoundError, LocalTokenNotFoundError):
        raise PushError(f"{target.repo_id}: not there, or this token has no access to it.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        why = {401: "the token is not valid", 403: "the token may not write there"}.get(status)
        told = " ".join((error.server_message or str(error)).split()).replace(token, "***")
        raise PushError(
            f"{target.repo_id}: {why or told[:300]} (HTTP {status}). Push again when that is mended."
        ) from None
    except (OSError, HTTP_ERROR, RuntimeError) as error:  # a RuntimeError is what the client makes of a failed upload
        told = " ".join(str(error).split()).replace(token, "***")
        raise PushError(f"{target.repo_id}: the connection failed ({told[:200]}). Push again.") from None
