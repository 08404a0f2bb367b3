"""The progress bar of a generation run.

b4_flips (train):  62%|██████▎   | 500/800 prompts [01:12<00:43, 6.9 samples/s, 212 tokens/s, 41% accepted]
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from datasets import Dataset
from tqdm import tqdm

from ..terminal import shown_line


class Progress:
    """Progress bar over prompts. Rates and remaining time leave out shards that were finished before this run.

    Args:
        description (`str`): Label of the bar.
        total (`int`): Number of prompts.
        finished (`int`): Number of prompts in shards that were finished before.
        accepts (`Callable[[dict], bool]`, *optional*): Predicate on completion rows; without it no acceptance rate is
            shown.
    """

    def __init__(
        self, description: str, total: int, finished: int, accepts: Callable[[dict], bool] | None = None
    ) -> None:
        self._bar = tqdm(
            desc=shown_line(description),
            total=total,
            initial=finished,
            smoothing=0,  # average over the whole run: shards differ too much to extrapolate from the latest ones
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} prompts [{elapsed}<{remaining}{postfix}]",
        )
        self._accepts = accepts
        self._started = time.perf_counter()
        self._samples = self._tokens = self._accepted = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def add_shard(self, n_prompts: int, completions: Dataset) -> None:
        """Count a shard that was just generated, and redraw the bar."""
        seconds = time.perf_counter() - self._started
        self._samples += len(completions)
        self._tokens += sum(completions["new_tokens"])
        rates = f"{self._samples / seconds:.1f} samples/s, {self._tokens / seconds:.0f} tokens/s"
        if self._accepts is not None:
            self._accepted += sum(map(self._accepts, completions))
            rates += f", {self._accepted / self._samples:.0%} accepted"
        self._bar.set_postfix_str(rates, refresh=False)
        self._bar.update(n_prompts)
