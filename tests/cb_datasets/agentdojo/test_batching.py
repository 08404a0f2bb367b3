"""Prompts of several threads, completed in batches."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cb_datasets.agentdojo.batching import BatchedBackends
from cb_datasets.generation import Sampling
from cb_datasets.generation.backend import Completion


class Echo:
    """Completes a prompt with its tokens, and fails every batch that has the token 13."""

    def __init__(self):
        self.batches = []
        self.may_go_on = threading.Event()

    def generate(self, prompts, sampling, seed):
        self.batches.append((len(prompts), sampling.max_new_tokens))
        self.may_go_on.wait(timeout=10)
        if any(13 in ids for ids in prompts):
            raise MemoryError("no room")
        return [[Completion(tuple(ids), str(ids), "stop")] for ids in prompts]


@pytest.fixture
def echo():
    return Echo()


def complete_all(batched, prompts, **options):
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda ids: batched.complete("echo", ids, Sampling(**options)), prompts))


def test_what_waits_is_completed_together(echo):
    prompts = [[number] for number in range(20, 29)]
    with BatchedBackends({"echo": echo}) as batched, ThreadPoolExecutor(2) as pool:
        first = pool.submit(batched.complete, "echo", [1], Sampling())
        while not echo.batches:
            time.sleep(0.001)
        pool.submit(lambda: (time.sleep(0.2), echo.may_go_on.set()))
        completions = complete_all(batched, prompts)
        assert first.result().token_ids == (1,)
    assert [completion.token_ids for completion in completions] == [tuple(ids) for ids in prompts]
    assert [size for size, _ in echo.batches] == [1, 9]


def test_requests_with_other_settings_are_other_batches(echo):
    echo.may_go_on.set()
    with BatchedBackends({"echo": echo}) as batched, ThreadPoolExecutor(2) as pool:
        limits = (8, 16)
        futures = [pool.submit(batched.complete, "echo", [1], Sampling(max_new_tokens=limit)) for limit in limits]
        assert [future.result().token_ids for future in futures] == [(1,), (1,)]
    assert sorted(echo.batches) == [(1, 8), (1, 16)]


def test_a_prompt_that_fails_fails_alone(echo):
    echo.may_go_on.set()
    with BatchedBackends({"echo": echo}) as batched, ThreadPoolExecutor(3) as pool:
        good, bad, other = (pool.submit(batched.complete, "echo", ids, Sampling()) for ids in ([1], [13], [2]))
        assert good.result().token_ids == (1,) and other.result().token_ids == (2,)
        with pytest.raises(MemoryError, match="no room"):
            bad.result()
