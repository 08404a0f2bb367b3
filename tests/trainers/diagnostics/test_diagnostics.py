"""Diagnostics against the states that the model itself returns, row by row."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from cb_datasets import chat
from cb_datasets.files import load_rows, read_json, save_rows
from cb_datasets.sample import clean_messages
from trainers.diagnostics.__main__ import DiagnosticsArguments, choose_rows, main, make_parser
from trainers.diagnostics.cosine_stats import COMPLETION_HEAD, PROMPT_TAIL
from trainers.diagnostics.cosines import measure_cosines


@pytest.fixture
def adapted(model):
    """The model with two different adapters, both with an effect."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, target_modules="all-linear")
    adapted = get_peft_model(model, config, adapter_name="breaker")
    adapted.add_adapter("plain_rr", config)
    return adapted.eval()


def states(adapted, ids, adapter):
    """States of all layers before the final norm, by hooks on the layers: `(layers, tokens, hidden_size)`."""
    outputs = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
        for layer in adapted.get_base_model().get_decoder().layers
    ]
    if adapter is not None:
        adapted.set_adapter(adapter)
    with torch.no_grad():
        if adapter is None:
            with adapted.disable_adapter():
                adapted(input_ids=torch.tensor([ids]))
        else:
            adapted(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return torch.stack(outputs)


def expected(adapted, tokenizer, row, adapter, to_clean=False):
    """Cosines of one row's completion, `(layers, tokens)`."""
    completion = chat.encode_completion(tokenizer, row["assistant_raw"])
    ids = chat.encode_prompt(tokenizer, row) + completion
    other = chat.encode_prompt(tokenizer, {**row, "messages": clean_messages(row)}) + completion if to_clean else ids
    own, base = states(adapted, ids, adapter), states(adapted, other, None)
    return F.cosine_similarity(own[:, -len(completion) :], base[:, -len(completion) :], dim=-1).numpy()


@pytest.mark.parametrize("batch_tokens", [1, 10_000], ids=["row by row", "padded"])
def test_cosines_are_those_of_single_rows(adapted, tokenizer, attacked_rows, batch_tokens):
    rows = list(attacked_rows(records=3, refusals=2))
    classes = measure_cosines(adapted, tokenizer, rows, batch_tokens)
    assert {name: summary["rows"] for name, summary in classes.items()} == {
        "adversarial_safe": 3,
        "benign_twin": 3,
        "harmful_flip": 3,
        "refusal": 2,
    }
    for name, summary in classes.items():
        own = [row for row in rows if row["priority_class"] == name]
        measures = [("cosine", ("breaker", "plain_rr"))]
        if own[0]["injection"]:
            measures.append(("to_clean", ("base", "breaker", "plain_rr")))
        assert [measure for measure, _ in measures] == [key for key in summary if key in ("cosine", "to_clean")]
        for key, models in measures:
            assert tuple(summary[key]) == models
            for adapter in models:
                by_row = [
                    expected(adapted, tokenizer, row, None if adapter == "base" else adapter, key == "to_clean")
                    for row in own
                ]
                mean = np.mean([values.mean(axis=1) for values in by_row], axis=0)
                curves = summary[key][adapter]
                assert curves["by_layer"]["completion"]["mean"] == pytest.approx(mean, abs=1e-3)
                first = np.mean([values[:, 0] for values in by_row], axis=0)
                assert [layer[PROMPT_TAIL] for layer in curves["by_token"]] == pytest.approx(first, abs=1e-3)


def test_positions_without_a_row_are_null_and_counted(adapted, tokenizer, attacked_rows):
    rows = list(attacked_rows(records=0, refusals=2))
    summary = measure_cosines(adapted, tokenizer, rows, 10_000)["refusal"]
    length = len(chat.encode_completion(tokenizer, rows[0]["assistant_raw"]))
    assert length < COMPLETION_HEAD
    assert summary["rows_at"] == [2] * (PROMPT_TAIL + length) + [0] * (COMPLETION_HEAD - length)
    by_token = summary["cosine"]["breaker"]["by_token"][0]
    assert [value is None for value in by_token] == [number == 0 for number in summary["rows_at"]]
    assert summary["tool_name_at"] is None


def test_tool_name_at_is_its_position_in_the_completion(adapted, tokenizer, attacked_rows):
    [row] = [row for row in attacked_rows(records=1, refusals=0) if row["priority_class"] == "harmful_flip"]
    classes = measure_cosines(adapted, tokenizer, [row], 10_000)
    # One token per byte, but one for the tag
    assert classes["harmful_flip"]["tool_name_at"] == len('T{"name": "')


def test_prompt_injection_and_completion_are_measured_apart(adapted, tokenizer, attacked_rows):
    classes = measure_cosines(adapted, tokenizer, list(attacked_rows(records=2, refusals=1)), 10_000)
    parts = {name: set(summary["cosine"]["breaker"]["by_layer"]) for name, summary in classes.items()}
    assert parts["harmful_flip"] == {"prompt", "injection", "completion"}
    assert parts["benign_twin"] == parts["refusal"] == {"prompt", "completion"}


def test_an_adapter_that_does_nothing_has_cosine_one(model, tokenizer, attacked_rows):
    idle = get_peft_model(model, LoraConfig(r=2), adapter_name="breaker").eval()
    summary = measure_cosines(idle, tokenizer, list(attacked_rows(records=2, refusals=0)), 10_000)["harmful_flip"]
    for curve in summary["cosine"]["breaker"]["by_layer"].values():
        assert curve["mean"] == curve["low"] == curve["high"] == pytest.approx([1.0] * 4, abs=1e-4)
    assert summary["to_clean"]["breaker"] == summary["to_clean"]["base"]


def test_zero_rows_are_an_error(adapted, tokenizer, attacked_rows, tmp_path):
    with pytest.raises(ValueError, match="zero rows"):
        measure_cosines(adapted, tokenizer, [], 10_000)
    save_rows(attacked_rows().select([]), tmp_path, {})
    with pytest.raises(ValueError, match="zero rows"):
        choose_rows(tmp_path, 5, 0)


def test_nan_states_are_an_error(adapted, tokenizer, attacked_rows):
    adapted.get_base_model().get_decoder().layers[1].mlp.down_proj.base_layer.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="not a number"):
        measure_cosines(adapted, tokenizer, list(attacked_rows(records=1)), 10_000)


def test_rows_are_chosen_by_class_and_siblings_together(attacked_rows, tmp_path):
    save_rows(attacked_rows(records=9, refusals=3), tmp_path, {})
    rows = load_rows(tmp_path)
    chosen = rows.select(sorted(choose_rows(tmp_path, 4, 0)))
    pairs = {
        name: {row["pair"] for row in chosen if row["priority_class"] == name} for name in set(rows["priority_class"])
    }
    assert len(pairs["harmful_flip"]) == 4
    assert pairs["harmful_flip"] == pairs["adversarial_safe"] == pairs["benign_twin"]
    assert choose_rows(tmp_path, 4, 0) == choose_rows(tmp_path, 4, 0) != choose_rows(tmp_path, 4, 1)
    assert choose_rows(tmp_path, 100, 0) == set(range(len(rows)))


@pytest.fixture
def arguments(adapted, model_path: Path, attacked_rows, tmp_path) -> DiagnosticsArguments:
    adapted.save_pretrained(tmp_path / "adapters")
    save_rows(attacked_rows(), tmp_path / "eval", {})
    return DiagnosticsArguments(
        model=str(model_path),
        adapter=str(tmp_path / "adapters" / "breaker"),
        data=str(tmp_path / "eval"),
        output=str(tmp_path / "diagnostics.json"),
        also=[f"plain_rr={tmp_path / 'adapters' / 'plain_rr'}"],
    )


def test_file_has_the_cosines_and_is_the_same_in_a_second_run(arguments, adapted, tokenizer, attacked_rows):
    main(arguments)
    diagnostics = read_json(Path(arguments.output))
    assert diagnostics["layers"] == [1, 2, 3, 4]
    assert diagnostics["positions"] == list(range(-PROMPT_TAIL, COMPLETION_HEAD))
    assert set(diagnostics["settings"]["adapters"]) == {"breaker", "plain_rr"}
    assert diagnostics["classes"] == measure_cosines(adapted, tokenizer, list(attacked_rows()), 10_000)
    main(arguments)
    assert read_json(Path(arguments.output)) == diagnostics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"also": ["plain_rr"]}, "NAME=PATH"),
        ({"also": ["base=somewhere"]}, "a name of its own"),
        ({"data": "nowhere"}, "No dataset in nowhere"),
        ({"adapter": "nowhere"}, "There is no folder nowhere"),
        ({"also": ["plain_rr=/"]}, "/ is no folder of an adapter: adapter_config.json is missing"),
        ({"model": "/nowhere"}, "There is no folder /nowhere"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, change, message):
    for name, value in change.items():
        setattr(arguments, name, value)
    with pytest.raises(SystemExit, match=message):
        main(arguments)
    assert not Path(arguments.output).exists()


def test_additional_adapters_are_given_one_by_one_or_together():
    flags = ["--model", "m", "--adapter", "a", "--data", "d", "--output", "o"]
    [one_by_one] = make_parser().parse_args_into_dataclasses([*flags, "--also", "x=1", "--also", "y=2"])
    [together] = make_parser().parse_args_into_dataclasses([*flags, "--also", "x=1", "y=2"])
    assert one_by_one.also == together.also == ["x=1", "y=2"]
    assert make_parser().parse_args_into_dataclasses(flags)[0].also == []
