"""Model card of a breaker: method, paper, data with their quality gates, and evaluation results."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from cb_datasets.counts import gate_number
from cb_datasets.evaluation.results import model_names
from cb_datasets.markdown import cell, code
from cb_datasets.model_licences import licence_of
from cb_datasets.report.tables import metric_table_rows

from .objective.terms import TERMS


MODEL_CARD_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


def model_card(
    facts: Mapping[str, Any], gates: Mapping[str, Any] | None = None, evaluation: Mapping[str, Any] | None = None
) -> ModelCard:
    """
    Make the model card of a breaker.

    Args:
        facts (`Mapping[str, Any]`):
            Facts from the training, see [`CircuitBreakerTrainer.card_facts`].
        gates (`Mapping[str, Any]`, *optional*):
            Report of the quality gates of the data, `quality_gates.json`.
        evaluation (`Mapping[str, Any]`, *optional*):
            Results of an evaluation, `results.json`.
    """
    models = model_names(dict(evaluation)) if evaluation else []
    licence = licence_of(facts["base_label"] or "")
    data = ModelCardData(
        base_model=facts["base_model"],
        datasets=facts["dataset_name"] if facts["dataset_on_hub"] else None,
        library_name="peft",
        pipeline_tag="text-generation",
        model_name=facts["model_name"],
        tags=["generated_from_trainer", *facts["tags"]],
        license=licence.hub_id if licence else None,
        license_name=licence.hub_name if licence else None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(MODEL_CARD_TEMPLATE),
        reroutes=any(TERMS[term].reroutes for term in facts["weights"]),
        gates=gates,
        models=list(map(cell, models)),
        evaluation=[tuple(map(cell, row)) for row in metric_table_rows(dict(evaluation), models)]
        if evaluation
        else None,
        cell=cell,
        code=code,
        number=gate_number,
        versions={name: version(name) for name in ("torch", "transformers", "peft", "trl", "datasets", "cb-datasets")},
        **{name: value for name, value in facts.items() if name != "tags"},
    )
