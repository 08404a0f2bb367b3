"""Sets are named for the source of their prompts, and the names of the release before are explained."""

import pytest
from typer.testing import CliRunner

from cb_datasets.cli import app
from cb_datasets.files import save_rows, to_dataset
from cb_datasets.sample import SAMPLE_FEATURES
from cb_datasets.sets.set_names import BENIGN_TWINS, FLIPS, check_former_name, former_name_notice, set_name


def test_sets_are_named_for_their_source():
    assert set_name("fujitsu_b4", FLIPS) == "b4_flips"
    assert set_name("fujitsu_b4", BENIGN_TWINS) == "b4_benign_twins"
    assert set_name("lookalike", FLIPS) == "lookalike_flips"
    assert set_name("mine", BENIGN_TWINS) == "mine_benign_twins"


@pytest.mark.parametrize(
    ("name", "former"), [("lookalike_flips", "b4_flips"), ("lookalike_benign_twins", "b4_benign_twins")]
)
def test_a_set_under_its_former_name_is_explained(make_sample, tmp_path, name, former):
    check_former_name(tmp_path / name)  # neither is there: whoever reads the set says so
    rows = to_dataset([make_sample("The pump.<|eot_id|>", "general_conversation")], SAMPLE_FEATURES)
    save_rows(rows, tmp_path / former, {})
    with pytest.raises(ValueError, match=f"the release before called it {former}. Rename the folder"):
        check_former_name(tmp_path / name)
    check_former_name(tmp_path / former)
    save_rows(rows, tmp_path / name, {})
    check_former_name(tmp_path / name)


def test_a_set_with_its_former_name_is_read_with_a_notice(make_sample, tmp_path):
    sample = make_sample("The pump.<|eot_id|>", "general_conversation")
    for source in ("fujitsu_b4", "lookalike"):
        row = {**sample, "provenance": {**sample["provenance"], "source_dataset": source}}
        save_rows(to_dataset([row], SAMPLE_FEATURES), tmp_path / source / "harmful" / "b4_flips", {})
    assert former_name_notice(tmp_path / "fujitsu_b4" / "harmful" / "b4_flips") is None
    assert former_name_notice(tmp_path / "fujitsu_b4" / "harmful" / "other") is None
    notice = former_name_notice(tmp_path / "lookalike" / "harmful" / "b4_flips")
    assert notice is not None and notice.endswith("the set is called lookalike_flips now.")
    shown = CliRunner().invoke(
        app,
        ["validate", "--data-dir", str(tmp_path / "lookalike"), "--min-valid", "0"],
        catch_exceptions=False,
    )
    assert shown.exit_code == 0 and "the set is called lookalike_flips now" in shown.output
