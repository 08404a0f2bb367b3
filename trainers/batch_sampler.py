"""Which rows share a micro-batch.

A micro-batch is `batch_size` rows of Ds followed by `retain_batch_size` rows of Dr. Ds is shuffled for each pass. Dr
is drawn from one pool per class, without replacement: every row of a class comes up once before any comes up again. A
class is drawn in proportion to its number of rows times its weight, so that a row of weight 2 comes up twice as often
as a row of weight 1.

Siblings of a Ds row (rows of the same record: the right call on the attacked prompt, the clean twin) are drawn first
in the optimizer step of that row and put into its micro-batch: the beginning that their prompts share is then computed
once.

Both orders depend on the rows, the seed and the number of rows in an optimizer step only, not on the number of
micro-batches and processes that the step is divided into, nor on where a run was interrupted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset, Sampler


def shuffled_passes(rows: Sequence[int], seed: Sequence[int]) -> Iterator[int]:
    """Endless passes over all rows, each in another random order."""
    generator = np.random.default_rng(seed)
    while rows:
        yield from generator.permutation(rows).tolist()


class ClassPool:
    """
    Rows of one class, drawn in random order without replacement; refilled when it is empty.

    Args:
        rows (`Sequence[int]`):
            The rows.
        seed (`Sequence[int]`):
            Seed of their order.
    """

    def __init__(self, rows: Sequence[int], seed: Sequence[int]):
        self.rows = rows
        self.stream = shuffled_passes(rows, seed)
        self.remaining: dict[int, None] = {}  # a dictionary as an ordered set: the order of the draws

    def draw(self, preferred: Iterable[int] = ()) -> int:
        """The first of the `preferred` rows that remains in the pool, or else the next row."""
        if not self.remaining:
            self.remaining = dict.fromkeys(islice(self.stream, len(self.rows)))
        row = next((row for row in preferred if row in self.remaining), None)
        row = next(iter(self.remaining)) if row is None else row
        del self.remaining[row]
        return row


def class_stream(masses: Mapping[str, float]) -> Iterator[str]:
    """
    Endless class names, each in proportion to its mass.

    The next class is the one furthest behind its quota, so that any stretch of the stream, a single micro-batch
    included, is within about a row of the quotas.
    """
    total = sum(masses.values())
    counts = dict.fromkeys(masses, 0)
    for number in count(1):
        behind = {name: mass / total * number - counts[name] for name, mass in masses.items()}
        name = max(behind, key=behind.__getitem__)
        counts[name] += 1
        yield name


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
        num_steps (`int`):
            Optimizer steps of the run.
        seed (`int`):
            Seed of the order.
        batches_per_step (`int`, *optional*, defaults to `1`):
            Micro-batches of an optimizer step, over all processes.
        siblings (`Mapping[int, Sequence[int]]`, *optional*):
            For rows of Ds, the rows of Dr that come from the same record.
    """

    def __init__(
        self,
        circuit_breaker_rows: Sequence[int],
        retain_rows: Mapping[str, Sequence[int]],
        retain_weights: Mapping[str, float],
        batch_size: int,
        retain_batch_size: int,
        num_steps: int,
        seed: int,
        batches_per_step: int = 1,
        siblings: Mapping[int, Sequence[int]] | None = None,
    ):
        self.circuit_breaker_rows = circuit_breaker_rows
        self.retain_rows = {name: retain_rows[name] for name in sorted(retain_rows)}
        self.masses = {name: retain_weights[name] * len(rows) for name, rows in self.retain_rows.items()}
        # Not `batch_size`: Accelerate reads that attribute as the number of rows in every batch
        self.breaker_size, self.retain_size = batch_size, retain_batch_size
        self.num_steps, self.batches_per_step = num_steps, batches_per_step
        self.seed = seed
        self.siblings = siblings or {}

    def __len__(self) -> int:
        return self.num_steps * self.batches_per_step

    def __iter__(self) -> Iterator[list[int]]:
        breaker_stream = shuffled_passes(self.circuit_breaker_rows, (self.seed, 0))
        pools = {
            name: ClassPool(rows, (self.seed, index))
            for index, (name, rows) in enumerate(self.retain_rows.items(), start=1)
        }
        names = class_stream(self.masses)
        for _ in range(self.num_steps):
            # A whole step is drawn before it is divided, so that its rows do not depend on the division
            breaker_rows = list(islice(breaker_stream, self.breaker_size * self.batches_per_step))
            siblings = [sibling for row in breaker_rows for sibling in self.siblings.get(row, ())]
            num_retain = self.retain_size * self.batches_per_step if pools else 0
            retain_rows = [pools[name].draw(siblings) for name in islice(names, num_retain)]
            yield from self._micro_batches(breaker_rows, retain_rows)

    def _micro_batches(self, breaker_rows: list[int], retain_rows: list[int]) -> list[list[int]]:
        """Divide the rows of a step into micro-batches, siblings together where there is room."""
        batches = [
            breaker_rows[start : start + self.breaker_size]
            for start in range(0, self.batches_per_step * self.breaker_size, self.breaker_size)
        ]
        batch_of = {
            sibling: i for i, batch in enumerate(batches) for row in batch for sibling in self.siblings.get(row, ())
        }
        drawn: list[list[int]] = [[] for _ in batches]  # rows of Dr by micro-batch
        unpaired = []
        for row in retain_rows:
            batch = drawn[batch_of[row]] if row in batch_of else None
            if batch is not None and len(batch) < self.retain_size:
                batch.append(row)
            else:
                unpaired.append(row)
        rest = iter(unpaired)
        for batch in drawn:
            batch.extend(islice(rest, self.retain_size - len(batch)))
        return [batch + retain_batch for batch, retain_batch in zip(batches, drawn, strict=True)]


class RowsAndCopies(Dataset):
    """
    The rows of a dataset, with a column `counts`; and at [`copy_of`] their numbers the same rows, which do not count.

    A process that has run out of batches to evaluate runs copies of others, because the processes gather together.

    Args:
        rows ([`~datasets.Dataset`]):
            The rows.
    """

    def __init__(self, rows: datasets.Dataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.rows[max(number, copy_of(number))] | {"counts": number >= 0}


def copy_of(row: int) -> int:
    """The number of a row's copy in [`RowsAndCopies`], and of a copy's row."""
    return -1 - row
