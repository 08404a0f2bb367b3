"""What a step kept and what it dropped, by name: every row that does not go on is counted under a reason."""

from collections import Counter
from collections.abc import Iterable, Sequence

from datasets import Dataset

from ..files import to_dataset
from ..sample import SAMPLE_FEATURES


class Yield:
    """Samples of one step, with named drops."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples: list[dict] = []
        self.drops: Counter[str] = Counter()
        self._ids: set[str] = set()

    def keep(self, sample: dict) -> None:
        """Keep a sample; one that is there already, word for word, is dropped as `duplicate`."""
        if sample["id"] in self._ids:
            self.drops["duplicate"] += 1
            return
        self._ids.add(sample["id"])
        self.samples.append(sample)

    def drop(self, reason: str) -> None:
        self.drops[reason] += 1

    def add(self, other: "Yield") -> None:
        """Take over what another round kept and dropped."""
        self.drops += other.drops
        for sample in other.samples:
            self.keep(sample)

    def dataset(self) -> Dataset:
        return to_dataset(self.samples, SAMPLE_FEATURES)

    def report(self) -> dict:
        """`{set, candidates, kept, splits, classes, sources, categories, drops}`, every value a count."""
        return {
            "set": self.name,
            "candidates": len(self.samples) + sum(self.drops.values()),
            "kept": len(self.samples),
            "splits": counted(sample["split"] for sample in self.samples),
            "classes": counted(sample["priority_class"] for sample in self.samples),
            "completions": counted(sample["provenance"]["completion_source"] for sample in self.samples),
            "categories": counted(sample["category"] or "none" for sample in self.samples),
            "drops": dict(sorted(self.drops.items())),
        }


def counted(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs, by name."""
    return dict(sorted(Counter(values).items()))


def listed(counts: dict[str, int]) -> str:
    """Counts in one line: `kept 3, dropped 2`."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def quantiles(values: Sequence[int]) -> dict[str, int] | None:
    """`{min, p50, p95, max, mean}` of some lengths; `None` if there are none."""
    if not values:
        return None
    ordered = sorted(values)
    p50, p95 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95))
    return {"min": ordered[0], "p50": p50, "p95": p95, "max": ordered[-1], "mean": round(sum(ordered) / len(ordered))}
