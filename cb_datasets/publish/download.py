"""A release from the Hub on this machine, or one line that says why not."""

from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .push import HTTP_ERROR


class DownloadError(ValueError):
    """Why there is nothing to look at."""


def downloaded(repo_id: str, revision: str | None = None) -> Path:
    """The folder of a dataset repository, as it is at a revision now; offline, as it was when it was last read.

    Args:
        repo_id (`str`): `owner/name`.
        revision (`str`, *optional*): Branch, tag or commit; `main` if left out.

    Raises:
        DownloadError: If it is not there, access is refused, or the Hub does not answer.
    """
    try:
        _look_up(repo_id, revision)
        return Path(snapshot_download(repo_id, repo_type="dataset", revision=revision))
    except GatedRepoError:
        why = "it is gated: ask for access on its page, and log in with `hf auth login`"
    except RevisionNotFoundError:
        why = f"it has no revision {revision}"
    except RepositoryNotFoundError:
        why = "no such path here, and no dataset on the Hub that you may see: check the name, or `hf auth login`"
    except LocalEntryNotFoundError:
        why = "it was not read before, and the Hub does not answer or HF_HUB_OFFLINE is set"
    except HfHubHTTPError as error:
        status = error.response.status_code
        why = "the token is not valid: `hf auth login`" if status == 401 else f"the Hub answers with HTTP {status}"
    except (OSError, HTTP_ERROR) as error:
        why = f"the connection failed ({' '.join(str(error).split())[:200]})"
    raise DownloadError(f"{repo_id}: {why}.")


def _look_up(repo_id: str, revision: str | None) -> None:
    """Raise where access is refused: `snapshot_download` would serve an old copy then."""
    with suppress(OfflineModeIsEnabled):
        HfApi().repo_info(repo_id, repo_type="dataset", revision=revision)
