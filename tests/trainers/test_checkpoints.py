"""Half-written checkpoints are passed over by name, and rotation never removes the last whole one."""

import logging
import re
import shutil
from pathlib import Path

import pytest

from trainers import CircuitBreakerConfig
from trainers.checkpoints import FILE_LIST, fault, rotate, sort_checkpoints


SAVED = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
FILES = {
    *("adapter_config.json", "adapter_model.safetensors", "log_sums_0.pth", "optimizer.pt", "rng_state.pth"),
    *("scheduler.pt", "tokenizer.json", "tokenizer_config.json", "trainer_state.json", "chat_template.jinja"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer, rows) -> Path:
    """Output folder of a training of six steps, with a checkpoint every two."""
    from .conftest import build_trainer

    folder = tmp_path_factory.mktemp("trained")
    build_trainer(output_dir=str(folder), train_dataset=rows(), processing_class=tokenizer, **SAVED).train()
    return folder


@pytest.fixture
def output(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "output")


def names(paths) -> list[str]:
    return [path.name for path in paths]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_each_file_missing_or_cut_off_is_named(output):
    newest = output / "checkpoint-6"
    files = {path.name for path in newest.iterdir()}
    assert files == {*FILES, FILE_LIST} and fault(newest) is None
    for name in sorted(FILES):
        for damage, reason in ((Path.unlink, f"{name} is missing"), (truncate, rf"{name} has \d+ bytes of \d+")):
            kept = (newest / name).read_bytes()
            damage(newest / name)
            whole, faults = sort_checkpoints(output)
            assert names(whole) == ["checkpoint-2", "checkpoint-4"] and list(faults) == [newest]
            assert re.fullmatch(reason, faults[newest])
            (newest / name).write_bytes(kept)
    truncate(newest / FILE_LIST)
    assert fault(newest) is None  # its line break
    (newest / FILE_LIST).write_text('{"files": {')
    assert fault(newest) == "its checkpoint.json is damaged"
    (newest / FILE_LIST).write_text("{}")
    assert fault(newest) == "its checkpoint.json is damaged"
    (newest / FILE_LIST).unlink()
    assert fault(newest) == "it has no checkpoint.json, so it was not finished"


def test_resuming_takes_the_newest_whole_checkpoint_and_names_the_others(output, make_trainer, caplog, capsys):
    (output / "checkpoint-6" / "trainer_state.json").unlink()
    truncate(output / "checkpoint-4" / "optimizer.pt")
    half = output / "checkpoint-100"
    half.mkdir()
    (output / ".checkpoint-0@elsewhere.tmp").mkdir()  # of another host: it may be being written
    with caplog.at_level(logging.WARNING):
        resumed = make_trainer(output_dir=str(output), **SAVED)
        resumed.train(resume_from_checkpoint=True)
    passed = [message for message in caplog.messages if "Passed over " in message]
    reasons = ("it has no checkpoint.json, so it was not finished", r"optimizer.pt has \d+ bytes of \d+")
    for step, reason, message in zip((100, 4, 6), (*reasons, "trainer_state.json is missing"), passed, strict=True):
        assert re.search(rf"Passed over {output}/checkpoint-{step}: {reason}\.$", message)
    assert f"Resuming from {output / 'checkpoint-2'}." in capsys.readouterr().out
    # Damaged checkpoints of steps that are trained again are replaced; the other stays
    whole, faults = sort_checkpoints(output)
    assert names(whole) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"] and list(faults) == [half]
    assert (output / ".checkpoint-0@elsewhere.tmp").exists()


def test_without_a_whole_checkpoint_training_starts_at_the_beginning(output, make_trainer, caplog):
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-6"):
        (output / name / "scheduler.pt").unlink()
    trainer = make_trainer(output_dir=str(output), **SAVED)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.log_history[0]["step"] == 1 and "training starts at the beginning" in caplog.text


@pytest.mark.parametrize(
    ("name", "reason"),
    [("checkpoint-4", "scheduler.pt is missing"), ("checkpoint-5", "there is no such folder")],
)
def test_a_checkpoint_that_is_named_and_not_whole_is_refused(output, make_trainer, name, reason):
    (output / "checkpoint-4" / "scheduler.pt").unlink()
    trainer = make_trainer(output_dir=str(output), **SAVED)
    with pytest.raises(ValueError, match=f"^Cannot resume from .*/{name}: {reason}. Name another checkpoint, or set"):
        trainer.train(resume_from_checkpoint=str(output / name))


def test_weights_alone_are_no_checkpoint_to_resume_from(make_trainer, tmp_path):
    make_trainer(**SAVED, save_only_model=True).train()
    assert fault(tmp_path / "output" / "checkpoint-6") == "it has weights only (`save_only_model`)"


def test_rotation_keeps_the_last_whole_checkpoint(output):
    newest = output / "checkpoint-6"
    (newest / "rng_state.pth").unlink()
    rotate(output, 1, {output / "checkpoint-4"})
    # One that is not whole neither counts nor is it removed
    assert names(sorted(output.glob("checkpoint-*"))) == ["checkpoint-4", "checkpoint-6"]
    rotate(output, 1, {output / "checkpoint-4"})
    rotate(output, None, set())
    assert names(sort_checkpoints(output)[0]) == ["checkpoint-4"]


def test_the_newest_is_the_one_that_was_finished_last(output, make_trainer):
    """A training that starts anew in the folder of a longer one is not resumed with the longer one's weights."""
    make_trainer(output_dir=str(output), **SAVED | {"max_steps": 2}).train()
    assert names(sort_checkpoints(output)[0]) == ["checkpoint-4", "checkpoint-6", "checkpoint-2"]
    rotate(output, 2, {output / "checkpoint-2"})
    assert names(sort_checkpoints(output)[0]) == ["checkpoint-6", "checkpoint-2"]


def test_the_best_checkpoint_is_known_by_its_final_name_and_stays(make_trainer, rows, tmp_path):
    best = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss", "save_total_limit": 1}
    trainer = make_trainer(**SAVED, **best, eval_dataset=rows(split="eval"), greater_is_better=True)
    trainer.train()
    kept = Path(trainer.state.best_model_checkpoint)
    assert kept.parent == tmp_path / "output" and fault(kept) is None
    assert kept == tmp_path / "output" / f"checkpoint-{trainer.state.best_global_step}"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("a/checkpoint-2", "a/checkpoint-2")])
def test_resuming_is_a_flag(text, value, tmp_path):
    config = CircuitBreakerConfig(
        str(tmp_path), resume_from_checkpoint=text, max_steps=1, target_layers=[1], use_cpu=True, bf16=False
    )
    assert config.resume_from_checkpoint == value
