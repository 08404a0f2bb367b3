"""Downloads a release from the Hub, or explains in one line why it cannot."""

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
    """Raised with the reason why a release cannot be downloaded."""


def download_release(repo_id: str, revision: str | None = None) -> Path:
    """Download a dataset repository and return its local folder; offline, the folder of the last download.

    Args:
        repo_id (`str`): `owner/name`.
        revision (`str`, *optional*): Branch, tag or commit; `main` if left out.

    Raises:
        DownloadError: If the repository does not exist, access is refused, or the Hub does not answer.
    """
    try:
        _check_access(repo_id, revision)
        return Path(snapshot_download(repo_id, repo_type="dataset", revision=revision))
    except GatedRepoError:
        why = "it is gated: ask for access on its page, and log in with `hf auth login`"
    except RevisionNotFoundError:
        why = f"it has no revision {revision}"
    except RepositoryNotFoundError:
        why = "neither a local path nor a dataset on the Hub that you can access: check the name, or `hf auth login`"
    except LocalEntryNotFoundError:
        why = "it is not in the cache, and the Hub does not answer or HF_HUB_OFFLINE is set"
    except HfHubHTTPError as error:
        status = error.response.status_code
        why = "the token is invalid: `hf auth login`" if status == 401 else f"the Hub answers with HTTP {status}"
    except (OSError, HTTP_ERROR) as error:
        why = f"the connection failed ({' '.join(str(error).split())[:200]})"
    raise DownloadError(f"{repo_id}: {why}.")


def _check_access(repo_id: str, revision: str | None) -> None:
    """Raise if access is refused. `snapshot_download` alone would return an old copy from the cache then."""
    with suppress(OfflineModeIsEnabled):
        HfApi().repo_info(repo_id, repo_type="dataset", revision=revision)
