"""Nothing is run or sent that nobody asked for: pickles, code of a model, pushes, rows in a tracker."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from cb_datasets.generation.model_files import check_model_files, check_remote_code
from cb_datasets.generation.transformers_backend import load_causal_lm

from .conftest import make_attacked_rows


@pytest.fixture
def pickled(tmp_path):
    """A model whose only weights are a pickle."""
    from .conftest import make_model, make_tokenizer

    make_model().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    return tmp_path


def test_pickles_are_loaded_if_a_flag_says_so(pickled):
    with pytest.raises(ValueError, match=r"pickle, pytorch_model\.bin: loading it can run code"):
        check_model_files(str(pickled))
    with pytest.raises(ValueError, match="pickle"):
        load_causal_lm(str(pickled))  # generation and evaluation have no such flag
    check_model_files(str(pickled), allow_pickles=True)


@pytest.mark.parametrize("revision", [None, "main", "c0ffee", "C" * 40])
def test_code_of_a_hub_model_needs_a_commit(revision):
    with pytest.raises(ValueError, match="model_revision"):
        check_remote_code("someone/model", revision)


def test_code_of_a_folder_is_named_and_of_another_repository_refused(pickled, caplog):
    config = json.loads((pickled / "config.json").read_text())
    (pickled / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "code.Config"}}))
    check_remote_code(str(pickled), None)
    assert caplog.messages == [f"`trust_remote_code`: Python code of {pickled} runs: code.py."]
    (pickled / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "some/one--code.Config"}}))
    with pytest.raises(ValueError, match="another repository"):
        check_remote_code(str(pickled), None)


def test_a_push_is_refused_with_the_release_as_remedy(make_trainer):
    with pytest.raises(ValueError, match=r"`push_to_hub` .*training_args\.bin.*cb-datasets push-model"):
        make_trainer(push_to_hub=True)


def test_trackers_get_no_rows(make_trainer, monkeypatch):
    """All that a tracker is handed: arguments, state, logs and the model's config."""
    seen = []

    class Tracker(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            seen.append(
                (args.to_dict(), model.config.to_dict(), {n: c.to_dict() for n, c in model.peft_config.items()})
            )

        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((logs, state.log_history))

    from transformers.integrations import integration_utils

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Tracker)
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: True)
    rows = make_attacked_rows()
    make_trainer(train_dataset=rows, report_to="wandb").train()
    text = str(seen)
    assert "cosine/ds" in text  # of the logs
    for row in rows:
        assert row["id"] not in text and row["assistant_raw"] not in text
        assert all(message["content"] not in text for message in row["messages"])
