"""The page about the ladder of attacks is made of several runs, which must be comparable."""

import copy
import importlib.util
from pathlib import Path

import pytest

from cb_datasets.evaluation.statistics import proportion
from cb_datasets.files import read_json, write_json
from tests.cb_datasets.fake_results import small_adaptive


ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("robustness", ROOT / "benchmarks" / "robustness.py")
study = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


@pytest.fixture
def folder(tmp_path):
    """Two runs: 3 and 7 of 10 prompts broken."""
    for name, hijacked in (("seed-1", 3), ("seed-2", 7)):
        result = small_adaptive(hijacked)
        result["rungs"]["transfer"] = {
            "budget": {"prompts": 100},
            "models": {"base": None, "breaker": {"asr": proportion(hijacked, 10), "errors": 0}},
            "pairs": {"base": {"breaker": proportion(hijacked, 10)}, "breaker": {"base": None}},
        }
        write_json(tmp_path / name / "adaptive.json", result)
    return tmp_path


def test_cells_are_the_mean_and_the_worst_run(folder):
    runs = study.gathered(folder)
    assert list(runs) == ["seed-1", "seed-2"] and "prompts" not in runs["seed-1"]["rungs"]["suffix"]
    rows = {(row[0], row[1]): row[2:] for row in study.ladder_rows(runs)}
    suffix = "suffix search, 30 steps x 64 candidates x 10 tokens"
    assert rows[suffix, "ASR ↓"] == ("100.0 (100.0) n=10", "50.0 (70.0) n=10", "0.50")
    assert ("", "right call ↑") in rows and rows["", "right call ↑"][1] == "50.0 (30.0) n=10", (
        "the lowest is the worst"
    )
    assert rows["suffixes found on the other models", "ASR ↓"] == ("-", "50.0 (70.0) n=10", "-")
    assert study.curve_rows(runs) == [("1", "50.0 (50.0)", "25.0 (35.0)"), ("2", "100.0 (100.0)", "50.0 (70.0)")]
    assert study.slice_rows(runs, "place")[1] == ("before", "100.0 · 0.0", "50.0 · 50.0")
    assert study.transfer_rows(runs) == [("base", "", "50.0 (70.0) n=10"), ("breaker", "-", "")]


def test_runs_that_are_not_comparable_are_rejected_by_name(folder):
    path = folder / "seed-2" / "adaptive.json"
    result = read_json(path)
    other = copy.deepcopy(result)
    other["rungs"]["suffix"]["budget"]["steps"] = 31
    other["settings"]["models"]["plain_rr"] = {"model": "m", "revision": "b"}
    write_json(path, other)
    with pytest.raises(ValueError, match=r"seed-2/adaptive.json: another budgets, models than .*seed-1"):
        study.gathered(folder)
    with pytest.raises(FileNotFoundError, match="Run `cb-datasets attack`"):
        study.gathered(folder / "seed-3")


def test_the_page_is_made_of_the_runs(folder, monkeypatch, capsys):
    page, figures = folder / "page.md", folder / "figures.json"
    monkeypatch.setattr("sys.argv", ["robustness.py", str(folder), "--json", str(figures), "--page", str(page)])
    study.main()
    text = page.read_text(encoding="utf-8")
    assert "| suffix search, 30 steps x 64 candidates x 10 tokens | ASR ↓ | 100.0 (100.0) n=10 | 50.0 (70.0)" in text
    assert "2 runs\n(seed-1, seed-2); chat template `7f3a`, torch 2.12." in text
    for heading in ("## The black box in detail", "## Transfer between models", "## What the ladder cannot show"):
        assert heading in text
    assert "suffix search" in capsys.readouterr().out
    page.unlink()
    monkeypatch.setattr("sys.argv", ["robustness.py", "--json", str(figures), "--page", str(page)])
    study.main()
    assert page.read_text(encoding="utf-8") == text, "the kept figures give the same page"


def test_the_page_in_the_documents_is_that_of_its_template(tmp_path):
    kept = ROOT / "benchmarks" / "robustness.json"
    study.write_page(read_json(kept) if kept.is_file() else {}, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == (ROOT / "docs" / "robustness.md").read_text(
        encoding="utf-8"
    )
