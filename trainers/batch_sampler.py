"""Which rows meet in a micro-batch.

A micro-batch is `batch_size` rows of Ds followed by `retain_batch_size` rows of Dr. Two endless streams feed it: Ds
shuffled, again and again, and Dr dealt from one such deck per class. The share of a class is its weight times its
number of rows, so that a row of weight 2 is met twice as often as a row of weight 1, and every row of a class is met
once before any is met again.

Of a class that has siblings of Ds rows (the same prompt with the right call, the clean twin) those are dealt first
whose Ds row is in the same optimizer step, and put into its micro-batch: what their prompts share is then computed
once.

Both streams are a function of the rows, the seed and the rows in an optimizer step: how many micro-batches make the
step, over how many processes, and where a run was interrupted do not change what comes next.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice

import numpy as np
from torch.utils.data import Sampler


def shuffled_forever(rows: Sequence[int], seed: Sequence[int]) -> Iterator[int]:
    """All rows in random order, then all of them in another order, and so on."""
    generator = np.random.default_rng(seed)
    while rows:
        yield from generator.permutation(rows).tolist()


class ClassPool:
    """
    Rows of one class, in random order. Each is dealt once before any is dealt again.

    Args:
        rows (`Sequence[int]`):
            The rows.
        seed (`Sequence[int]`):
            Seed of their order.
    """

    def __init__(self, rows: Sequence[int], seed: Sequence[int]):
        self.rows = rows
        self.stream = shuffled_forever(rows, seed)
        self.left: dict[int, None] = {}  # in the order in which they come, if nothing is wanted

    def deal(self, wanted: Iterable[int] = ()) -> int:
        """The first of `wanted` that is left, or the next row."""
        if not self.left:
            self.left = dict.fromkeys(islice(self.stream, len(self.rows)))
        row = next((row for row in wanted if row in self.left), None)
        row = next(iter(self.left)) if row is None else row
        del self.left[row]
        return row


def classes_forever(masses: Mapping[str, float]) -> Iterator[str]:
    """
    Names of classes, each as often as its share of the mass.

    Every draw goes to the class that is furthest behind its share, so that any stretch of the stream is within about a
    row of the shares, a single micro-batch included.
    """
    total = sum(masses.values())
    drawn = dict.fromkeys(masses, 0)
    for number in count(1):
        behind = {name: mass / total * number - drawn[name] for name, mass in masses.items()}
        name = max(behind, key=behind.__getitem__)
        drawn[name] += 1
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
            For rows of Ds, the rows of Dr that are made of the same record.
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
        # Not `batch_size`: a sampler with that attribute is taken to make batches of so many rows
        self.harmful_size, self.retain_size = batch_size, retain_batch_size
        self.num_steps, self.batches_per_step = num_steps, batches_per_step
        self.seed = seed
        self.siblings = siblings or {}

    def __len__(self) -> int:
        return self.num_steps * self.batches_per_step

    def __iter__(self) -> Iterator[list[int]]:
        circuit_breaker = shuffled_forever(self.circuit_breaker_rows, (self.seed, 0))
        decks = {
            name: ClassPool(rows, (self.seed, index))
            for index, (name, rows) in enumerate(self.retain_rows.items(), start=1)
        }
        names = classes_forever(self.masses)
        for _ in range(self.num_steps):
            harmful = list(islice(circuit_breaker, self.harmful_size * self.batches_per_step))
            wanted = [sibling for row in harmful for sibling in self.siblings.get(row, ())]
            number = self.retain_size * self.batches_per_step if decks else 0
            retain = [decks[name].deal(wanted) for name in islice(names, number)]
            yield from self._micro_batches(harmful, retain)

    def _micro_batches(self, harmful: list[int], retain: list[int]) -> list[list[int]]:
        """The rows of a step, siblings in one micro-batch as far as there is room."""
        batches = [
            harmful[start : start + self.harmful_size]
            for start in range(0, self.batches_per_step * self.harmful_size, self.harmful_size)
        ]
        home = {
            sibling: i for i, batch in enumerate(batches) for row in batch for sibling in self.siblings.get(row, ())
        }
        dealt: list[list[int]] = [[] for _ in batches]
        strangers = []
        for row in retain:
            batch = dealt[home[row]] if row in home else None
            if batch is not None and len(batch) < self.retain_size:
                batch.append(row)
            else:
                strangers.append(row)
        rest = iter(strangers)
        for batch in dealt:
            batch.extend(islice(rest, self.retain_size - len(batch)))
        return [batch + others for batch, others in zip(batches, dealt, strict=True)]
