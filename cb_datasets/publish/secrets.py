r"""Credentials by their form: those of `detect-secrets` 1.5 and some that it lacks, in linear time.

    hf_abc...  token_hf_abc...  \nhf_abc...     found, also beside `_` and behind an escape of JSON or of a URL
    AKIAIOSFODNN7EXAMPLE                        none: it is written in manuals
    https://jane:s3cr3t@example.org             found
    https://user:password@example.org           none: placeholders

The library itself is no dependency: it takes half a minute for 10,000 rows, its last release is of 2024, and it knows
neither Hugging Face nor Google. It has entropy and key words besides, which find too much in text about programs.
"""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass


# Where a word begins: also behind `_`, an escape of JSON text (`\nhf_...`, whose last letter belongs to no word), or
# one of a URL. RE2, which reads the columns, cannot look behind.
_BEGINS = r"(?:^|[^A-Za-z0-9]|\\[bfnrt]|\\u[0-9A-Fa-f]{4}|%[0-9A-Fa-f]{2})"
_ENDS = r"(?:$|[^A-Za-z0-9])"

_PLACEHOLDERS = re.compile(
    r"(?i)(?:my|your|the)?[-_]?(?:user|pass|password|passwd|pwd|secret|token|key|example|changeme|123456?|test|admin|root"
    r"|postgres|guest)[-_]?(?:name|word|here)?|[x*.]+|[$%<{\[(].*|\.\.\."
)


@dataclass(frozen=True)
class Secret:
    """A form of credentials.

    Args:
        name (`str`): What a fault calls it.
        pattern (`str`): A regular expression that RE2 and Python read alike.
        is_real (`Callable[[re.Match], bool]`, *optional*): Whether a match is more than an example.
    """

    name: str
    pattern: str
    is_real: Callable[[re.Match[str]], bool] | None = None

    def is_in(self, text: str) -> bool:
        """Whether a text contains one."""
        return any(self.is_real is None or self.is_real(match) for match in re.finditer(self.pattern, text, re.M))


def _is_no_example(match: re.Match[str]) -> bool:
    return "EXAMPLE" not in match[0]


def _is_no_placeholder(match: re.Match[str]) -> bool:
    return not _PLACEHOLDERS.fullmatch(match[1])


def _is_web_token(match: re.Match[str]) -> bool:
    """Whether head and body are JSON, and not those of the example that all manuals have."""
    try:
        head, body = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in match[1].split(".")[:2])
    except ValueError:
        return False
    return isinstance(head, dict) and "alg" in head and isinstance(body, dict) and body.get("sub") != "1234567890"


def _word(*forms: str) -> str:
    return f"{_BEGINS}(?:{'|'.join(forms)})"


SECRETS = (
    Secret(
        "a Hugging Face token",
        _word(r"hf_[A-Za-z0-9]{30,}", r"hf_oauth_[A-Za-z0-9._-]{30,}", rf"api_org_[A-Za-z0-9]{{34}}{_ENDS}"),
    ),
    Secret("a GitHub token", _word(rf"gh[pousr]_[A-Za-z0-9]{{36}}{_ENDS}", r"github_pat_[A-Za-z0-9_]{50,}")),
    Secret(
        "a GitLab token",
        _word(r"gl(?:pat|dt|ft|soat|rt|ptt|cbt|imt|agent|oas)-[A-Za-z0-9_-]{20,}", r"GR1348941[A-Za-z0-9_-]{20,}"),
    ),
    Secret(
        "an API key",
        _word(
            *(r"sk-[A-Za-z0-9_-]{32,}", r"gsk_[A-Za-z0-9]{40,}", r"xai-[A-Za-z0-9]{60,}", r"pplx-[A-Za-z0-9]{40,}"),
            *(rf"r8_[A-Za-z0-9]{{37}}{_ENDS}", r"dapi[a-f0-9]{32}", r"do[opr]_v1_[a-f0-9]{64}"),
            *(r"shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}", r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"),
            *(rf"[a-f0-9]{{32}}-us[0-9]{{1,2}}{_ENDS}", rf"(?:AC|SK)[a-f0-9]{{32}}{_ENDS}", r"AKCp[A-Za-z0-9]{60,}"),
        ),
    ),
    Secret("a payment key", _word(r"[rs]k_live_[0-9A-Za-z]{24,}", r"sq0[a-z]{3}-[0-9A-Za-z_-]{22,}")),
    Secret(
        "an AWS key",
        _word(rf"(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[A-Z0-9]{{16}}{_ENDS}")
        + r"|(?i:aws.{0,20}(?:key|token|secret).{0,20}['\"][0-9A-Za-z/+]{40}['\"])",
        _is_no_example,
    ),
    Secret("an Azure key", r"AccountKey=[A-Za-z0-9+/=]{88}"),
    Secret(
        "a Google key or token",
        _word(
            *(r"AIza[0-9A-Za-z_-]{35}", r"ya29\.[0-9A-Za-z_-]{20,}", r"GOCSPX-[0-9A-Za-z_-]{28}"),
            r"1//0[0-9A-Za-z_-]{40,}",
        ),
    ),
    Secret(
        "a Slack token",
        _word(r"xox[abeoprs](?:\.xox[a-z])?-[0-9A-Za-z-]{10,}", r"xapp-[0-9]-[0-9A-Za-z-]{10,}")
        + r"|hooks\.slack\.com/services/T[A-Za-z0-9_]+/B[A-Za-z0-9_]+/[A-Za-z0-9_]+",
    ),
    Secret(
        "a token of a chat service",
        _word(
            rf"[0-9]{{8,10}}:AA[0-9A-Za-z_-]{{33}}{_ENDS}",
            rf"[MNO][A-Za-z0-9_-]{{23,25}}\.[A-Za-z0-9_-]{{6}}\.[A-Za-z0-9_-]{{27}}{_ENDS}",
        ),
    ),
    Secret("a PyPI token", _word(r"pypi-AgE[A-Za-z0-9_-]{50,}")),
    Secret("an npm token", _word(r"npm_[A-Za-z0-9]{36}") + r"|:_authToken=\s*[A-Fa-f0-9-]{36}"),
    Secret(
        "a JSON Web Token", r"(eyJ[A-Za-z0-9_=-]{8,500}\.eyJ[A-Za-z0-9_=-]{4,}\.[A-Za-z0-9_=+/-]{8,})", _is_web_token
    ),
    Secret("a private key", r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-[0-9]"),
    Secret(
        "a password in a URL",
        r"[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s:/?#@'\"<>()\[\]{}\\]{1,99}:([^\s:/?#@'\"\\]{1,99})@[A-Za-z0-9]",
        _is_no_placeholder,
    ),
    # By it, benchmarks ask not to be redistributed.
    Secret("a benchmark's canary", r"(?i:canary guid)"),
)
