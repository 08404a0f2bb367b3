"""What a step kept and what it dropped, by name: every row that does not go on is counted under a reason."""

from collections import Counter

from datasets import Dataset

from ..counts import counted
from ..files import to_dataset
from ..sample import SAMPLE_FEATURES


# The category of a prompt without an attack.
NO_CATEGORY = "none"


class SampleSet:
    """Samples of one step, with named drops."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples: list[dict] = []
        self._dropped: Counter[tuple[str, str]] = Counter()  # by category and reason
        self._ids: set[str] = set()

    def keep(self, sample: dict) -> None:
        """Keep a sample; one that is there already, word for word, is dropped as `duplicate`."""
        if sample["id"] in self._ids:
            self.drop("duplicate", sample["category"])
            return
        self._ids.add(sample["id"])
        self.samples.append(sample)

    def drop(self, reason: str, category: str | None) -> None:
        """Count what is not kept, under the attack category of its prompt."""
        self._dropped[category or NO_CATEGORY, reason] += 1

    def remove(self, ids: set[str], reason: str) -> None:
        """Drop samples that were kept so far."""
        kept = []
        for sample in self.samples:
            self.drop(reason, sample["category"]) if sample["id"] in ids else kept.append(sample)
        self.samples = kept

    def add(self, other: "SampleSet") -> None:
        """Take over what another round kept and dropped."""
        self._dropped += other._dropped
        for sample in other.samples:
            self.keep(sample)

    @property
    def drops(self) -> Counter[str]:
        """What was not kept, by reason."""
        counts: Counter[str] = Counter()
        for (_, reason), count in self._dropped.items():
            counts[reason] += count
        return counts

    def by_category(self) -> dict[str, dict[str, dict[str, int]]]:
        """`{category: {"kept": {outcome: count}, "dropped": {reason: count}}}`; most reasons are outcomes too."""
        kept = Counter((sample["category"] or NO_CATEGORY, sample["outcome"]) for sample in self.samples)
        table: dict[str, dict[str, dict[str, int]]] = {}
        for part, counts in (("kept", kept), ("dropped", self._dropped)):
            for (category, name), count in sorted(counts.items()):
                table.setdefault(category, {"kept": {}, "dropped": {}})[part][name] = count
        return dict(sorted(table.items()))

    def dataset(self) -> Dataset:
        return to_dataset(self.samples, SAMPLE_FEATURES)

    def report(self) -> dict:
        """What was kept and dropped, every number a count."""
        return {
            "set": self.name,
            "candidates": len(self.samples) + self._dropped.total(),
            "kept": len(self.samples),
            "splits": counted(sample["split"] for sample in self.samples),
            "classes": counted(sample["priority_class"] for sample in self.samples),
            "completions": counted(sample["provenance"]["completion_source"] for sample in self.samples),
            "categories": counted(sample["category"] or NO_CATEGORY for sample in self.samples),
            "by_category": self.by_category(),
            "drops": dict(sorted(self.drops.items())),
        }
