"""Backends that complete all prompts that wait as one batch.

    run 1   prompt ------> wait ......... completion ---> tool ---> prompt
    run 2         prompt -> wait ........ completion ---> tool ---> prompt      the next batch: all three again
    run 3   tool ---> prompt -> wait .... completion ---> tool ---> prompt

A model completes sixteen prompts together in little more time than one alone.
"""

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Self

from ..generation import Backend, Sampling
from ..generation.backend import Completion


# Seconds to wait for further prompts. Runs whose completions came in one batch ask again within a few milliseconds of
# each other; without the pause the first of them would go alone.
_PAUSE = 0.01


@dataclass(frozen=True)
class _Waiting:
    """A prompt that waits for its completion."""

    model: str
    ids: list[int]
    sampling: Sampling
    completion: "Future[Completion]" = field(default_factory=Future)


class BatchedBackends:
    """Completes prompts of several threads in batches, in a thread of its own. To be used as a context manager.

    Args:
        backends (`Mapping[str, Backend]`): Backends by served model name. They may share one network: one of them
            generates at a time.
    """

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self.backends = backends
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def complete(self, model: str, ids: list[int], sampling: Sampling) -> Completion:
        """The completion of a prompt; waits for its batch.

        Args:
            model (`str`): Served model name.
            ids (`list[int]`): Token ids of the prompt.
            sampling ([`Sampling`]): Sampling parameters.

        Raises:
            Exception: Whatever the backend raises for this prompt alone.
        """
        waiting = _Waiting(model, ids, sampling)
        self._queue.put(waiting)
        return waiting.completion.result()

    def _serve(self) -> None:
        while (first := self._queue.get()) is not None:
            time.sleep(_PAUSE)
            groups = defaultdict(list)
            groups[first.model, first.sampling].append(first)
            while not self._queue.empty():
                waiting = self._queue.get()
                if waiting is None:
                    self._queue.put(None)
                    break
                groups[waiting.model, waiting.sampling].append(waiting)
            for group in groups.values():
                self._complete(group)

    def _complete(self, group: list[_Waiting]) -> None:
        try:
            completions = self.backends[group[0].model].generate(
                [waiting.ids for waiting in group], group[0].sampling, seed=0
            )
        except Exception as error:
            if len(group) == 1:
                group[0].completion.set_exception(error)
                return
            # One prompt must not fail the others.
            for waiting in group:
                self._complete([waiting])
            return
        for waiting, [completion] in zip(group, completions, strict=True):
            waiting.completion.set_result(completion)
