"""The release folder of a dataset: its rows, its card, the faults that prevent a release, and the offline checks."""

import json
import shutil
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
import yaml
from datasets import Dataset, Features, Json, get_dataset_config_names, load_dataset
from markdown_it import MarkdownIt

from builders.trace import message, to_json
from cb_datasets.cli.output import gate_table
from cb_datasets.counts import gate_number
from cb_datasets.files import load_parquet, load_rows, read_json, save_parquet, save_rows, to_dataset, write_json
from cb_datasets.publish.check import folder_faults, secret_faults
from cb_datasets.publish.dataset_card import DATASET_CARD_TEMPLATE
from cb_datasets.publish.folder import DATASET_RELEASE, MANIFEST, hash_rows, list_files, write_manifest
from cb_datasets.publish.release import ReleaseError, make_release
from cb_datasets.publish.released_rows import RELEASED_PROMPT_FEATURES, RELEASED_SAMPLE_FEATURES, stored_row
from cb_datasets.sample import PROMPT_FEATURES, SAMPLE_FEATURES

from ..release_data import run, sign


REPO = "someone/breakers"


@pytest.fixture
def data(release_data: Path, tmp_path: Path) -> Path:
    """A copy of the data folder that a test may damage."""
    return Path(shutil.copytree(release_data, tmp_path / "data"))


@pytest.fixture(scope="module")
def release(release_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "release"
    make_release(release_data, REPO, folder)
    return folder


@pytest.fixture
def damaged(release: Path, tmp_path: Path) -> Path:
    """A copy of the release folder for a test to damage."""
    return Path(shutil.copytree(release, tmp_path / "release"))


def card_of(folder: Path) -> tuple[dict, str]:
    _, head, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), text


# ---------------------------------------------------------------------------------------------------------- the folder


def test_every_row_is_in_the_release_once(release_data: Path, release: Path, tmp_path: Path):
    assert get_dataset_config_names(str(release)) == ["eval", "harmful", "retain", "train"]
    for merged_split, split in {"train": "train", "eval": "test"}.items():
        expected = list(load_rows(release_data / "stage2" / merged_split))
        released = {
            config: load_dataset(str(release), config, split=split, cache_dir=tmp_path)
            for config in ("harmful", "retain", "train")
        }
        assert expected and len(released["train"]) == len(expected)
        assert {row["id"]: stored_row(row) for row in released["train"]} == {row["id"]: row for row in expected}
        assert list(released["train"]) == [*released["harmful"], *released["retain"]]
        assert set(released["harmful"]["set"]) == {"circuit_breaker"} and set(released["retain"]["set"]) == {"retain"}
        assert released["train"].features == RELEASED_SAMPLE_FEATURES
    for task in ("tool_flip", "capability"):
        prompts = load_dataset(str(release), "eval", split=task, cache_dir=tmp_path)
        assert [*map(stored_row, prompts)] == list(load_rows(release_data / "prompts" / task))
        assert prompts.features == RELEASED_PROMPT_FEATURES


def test_the_manifest_covers_every_row_and_file(release: Path, tmp_path: Path):
    manifest = read_json(release / MANIFEST)
    assert set(manifest["files"]) == set(list_files(release))
    for config, splits in manifest["configs"].items():
        for split, record in splits.items():
            rows = load_dataset(str(release), config, split=split, cache_dir=tmp_path)
            assert (len(rows), hash_rows(rows)) == (record["rows"], record["rows_sha256"])


def test_the_same_data_give_the_same_bytes(release_data: Path, release: Path, tmp_path: Path):
    assert make_release(release_data, REPO, tmp_path / "again") == read_json(release / MANIFEST)


def test_large_splits_become_several_files_of_small_row_groups(release_data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("cb_datasets.publish.folder.ROW_GROUP_BYTES", 20_000)
    monkeypatch.setattr("cb_datasets.publish.folder.PIECE_ROWS", 2)
    monkeypatch.setattr("cb_datasets.publish.folder.SHARD_BYTES", 50_000)
    make_release(release_data, REPO, tmp_path / "release")
    files = sorted((tmp_path / "release" / "retain").glob("train-*.parquet"))
    assert len(files) > 2 and files[-1].name == f"train-{len(files) - 1:05}-of-{len(files):05}.parquet"
    assert any(pyarrow.parquet.read_metadata(file).num_row_groups > 1 for file in files)
    rows = load_dataset(str(tmp_path / "release"), "retain", split="train", cache_dir=tmp_path / "cache")
    expected = [row for row in load_rows(release_data / "stage2" / "train") if row["set"] == "retain"]
    assert [*map(stored_row, rows)] == expected


# ------------------------------------------------------------------------------------------------------------ the card


def test_the_yaml_is_complete_and_correct(release: Path, release_data: Path):
    head, _ = card_of(release)
    assert head["license"] == "apache-2.0" and head["size_categories"] == ["n<1K"] and head["viewer"] is True
    assert head["extra_gated_prompt"] and head["extra_gated_fields"]
    infos = {info["config_name"]: info for info in head["dataset_info"]}
    merged = {split: load_rows(release_data / "stage2" / split) for split in ("train", "eval")}
    num_examples = {split["name"]: split["num_examples"] for split in infos["train"]["splits"]}
    assert num_examples == {"train": len(merged["train"]), "test": len(merged["eval"])}
    for name in ("harmful", "retain"):
        assert Features._from_yaml_list(infos[name]["features"]) == RELEASED_SAMPLE_FEATURES
    [default] = [config["config_name"] for config in head["configs"] if config.get("default")]
    assert default == "train"


def test_the_card_agrees_with_the_data(release: Path, release_data: Path):
    _, text = card_of(release)
    sets = [row["set"] for split in ("train", "eval") for row in load_rows(release_data / "stage2" / split)]
    assert f"completions in which the attack succeeded | {sets.count('circuit_breaker')} |" in text
    for gate in read_json(release_data / "reports" / "quality_gates.json")["gates"]:
        value, limit = gate_number(gate["value"]), gate_number(gate["limit"])
        assert f"| {gate['name']} | {value} | {limit} | {gate['rows']} |" in text
    assert "min_adversarial_safe 400 -> 1" in text
    assert "`security: true` means that the attack **succeeded**" in text
    assert "AgentHarm is not part of any release." in text
    assert "falls under that model's licence" in text and "@inproceedings{zou2024improving" in text
    assert "Whether the terms of tiny cover what they wrote was not looked up" in text
    flags = "--enable-auto-tool-choice --tool-call-parser llama3_json"
    lora = "--enable-lora --max-lora-rank RANK --lora-modules breaker=ADAPTER"
    assert f"```bash\nvllm serve BASE --tokenizer ADAPTER {lora} {flags}\n```" in text
    assert f'load_dataset("{REPO}", "harmful")' in text
    assert "{{" not in text.split("```json")[0] and "More Information Needed" not in text


def test_the_card_says_that_rows_were_not_rendered(data: Path, tmp_path: Path, release: Path):
    assert "samples were rendered and masked with the tokenizer" in card_of(release)[1]
    run("preflight", "--train-data", data / "stage2", "--no-check-tokenization")
    make_release(data, REPO, tmp_path / "release")
    text = card_of(tmp_path / "release")[1]
    assert "No sample was rendered with a tokenizer" in text and "rendered and masked" not in text


def test_the_card_does_not_say_that_every_split_is_a_hash(release: Path):
    assert "by its group (a hash of it, or the source's own\nsplit), before any model ran." in card_of(release)[1]


def test_the_example_is_a_real_row(release: Path, release_data: Path):
    _, text = card_of(release)
    example = json.loads(text.split("```json\n")[1].split("\n```")[0])
    [row] = [row for row in load_rows(release_data / "stage2" / "train") if row["id"] == example["id"]]
    assert example["assistant_raw"] == row["assistant_raw"] and example["set"] == "circuit_breaker"


@pytest.mark.parametrize(
    ("models", "licences", "terms"),
    [
        (["meta-llama/Llama-3.1-8B-Instruct"], ["apache-2.0", "llama3.1"], 'name that begins with "Llama"'),
        (["google/gemma-3-4b-it"], ["apache-2.0", "gemma"], "counts as its derivative"),
        (["Qwen/Qwen2.5-72B-Instruct"], ["apache-2.0", "other"], '"Built with Qwen"'),
        (["Qwen/Qwen3-8B"], "apache-2.0", None),
        (
            ["meta-llama/Llama-3.3-70B-Instruct", "gpt-4o-2024-05-13"],
            ["apache-2.0", "llama3.3"],
            "terms of gpt-4o-2024",
        ),
    ],
)
def test_licences_that_cover_outputs_are_added(data: Path, tmp_path: Path, models, licences, terms):
    for split in ("train", "eval"):
        rows = list(load_rows(data / "stage2" / split))
        for number, row in enumerate(rows):
            row["provenance"]["generator_model"] = models[number % len(models)]
        save_rows(to_dataset(rows, SAMPLE_FEATURES), data / "stage2" / split, {})
    sign(data)
    make_release(data, REPO, tmp_path / "release")
    head, text = card_of(tmp_path / "release")
    assert head["license"] == licences
    if terms is None:
        assert "Completions here were written by" not in text and "was not looked up" not in text
    else:
        assert terms in text and f"written by {models[0]}, under" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(16790, "16790"), (16790.0, "16790"), (0, "0"), (1.0, "1"), (0.41666, "0.4167"), (3.14159, "3.142")],
)
def test_whole_numbers_of_gates_are_written_in_full(value, text, data: Path, tmp_path: Path, capsys):
    report = read_json(data / "reports" / "quality_gates.json")
    report["gates"][0] |= {"name": "a gate", "value": value, "limit": value}
    write_json(data / "reports" / "quality_gates.json", report)
    make_release(data, REPO, tmp_path / "release")
    assert f"| a gate | {text} | {text} |" in card_of(tmp_path / "release")[1]
    gate_table(report)
    [row] = [line for line in capsys.readouterr().out.splitlines() if "a gate" in line]
    assert row.split()[2:4] == [text, text]


def test_the_target_in_its_own_runs_and_texts_of_a_source_are_no_further_models(data: Path, tmp_path: Path):
    own_runs = {"generator_model": "local-base", "generator_revision": None}
    origins = [
        own_runs | {"completion_source": "sampled", "temperature": 0.0},
        own_runs | {"completion_source": "twin", "temperature": None},
        own_runs | {"generator_model": "lookalike", "completion_source": "recorded", "temperature": None},
        {"generator_model": "gpt-4o", "generator_revision": None, "completion_source": "recorded"},
        {},
    ]
    for split in ("train", "eval"):
        rows = [
            {**row, "provenance": row["provenance"] | origins[number % len(origins)]}
            for number, row in enumerate(load_rows(data / "stage2" / split))
        ]
        save_rows(to_dataset(rows, SAMPLE_FEATURES), data / "stage2" / split, {})
    sign(data)
    make_release(data, REPO, tmp_path / "release")
    _, text = card_of(tmp_path / "release")
    for row in (
        "| local-base | target, in its recorded runs | `not recorded` | 0.0 |",
        "| local-base | target, in its recorded runs | `not recorded` | not recorded |",
        "| lookalike | source, no model | `not recorded` | not recorded |",
        "| gpt-4o | another model | `not recorded` | 0.7 |",
        "| tiny | target | `abc` | 0.7 |",
    ):
        assert row in text, row
    assert "Whether the terms of gpt-4o, tiny cover what they wrote was not looked up" in text


def test_a_target_without_another_name_is_named_by_its_runs(data: Path, tmp_path: Path):
    origin = {"generator_model": "local-base", "generator_revision": None}
    for split in ("train", "eval"):
        rows = [{**row, "provenance": row["provenance"] | origin} for row in load_rows(data / "stage2" / split)]
        save_rows(to_dataset(rows, SAMPLE_FEATURES), data / "stage2" / split, {})
    sign(data)
    make_release(data, REPO, tmp_path / "release")
    _, text = card_of(tmp_path / "release")
    assert "| local-base | target | `not recorded` |" in text and "Whether the terms of local-base cover" in text


def test_markdown_characters_are_escaped_in_table_cells(data: Path, tmp_path: Path):
    report = data / "reports" / "sources.json"
    sheets = read_json(report)
    next(iter(sheets.values()))["drops"] = {"a|b": 3}
    write_json(report, sheets)
    make_release(data, REPO, tmp_path / "release")
    assert r"| a\|b 3 |" in card_of(tmp_path / "release")[1]


def test_the_template_is_shipped():
    assert DATASET_CARD_TEMPLATE.is_file()
    setup = (Path(__file__).parents[3] / "setup.py").read_text(encoding="utf-8")
    assert '"cards": ["*.jinja"]' in setup


# -------------------------------------------------------------------------------------------------- refused releases


def refused(data: Path, tmp_path: Path, why: str, token: str | None = None) -> None:
    with pytest.raises((ReleaseError, FileNotFoundError), match=why):
        make_release(data, REPO, tmp_path / "release", token)
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "no partial release is left"


def test_names_of_strangers_are_text_in_the_card(release: Path, data: Path, tmp_path: Path):
    """Images, links, HTML, tables, front matter and templates: only what they spell is in the card."""
    hostile = (
        "a\u202eb\x00|b ```\n````\n![x](http://x.org/p.png) [y](http://x.org) <img src=x> **c** `d` {{ 7 * 7 }}\n---\n"
        "license: mit\n---\n# T"
    )

    def changed(row: dict) -> dict:
        origin = {"generator_model": hostile, "generator_revision": hostile, "date_string": hostile}
        return {**row, "category": hostile, "provenance": {**row["provenance"], **origin}}

    for split in ("train", "eval"):
        rows = [changed(row) for row in load_rows(data / "stage2" / split)]
        save_rows(to_dataset(rows, SAMPLE_FEATURES), data / "stage2" / split, {})
    sign(data)
    make_release(data, REPO, tmp_path / "release")
    (head, text), (usual_head, usual) = card_of(tmp_path / "release"), card_of(release)
    assert {**head, "dataset_info": None} == {**usual_head, "dataset_info": None}
    kinds = [[token.type for token in _tokens(card)] for card in (text, usual)]
    for kind in ("image", "link_open", "html_inline", "html_block", "strong_open", "heading_open", "td_open", "hr"):
        assert kinds[0].count(kind) == kinds[1].count(kind), kind
    assert not {"\x00", "\u202e"} & set((tmp_path / "release" / "README.md").read_text(encoding="utf-8"))
    # In a table, in two sentences, and twice in the row of the generator.
    assert text.count("{{ 7 * 7 }}") >= 5


def test_a_release_does_not_tell_where_it_was_made(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows and reports as an older version wrote them, with the paths of models."""
    home = tmp_path / "home" / "jane-example"
    monkeypatch.setenv("HOME", str(home))
    model = {"generator_model": f"{home}/models/tiny+{home}/runs/adapter", "generator_revision": f"{home}/models/tiny"}
    for split in ("train", "eval"):
        rows = [{**row, "provenance": row["provenance"] | model} for row in load_rows(data / "stage2" / split)]
        save_rows(to_dataset(rows, SAMPLE_FEATURES), data / "stage2" / split, {})
    report = read_json(data / "reports" / "preflight.json")
    write_json(data / "reports" / "preflight.json", report | {"tokenizer": f"{home}/models/tiny"})
    sign(data)
    make_release(data, REPO, tmp_path / "release")
    for path in (path for path in (tmp_path / "release").rglob("*") if path.is_file()):
        content = str(list(load_parquet(path))) if path.suffix == ".parquet" else path.read_bytes().decode("latin-1")
        assert "jane-example" not in content, path
    [origin] = {
        (row["provenance"]["generator_model"], row["provenance"]["generator_revision"])
        for row in load_parquet(tmp_path / "release" / "harmful" / "train-00000-of-00001.parquet")
    }
    assert origin == ("tiny+adapter", "tiny")
    rows = [{**row, "messages": [message("user", f"ls {home}/notes")], "injection": []} for row in rows]
    save_rows(to_dataset(rows, SAMPLE_FEATURES), data / "stage2" / "eval", {})
    sign(data)
    with pytest.raises(ReleaseError, match=r"test-00000-of-00001\.parquet: holds the path of your home folder"):
        make_release(data, REPO, tmp_path / "release")


def _tokens(text: str) -> list:
    markdown = MarkdownIt("commonmark").enable("table")
    return [inner for token in markdown.parse(text) for inner in (token, *(token.children or ()))]


@pytest.mark.parametrize("name", ["validation_report", "quality_gates", "stats", "preflight"])
def test_a_failed_check_stops_the_release(data: Path, tmp_path: Path, name: str):
    report = data / "reports" / f"{name}.json"
    write_json(report, {**read_json(report), "passed": False})
    refused(data, tmp_path, f"{name}.json: this check did not pass")


@pytest.mark.parametrize("name", ["validation_report", "quality_gates", "preflight"])
def test_an_earlier_pass_does_not_hide_a_later_failure(data: Path, tmp_path: Path, name: str):
    write_json(data / "reports" / f"{name}.failed.json", {"passed": False})
    refused(data, tmp_path, f"{name}.failed.json: the last run of this check failed")


def test_a_check_that_was_not_run_stops_the_release(data: Path, tmp_path: Path):
    (data / "reports" / "preflight.json").unlink()
    refused(data, tmp_path, "preflight.json")


@pytest.mark.parametrize("folder", ["stage2/train", "stage2/eval", "prompts/tool_flip"])
def test_reports_of_other_rows_stop_the_release(data: Path, tmp_path: Path, folder: str):
    """The same number of rows, one of which is different."""
    first, *others = load_rows(data / folder)
    changed = [{**first, "family": "another"}, *others]
    save_rows(to_dataset(changed, SAMPLE_FEATURES if "stage2" in folder else PROMPT_FEATURES), data / folder, {})
    refused(data, tmp_path, f"stats.json: was made from other rows than those in {folder}")


def test_a_preflight_of_other_rows_stops_the_release(data: Path, tmp_path: Path):
    report = data / "reports" / "preflight.json"
    write_json(report, {**read_json(report), "inputs": {"stage2/train": "0" * 64}})
    refused(data, tmp_path, "preflight.json: was made from other rows than those in stage2/train")


def test_preflight_refuses_rows_that_were_changed_after_the_merge(data: Path):
    rows = load_rows(data / "stage2" / "train")
    save_rows(rows.select(range(len(rows) - 1)), data / "stage2" / "train", {})
    with pytest.raises(ValueError, match=r"stage2/train differs from the hash in .*stats\.json"):
        run("preflight", "--train-data", data / "stage2", "--no-check-tokenization")


def _change_sheet(data: Path, **changes) -> None:
    sheets = read_json(data / "reports" / "sources.json")
    write_json(data / "reports" / "sources.json", {name: sheet | changes for name, sheet in sheets.items()})


def test_a_source_that_is_not_redistributable_stops_the_release(data: Path, tmp_path: Path):
    _change_sheet(data, redistributable=False, licence="other")
    refused(data, tmp_path, r"rows of lookalike: its licence \(other\) does not allow redistribution")


def test_a_source_of_unknown_licence_stops_the_release(data: Path, tmp_path: Path):
    _change_sheet(data, redistributable=False, licence="unknown")
    refused(data, tmp_path, "rows of lookalike: its licence was not stated; state it with `--licence NAME`")


def test_sources_are_looked_up_by_the_name_in_their_rows(data: Path, tmp_path: Path):
    """The source that traces name may differ from their folder; of two sheets for a source the stricter applies."""
    [sheet] = read_json(data / "reports" / "sources.json").values()
    write_json(data / "reports" / "sources.json", {"jsonl": sheet})
    make_release(data, REPO, tmp_path / "release")
    head, text = card_of(tmp_path / "release")
    assert head["license"] == "apache-2.0" and "And the sources: Lookalikes (Nobody 2026)." in text
    assert "\n- lookalike: no word of them is real.\n" in text
    strict = sheet | {"redistributable": False, "licence": "other"}
    write_json(data / "reports" / "sources.json", {"jsonl": strict, "more": sheet})
    with pytest.raises(ReleaseError, match="rows of lookalike: its licence"):
        make_release(data, REPO, tmp_path / "release")


def test_a_source_without_a_data_sheet_stops_the_release(data: Path, tmp_path: Path):
    write_json(data / "reports" / "sources.json", {})
    refused(data, tmp_path, "its licence is not known")


@pytest.mark.parametrize("folder", ["stage2/train", "prompts/tool_flip"])
def test_agentharm_stops_the_release_whatever_its_sheet_says(data: Path, tmp_path: Path, folder: str):
    features = SAMPLE_FEATURES if "stage2" in folder else PROMPT_FEATURES
    first, *others = load_rows(data / folder)
    first["provenance"]["source_dataset"] = "agentharm"
    save_rows(to_dataset([first, *others], features), data / folder, {})
    sign(data)
    sheets = read_json(data / "reports" / "sources.json")
    write_json(data / "reports" / "sources.json", sheets | {"agentharm": sheets["lookalike"]})
    refused(data, tmp_path, "1 rows of agentharm: AgentHarm is never published")


def test_a_licence_unknown_to_the_hub_stops_the_release(data: Path, tmp_path: Path):
    _change_sheet(data, licence="apache2")
    refused(data, tmp_path, 'unknown licence "apache2"')


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (" hf_" + "aB3" * 11 + "x", "a Hugging Face token"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("canary GUID 0f", "a benchmark's canary"),
        ("mysecret", "the token in use"),
    ],
)
def test_a_secret_in_a_row_stops_the_release_and_is_not_printed(data: Path, tmp_path: Path, text: str, secret: str):
    first, *others = load_rows(data / "stage2" / "train")
    first["messages"][1]["content"] += text
    save_rows(to_dataset([first, *others], SAMPLE_FEATURES), data / "stage2" / "train", {})
    sign(data)
    with pytest.raises(ReleaseError, match=f"train-00000-of-00001.parquet: holds {secret}") as refusal:
        make_release(data, REPO, tmp_path / "release", token="mysecret")
    assert text not in str(refusal.value)


@pytest.mark.parametrize("token", ["hf_" + "aB3" * 12, "ghp_" + "aB3" * 12, "sk-" + "aB3" * 12, "AKIA" + "AB3D" * 4])
@pytest.mark.parametrize("before", ["\n", "\t", "\x1b"])
def test_a_secret_is_found_behind_an_escape_of_json(tmp_path: Path, token: str, before: str):
    text = to_json({"content": f"a{before}{token}{before}z"})
    (tmp_path / "a.jsonl").write_text(text + "\n", encoding="utf-8")
    save_parquet(Dataset.from_dict({"metadata": [to_json([text])]}), tmp_path / "b.parquet")
    assert [fault.split(":")[0] for fault in secret_faults(tmp_path)] == ["a.jsonl", "b.parquet"]
    (tmp_path / "a.jsonl").write_text(f"de{token}\n", encoding="utf-8")
    assert [fault.split(":")[0] for fault in secret_faults(tmp_path)] == ["b.parquet"], "a part of a word"


@pytest.mark.parametrize("value", [{"hf_" + "aB3" * 12: 1}, [{"\t" + "hf_" + "aB3" * 12: {"a": None}}]])
def test_a_secret_is_found_in_a_key_of_a_json_column(tmp_path: Path, value: object):
    rows = Dataset.from_dict({"settings": [value]}, features=Features({"settings": Json()}))
    save_parquet(rows, tmp_path / "a.parquet")
    assert secret_faults(tmp_path) == ["a.parquet: holds a Hugging Face token"]


def test_a_folder_that_is_not_a_release_is_not_overwritten(release_data: Path, tmp_path: Path):
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"no manifest\.json says so"):
        make_release(release_data, REPO, tmp_path / "release")
    assert (tmp_path / "release" / "thesis.txt").read_text() == "mine"


# --------------------------------------------------------------------------------------------------- the offline check


def test_a_good_folder_has_no_faults(release: Path):
    assert folder_faults(release) == []


def _edit(folder: Path, old: str, new: str) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert old in card
    (folder / "README.md").write_text(card.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("viewer: true", "viewer: true\nviewer: false", "duplicate key viewer"),
        ("license: apache-2.0", "license: apache", 'unknown licence "apache"'),
        ("license: apache-2.0\n", "", "license is missing"),
        ("- n<1K", "- n<2K", 'unknown size category "n<2K"'),
        ("- split: test", "- split: te-st", "'te-st' is not a valid split name"),
        ("- config_name: eval\n  data_files", "- data_files", "config_name"),
        ("num_examples: ", "num_examples: 1", "the card says 1"),
        (
            "  - name: group\n    dtype: string",
            "  - name: group\n    dtype: int64",
            "its features differ from those of the card",
        ),
        ("harmful/train-00000-of-00001.parquet", "harmful/no.parquet", "harmful/no.parquet does not exist"),
        ("---\n", "", "no YAML"),
        ("pretty_name:", "\tpretty_name:", "README.md"),
        ("## Known limits", "[More Information Needed]", "More Information Needed"),
    ],
)
def test_faults_of_the_card_are_reported(damaged: Path, old: str, new: str, fault: str):
    _edit(damaged, old, new)
    _update_hashes(damaged)
    assert any(fault in reported for reported in folder_faults(damaged)), folder_faults(damaged)


def _update_hashes(folder: Path) -> None:
    """Make the manifest agree with the files."""
    configs = read_json(folder / MANIFEST)["configs"]
    write_manifest(folder, {}, DATASET_RELEASE)
    write_json(folder / MANIFEST, {**read_json(folder / MANIFEST), "configs": configs})


def test_changed_additional_and_missing_files_are_reported(damaged: Path):
    (damaged / "breakers.py").write_text("")
    (damaged / "reports" / "stats.json").write_text("{}")
    (damaged / "reports" / "sources.md").unlink()
    assert folder_faults(damaged) == [
        "breakers.py: not in manifest.json",
        "reports/sources.md: missing, though in manifest.json",
        "breakers.py: old clients would run a script in the root",
        "reports/stats.json: changed since it was written",
    ]


def test_parquet_that_the_viewer_cannot_page_through_is_reported(damaged: Path, monkeypatch):
    path = damaged / "harmful" / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path), path, write_page_index=False)
    _update_hashes(damaged)
    monkeypatch.setattr("cb_datasets.publish.check.MAX_ROW_GROUP_BYTES", 1000)
    monkeypatch.setattr("cb_datasets.publish.check.MAX_ROW_BYTES", 1000)
    faults = folder_faults(damaged)
    assert "harmful/train-00000-of-00001.parquet: no page index" in faults
    assert any("a row group is larger than 100 MB" in fault for fault in faults)
    assert "eval/tool_flip: a row is longer than 2 MB; the viewer cannot show it" in faults


def test_progress_bars_stay_enabled(release: Path):
    assert not datasets.are_progress_bars_disabled()
