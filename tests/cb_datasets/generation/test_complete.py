"""Resumable generation with the tiny agent, with a real `kill -9`, and checks of model and adapter paths."""

import functools
import random
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from datasets import concatenate_datasets
from transformers import AutoTokenizer, set_seed
from typer.testing import CliRunner

from builders import load_source
from cb_datasets.chat import encode_prompt
from cb_datasets.cli import app
from cb_datasets.files import read_json, save_rows, write_json
from cb_datasets.generation import Sampling, complete, decoding_attention
from cb_datasets.generation.backend import end_token_ids, weights_revision
from cb_datasets.generation.tokenizer import load_tokenizer
from cb_datasets.generation.transformers_backend import TransformersBackend
from cb_datasets.sets.prompts import prompts_for_task
from tests.cb_datasets.crash_helpers import kill_at_random, shards_in, start_run


@pytest.fixture(scope="module")
def prompts():
    traces = load_source("lookalike")["test"]
    tasks = [prompts_for_task(traces, task) for task in ("capability", "tool_flip", "refusal")]
    return concatenate_datasets([rows.select(range(6)) for rows in tasks])


@pytest.fixture(scope="module")
def backend(tiny_agent_path):
    return TransformersBackend(str(tiny_agent_path), batch_size=8)


GREEDY = Sampling(max_new_tokens=64)


def test_completions_are_complete_and_in_prompt_order(prompts, backend, tmp_path):
    done = complete(prompts, backend, GREEDY, tmp_path, shard_size=5)
    assert done["prompt_id"] == prompts["id"]
    assert set(done["stop_reason"]) == {"stop"} and all(done["canonical"])
    assert all(text.endswith(("<|eom_id|>", "<|eot_id|>")) for text in done["text"])


def test_batching_does_not_change_greedy_completions(prompts, backend, tiny_agent_path, tmp_path):
    """Left padding and attention masks are right: batch size 1 and 8 give the same texts."""
    one_by_one = TransformersBackend(str(tiny_agent_path), batch_size=1)
    together = complete(prompts, backend, GREEDY, tmp_path / "a")["text"]
    assert complete(prompts, one_by_one, GREEDY, tmp_path / "b")["text"] == together


@pytest.fixture
def in_batches(monkeypatch):
    """As networks with windows or recurrent states complete."""
    monkeypatch.setattr(decoding_attention, "supports", lambda network: False)


@pytest.mark.parametrize("n_samples", [1, 3])
def test_sampling_equals_one_generate_call_of_transformers(n_samples, prompts, tiny_agent_path, in_batches):
    """With one sample or several: a batch counts sequences, and the samples of a prompt are neighbours in it."""
    ids = sorted(
        (encode_prompt(load_tokenizer(str(tiny_agent_path)), row) for row in prompts.select(range(4))), key=len
    )
    backend = TransformersBackend(str(tiny_agent_path), batch_size=4 * n_samples)
    done = backend.generate(ids, Sampling(temperature=1.5, num_samples=n_samples, max_new_tokens=24), seed=7)
    inputs = backend.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    options = {"temperature": 1.5, "top_k": 0, "max_new_tokens": 24, "num_return_sequences": n_samples}
    set_seed(7)
    with backend.network() as network:
        ends = {"eos_token_id": end_token_ids(backend.tokenizer), "pad_token_id": backend.tokenizer.pad_token_id}
        expected = network.generate(**inputs, do_sample=True, **options, **ends)[
            :, inputs["input_ids"].shape[1] :
        ].tolist()
    sampled = [completion.token_ids for samples in done for completion in samples]
    assert len(set(sampled)) > n_samples
    assert all(tuple(theirs[: len(ours)]) == ours for ours, theirs in zip(sampled, expected, strict=True))


def test_no_forward_pass_exceeds_the_batch_size(prompts, tiny_agent_path, in_batches, monkeypatch):
    backend = TransformersBackend(str(tiny_agent_path), batch_size=4)
    sizes, generate = [], backend._generate_batch
    monkeypatch.setattr(
        backend, "_generate_batch", lambda ids, sampling: sizes.append(len(ids)) or generate(ids, sampling)
    )
    ids = [encode_prompt(backend.tokenizer, row) for row in prompts.select(range(3))]
    done = backend.generate(ids, Sampling(temperature=9.0, num_samples=6, max_new_tokens=4), seed=7)
    assert sizes == [4, 4, 4, 4, 2], "more samples of a prompt than a batch holds are split too"
    assert [len(completions) for completions in done] == [6, 6, 6]
    assert all(len({completion.token_ids for completion in completions}) > 1 for completions in done)


def test_a_second_run_generates_nothing(prompts, backend, tmp_path, monkeypatch):
    first = complete(prompts, backend, GREEDY, tmp_path, shard_size=5)
    monkeypatch.setattr(backend, "generate", lambda *args: pytest.fail("generated again"))
    assert complete(prompts, backend, GREEDY, tmp_path, shard_size=5)["text"] == first["text"]


def test_only_missing_shards_are_generated(prompts, backend, tmp_path, monkeypatch):
    first = complete(prompts, backend, GREEDY, tmp_path, shard_size=5)
    [run] = tmp_path.iterdir()
    shards = sorted(run.glob("shard-*.parquet"))
    assert [path.name for path in shards] == [f"shard-{k:05d}-of-00004.parquet" for k in range(4)]
    shards[2].unlink()
    batches = []
    generate = backend.generate
    monkeypatch.setattr(backend, "generate", lambda ids, *rest: batches.append(len(ids)) or generate(ids, *rest))
    assert complete(prompts, backend, GREEDY, tmp_path, shard_size=5)["text"] == first["text"]
    assert batches == [5]


def test_other_settings_never_reuse_old_shards(prompts, backend, tmp_path):
    complete(prompts, backend, GREEDY, tmp_path)
    complete(prompts, backend, Sampling(temperature=0.5, max_new_tokens=64), tmp_path)
    complete(prompts.select(range(17)), backend, GREEDY, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    manifest = read_json(next(tmp_path.iterdir()) / "manifest.json")["settings"]
    assert manifest["revision"] == backend.revision and manifest["template_hash"]


def test_samples_are_seeded(prompts, backend, tmp_path):
    hot = Sampling(temperature=1.5, num_samples=3, max_new_tokens=24, seed=7)
    first = complete(prompts, backend, hot, tmp_path / "a", shard_size=5)
    assert len(first) == 3 * len(prompts) and first["sample_index"][:4] == [0, 1, 2, 0]
    assert complete(prompts, backend, hot, tmp_path / "b", shard_size=5)["text"] == first["text"]
    other = Sampling(temperature=1.5, num_samples=3, max_new_tokens=24, seed=8)
    assert complete(prompts, backend, other, tmp_path / "c", shard_size=5)["text"] != first["text"]


def test_a_cut_off_completion_has_stop_reason_length(prompts, backend, tmp_path):
    done = complete(prompts, backend, Sampling(max_new_tokens=2), tmp_path)
    assert set(done["stop_reason"]) == {"length"}


def test_an_overlong_prompt_is_skipped(prompts, backend, tmp_path):
    longest = max(len(encode_prompt(backend.tokenizer, row)) for row in prompts)
    done = complete(prompts, backend, GREEDY, tmp_path, max_length=longest + 63)
    dropped = [row for row in done if row["stop_reason"] == "prompt_too_long"]
    assert 1 <= len(dropped) < len(prompts) == len(done)
    assert all(row["text"] is None for row in dropped)


def test_bad_prompts_and_settings(prompts, backend, tmp_path):
    with pytest.raises(ValueError, match="no prompts"):
        complete(prompts.select([]), backend, GREEDY, tmp_path)
    with pytest.raises(ValueError, match="not unique"):
        complete(concatenate_datasets([prompts, prompts]), backend, GREEDY, tmp_path)
    with pytest.raises(ValueError, match="same completion each time"):
        Sampling(num_samples=2)
    with pytest.raises(FileNotFoundError, match="not a model folder"):
        weights_revision(tmp_path)


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("./nowhere", r"There is no folder ./nowhere\."),
        ("/nowhere/model", r"There is no folder /nowhere/model\."),
        ("~/model", r"There is no folder ~/model\."),
        ("here/nowhere", r"There is no folder here/nowhere. If you mean a Hub model, run .* without a folder here\."),
        ("here", "here is not a model folder: it has no tokenizer"),
        ("file", "file is a file"),
    ],
)
def test_a_wrong_model_path_raises_without_querying_the_hub(model, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda name: pytest.fail("the Hub was queried"))
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=error):
        load_tokenizer(model)


@pytest.mark.parametrize("model", ["gpt2", "elsewhere/model", "a/b/c"])
def test_a_possible_hub_id_is_looked_up_on_the_hub(model, tmp_path, monkeypatch):
    def look_up(name):
        raise OSError(f"{name} was looked up")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", look_up)
    with pytest.raises(FileNotFoundError, match=f"nor available on the Hub: {model} was looked up"):
        load_tokenizer(model)


@pytest.mark.parametrize("is_general", [True, False])
def test_the_tokenizer_is_the_one_that_auto_tokenizer_loads(is_general, tiny_agent_path, tmp_path):
    folder = Path(shutil.copytree(tiny_agent_path, tmp_path / "model"))
    if not is_general:
        settings = read_json(folder / "tokenizer_config.json")
        write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "Qwen2Tokenizer"})
    own, auto = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert type(own) is type(auto)
    assert own.get_vocab() == auto.get_vocab() and own.special_tokens_map == auto.special_tokens_map
    assert own.chat_template == auto.chat_template and own.padding_side == auto.padding_side == "left"
    text = "Tobe\t <|eot_id|> Lusi  42\n"
    assert own(text) == auto(text)


def test_a_general_tokenizer_loads_without_text_generation(tiny_agent_path):
    code = f"""
        import sys
        from cb_datasets.generation.tokenizer import load_tokenizer
        load_tokenizer({str(tiny_agent_path)!r})
        sys.exit("transformers.generation" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)]).returncode == 0


@pytest.mark.parametrize("option", ["--adapter", "--also"])
@pytest.mark.parametrize(
    ("command", "backend"), [("evaluate", "transformers"), ("evaluate", "vllm"), ("attack", "transformers")]
)
def test_a_wrong_adapter_path_raises_before_the_model_loads(
    option, command, backend, prompts, adapter, tiny_agent_path, tmp_path, monkeypatch
):
    for name in ("transformers_backend", "vllm_backend"):
        monkeypatch.setattr(f"cb_datasets.generation.{name}.load_tokenizer", lambda model: pytest.fail("it loads"))
    save_rows(prompts.filter(lambda row: row["task"] == "tool_flip"), tmp_path / "prompts" / "tool_flip", {})
    for folder, error in (("nowhere", "There is no folder"), ("", "is no folder of an adapter: adapter_config.json")):
        wrong = tmp_path / "wrong" / folder
        (tmp_path / "wrong").mkdir(exist_ok=True)
        adapters = ["--adapter", wrong] if option == "--adapter" else ["--adapter", adapter, "--also", f"two={wrong}"]
        flags = ["--model", tiny_agent_path, *adapters, "--prompts", tmp_path / "prompts", "--backend", backend]
        result = CliRunner().invoke(app, [command, *map(str, flags), "--output", str(tmp_path / "out")])
        assert result.exit_code == 1 and error in str(result.exception) and str(wrong) in str(result.exception)


def test_a_backend_raises_on_a_wrong_adapter_path(tiny_agent_path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere\. An adapter is a folder"):
        TransformersBackend(str(tiny_agent_path), str(tmp_path / "nowhere"))


def test_three_kills_at_random_moments_change_nothing(prompts, backend, tiny_agent_path, tmp_path):
    """`kill -9` while the model generates: resuming gives the rows of an uninterrupted run, each once."""
    uninterrupted = complete(prompts, backend, GREEDY, tmp_path / "uninterrupted", shard_size=1).to_list()
    load = functools.partial(TransformersBackend, str(tiny_agent_path), batch_size=8)
    rng, work_dir = random.Random(3), tmp_path / "killed"
    for _ in range(3):
        process = start_run(load, prompts, GREEDY, work_dir, shard_size=1)
        kill_at_random(process, work_dir, rng, max_shards=3)
    kept = {path: path.stat().st_mtime_ns for path in shards_in(work_dir)}
    assert 0 < len(kept) < len(prompts)
    assert complete(prompts, backend, GREEDY, work_dir, shard_size=1).to_list() == uninterrupted
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(work_dir.iterdir())) == 1
