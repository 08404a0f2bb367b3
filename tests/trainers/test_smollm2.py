"""A real model of 135 M parameters, end to end: `make test-slow`."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.trainers.conftest import made_for
from trainers import CircuitBreakerConfig, CircuitBreakerTrainer


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    from tools.smollm2 import build_smollm2

    return build_smollm2(tmp_path_factory.mktemp("smollm2"))


# L2 distances between states of this model are so large that with the published weight of 10 the cosine stays at 1, as
# the trainer warns. The test is on `loss/rr`: the total loss grows with the coefficient of the retain set.
REFERENCE = {"retain_l2_weight": 0.1, "retain_l2_layers": ["target"], "retain_l2_norm": "token"}
REFERENCE |= {"lora_b_init_std": 0.03, "rr_tokens": "completion", "retain_tokens": "completion"}


@pytest.mark.parametrize(
    ("preset", "settings", "falls"),
    [("selective", {"lora_b_init_std": 1e-2}, "loss"), ("reference", REFERENCE, "loss/rr")],
)
def test_twenty_steps_end_to_end(preset, settings, falls, smollm2, attacked_rows, tmp_path):
    trainer = CircuitBreakerTrainer(
        model=str(smollm2),
        args=CircuitBreakerConfig(
            output_dir=str(tmp_path / "adapter"),
            preset=preset,
            **settings,
            max_steps=20,
            learning_rate=2e-3,
            per_device_train_batch_size=2,
            retain_batch_size=4,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32"},
            save_strategy="no",
        ),
        train_dataset=made_for(attacked_rows(records=12, refusals=8), AutoTokenizer.from_pretrained(smollm2)),
        peft_config=LoraConfig(r=8, lora_alpha=16),
    )
    assert trainer.plan.target_layers == (9, 19)  # of 30
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    assert [entry["step"] for entry in logs] == list(range(1, 21))
    assert logs[-1][falls] < logs[0][falls] / 2

    trainer.save_model(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    inputs = torch.tensor([trainer.train_dataset[0]["input_ids"]])
    with torch.no_grad():
        before = base(inputs).logits
        after = PeftModel.from_pretrained(base, tmp_path / "adapter")(inputs).logits
        trainer.model.eval()
        torch.testing.assert_close(after, trainer.model(inputs).logits)
        assert not torch.allclose(after, before, atol=0.1)
        with trainer.model.disable_adapter():
            torch.testing.assert_close(trainer.model(inputs).logits, before)
