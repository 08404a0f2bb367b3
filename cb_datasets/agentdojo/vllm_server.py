"""A temporary vLLM server for the base model and adapters, each under its own name; vLLM parses the tool calls."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_text
from ..formats import format_of
from ..generation.model_files import check_model_files
from ..generation.serving import adapter_rank, parser_flags


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Seconds until a server must be up; a large model takes minutes to load.
START_TIMEOUT = 1800

# Seconds that a server has to stop after SIGTERM, before it gets SIGKILL.
STOP_TIMEOUT = 30

# Seconds to wait after a failed connection for a dying server to exit: it closes its port first.
DEATH_TIMEOUT = 10

# Lines of a dead server's log that the error message shows.
_LOG_LINES = 15

# An exception in a log. vLLM writes the process and the time before it, and prints much after it while it shuts down.
_EXCEPTION = re.compile(r"^(?:\([^)\n]*+\) ERROR [^\]\n]*+\] )?(\w*(?:Error|Exception): .+)$", re.MULTILINE)

# For a server on a CPU, which only tests use: idle threads sleep and stay unpinned, so the benchmark gets CPU time.
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
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    log: Path,
    tensor_parallel: int = 1,
) -> Iterator[str]:
    """Serve a model and adapters with vLLM, and yield the base URL of the API, `http://127.0.0.1:<port>/v1`.

    The server listens on loopback only, at a free port. It stops when the block exits, and when this process is
    killed.

    Args:
        model (`str`): Folder of the model, or its Hub id; served as `base`.
        adapters (`dict[str, str]`): Folders of LoRA adapters, by served model name.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's, as the other stages have it: its chat
            template, with the settings decided for it, and its tool-call format are the server's.
        max_length (`int`): Maximum number of tokens of a prompt and its completion.
        log (`Path`): File for the server's output.
        tensor_parallel (`int`, *optional*, defaults to `1`): Number of GPUs to split the weights over.

    Raises:
        ConnectionError: If the server dies, or is not up in time; the message shows the end of the log.
        FileNotFoundError, ValueError: If the model's files are missing, not whole or pickles.
    """
    check_model_files(model)
    port = _free_port()
    template = log.with_name("chat_template.jinja")
    write_text(template, tokenizer.chat_template)
    flags = [*parser_flags(format_of(tokenizer)), "--chat-template", str(template)]
    command = [*_COMMAND, "--port", str(port), *_flags(model, adapters, max_length, tensor_parallel), *flags]
    process = _start(command, log)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    except Exception as error:
        # An error of the block may be due to the server's death: then that is raised, with the log.
        timeout = DEATH_TIMEOUT if isinstance(error, OSError) else 0
        if isinstance(error, _ServerDied) or not _has_exited(process, timeout):
            raise
        raise _ServerDied(process, log) from error
    finally:
        _stop(process)


def _start(command: list[str], log: Path) -> subprocess.Popen:
    """Start the command in its own session, so that the engine's processes can be stopped with it."""
    wrapper = [sys.executable, "-I", str(Path(__file__).with_name("run_with_parent.py")), str(STOP_TIMEOUT)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.Popen(
            [*wrapper, *command],
            stdin=subprocess.PIPE,  # open until `_stop`, or until this process exits
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,
        )


class _ServerDied(ConnectionError):
    def __init__(self, process: subprocess.Popen, log: Path) -> None:
        super().__init__(f"The server died with exit code {process.returncode}. {_log_tail(log)}")


# The module, since the `vllm` console script of the CPU build is broken.
_COMMAND = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]


def _flags(model: str, adapters: dict[str, str], max_length: int, tensor_parallel: int) -> Iterator[str]:
    yield from ("--model", model, "--served-model-name", "base", "--max-model-len", str(max_length))
    # Weights in pickles could run code of whoever wrote them.
    yield from ("--load-format", "safetensors")
    # vLLM's sampling defaults instead of the model's, which may include a repetition penalty.
    yield from ("--generation-config", "vllm", "--tensor-parallel-size", str(tensor_parallel))
    if adapters:
        rank = max(map(adapter_rank, adapters.values()))
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
    open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open  # ignores proxy settings
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _ServerDied(process, log)
        try:
            with open_url(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise ConnectionError(f"The server is not up after {START_TIMEOUT} s. {_log_tail(log)}")


def _log_tail(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    cause = _EXCEPTION.search(text)
    end = "\n".join([f"The end of {log}:", *text.splitlines()[-_LOG_LINES:]])
    return f"Its first error is {cause[1]!r}. {end}" if cause else end


def _stop(process: subprocess.Popen) -> None:
    """Stop the server and its engine's processes, which may outlive it."""
    _signal_group(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT)
    _signal_group(process, signal.SIGKILL)
    process.communicate()


def _has_exited(process: subprocess.Popen, timeout: float) -> bool:
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        return False
    return True


def _signal_group(process: subprocess.Popen, signal_number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal_number)
