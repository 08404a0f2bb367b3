import pytest
from datasets import Dataset, DatasetDict

from cb_datasets.ingest import is_held_out, split_by_group


def traces(*groups: str) -> Dataset:
    return Dataset.from_dict({"group": list(groups)})


def test_sides_follow_the_group_alone():
    assert [is_held_out(f"group {k}", 0.3) for k in range(12)] == [is_held_out(f"group {k}", 0.3) for k in range(12)]
    held = sum(is_held_out(f"group {k}", 0.3) for k in range(2000))
    assert 500 < held < 700
    assert not is_held_out("x", 0.0) and is_held_out("x", 1.0)


def test_a_larger_fraction_only_adds_groups():
    names = [f"group {k}" for k in range(500)]
    assert {n for n in names if is_held_out(n, 0.1)} < {n for n in names if is_held_out(n, 0.3)}


def test_groups_never_part():
    sides = split_by_group(DatasetDict(train=traces(*["a", "b", "c", "d"] * 20)), 0.5, "test")
    assert not set(sides["train"]["group"]) & set(sides["eval"]["group"])
    assert len(sides["train"]) + len(sides["eval"]) == 80


def test_a_split_of_the_source_is_held_out_whole():
    sides = split_by_group(DatasetDict(train=traces("a"), test=traces("b", "c"), dev=traces("d")), 0.0, "test")
    assert sides["eval"]["group"] == ["b", "c"] and sides["train"]["group"] == ["a"]


def test_a_group_on_both_sides_stops_the_line():
    with pytest.raises(ValueError, match="1 groups are in train and in test, e.g. 'a'"):
        split_by_group(DatasetDict(train=traces("a"), test=traces("a", "b")), 0.0, "test")


def test_a_source_for_evaluation_only():
    sides = split_by_group(DatasetDict(test=traces("a", "b")), 0.2, "test")
    assert len(sides["train"]) == 0 and sides["eval"]["group"] == ["a", "b"]
    with pytest.raises(ValueError, match="neither train nor dev"):
        split_by_group(DatasetDict(test=traces("a")), 0.2, "dev")
