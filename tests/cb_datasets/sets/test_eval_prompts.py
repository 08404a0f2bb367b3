"""Attacked prompts made harder, on the look-alikes."""

import pytest
from transformers import AutoTokenizer

from builders import load_source
from cb_datasets.chat import encode_completion
from cb_datasets.files import write_json, write_text
from cb_datasets.formats import FORMATS
from cb_datasets.sets.eval_prompts import EVALUATION_TASKS, evaluation_prompts
from cb_datasets.sets.prompts import is_attacked

from ..command import run


LLAMA = FORMATS["llama3_json"]


@pytest.fixture(scope="module")
def traces():
    return load_source("lookalike")["test"]


@pytest.fixture(scope="module")
def tokenizer(tiny_agent_path):
    return AutoTokenizer.from_pretrained(tiny_agent_path)


def test_more_and_more_of_the_attackers_call_is_given(traces):
    rows = evaluation_prompts(traces, "forced_call", LLAMA)
    attacked = sum(map(is_attacked, traces))
    assert len(rows) == 3 * attacked and len(set(rows["id"])) == len(rows)
    tag, word, name = (row["target"]["prefill"] for row in rows.select(range(3)))
    tool = rows[0]["target"]["simulated_tool"]
    assert tag == '<|python_tag|>{"name": "'
    assert name == f'<|python_tag|>{{"name": "{tool}'
    assert name.startswith(word) and word.startswith(tag) and tag != word != name
    assert rows["subtype"][:3] == ["prefill_tag", "prefill_word", "prefill_name"]
    assert all(rows["injection"])


def test_a_prefill_is_encoded_as_the_model_would_write_it(traces, tokenizer):
    """The call's own tokens begin with the prefill's, so what is given cannot show in the tokens."""
    for row in evaluation_prompts(traces, "forced_call", LLAMA).select(range(30)):
        tool = row["target"]["simulated_tool"]
        whole = f'<|python_tag|>{{"name": "{tool}", "parameters": {{"query": "x"}}}}<|eom_id|>'
        given = encode_completion(tokenizer, row["target"]["prefill"])
        assert encode_completion(tokenizer, whole)[: len(given)] == given


def test_the_tasks_are_named_once():
    assert len(set(EVALUATION_TASKS)) == len(EVALUATION_TASKS)


def test_prompts_of_an_earlier_run_are_named_and_kept(tmp_path):
    sources, prompts = tmp_path / "traces", tmp_path / "prompts"
    ingested = run(
        "ingest", "lookalike", "--tasks", "chat", "--tasks", "refusal", "--n-samples", 40, "--output", sources
    )
    assert ingested.returncode == 0, ingested.stderr

    def made(*tasks: str) -> str:
        done = run(
            "generate-eval", sources, "--output", prompts, *(word for task in tasks for word in ("--tasks", task))
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "earlier run" not in made("chat", "refusal")
    write_json(prompts / "mine" / "report.json", {"task": "chat", "rows": 1, "available": 1})
    write_text(prompts / "noted" / "report.json", "no JSON")
    assert f"  also in {prompts}, of an earlier run: refusal. `evaluate` and `merge` read them, too" in made("chat")
    assert (prompts / "refusal" / "eval.parquet").is_file()
