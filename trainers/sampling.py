"""Which rows meet in a micro-batch.

A micro-batch is `batch_size` rows of Ds followed by `retain_batch_size` rows of Dr. Two endless streams feed it: Ds
shuffled, again and again, and Dr dealt from one such stream per class. The share of a class is its weight times its
number of rows, so that a row of weight 2 is met twice as often as a row of weight 1, and every row of a class is met
once before any is met again. Both streams are a function of the rows and the seed alone: how many rows a micro-batch
takes from them, how many micro-batches make a step, and where a run was interrupted do not change what comes next.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice

import numpy as np
from torch.utils.data import Sampler


def shuffled_forever(rows: Sequence[int], seed: Sequence[int]) -> Iterator[int]:
    """All rows in random order, then all of them in another order, and so on."""
    generator = np.random.default_rng(seed)
    while True:
        yield from generator.permutation(rows).tolist()


def stratified_forever(rows: Mapping[str, Sequence[int]], weights: Mapping[str, float], seed: int) -> Iterator[int]:
    """
    Rows of several classes, each class as often as its share says.

    Every draw goes to the class that is furthest behind its share, so that any stretch of the stream is within about a
    row of the shares, a single micro-batch included.

    Args:
        rows (`Mapping[str, Sequence[int]]`):
            Rows of each class.
        weights (`Mapping[str, float]`):
            Weight of a row, by class.
        seed (`int`):
            Seed of the order within each class.
    """
    streams = {name: shuffled_forever(rows[name], (seed, index)) for index, name in enumerate(sorted(rows), start=1)}
    masses = {name: weights[name] * len(rows[name]) for name in streams}
    shares = {name: mass / sum(masses.values()) for name, mass in masses.items()}
    drawn = dict.fromkeys(streams, 0)
    for total in count(1):
        behind = {name: share * total - drawn[name] for name, share in shares.items()}
        name = max(behind, key=behind.__getitem__)
        drawn[name] += 1
        yield next(streams[name])


class CircuitBreakerBatchSampler(Sampler[list[int]]):
    """
    Micro-batches of a whole training run.

    Args:
        circuit_breaker_rows (`Sequence[int]`):
            Rows of Ds.
        retain_rows (`Mapping[str, Sequence[int]]`):
            Rows of Dr by class.
        retain_weights (`Mapping[str, float]`):
            Weight of a row of Dr, by class.
        batch_size (`int`):
            Rows of Ds in a micro-batch.
        retain_batch_size (`int`):
            Rows of Dr in a micro-batch.
        num_batches (`int`):
            Micro-batches of the run, over all processes.
        seed (`int`):
            Seed of the order.
    """

    def __init__(
        self,
        circuit_breaker_rows: Sequence[int],
        retain_rows: Mapping[str, Sequence[int]],
        retain_weights: Mapping[str, float],
        batch_size: int,
        retain_batch_size: int,
        num_batches: int,
        seed: int,
    ):
        self.circuit_breaker_rows = circuit_breaker_rows
        self.retain_rows = retain_rows
        self.retain_weights = retain_weights
        self.rows_per_batch = (batch_size, retain_batch_size)
        self.num_batches = num_batches
        self.seed = seed

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        circuit_breaker = shuffled_forever(self.circuit_breaker_rows, (self.seed, 0))
        retain = stratified_forever(self.retain_rows, self.retain_weights, self.seed)
        batch_size, retain_batch_size = self.rows_per_batch
        for _ in range(self.num_batches):
            yield [*islice(circuit_breaker, batch_size), *islice(retain, retain_batch_size)]
