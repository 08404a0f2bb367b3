"""`cb-datasets view owner/name`: a release on the Hub opens, or the error explains in one line why it does not."""

from pathlib import Path

import huggingface_hub
import pytest
from typer.testing import CliRunner

from cb_datasets.audit.view import AuditServer
from cb_datasets.cli import app
from cb_datasets.files import load_rows
from cb_datasets.publish.download import DownloadError, download_release
from cb_datasets.publish.folder import list_files
from cb_datasets.publish.release import make_release
from tests.fake_hub import FakeHub, Repository


REPO = "someone/breakers"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def repository(hub: FakeHub, release_data: Path, tmp_path: Path) -> Repository:
    """A private repository with a release, tagged `v1`."""
    make_release(release_data, REPO, tmp_path / "release")
    files = {name: (tmp_path / "release" / name).read_bytes() for name in list_files(tmp_path / "release")}
    hub.repositories[REPO] = Repository(COMMIT, files, private=True, tags={"v1": COMMIT})
    return hub.repositories[REPO]


def test_a_release_on_the_hub_opens(repository: Repository, release_data: Path, tmp_path: Path, monkeypatch):
    pages = []

    def serve_once(server: AuditServer) -> None:
        pages.append(server.rows({"config": "retain", "split": "train"}))
        server.marks.put(pages[0]["rows"][0]["id"], "bad", "")
        raise KeyboardInterrupt

    monkeypatch.setattr(AuditServer, "serve_forever", serve_once)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["view", REPO, "--revision", "v1", "--port", "0"], catch_exceptions=False)
    assert result.exit_code == 0 and "rows on http://127.0.0.1:" in result.output
    expected = [row["id"] for row in load_rows(release_data / "stage2" / "train") if row["set"] == "retain"]
    assert [row["id"] for row in pages[0]["rows"]] == expected[:100] and pages[0]["total"] == len(expected)
    assert (tmp_path / "audit" / "someone__breakers" / "marks.parquet").is_file(), "marks are not in the cache"


def refusal(repo: str = REPO, revision: str | None = None) -> str:
    with pytest.raises(DownloadError) as error:
        download_release(repo, revision)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_errors_explain_why_a_release_does_not_open(
    repository: Repository, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
):
    assert "neither a local path nor a dataset on the Hub that you can access" in refusal("someone/nothing")
    assert refusal(revision="v9") == f"{REPO}: it has no revision v9."
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert "nor a dataset on the Hub that you can access" in refusal()
    repository.private, repository.gated = False, True
    assert refusal() == f"{REPO}: it is gated: ask for access on its page, and log in with `hf auth login`."
    hub.dies_at = 0
    assert f"{REPO}: the connection failed" in refusal()


def test_after_access_is_lost_the_cached_copy_is_not_used(repository: Repository, monkeypatch: pytest.MonkeyPatch):
    assert (download_release(REPO, "v1") / "README.md").is_file()
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert "that you can access" in refusal(revision="v1")


def test_offline_the_cached_copy_opens(repository: Repository, monkeypatch: pytest.MonkeyPatch):
    cached = download_release(REPO)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.utils._http.constants.HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert download_release(REPO) == cached
    assert "it is not in the cache" in refusal("someone/nothing")
    huggingface_hub.close_session()
