"""Folders of sets: a file for each split, which `load_dataset` takes for splits, and folders of older versions."""

from pathlib import Path

import pyarrow
import pytest
from datasets import load_dataset

from cb_datasets.export import export_jsonl, import_jsonl
from cb_datasets.files import (
    count_rows,
    dataset_folders,
    dataset_name,
    hashes_of,
    load_rows,
    parquet_writer,
    row_groups,
    save_rows,
    save_set,
    stream_rows,
    stream_tables,
    to_dataset,
)
from cb_datasets.row_groups import stream_group
from cb_datasets.sample import SAMPLE_FEATURES

from .conftest import RIGHT, WRONG


@pytest.fixture
def samples(make_sample) -> list[dict]:
    """Of eval and of train, mixed."""
    splits = ["eval", "train", "train", "eval", "train"]
    return [make_sample(RIGHT, "adversarial_safe", split=split) | {"id": str(at)} for at, split in enumerate(splits)]


def loaded(folder: Path, cache: Path) -> dict[str, list[str]]:
    return {split: rows["id"][:] for split, rows in load_dataset(str(folder), cache_dir=str(cache)).items()}


def test_load_dataset_of_a_set_and_of_all_sets_never_has_eval_rows_in_train(
    samples: list[dict], make_sample, tmp_path: Path
):
    save_set(to_dataset(samples, SAMPLE_FEATURES), tmp_path / "retain" / "safe", {"kept": 5})
    other = make_sample(RIGHT, "benign_twin", split="train") | {"id": "other"}
    save_set(to_dataset([other], SAMPLE_FEATURES), tmp_path / "retain" / "twins", {})
    assert loaded(tmp_path / "retain" / "safe", tmp_path / "cache") == {"train": ["1", "2", "4"], "test": ["0", "3"]}
    assert loaded(tmp_path / "retain", tmp_path / "cache") == {"train": ["1", "2", "4", "other"], "test": ["0", "3"]}


def test_load_dataset_of_an_imported_set_has_splits_too(samples: list[dict], tmp_path: Path):
    export_jsonl(samples, tmp_path / "lines.jsonl")
    assert import_jsonl(tmp_path / "lines.jsonl", tmp_path / "set") == 5
    assert loaded(tmp_path / "set", tmp_path / "cache") == {"train": ["1", "2", "4"], "test": ["0", "3"]}


def test_both_files_are_one_dataset_for_every_step(samples: list[dict], tmp_path: Path):
    folder = tmp_path / "retain" / "safe"
    save_set(to_dataset(samples, SAMPLE_FEATURES), folder, {})
    assert load_rows(folder, SAMPLE_FEATURES)["id"][:] == ["1", "2", "4", "0", "3"]
    assert [row["id"] for row in stream_rows([folder], SAMPLE_FEATURES)] == ["1", "2", "4", "0", "3"]
    assert count_rows([folder]) == 5 and dataset_folders(tmp_path / "retain") == [folder]
    before = hashes_of([folder])
    save_set(to_dataset(samples[:4], SAMPLE_FEATURES), folder, {})
    assert hashes_of([folder]) != before


def test_a_set_of_an_older_version_is_read_and_replaced(samples: list[dict], make_sample, tmp_path: Path):
    folder = tmp_path / "safe"
    save_rows(to_dataset(samples, SAMPLE_FEATURES), folder, {})
    assert load_rows(folder)["id"][:] == ["0", "1", "2", "3", "4"]
    save_set(to_dataset(samples, SAMPLE_FEATURES), folder, {})
    assert sorted(path.name for path in folder.iterdir()) == ["eval.parquet", "report.json", "train.parquet"]
    save_set(to_dataset([make_sample(WRONG, "harmful_flip", split="train")], SAMPLE_FEATURES), folder, {})
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "train.parquet"]


def test_a_set_is_written_whole_or_not_at_all(samples: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "safe"
    save_set(to_dataset(samples, SAMPLE_FEATURES), folder, {})
    before = hashes_of([folder])
    rows = to_dataset(samples[:3], SAMPLE_FEATURES)
    monkeypatch.setattr("cb_datasets.row_groups.STREAM_ROWS", 2)

    def break_off(table):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_table", lambda self, table: break_off(table))
    with pytest.raises(OSError, match="No space left"):
        save_set(rows, folder, {})
    assert hashes_of([folder]) == before and len(list(folder.iterdir())) == 3


def test_a_folder_has_one_name_wherever_it_is_named_from(
    samples: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "retain" / "safe"
    save_set(to_dataset(samples, SAMPLE_FEATURES), folder, {})
    for inside, given in ((tmp_path, "retain/safe"), (folder.parent, "safe"), (folder, "."), (folder, "../safe")):
        monkeypatch.chdir(inside)
        assert list(hashes_of([Path(given)])) == ["retain/safe"], given
    assert dataset_name(Path("/safe")) == "safe" and dataset_name(Path("stage2/train.jsonl")) == "stage2/train"


def test_row_groups_are_the_rows_of_a_folder_in_order(samples: list[dict], tmp_path: Path):
    folder, schema = tmp_path / "retain" / "safe", SAMPLE_FEATURES.arrow_schema
    for name, sizes in {"train.parquet": (2, 1), "eval.parquet": (2,)}.items():
        with parquet_writer(folder / name, SAMPLE_FEATURES) as write:
            for size in sizes:
                write(pyarrow.Table.from_pylist(samples[:size], schema=schema))
    groups = row_groups(folder, SAMPLE_FEATURES)
    assert [(group.file.name, group.number, group.first, group.rows) for group in groups] == [
        ("train.parquet", 0, 1, 2),
        ("train.parquet", 1, 3, 1),
        ("eval.parquet", 0, 1, 2),
    ]
    tables = [table for group in groups for table in stream_group(group, SAMPLE_FEATURES, ["id", "provenance.seed"])]
    assert [table["id"].to_pylist() for table in tables] == [["0", "1"], ["0"], ["0", "1"]]
    assert tables[0]["provenance"].to_pylist() == [{"seed": sample["provenance"]["seed"]} for sample in samples[:2]]
    with parquet_writer(folder / "eval.parquet", SAMPLE_FEATURES) as write:
        write(pyarrow.Table.from_pylist(samples, schema=schema))
    assert [group.rows for group in row_groups(folder)] == [2, 1, 5], "a file that was written again is read again"


def test_a_null_part_is_named_by_its_row_in_the_file(samples: list[dict], tmp_path: Path):
    with parquet_writer(tmp_path / "data.parquet", SAMPLE_FEATURES) as write:
        for rows in (samples[:2], [samples[2], samples[3] | {"messages": None}]):
            write(pyarrow.Table.from_pylist(rows, schema=SAMPLE_FEATURES.arrow_schema))
    [_, group] = row_groups(tmp_path, SAMPLE_FEATURES)
    message = r"data\.parquet: row 4 \(3\): `messages` is null, or holds a null\."
    for tables in (stream_group(group, SAMPLE_FEATURES), stream_tables(tmp_path, SAMPLE_FEATURES)):
        with pytest.raises(ValueError, match=message):
            list(tables)
