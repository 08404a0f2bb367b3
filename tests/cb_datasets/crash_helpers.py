"""A model that costs nothing, and runs of `complete` in processes of their own, which can be killed."""

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

from datasets import Dataset
from tqdm import tqdm

from cb_datasets.generation import Backend, Completion, Sampling, complete


END = "<|eot_id|>"

# The server imports the libraries once; each run is a fresh fork of it.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["cb_datasets.generation.transformers_backend"])


class Characters:
    """A tokenizer with a token for each character."""

    chat_template = END
    is_fast = False

    def apply_chat_template(self, messages: list[dict], **_) -> str:
        return "\n".join(f"{message['role']}: {message['content']}" for message in messages)

    def __call__(self, text: str, **_) -> dict:
        return {"input_ids": [ord(character) for character in text]}


class FakeBackend:
    """A model whose completions depend on all that a model's may: prompt, seed, place in the batch and sample.

    `asked` holds the prompts' ids of each call; `before` is told the number of each call before it is answered.
    """

    model = "parrot"
    revision = "1"
    max_length = 8192

    def __init__(self, seconds_per_prompt: float = 0.0, before: Callable[[int], None] = lambda call: None) -> None:
        self.tokenizer = Characters()
        self.asked: list[list[list[int]]] = []
        self._seconds_per_prompt = seconds_per_prompt
        self._before = before

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        self._before(len(self.asked))
        self.asked.append(prompt_token_ids)
        time.sleep(self._seconds_per_prompt * len(prompt_token_ids))
        return [
            [self._completion(f"{ids} {seed} {place} {sample}") for sample in range(sampling.num_samples)]
            for place, ids in enumerate(prompt_token_ids)
        ]

    def _completion(self, decided_by: str) -> Completion:
        text = hashlib.sha256(decided_by.encode()).hexdigest() + END
        return Completion(tuple(map(ord, text)), text, "stop")


def die_before_the_move(call: int) -> None:
    """Take the process down when its next shard is written and not yet in place."""
    os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)


def started(
    make_backend: Callable[[], Backend], prompts: Dataset, sampling: Sampling, work_dir: Path, **options
) -> BaseProcess:
    """A process that has its model and is about to call `complete`."""
    ready, told = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_run, args=(told, make_backend, prompts, sampling, work_dir, options))
    process.start()
    told.close()
    assert ready.poll(timeout=120) and ready.recv(), "the process did not come up"
    return process


def kill_at_random(process: BaseProcess, work_dir: Path, moments: random.Random, most_shards: int) -> None:
    """`kill -9`, up to `most_shards` shards and a tenth of a second from now."""
    goal = len(shards_in(work_dir)) + moments.randint(0, most_shards)
    while len(shards_in(work_dir)) < goal and process.is_alive():
        time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.1))
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the run was over before it could be killed"


def shards_in(work_dir: Path) -> list[Path]:
    """Finished shards of all runs."""
    return sorted(work_dir.glob("*/shard-*.parquet"))


def _run(told, make_backend, prompts, sampling, work_dir, options) -> None:
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process would leave behind
    backend = make_backend()
    told.send(True)
    complete(prompts, backend, sampling, work_dir, **options)
