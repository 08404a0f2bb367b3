"""The samples that a step keeps, and counts of those it drops, by reason."""

from collections import Counter

from datasets import Dataset

from ..counts import counted
from ..files import to_dataset
from ..sample import READ_BY_SCHEMA, SAMPLE_FEATURES


# The category of a prompt without an attack.
NO_CATEGORY = "none"


class SampleSet:
    """Samples of one set, and named, counted drops."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples: list[dict] = []
        self._dropped: Counter[tuple[str, str]] = Counter()  # by category and reason
        self._ids: set[str] = set()

    def keep(self, sample: dict) -> None:
        """Keep a sample; a verbatim repeat is dropped as `duplicate`."""
        if sample["id"] in self._ids:
            self.drop("duplicate", sample["category"])
            return
        self._ids.add(sample["id"])
        self.samples.append(sample)

    def drop(self, reason: str, category: str | None) -> None:
        """Count a completion that is not kept, under the attack category of its prompt."""
        self._dropped[category or NO_CATEGORY, reason] += 1

    def remove(self, ids: set[str], reason: str) -> None:
        """Drop samples that have been kept so far."""
        kept = []
        for sample in self.samples:
            self.drop(reason, sample["category"]) if sample["id"] in ids else kept.append(sample)
        self.samples = kept

    def add_round(self, other: "SampleSet") -> None:
        """Take over the samples and the drops of another round."""
        self._dropped += other._dropped
        for sample in other.samples:
            self.keep(sample)

    @property
    def drops(self) -> Counter[str]:
        """Counts of drops by reason."""
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

    def summary(self) -> dict:
        """The set's report: counts of what was kept and dropped."""
        return {
            "set": self.name,
            "candidates": len(self.samples) + self._dropped.total(),
            "kept": len(self.samples),
            "splits": counted(sample["split"] for sample in self.samples),
            "classes": counted(sample["priority_class"] for sample in self.samples),
            "completions": counted(sample["provenance"]["completion_source"] for sample in self.samples),
            "read_by_schema": sum(READ_BY_SCHEMA in (sample["provenance"]["fitted"] or "") for sample in self.samples),
            "categories": counted(sample["category"] or NO_CATEGORY for sample in self.samples),
            "by_category": self.by_category(),
            "drops": dict(sorted(self.drops.items())),
        }
