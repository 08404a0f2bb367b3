"""A fake model, and runs of `complete` in separate processes that tests can kill."""

import hashlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import ClassVar

from datasets import Dataset
from tqdm import tqdm

from cb_datasets.generation import Backend, Completion, Sampling, complete


END = "<|eot_id|>"

# The fork server imports the libraries once; each run is a fresh fork of it.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["cb_datasets.generation.transformers_backend"])


class CharacterTokenizer:
    """A tokenizer with one token per character."""

    chat_template = END
    bos_token_id = None
    is_fast = False
    added_tokens_decoder: ClassVar = {}

    def apply_chat_template(self, messages: list[dict], **_) -> str:
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)

    def __call__(self, text: str, **_) -> dict:
        return {"input_ids": [ord(character) for character in text]}


class FakeBackend:
    """A model whose completions depend on everything that a real one's may: prompt, seed, batch position and sample.

    `calls` holds the prompt ids of each call of `generate`; `on_call` gets the number of each call before it runs.
    """

    model = "fake-model"
    revision = "1"
    max_length = 8192

    def __init__(self, seconds_per_prompt: float = 0.0, on_call: Callable[[int], None] = lambda call: None) -> None:
        self.tokenizer = CharacterTokenizer()
        self.calls: list[list[list[int]]] = []
        self._seconds_per_prompt = seconds_per_prompt
        self._on_call = on_call

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        self._on_call(len(self.calls))
        self.calls.append(prompt_token_ids)
        time.sleep(self._seconds_per_prompt * len(prompt_token_ids))
        return [
            [self._completion(f"{ids} {seed} {position} {sample}") for sample in range(sampling.num_samples)]
            for position, ids in enumerate(prompt_token_ids)
        ]

    def _completion(self, inputs: str) -> Completion:
        text = hashlib.sha256(inputs.encode()).hexdigest() + END
        return Completion(tuple(map(ord, text)), text, "stop")


def die_before_rename(call: int) -> None:
    """Kill the process after its next shard is written and before it is renamed into place."""
    os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)


def start_run(
    make_backend: Callable[[], Backend], prompts: Dataset, sampling: Sampling, work_dir: Path, **options
) -> BaseProcess:
    """Start a process that has loaded its backend and is about to call `complete`."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_run, args=(sender, make_backend, prompts, sampling, work_dir, options))
    process.start()
    sender.close()
    assert receiver.poll(timeout=120) and receiver.recv(), "the process did not come up"
    return process


def kill_at_random(process: BaseProcess, work_dir: Path, rng: random.Random, max_shards: int) -> None:
    """`kill -9` after at most `max_shards` further shards and up to a tenth of a second."""
    goal = len(shards_in(work_dir)) + rng.randint(0, max_shards)
    while len(shards_in(work_dir)) < goal and process.is_alive():
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run was over before it could be killed"


def shards_in(work_dir: Path) -> list[Path]:
    """Finished shards of all runs."""
    return sorted(work_dir.glob("*/shard-*.parquet"))


def _run(ready_sender, make_backend, prompts, sampling, work_dir, options) -> None:
    tqdm.set_lock(threading.RLock())  # tqdm's default lock is a semaphore, which a killed process would leak
    backend = make_backend()
    ready_sender.send(True)
    complete(prompts, backend, sampling, work_dir, **options)
