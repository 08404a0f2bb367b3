"""A training that is stopped ends in one line, with the exit status of the shell, and keeps its checkpoints."""

import os
import signal
from collections.abc import Iterator

import pytest

from trainers.checkpoints import sort_checkpoints
from trainers.circuit_breaker_trainer import CircuitBreakerTrainer
from trainers.command_line import errors_in_one_line

from .test_train import flags, run  # noqa: F401 - a fixture


@pytest.fixture(autouse=True)
def foreground() -> Iterator[None]:
    """The handlers of a job in the foreground: in the background, shells have SIGINT ignored."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_one_line(number, status, capsys):
    with pytest.raises(SystemExit) as stopped, errors_in_one_line("Go on."):
        signal.raise_signal(number)
    assert stopped.value.code == status
    assert capsys.readouterr().err == f"\nStopped by {number.name}. Go on.\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_ctrl_c_keeps_the_checkpoint_and_no_half_written_file(flags, tmp_path, monkeypatch, capsys):  # noqa: F811
    step = CircuitBreakerTrainer.training_step

    def stopped_step(self, *args, **kwargs):
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(CircuitBreakerTrainer, "training_step", stopped_step)
    with pytest.raises(SystemExit) as stopped:
        run(*flags, "--save_strategy", "steps", "--save_steps", "2")
    assert stopped.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("Stopped by SIGINT. Repeat the command with --resume_")
    output = tmp_path / "adapter"
    whole, faults = sort_checkpoints(output)
    assert [path.name for path in whole] == ["checkpoint-2"] and not faults
    assert not list(output.glob(".*")) and not (output / "adapter_model.safetensors").exists()
