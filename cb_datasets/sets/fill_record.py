"""A record that states only what its maker knew -> one with all columns of a sample.

    {"set": "retain", "messages": [{"role": "user", ...}], "assistant_raw": "...", "labels": {"is_refusal": false}}

What a record states stays as it is, also where it is wrong: the rules find that. The rest is computed from the
completion, or is what a row without it has (split `train`, no injection, `recorded` by an unknown model).
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builders.fujitsu.text import normalize_query
from builders.trace import message, to_json

from ..chat import DATE_STRING
from ..export import export_row
from ..formats import CANONICAL, get_format
from ..outcomes import Outcome
from ..sample import HARMFUL_CLASSES, LABELS, PROVENANCE, SAMPLE_FEATURES, TARGET, content_id
from ..template_probe import rendering_provenance
from .make_sample import make_sample


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Columns that are structs, whose fields are filled one by one.
_STRUCTS = {"target": TARGET, "labels": LABELS, "provenance": PROVENANCE}

_CLASS_BY_OUTCOME = {Outcome.CORRECT: "tool_capability", Outcome.OTHER_TOOL: "tool_capability"}


@dataclass
class RecordFiller:
    """Fills the columns that records lack, and remembers which.

    Args:
        source (`str`): Source of records that state none.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*): Of the model in whose format the completions
            are written. Without it the format is Llama 3.1's, and the hash of the template stays unknown.
        tools (`list[dict]`, *optional*): Function schemas for records without `tools`.
    """

    source: str
    tokenizer: "PreTrainedTokenizerBase | None" = None
    tools: list[dict] | None = None
    records: int = 0
    columns: set[str] = field(default_factory=set)

    def fill(self, record: dict, where: str) -> dict:
        """The record with all columns.

        Raises:
            ValueError: If it lacks what cannot be computed; the message begins with `where` and names all of that.
        """
        missing = _lacks(record)
        if not missing:
            return record
        _check_minimum(record, where)
        stated = {**record, **{name: dict(record.get(name) or {}) for name in _STRUCTS}}
        # Where the class stands among the labels, as in the data generation guide, it is the column.
        if (row_class := stated["labels"].pop("priority_class", None)) is not None:
            stated.setdefault("priority_class", row_class)
        computed = self._computed(stated)
        self.records += 1
        self.columns.update(name.partition(".")[0] for name in missing)
        structs = {name: computed[name] | stated[name] for name in _STRUCTS}
        return {**computed, **stated, **structs, "messages": [_message(each) for each in record["messages"]]}

    def notice(self, file: Path) -> str | None:
        """A sentence on the columns that the records of a file lacked; `None` if they had all."""
        if not self.columns:
            return None
        names = ", ".join(name for name in SAMPLE_FEATURES if name in self.columns)
        return f"{file}: {self.records} records lacked columns, in whole or in part, which were filled: {names}"

    def _computed(self, stated: dict) -> dict:
        """All columns as the record would have them that states no more than is needed."""
        provenance = self._provenance(stated)
        harmful = _is_harmful(stated)
        prompt = {
            **dict.fromkeys(("family", "category", "subtype")),
            "id": stated.get("id") or content_id(self.source, to_json(stated["messages"]), stated["assistant_raw"]),
            "messages": [],
            "tools": None if self.tools is None else to_json(self.tools),
            "injection": stated.get("injection") or [],
            "target": _target(stated),
            "provenance": provenance,
        }
        provenance["record_id"] = provenance["record_id"] or prompt["id"]
        prompt["pair"] = f"{provenance['source_dataset']}/{provenance['record_id']}"
        prompt["group"] = normalize_query(_request(stated["messages"])) or prompt["pair"]
        sample = make_sample(
            prompt,
            stated["assistant_raw"],
            id_prefix="harmful/" if harmful else "retain/",
            split="train",
            priority_class="",
            tool_format=get_format(provenance["prompt_format"]),
            provenance={},
        )
        sample["priority_class"] = _class_of(stated, sample)
        sample["task"] = "tool_flip" if sample["priority_class"] == "harmful_flip" else sample["priority_class"]
        return {**export_row(sample), "id": prompt["id"]}

    def _provenance(self, stated: dict) -> dict:
        given = {name: value for name, value in stated["provenance"].items() if value is not None}
        known: dict[str, Any] = {
            "source_dataset": self.source,
            "generator_model": "unknown",
            "prompt_format": CANONICAL,
            "date_string": DATE_STRING,
            "completion_source": "recorded",
            "redacted": False,
        }
        if self.tokenizer is not None:
            known |= rendering_provenance(self.tokenizer)
        return dict.fromkeys(PROVENANCE) | known | given


def _lacks(record: dict) -> list[str]:
    """Names of the columns that a record lacks, those of structs with the struct's name before them."""
    missing = [name for name in SAMPLE_FEATURES if name not in record and name not in _STRUCTS]
    for name, fields in _STRUCTS.items():
        struct = record.get(name)
        known = struct if isinstance(struct, dict) else {}
        missing += [f"{name}.{each}" for each in fields if each not in known]
    return missing


def _check_minimum(record: dict, where: str) -> None:
    faults = []
    messages = record.get("messages")
    if not isinstance(messages, list) or not all(isinstance(each, dict) for each in messages):
        faults.append("messages (a list of turns)")
    if not isinstance(record.get("assistant_raw"), str):
        faults.append("assistant_raw (the completion, as the model wrote it)")
    faults += [f"{name} (an object)" for name in _STRUCTS if not isinstance(record.get(name) or {}, dict)]
    if not faults and _is_harmful({**record, "labels": record.get("labels") or {}}) is None:
        faults.append("set (circuit_breaker or retain)")
    if faults:
        raise ValueError(f"{where}: a sample needs {', '.join(faults)}. Add it; other columns are filled.")


def _is_harmful(stated: dict) -> bool | None:
    """Whether a record is of Ds; `None` if it does not say so."""
    row_class = stated.get("priority_class") or stated["labels"].get("priority_class")
    if stated.get("set") is not None:
        return stated["set"] == "circuit_breaker"
    if row_class is not None:
        return row_class in HARMFUL_CLASSES
    return stated["labels"].get("is_harmful")


def _target(stated: dict) -> dict:
    """What is right and what the attacker wants, by the labels; of a harmful call, the attacker wanted that one."""
    labels = stated["labels"]
    expected = labels.get("expected_tool")
    called = [call.get("name") for call in stated.get("tool_calls_structured") or [] if isinstance(call, dict)]
    if expected is None and labels.get("is_correct_tool_use") and called:
        expected = called[0]
    simulated = labels.get("simulated_tool")
    if simulated is None and labels.get("harm_type") == "tool_flip":
        simulated = labels.get("observed_tool")
    target = dict.fromkeys(TARGET) | {"expected_tool": expected, "simulated_tool": simulated} | stated["target"]
    calls = {key: target[key] and to_json(target[key]) for key in ("expected_calls", "goal_calls")}
    return target | calls


def _class_of(stated: dict, sample: dict) -> str:
    if sample["set"] == "circuit_breaker":
        return "harmful_flip" if sample["outcome"] == Outcome.ATTACK_SUCCESS else "harmful_compliance"
    if stated["labels"].get("is_adversarial_safe"):
        return "adversarial_safe"
    if sample["outcome"] == Outcome.REFUSAL:
        return "refusal"
    return _CLASS_BY_OUTCOME.get(Outcome(sample["outcome"]), "general_conversation")


def _request(messages: list[dict]) -> str:
    return next((each.get("content") or "" for each in messages if each.get("role") == "user"), "")


def _message(stated: dict) -> dict:
    """A turn with all its fields, and with arguments as an object, which the OpenAI format has as text."""
    turn = message(stated.get("role") or "") | stated
    return {**turn, "tool_calls": [_call(call) for call in turn["tool_calls"] or []]}


def _call(stated: dict) -> dict:
    function = dict(stated.get("function") or {})
    if isinstance(function.get("arguments"), str):
        function["arguments"] = json.loads(function["arguments"])
    return {"id": None, "type": "function", **stated, "function": function}
