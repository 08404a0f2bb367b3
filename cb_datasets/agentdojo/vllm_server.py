"""vLLM's own server, started for a while: base and adapters under names of their own, tool calls parsed by it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ..generation.vllm_backend import lora_rank


# Seconds until a server must answer; a large model takes minutes to load.
START_TIMEOUT = 1800

# Seconds that a server has to stop by itself.
STOP_TIMEOUT = 30

# Seconds after a failed connection in which a server may turn out to be dead: its port is closed before it has ended.
DEATH_TIMEOUT = 10

# Lines of a dead server's log that its error shows.
_LOG_LINES = 15

# vLLM's names of the parsers for our tool-call formats.
_TOOL_PARSERS = {"llama3_json": "llama3_json"}

# A server on a CPU, which is for tests, keeps off the core that runs the benchmark.
_CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_WAIT_POLICY": "passive",
}


def has_vllm() -> bool:
    """Whether vLLM is installed."""
    return find_spec("vllm") is not None


@contextmanager
def vllm_server(
    model: str,
    adapters: dict[str, str],
    tool_format: str,
    max_length: int,
    log: Path,
    tensor_parallel: int = 1,
) -> Iterator[str]:
    """vLLM's server with a model and adapters: the address of its API, `http://127.0.0.1:<port>/v1`.

    It listens on this machine only, at a port that is free, and is stopped when the block is left, however that is:
    also when this process is killed.

    Args:
        model (`str`): Folder of the model, or its Hub id; served as `base`.
        adapters (`dict[str, str]`): Folders of LoRA adapters, by the name that each is served under.
        tool_format (`str`): The tool-call format that the model writes.
        max_length (`int`): Most tokens of a prompt and its completion.
        log (`Path`): File that the server's words go to.
        tensor_parallel (`int`, *optional*, defaults to `1`): GPUs that share the weights.

    Raises:
        ConnectionError: If the server dies, or does not answer in time; it shows the end of the log.
    """
    port = _free_port()
    command = [*_COMMAND, "--port", str(port), *_flags(model, adapters, tool_format, max_length, tensor_parallel)]
    process = _started(command, log)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    except Exception as error:
        if isinstance(error, _Died) or not _has_ended(process, DEATH_TIMEOUT if isinstance(error, OSError) else 0):
            raise
        raise _Died(process, log) from error
    finally:
        _stop(process)


def _started(command: list[str], log: Path) -> subprocess.Popen:
    """The command's process, in a session of its own, so that the engine's processes can be stopped with it."""
    leash = [sys.executable, "-I", str(Path(__file__).with_name("run_with_parent.py")), str(STOP_TIMEOUT)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.Popen(
            [*leash, *command],
            stdin=subprocess.PIPE,  # held open until `_stop`, or this process's end
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
        )


class _Died(ConnectionError):
    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        super().__init__(f"The server died with exit code {process.returncode}. {_end_of(log)}")


# The console script of vLLM's build for CPUs is broken; the module works in every build.
_COMMAND = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]


def _flags(
    model: str, adapters: dict[str, str], tool_format: str, max_length: int, tensor_parallel: int
) -> Iterator[str]:
    yield from ("--model", model, "--served-model-name", "base", "--max-model-len", str(max_length))
    yield from ("--enable-auto-tool-choice", "--tool-call-parser", _TOOL_PARSERS[tool_format])
    # The model's own sampling defaults, a repetition penalty for one, stay out of it.
    yield from ("--generation-config", "vllm", "--tensor-parallel-size", str(tensor_parallel))
    if adapters:
        rank = max(map(lora_rank, adapters.values()))
        yield from ("--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(len(adapters)))
        yield from ("--lora-modules", *(f"{name}={folder}" for name, folder in adapters.items()))
    if not _has_gpu():
        yield from ("--dtype", "float32", "--enforce-eager")


def _environment() -> dict[str, str]:
    defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1", "VLLM_LOGGING_LEVEL": "INFO"}
    return defaults | ({} if _has_gpu() else _CPU_ENVIRONMENT) | os.environ


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_until_up(url: str, process: subprocess.Popen, log: Path) -> None:
    ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # no proxy is on the way to this machine
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _Died(process, log)
        try:
            with ask(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise ConnectionError(f"The server is not up after {START_TIMEOUT} s. {_end_of(log)}")


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join([f"The end of {log}:", *lines])


def _stop(process: subprocess.Popen) -> None:
    """End the server and the processes of its engine, which do not always end with it."""
    _signal_all(process, signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        pass
    _signal_all(process, signal.SIGKILL)
    process.communicate()


def _has_ended(process: subprocess.Popen, seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _signal_all(process: subprocess.Popen, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
