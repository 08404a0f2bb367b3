"""The rows that merge drops: the file with their reasons, and how `explain` reports them."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from cb_datasets.audit.explain import explain_row
from cb_datasets.audit.marks import Marks
from cb_datasets.files import load_parquet, load_rows, read_json, save_rows, to_dataset
from cb_datasets.merge.decide import DROPS
from cb_datasets.merge.dropped_rows import DROPPED_ROWS_FILE, write_dropped_rows
from cb_datasets.sample import PROMPT_FEATURES, SAMPLE_FEATURES

from ..release_data import SETS, run


BROKEN = "retain/refusals/broken"
DUPLICATE, NEAR_DUPLICATE = "retain/chat/again", "retain/chat/nearly"


@pytest.fixture(scope="module")
def merged(release_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder in which merge dropped rows for every reason."""
    data = Path(shutil.copytree(release_data, tmp_path_factory.mktemp("merged") / "data"))
    chat = [row for row in load_rows(data / "retain" / "chat") if row["split"] == "train"]
    refusals = list(load_rows(data / "retain" / "refusals"))
    upper_case = chat[1]["messages"][1] | {"content": chat[1]["messages"][1]["content"].upper()}
    reversed_text = chat[4]["messages"][1] | {"content": chat[4]["messages"][1]["content"][::-1]}
    more = [
        chat[0] | {"id": DUPLICATE},
        chat[1] | {"id": NEAR_DUPLICATE, "messages": [chat[1]["messages"][0], upper_case]},
        refusals[0] | {"id": BROKEN, "assistant_raw": "[TOOL_CALL]<|eot_id|>"},
        chat[4] | {"id": "retain/chat/alone", "pair": "alone", "messages": [chat[4]["messages"][0], reversed_text]},
    ]
    save_rows(to_dataset(more, SAMPLE_FEATURES), data / "retain" / "more", {})
    prompts = list(load_rows(data / "prompts" / "capability"))
    prompts[0]["messages"] = [*prompts[0]["messages"][:1], chat[2]["messages"][1]]
    prompts[0]["injection"] = []
    save_rows(to_dataset(prompts, PROMPT_FEATURES), data / "prompts" / "capability", {})
    Marks(data / "audit" / "marks.parquet").put(chat[3]["id"], "bad", "about nothing")
    run("validate", "--data-dir", data, "--strict", "--min-valid", 0.1)
    sets = [data / name for name in (*SETS, "retain/more")]
    files = ("--quarantine", data / "quarantine" / "validate", "--marks", data / "audit" / "marks.parquet")
    options = ("--quota", "adversarial_safe=5", "--dr-ratio", 4, "--min-dr-ratio", 1, "--min-adversarial-safe", 1)
    run("merge", *sets, *files, "--prompts", data / "prompts", "--output", data / "stage2", *options)
    return data


def dropped_rows(data: Path) -> list[dict]:
    return list(load_parquet(data / "reports" / DROPPED_ROWS_FILE))


def test_every_row_is_either_merged_or_dropped_for_a_reason(merged: Path):
    rows, stats = dropped_rows(merged), read_json(merged / "reports" / "stats.json")
    assert Counter(row["reason"] for row in rows) == stats["drops"] and set(stats["drops"]) == set(DROPS)
    kept = [row["id"] for split in ("train", "eval") for row in load_rows(merged / "stage2" / split)]
    inputs = [row["id"] for name in (*SETS, "retain/more") for row in load_rows(merged / name)]
    assert sorted(kept + [row["id"] for row in rows]) == sorted(inputs)


@pytest.mark.parametrize(
    ("reason", "duplicate", "number"), [("duplicate", DUPLICATE, 0), ("near_duplicate", NEAR_DUPLICATE, 1)]
)
def test_a_duplicate_names_the_row_it_duplicates(merged: Path, reason: str, duplicate: str, number: int):
    """The seed decides which of the two is dropped."""
    [row] = [row for row in dropped_rows(merged) if row["reason"] == reason]
    chat = [row["id"] for row in load_rows(merged / "retain" / "chat") if row["split"] == "train"]
    assert {row["id"], row["of"]} == {duplicate, chat[number]}
    lines = explain_row(row["id"], merged)[1][row["id"]]
    assert f"dropped by merge: {reason}: {DROPS[reason].format(of=row['of'])}" in lines
    assert not any(f"dropped by merge: {reason}" in line for line in explain_row(row["of"], merged)[1][row["of"]])


def test_only_duplicates_name_another_row(merged: Path):
    for row in dropped_rows(merged):
        assert (row["of"] is not None) == (row["reason"] in ("duplicate", "near_duplicate"))
        assert ("{of}" in DROPS[row["reason"]]) == (row["of"] is not None)


def test_row_numbers_run_across_folders_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Three folders, each read in tables of at most three rows."""
    monkeypatch.setattr("cb_datasets.row_groups.STREAM_ROWS", 3)
    sizes = {"a": 5, "b": 1, "c": 7}
    ids = [f"{name}{number}" for name, size in sizes.items() for number in range(size)]
    for name, size in sizes.items():
        save_rows(Dataset.from_dict({"id": [f"{name}{number}" for number in range(size)]}), tmp_path / name, {})
    duplicate_of = np.full(len(ids), -1)
    duplicate_of[[0, 4, 11]] = [12, 0, 5]
    reasons = np.where(duplicate_of >= 0, 1 + list(DROPS).index("near_duplicate"), 0).astype(np.int8)
    reasons[6] = 1 + list(DROPS).index("over_quota")
    write_dropped_rows([tmp_path / name for name in sizes], reasons, duplicate_of, tmp_path / "left_out.parquet")
    rows = [tuple(row.values()) for row in load_parquet(tmp_path / "left_out.parquet")]
    near = [(id, "near_duplicate", of) for id, of in (("a0", "c6"), ("a4", "a0"), ("c5", "b0"))]
    assert sorted(rows) == sorted([*near, ("c0", "over_quota", None)])


@pytest.mark.parametrize("reason", DROPS)
def test_every_reason_is_explained(merged: Path, reason: str):
    row = next(row for row in dropped_rows(merged) if row["reason"] == reason)
    lines = explain_row(row["id"], merged)[1][row["id"]]
    assert f"dropped by merge: {reason}: {DROPS[reason].format(of=row['of'])}" in lines
    assert not any("found in stage2" in line for line in lines)
    if reason == "marked_bad":
        assert "marked bad: about nothing" in lines
    if reason == "quarantined":
        assert "in quarantine for" in "".join(explain_row(row["id"], merged)[1]["rules"])


def test_the_leaked_evaluation_request_is_explained(merged: Path):
    rows = [row for row in dropped_rows(merged) if row["reason"] == "near_duplicate_of_eval"]
    lines = [line for row in rows for line in explain_row(row["id"], merged)[1][row["id"]]]
    assert any(line.startswith("evaluation asks 'which manuals show ") for line in lines)
