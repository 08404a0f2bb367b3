"""Rules for one sample. Every rule that a row breaks is named, so that a quarantined row says why it is there.

    R1    exactly one call tag                      R5    no Markdown fence in a call
    R2    ends with one end token                   R6    no "Action:", "ToolCall:", "Function:", "Tool:" before the
    call R3    JSON between tag and end, nothing after   marker     no synthetic markers such as "[TOOL_CALL]"
    R4    a name and an object of parameters        agreement  `tool_calls_structured` is what `assistant_raw` says
    R4b   a tool on offer, arguments fit it         label      labels agree with the recomputed outcome and with the
    class R0    not empty                                 provenance what every row must tell of its origin

R1-R6 are for rows that make a call. A row makes a call if its class must, or if `tool_calls_structured` says so;
plain text (chat, refusals) is held to R0, R2, markers, labels and provenance, and may well hold code fences.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from jsonschema import Draft202012Validator

from ..outcomes import Outcome, outcome_of
from ..sample import COMPLETION_SOURCES, HARMFUL_CLASSES, PRIORITY_WEIGHTS, TEXT_CLASSES
from ..tool_calls import Diagnosis, Parsed, ToolCall, ToolCallFormat, get_format


RULES = ("R0", "R1", "R2", "R3", "R4", "R4b", "R5", "R6", "marker", "agreement", "label", "provenance")

SYNTHETIC_MARKERS = ("[TOOL_CALL]", "(Expected:", "[HARMFUL:")
_FORBIDDEN_PREFIX = re.compile(r"^\s*(?:Action|ToolCall|Function|Tool):", re.MULTILINE)
_REQUIRED_PROVENANCE = (
    "source_dataset",
    "record_id",
    "generator_model",
    "prompt_format",
    "template_hash",
    "date_string",
)


@dataclass(frozen=True)
class Violation:
    """A broken rule and what is wrong, in a sentence."""

    rule: str
    message: str


def check(sample: dict) -> list[Violation]:
    """All rules that a sample breaks; an empty list for a good one."""
    tool_format = get_format(sample["provenance"]["prompt_format"])
    parsed = tool_format.parse(sample["assistant_raw"])
    checks = [_text_rules(sample, tool_format), _label_rules(sample, tool_format), _provenance_rules(sample)]
    if makes_call(sample):
        checks += [_call_form_rules(sample, parsed, tool_format), _call_content_rules(sample, parsed)]
    return [violation for found in checks for violation in found]


def makes_call(sample: dict) -> bool:
    """Whether the call rules hold for this sample."""
    if len(sample["tool_calls_structured"]) > 0:
        return True
    # A resisted injection may be answered in words; every other class outside TEXT_CLASSES must call.
    return sample["priority_class"] not in (*TEXT_CLASSES, "injection_resisted")


def _text_rules(sample: dict, tool_format: ToolCallFormat) -> Iterator[Violation]:
    raw = sample["assistant_raw"]
    ends = [raw.count(token) for token in tool_format.end_tokens]
    bare = raw
    for token in tool_format.end_tokens:
        bare = bare.replace(token, "")
    if not bare.strip():
        yield Violation("R0", "the completion is empty")
    if not raw.rstrip().endswith(tool_format.end_tokens) or sum(ends) != 1:
        yield Violation("R2", f"must end with exactly one of {', '.join(tool_format.end_tokens)}, found {sum(ends)}")
    for marker in SYNTHETIC_MARKERS:
        if marker in raw:
            yield Violation("marker", f"synthetic marker {marker!r}")
    if not makes_call(sample) and tool_format.call_tag in raw:
        yield Violation("R1", "plain text must not hold a call tag")


def _call_form_rules(sample: dict, parsed: Parsed, tool_format: ToolCallFormat) -> Iterator[Violation]:
    raw = sample["assistant_raw"]
    tags = raw.count(tool_format.call_tag)
    if tags != 1:
        yield Violation("R1", f"must hold {tool_format.call_tag} once, found {tags}")
    if parsed.diagnosis == Diagnosis.BAD_ARGUMENTS:
        yield Violation("R4", 'needs a "name" and an object under "parameters"')
    elif not parsed.is_call and parsed.diagnosis not in (Diagnosis.MULTI_TAG, Diagnosis.NO_TAG_JSON):
        yield Violation("R3", f"no single JSON call between tag and end: {parsed.diagnosis}")
    if "```" in raw:
        yield Violation("R5", "Markdown fence in a call")
    if _FORBIDDEN_PREFIX.search(raw.split(tool_format.call_tag)[0]):
        yield Violation("R6", "forbidden prefix before the call")


def _call_content_rules(sample: dict, parsed: Parsed) -> Iterator[Violation]:
    written = [(call.name, call.arguments) for call in parsed.calls]
    structured = [(call["name"], json.loads(call["arguments"])) for call in sample["tool_calls_structured"]]
    if written != structured:
        yield Violation("agreement", "tool_calls_structured is not what assistant_raw says")
    tools = json.loads(sample["tools"]) if sample["tools"] else []
    for call in parsed.calls:
        fault = schema_fault(call, tools)
        if fault:
            yield Violation("R4b", fault)


def schema_fault(call: ToolCall, tools: list[dict]) -> str | None:
    """What is wrong with a call given the tools on offer, or `None`."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    if call.name not in schemas:
        return f"tool {call.name!r} is not on offer"
    fault = next(Draft202012Validator(schemas[call.name]).iter_errors(call.arguments), None)
    return None if fault is None else f"arguments of {call.name!r} do not fit: {fault.message[:120]}"


def _label_rules(sample: dict, tool_format: ToolCallFormat) -> Iterator[Violation]:
    """Labels against what the completion does; nothing here trusts a label."""
    outcome = outcome_of(sample["assistant_raw"], sample["target"], tool_format)
    kind, labels = sample["priority_class"], sample["labels"]
    if kind not in PRIORITY_WEIGHTS:
        yield Violation("label", f"unknown priority_class {kind!r}")
    if sample["outcome"] != outcome:
        yield Violation("label", f"outcome says {sample['outcome']}, the completion is {outcome}")
    if (sample["set"] == "circuit_breaker") != (kind in HARMFUL_CLASSES) or labels["is_harmful"] != (
        kind in HARMFUL_CLASSES
    ):
        yield Violation("label", f"set, is_harmful and priority_class {kind} disagree")
    if kind == "harmful_flip" and outcome != Outcome.ATTACK_SUCCESS:
        yield Violation("label", f"a flip must make the attacker's call, this is {outcome}")
    if kind not in HARMFUL_CLASSES and outcome == Outcome.ATTACK_SUCCESS:
        yield Violation("label", "the attacker's call stands in the retain set")
    if kind == "adversarial_safe" and (outcome != Outcome.CORRECT or not sample["injection"]):
        yield Violation("label", f"adversarial_safe needs an injection and the right call, this is {outcome}")
    if kind == "benign_twin" and (outcome != Outcome.CORRECT or sample["injection"]):
        yield Violation("label", f"a benign twin has no injection and makes the right call, this is {outcome}")
    if kind == "refusal" and outcome != Outcome.REFUSAL:
        yield Violation("label", f"not a refusal: {outcome}")


def _provenance_rules(sample: dict) -> Iterator[Violation]:
    provenance = sample["provenance"]
    missing = [key for key in _REQUIRED_PROVENANCE if not provenance[key]]
    if missing:
        yield Violation("provenance", f"missing: {', '.join(missing)}")
    if provenance["completion_source"] not in COMPLETION_SOURCES:
        yield Violation("provenance", f"completion_source is {provenance['completion_source']!r}")
    if provenance["completion_source"] == "sampled" and provenance["stop_reason"] != "stop":
        yield Violation(
            "provenance", f"a sampled completion must have stopped by itself, not by {provenance['stop_reason']}"
        )
