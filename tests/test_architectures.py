"""Speed switches on tiny models of many architectures: the same loss and gradients as the plain path, or refused."""

import re
from pathlib import Path

import pytest

from benchmarks import architectures
from benchmarks.architectures import PRESETS, SWITCHES, TOGETHER, Refused, Report, Same, compare
from tools.tiny_architectures import ARCHITECTURES


PAGE = Path(__file__).parents[1] / "docs" / "models.md"

_MIXED = r"computes other hidden states for packed rows .*: {} \(`layer_types`\)\. Set `padding_free: false`"
_PACKED = ("padding_free", "shared_prefix")
_SCALED_LOGITS = {"masked_logits": r"computes its logits by more than its LM head.*`masked_logits: false`"}
_LINEAR = dict.fromkeys(_PACKED, _MIXED.format("linear_attention"))

# All other switches must be the same.
REFUSED = {
    "gemma2": _SCALED_LOGITS,
    "granite": _SCALED_LOGITS,
    "granitemoe": _SCALED_LOGITS,
    "cohere": _SCALED_LOGITS,
    "cohere2": _SCALED_LOGITS,
    "granitemoehybrid": _LINEAR,
    "qwen3_next": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "lfm2": dict.fromkeys(_PACKED, _MIXED.format("conv")),
    "llama4_text": dict.fromkeys(_PACKED, r"chunks of 16 tokens .*`attn_temperature_tuning`"),
}

CORE = ("mistral", "gemma2", "gpt_oss", "granitemoehybrid", "lfm2")


def assert_same_or_refused(name, report):
    for (preset, switch), result in report.results.items():
        expected = REFUSED.get(name, {}).get(switch)
        if expected is None:
            assert isinstance(result, Same), (preset, switch, result)
            assert result.within, (preset, switch, result)
        else:
            assert isinstance(result, Refused), (preset, switch, result)
            assert result.by_name
            assert re.search(expected, result.error), (preset, switch, result)
    assert set(report.results) == {(preset, switch) for preset in PRESETS for switch in (*SWITCHES, TOGETHER)}


@pytest.mark.parametrize("name", CORE)
def test_switches_are_the_same_or_refused(name):
    assert_same_or_refused(name, compare(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in CORE])
def test_switches_are_the_same_or_refused_in_all_architectures(name):
    assert_same_or_refused(name, compare(name))


def test_the_page_has_every_architecture():
    text = PAGE.read_text()
    assert [title for title, *_ in ARCHITECTURES.values() if f"| {title} (" not in text] == []


def test_a_page_is_written_from_reports(tmp_path):
    results = {(preset, switch): Same(1e-7, 2e-6) for preset in PRESETS for switch in (*SWITCHES, TOGETHER)}
    refused = {
        (preset, "padding_free"): Refused("ValueError: Lfm2ForCausalLM: a relative difference of 0.5, at most", True)
        for preset in PRESETS
    }
    plain = {("reference", "plain"): Refused("AttributeError: layers", False)}
    reports = {
        "llama": Report(results, ("q_proj",)),
        "lfm2": Report(results | refused, ("w1",)),
        "qwen3": Report(results | {("selective", "fused_lora"): Same(1e-7, 1e-3)}, ()),
        "gpt_oss": Report(results | plain, ()),
    }
    architectures.write_page(reports, tmp_path / "models.md")
    text = (tmp_path / "models.md").read_text()
    same = " | ".join(["same"] * 8)
    assert f"| Llama 2, 3, 3.1-3.3 (`llama`) | {same} | loss 1.0e-07, gradients 2.0e-06 | `q_proj` |" in text
    assert "| LFM2: convolutions (`lfm2`) | refused [1] | same |" in text
    assert "`reference` same; `selective` **differs** (loss 1.0e-07, gradients 1.0e-03)" in text
    assert "`reference` **fails** [2]; `selective` same" in text
    assert "1. ValueError: *Model*: a relative difference of ..., at most\n2. AttributeError: layers\n" in text
