"""The progress bar of a run, its warnings and its curves."""

import logging
import re

import pytest
from transformers import TrainerControl, TrainerState

from trainers.callbacks import Watchdog, live_line
from trainers.curves import plot_curves


HEALTHY = {"cosine/ds": 0.4, "cosine/dr": 0.98, "entropy/dr_adapted": 0.5, "entropy/dr_frozen": 0.4}


def warnings(make_trainer, caplog, logs, step=50, **options):
    trainer = make_trainer(**options)
    watchdog, state = Watchdog(trainer.plan.classes), TrainerState(global_step=step, max_steps=100)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # each is logged once
            watchdog.on_log(trainer.args, state, TrainerControl(), logs=logs)
    return [record.message for record in caplog.records if record.name == "trainers.callbacks"]


def test_healthy_run_gets_no_warning(make_trainer, caplog):
    assert warnings(make_trainer, caplog, HEALTHY) == []
    assert warnings(make_trainer, caplog, {"loss": 1.0}) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cosine/ds": 0.995}, "0.9950 at step 50 of 100: nothing is being rerouted. Raise `learning_rate`"),
        ({"cosine/dr": 0.5}, "fallen to 0.500 at step 50 of 100.* Raise `retain_l2_weight`"),
        ({"entropy/dr_adapted": 2.5}, "entropy .* is 2.50 nats .* against 0.40 .* Raise the weights"),
    ],
)
def test_each_warning_is_logged_once_with_its_remedy(make_trainer, caplog, change, message):
    [warning] = warnings(make_trainer, caplog, HEALTHY | change)
    assert re.search(message, warning)


def test_no_warning_of_rerouting_at_the_start_of_a_run(make_trainer, caplog):
    assert warnings(make_trainer, caplog, HEALTHY | {"cosine/ds": 1.0}, step=10) == []


@pytest.mark.parametrize("change", [{"cosine/dr": 0.5}, {"entropy/dr_adapted": 2.5}])
@pytest.mark.parametrize(("step", "number"), [(33, 0), (34, 1)])
def test_retain_set_may_drift_in_the_first_third(make_trainer, caplog, change, step, number):
    assert len(warnings(make_trainer, caplog, HEALTHY | change, step=step)) == number


def test_only_the_aims_of_the_terms_in_use_are_checked(make_trainer, attacked_rows, caplog):
    """A cosine near 1 is fine in a loss without rerouting, and a low one in a loss without L2."""
    options = {"preset": "selective", "train_dataset": attacked_rows()}
    assert warnings(make_trainer, caplog, HEALTHY | {"cosine/ds": 1.0, "cosine/dr": 0.5}, **options) == []


def test_the_triplet_loss_reroutes_too(make_trainer, attacked_rows, caplog):
    stuck = HEALTHY | {"cosine/ds": 1.0}
    [warning] = warnings(make_trainer, caplog, stuck, train_dataset=attacked_rows(), rr_weight=0, triplet_weight=1)
    assert "nothing is being rerouted" in warning


def test_live_line_shows_the_metrics():
    logs = {"cosine/ds": 0.4821, "cosine/dr": 0.991, "distance/dr": 3.14, "loss": 5.0}
    line = live_line(logs | {"loss/rr": 0.4831, "coefficient/rr": 7.5}, tokens_per_second=5120)
    assert line.startswith("cos Ds 0.482, cos Dr 0.991, L2 Dr 3.14, rr 0.483 x 7.5, 5.1k tok/s, ")
    assert line.endswith(" GiB")


def test_bar_shows_the_live_line(make_trainer, capfd):
    make_trainer(disable_tqdm=False, max_steps=2).train()
    output = capfd.readouterr().err
    assert "2/2" in output
    assert "cos Ds 0.9" in output or "cos Ds 1.0" in output
    assert "tok/s" in output


def test_curves_of_a_run_are_drawn(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2)
    trainer.train()
    plot_curves(trainer.state.log_history, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
