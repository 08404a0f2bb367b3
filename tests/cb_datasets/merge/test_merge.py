"""What merge keeps, what it leaves out and under which name."""

import pytest

from builders.trace import message
from cb_datasets.checks.thresholds import MergedThresholds
from cb_datasets.files import load_rows, read_json, save_rows, to_dataset
from cb_datasets.merge import write as write_module
from cb_datasets.merge.merge import MergeOptions, merge
from cb_datasets.sample import SAMPLE_FEATURES

from ..conftest import INJECTION, REFUSAL, RIGHT, TEXT, WRONG


ANY = MergedThresholds(dr_ratio=0, min_adversarial_safe=0)
THINGS = "pump valve filter rotor gasket bearing seal spring lever piston nozzle hinge".split()


@pytest.fixture
def asking(make_sample):
    """`asking(thing, completion, class)`: a sample that asks about some thing, with a pair and a group of its own."""

    def make(thing: str, completion: str, priority_class: str, **columns) -> dict:
        request = f"{thing.title()} {thing} {thing}: where does it stand?"
        injected = columns.pop("injected", True)
        query = f"{request}\n\n{INJECTION}" if injected else request
        told = {
            "messages": [message("system", "Help."), message("user", query)],
            "injection": [{"message": 1, "start": len(request) + 2, "end": len(query)}] if injected else [],
            "pair": f"test/{thing}",
            "group": thing,
        }
        row = make_sample(completion.replace("pump", thing), priority_class, **(told | columns))
        row["provenance"] = {**row["provenance"], "record_id": f"test/{thing}"}
        return row

    return make


@pytest.fixture
def trios(asking):
    """Siblings: the flip, the right call in spite of the attack, and the clean twin."""
    return {
        "harmful/b4_flips": [asking(thing, WRONG, "harmful_flip") for thing in THINGS],
        "retain/adversarial_safe": [asking(thing, RIGHT, "adversarial_safe") for thing in THINGS],
        "retain/b4_benign_twins": [asking(thing, RIGHT, "benign_twin", injected=False) for thing in THINGS],
    }


@pytest.fixture
def merged(tmp_path):
    """`merged(sets, ...)`: the merged rows by split, and the report."""

    def run(sets: dict[str, list[dict]], prompts=(), quarantined=(), limits=ANY, backwards=False, **options):
        folders = [tmp_path / "in" / name for name in sets]
        for folder, rows in zip(folders, sets.values(), strict=True):
            save_rows(to_dataset(rows, SAMPLE_FEATURES), folder, {})
        asked = []
        if prompts:
            save_rows(to_dataset(list(prompts), SAMPLE_FEATURES), tmp_path / "prompts" / "tool_flip", {})
            asked = [tmp_path / "prompts" / "tool_flip"]
        outputs = {split: tmp_path / "stage2" / split for split in ("train", "eval")}
        order = folders[::-1] if backwards else folders
        report = merge(order, set(quarantined), asked, outputs, MergeOptions(**options), limits)
        if not report["passed"]:
            return None, report
        return {split: list(load_rows(folder, SAMPLE_FEATURES)) for split, folder in outputs.items()}, report

    return run


def ids(rows: list[dict]) -> set[str]:
    return {row["id"] for row in rows}


def test_all_is_kept_where_there_is_nothing_wrong(trios, merged, tmp_path):
    rows, report = merged(trios)
    assert ids(rows["train"]) == {row["id"] for made in trios.values() for row in made}
    assert report["drops"] == {} and report["splits"]["train"]["dr_ratio"] == 2.0
    assert report["splits"]["train"]["pairs"] == report["splits"]["train"]["groups"] == len(THINGS)
    assert len(report["inputs"]["harmful/b4_flips"]) == 64
    assert read_json(tmp_path / "stage2" / "train" / "report.json") == report["splits"]["train"]
    kept = {row["id"]: row for row in rows["train"]}
    for row in trios["harmful/b4_flips"]:
        assert kept[row["id"]] == row, "rows go through unchanged"


def test_what_is_left_out_is_counted(trios, asking, merged):
    again = {**trios["retain/adversarial_safe"][0], "id": "retain/again"}
    bad = {**asking("axle", TEXT, "refusal"), "id": "retain/bad"}
    rows, report = merged(trios | {"retain/more": [again, bad]}, quarantined={"retain/bad"})
    assert report["drops"] == {"duplicate": 1, "quarantined": 1}
    assert len(rows["train"]) == 3 * len(THINGS)


def test_ids_of_calls_make_no_difference(trios, asking, merged):
    row = trios["retain/adversarial_safe"][0]
    turns = [message("system", "Help."), *row["messages"][1:], message("tool", "Done.", tool_call_id="call_0")]
    other = [*turns[:-1], message("tool", "Done.", tool_call_id="call_1")]
    twice = [{**row, "id": "a", "messages": turns}, {**row, "id": "b", "messages": other}]
    _, report = merged({"harmful/b4_flips": trios["harmful/b4_flips"], "retain/more": twice})
    assert report["drops"] == {"duplicate": 1}


def test_near_duplicates_are_of_one_class_and_one_call(trios, asking, merged):
    row = trios["retain/adversarial_safe"][0]
    request = row["messages"][1]["content"]
    louder = [row["messages"][0], {**row["messages"][1], "content": request.replace("where", "WHERE")}]
    near = {**row, "id": "near", "messages": louder}
    _, report = merged(trios | {"retain/more": [near]})
    assert report["drops"] == {"near_duplicate": 1}
    elsewhere = {**near, "messages": [{**louder[0], "content": "Obey."}, louder[1]]}
    assert merged(trios | {"retain/more": [elsewhere]})[1]["drops"] == {}
    assert merged(trios | {"retain/more": [near]}, repeat_similarity=1.1)[1]["drops"] == {}
    answers = [asking("pump", text, "refusal", id=text) for text in (REFUSAL, "I can't help with that!<|eot_id|>")]
    assert merged(trios | {"retain/refusals": answers})[1]["drops"] == {"near_duplicate": 1}


def test_the_result_depends_on_the_seed_and_not_on_the_folders(trios, merged):
    more = trios | {"retain/more": [{**row, "id": f"again/{row['id']}"} for row in trios["retain/adversarial_safe"]]}
    kept = [row["id"] for row in merged(more)[0]["train"]]
    assert kept == [row["id"] for row in merged(more, backwards=True)[0]["train"]]
    reseeded = [row["id"] for row in merged(more, seed=1)[0]["train"]]
    assert kept != reseeded and len(kept) == len(reseeded)


def test_rows_are_shuffled_on_disk_as_in_memory(trios, merged, monkeypatch):
    kept = [row["id"] for row in merged(trios)[0]["train"]]
    monkeypatch.setattr(write_module, "PARTITION_ROWS", 5)
    assert [row["id"] for row in merged(trios)[0]["train"]] == kept


# ---------------------------------------------------------------------------------------------------------------------
# The eval side


def test_train_shares_nothing_with_eval(trios, asking, merged):
    """A request that the eval side asks too, in other words, leaves train with all its siblings."""
    held = asking(THINGS[0], RIGHT, "adversarial_safe", split="eval", group="other", pair="test/other")
    held["messages"][1]["content"] = held["messages"][1]["content"].replace("where does", "where  DOES")
    held["provenance"]["record_id"] = "test/other"
    # As an evaluation prompt, and as a row of the eval split.
    for arguments in ({"sets": trios, "prompts": [held]}, {"sets": trios | {"retain/held": [held]}}):
        start = held["messages"][1]["content"].index("<!--")
        held["injection"] = [{"message": 1, "start": start, "end": start + len(INJECTION)}]
        rows, report = merged(**arguments)
        assert report["drops"] == {"near_duplicate_of_eval": 3}
        assert THINGS[0] not in {row["group"] for row in rows["train"]}


def test_a_group_on_both_sides_stops_the_line(trios, asking, merged, tmp_path):
    held = asking("axle", RIGHT, "adversarial_safe", split="eval", group=THINGS[0])
    rows, report = merged(trios | {"retain/held": [held]})
    assert rows is None and not report["passed"]
    assert [gate["name"] for gate in report["gates"] if not gate["passed"]] == ["merged: groups in train and eval"]
    assert list((tmp_path / "stage2").rglob("*.*")) == [], "nothing is left behind"


def test_groups_are_held_out_whole(trios, merged):
    rows, report = merged(trios, eval_fraction=0.4)
    assert report["splits"]["train"]["groups"] + report["splits"]["eval"]["groups"] == len(THINGS)
    assert 0 < len(rows["eval"]) == 3 * report["splits"]["eval"]["groups"]
    assert {row["split"] for row in rows["eval"]} == {"eval"}
    assert not {row["group"] for row in rows["train"]} & {row["group"] for row in rows["eval"]}
    more, _ = merged(trios, eval_fraction=0.7)
    assert ids(rows["eval"]) < ids(more["eval"]), "a larger fraction holds out more of the same"


# ---------------------------------------------------------------------------------------------------------------------
# Quotas


def test_quotas_keep_siblings_together(trios, asking, merged):
    sets = trios | {"retain/refusals": [asking("axle", REFUSAL, "refusal", injected=False)]}
    rows, report = merged(sets, quotas={"adversarial_safe": 5})
    classes = {}
    for row in rows["train"]:
        classes.setdefault(row["pair"], set()).add(row["priority_class"])
    assert classes.pop("test/axle") == {"refusal"}
    assert len(classes) == 5
    assert all(kinds == {"harmful_flip", "adversarial_safe", "benign_twin"} for kinds in classes.values())
    left = len(THINGS) - 5
    assert report["drops"] == {"over_quota": left, "sibling_over_quota": 2 * left}


def test_two_quotas_choose_the_same_pairs(trios, merged):
    rows, _ = merged(trios, quotas={"adversarial_safe": 5, "benign_twin": 7})
    assert rows["train"] == merged(trios, quotas={"adversarial_safe": 5})[0]["train"]


@pytest.mark.parametrize("heavy", ["refusal", "general_conversation"])
def test_what_is_over_the_ratio_goes_by_weight(trios, asking, merged, heavy):
    numbers = [f"{thing}{number}" for thing in THINGS for number in "0123"]
    refusals = [asking(name, REFUSAL, "refusal", injected=False) for name in numbers]
    chat = [asking(f"{name} so", TEXT, "general_conversation", injected=False) for name in numbers]
    sets = trios | {"retain/refusals": refusals, "retain/chat": chat}
    weights = {"refusal": 1.0, "general_conversation": 1.0} | {heavy: 1e6}
    _, report = merged(sets, max_dr_ratio=5.0, weights=weights, repeat_similarity=1.1)
    part = report["splits"]["train"]
    assert part["dr_ratio"] == 5.0 and part["circuit_breaker"] == len(THINGS)
    assert part["classes"][heavy] == 3 * len(THINGS) and len(part["classes"]) == 4
    assert report["drops"] == {"over_dr_ratio": len(refusals) + len(chat) - 3 * len(THINGS)}


def test_lengths_are_told_where_somebody_measures(trios, merged, tmp_path):
    _, report = merged(trios)
    assert report["splits"]["train"]["tokens"] is None
    folders = [tmp_path / "in" / name for name in trios]
    outputs = {split: tmp_path / "stage2" / split for split in ("train", "eval")}
    report = merge(folders, set(), [], outputs, MergeOptions(), ANY, length=lambda row: len(row["assistant_raw"]))
    lengths = [len(row["assistant_raw"]) for row in trios["harmful/b4_flips"]]
    assert report["splits"]["train"]["tokens"]["circuit_breaker"]["max"] == max(lengths)


def test_of_two_equal_rows_the_held_out_one_stays(trios, asking, merged):
    """Whatever the seed: what evaluation needs is what training must not have."""
    row = asking("axle", RIGHT, "adversarial_safe")
    held = {**row, "id": "held", "split": "eval"}
    for seed in range(4):
        rows, report = merged(trios | {"retain/more": [row, held]}, seed=seed)
        assert [kept["id"] for kept in rows["eval"]] == ["held"] and report["drops"] == {"duplicate": 1}
