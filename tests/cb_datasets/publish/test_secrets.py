"""Credentials are found by their form, in columns and in files; examples in manuals and plain text are none."""

import base64
import json
from pathlib import Path

import pytest
from datasets import Dataset
from safetensors.numpy import save_file
from typer.testing import CliRunner

from cb_datasets.cli import app
from cb_datasets.files import save_parquet
from cb_datasets.publish.check import secret_faults
from cb_datasets.publish.secrets import SECRETS


def web_token(**body) -> str:
    parts = [{"alg": "HS256", "typ": "JWT"}, body]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
    return ".".join([*coded, "c2lnbmF0dXJl" * 2])


# Put together here, so that no scanner takes this file for a leak.
LETTERS, HEX = "aB3dE5" * 20, "0a1b2c3d" * 20
REAL = {
    "a Hugging Face token": ["hf_" + LETTERS[:34], "hf_" + "oauth_" + LETTERS[:40], "api_" + "org_" + LETTERS[:34]],
    "a GitHub token": [f"gh{kind}_" + LETTERS[:36] for kind in "pousr"] + ["github_" + "pat_" + LETTERS[:59]],
    "a GitLab token": ["glpat" + "-" + LETTERS[:20], "GR" + "1348941" + LETTERS[:20], "gldt" + "-" + LETTERS[:20]],
    "an API key": [
        *("sk-" + LETTERS[:48], "sk-" + "ant-api03-" + LETTERS[:60], "gsk_" + LETTERS[:52], "r8_" + LETTERS[:37]),
        *("SG." + LETTERS[:22] + "." + LETTERS[:43], HEX[:32] + "-us12", "SK" + HEX[:32], "dapi" + HEX[:32]),
    ],
    "a payment key": ["sk_" + "live_" + LETTERS[:24], "sq0" + "csp-" + LETTERS[:43]],
    "an AWS key": ["AKIA" + "AB3D" * 4, "ASIA" + "AB3D" * 4, 'aws_secret_key = "' + LETTERS[:40] + '"'],
    "an Azure key": ["AccountKey=" + LETTERS[:86] + "=="],
    "a Google key or token": ["AIza" + LETTERS[:35], "ya29." + LETTERS[:40], "GOCSPX" + "-" + LETTERS[:28]],
    "a Slack token": [
        *("xoxb" + "-123456789012-" + LETTERS[:24], "xapp" + "-1-A0123-" + LETTERS[:20]),
        "https://hooks.slack.com/services/" + "T0AB/B0CD/" + LETTERS[:24],
    ],
    "a token of a chat service": ["123456789:AA" + LETTERS[:33]],
    "a PyPI token": ["pypi-" + "AgEIcHlwaS5vcmc" + LETTERS[:80]],
    "an npm token": ["npm_" + LETTERS[:36]],
    "a JSON Web Token": [web_token(sub="jane", iat=1)],
    "a private key": [
        "-----BEGIN " + "PGP PRIVATE KEY BLOCK-----",
        "-----BEGIN " + "OPENSSH PRIVATE KEY-----",
        "PuTTY-" + "User-Key-File-3",
    ],
    "a password in a URL": ["postgres://jane:" + "k3ySt0ne@db.example.org/x", "https://jane:" + "a%40b@example.org"],
    "a benchmark's canary": ["BENCHMARK DATA. Canary " + "GUID 0f"],
}
CASES = [(name, token) for name, tokens in REAL.items() for token in tokens]


def faults(folder: Path, text: str) -> dict[str, set[str]]:
    """What is found in a text, in a file of text and in a column."""
    (folder / "a.txt").write_text(text, encoding="utf-8")
    save_parquet(Dataset.from_dict({"text": ["nothing", text]}), folder / "b.parquet")
    found: dict[str, set[str]] = {"a.txt": set(), "b.parquet": set()}
    for fault in secret_faults(folder):
        file, _, name = fault.partition(": holds ")
        found[file].add(name)
    return found


def test_every_form_has_an_example():
    assert [form.name for form in SECRETS] == list(REAL)


@pytest.mark.parametrize(("name", "token"), CASES, ids=[f"{name}-{token[:6]}" for name, token in CASES])
def test_a_credential_is_found_and_not_printed(name, token, tmp_path):
    found = faults(tmp_path, f"A key: {token} and so on.")
    assert name in found["a.txt"] and found["a.txt"] == found["b.parquet"]
    assert not any(token in fault for fault in secret_faults(tmp_path))


@pytest.mark.parametrize("around", ["MY_{}", "{}_old", "_{}_", "%20{}", "a\n{}", "={}&x=1", "'{}'", "ü{}ü"])
@pytest.mark.parametrize("name", ["a Hugging Face token", "a GitHub token", "an AWS key", "a Google key or token"])
def test_a_credential_is_found_beside_other_letters(name, around, tmp_path):
    found = faults(tmp_path, around.format(REAL[name][0]))
    assert found == {"a.txt": {name}, "b.parquet": {name}}


@pytest.mark.parametrize(
    "text",
    [
        "https://user:password@example.org and mysql://root:$PASSWORD@localhost, http://a:{token}@b.org",
        "https://example.org:8080/a@b and mailto:jane@example.org, git@github.com:owner/name",
        "AKIA" + "IOSFODNN7EXAMPLE",
        web_token(sub="1234567890", name="John Doe"),
        "eyJub3Q.eyJhIHRva2Vu.because-it-is-no-json",
        "hf_hub_download(repo_id), hf_transfer, npm_config_registry, sk-learn, gh_pages, xoxo-kisses",
        "APPLICATION, MACHINE, SKILL, ACCORDING TO 0123456789abcdef0123456789abcdef",
        "-----BEGIN PUBLIC KEY-----",
        "the word" + "hf_" + LETTERS[:34],
    ],
)
def test_examples_and_plain_text_are_no_credentials(text, tmp_path):
    assert faults(tmp_path, text) == {"a.txt": set(), "b.parquet": set()}


def test_the_header_of_weights_is_read(tmp_path):
    import numpy as np

    save_file({"a": np.zeros(4)}, tmp_path / "a.safetensors", metadata={"token": "my-own-token"})
    assert secret_faults(tmp_path, "my-own-token") == ["a.safetensors: holds the token in use"]


def test_a_dry_run_looks_for_the_token_in_use(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("HF_TOKEN", "my-own-token")
    monkeypatch.setattr("cb_datasets.publish.release.make_release", lambda *values: seen.append(values[-1]) or {})
    CliRunner().invoke(app, ["push", "owner/name", "--data", str(tmp_path), "--dry-run"])
    assert seen == ["my-own-token"]
