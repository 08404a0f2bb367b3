"""Rules for one sample. All rules that a row breaks are named, as the reasons of a quarantined row.

A call:
    R1         exactly one call is opened
    R2         ends with exactly one end token (a warning unless strict)
    R3         the call as its format writes it, nothing after it
    R4         a name, and an object of arguments
    R4b        the tool is among `tools`, and the arguments fit its schema
    R5         no Markdown fence
    R6         no "Action:", "ToolCall:", "Function:", "Tool:" before the call
    agreement  `tool_calls_structured` equals the parsed `assistant_raw`
Every row:
    R0         the completion is not empty
    R2         as above
    marker     no synthetic markers such as "[TOOL_CALL]"
    turn       no empty turn in the context, and every injection span inside its message
    tools      `tools` is a JSON list of function schemas, whose references stay in the schema and end (a warning if
               it has a pattern that cannot be checked in linear time)
    label      labels agree with the recomputed outcome and with the class
    provenance all required fields are present, id and group among them

A row makes a call if its class requires one, or if `tool_calls_structured` is not empty. Plain text (chat, refusals)
is exempt from the rules for calls, and may contain code fences.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from builders.written_calls import calls_in_words

from ..arguments import parameter_schemas
from ..formats import FORMATS, Diagnosis, Parsed, ToolCall, ToolCallFormat, get_format
from ..outcomes import Outcome, expects_words, outcome_of_read
from ..sample import COMPLETION_SOURCES, GENERATED, HARMFUL_CLASSES, PRIORITY_WEIGHTS, TEXT_CLASSES
from ..sets.make_sample import labels_of
from ..text_faults import ROLES, is_inside
from ..tool_schemas import schema_fault, schemas_of


CALL_RULES = ("R1", "R3", "R4", "R4b", "R5", "R6", "agreement")
RULES = ("R0", "R2", *CALL_RULES, "marker", "turn", "tools", "label", "provenance")

SYNTHETIC_MARKERS = ("[TOOL_CALL]", "(Expected:", "[HARMFUL:")
# Not `\s*`: from every line of a run of empty ones, it would look through the rest of the run.
_FORBIDDEN_PREFIX = re.compile(r"^[^\S\n]*(?:Action|ToolCall|Function|Tool):", re.MULTILINE)
_REQUIRED = (
    "source_dataset",
    "record_id",
    "generator_model",
    "prompt_format",
    "template_hash",
    "date_string",
    "timestamp",
)
_REQUIRED_IF_SAMPLED = ("temperature", "top_p", "seed")


@dataclass(frozen=True)
class Violation:
    """A broken rule, with a description. A warning (`is_error=False`) is counted but does not quarantine the row."""

    rule: str
    message: str
    is_error: bool = True

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


@dataclass(frozen=True)
class Completion:
    """The completion of a sample as its format reads it: its form, and the calls that a server executes."""

    tool_format: ToolCallFormat
    parsed: Parsed
    executed: tuple[ToolCall, ...]
    target: dict

    @cached_property
    def outcome(self) -> Outcome:
        """See [`~outcomes.outcome_of_read`], which raises if the target's calls are none."""
        return outcome_of_read(self.parsed, self.executed, self.target)


def read_completion(sample: dict) -> Completion | None:
    """Parse the completion of a sample; `None` if its format is unknown."""
    if sample["provenance"]["prompt_format"] not in FORMATS:
        return None
    tool_format = get_format(sample["provenance"]["prompt_format"])
    raw, tools = sample["assistant_raw"] or "", sample["tools"]
    parsed, executed = tool_format.parse(raw, tools), tool_format.executed_calls(raw, tools)
    return Completion(tool_format, parsed, executed, sample["target"])


def check(sample: dict, strict: bool = True, completion: Completion | None = None) -> list[Violation]:
    """Return all rules that a sample breaks.

    Args:
        sample (`dict`): A row of `SAMPLE_FEATURES`.
        strict (`bool`, *optional*, defaults to `True`): Whether R2 is an error rather than a warning.
        completion ([`Completion`], *optional*): What [`read_completion`] has read already.

    Returns:
        `list[Violation]`: The violations; empty for a valid sample.
    """
    completion = completion or read_completion(sample)
    if completion is None:
        prompt_format = sample["provenance"]["prompt_format"]
        return [Violation("provenance", f"prompt_format is {prompt_format!r}; known: {', '.join(FORMATS)}")]
    tool_format, parsed, executed = completion.tool_format, completion.parsed, completion.executed
    raw, tools = sample["assistant_raw"] or "", sample["tools"]
    violations = list(_text_rules(sample, parsed, tool_format, strict))
    if parsed.end is None and (closed := tool_format.parse(raw + tool_format.call_end, tools)).is_call:
        # The missing end token is the only fault of this call. R2 reports it; the other rules see the closed call.
        parsed = closed
        completion = replace(completion, parsed=closed)
    if makes_call(sample):
        violations += _call_form_rules(raw, parsed, tool_format)
        violations += _agreement_rule(sample, parsed)
    else:
        violations += _plain_text_rules(sample, raw, parsed, executed)
    violations += _tool_rules(sample, parsed)
    violations += _turn_rules(sample)
    violations += _label_rules(sample, completion)
    violations += _provenance_rules(sample)
    return violations


def makes_call(sample: dict) -> bool:
    """Whether the rules for calls apply to this sample."""
    if len(sample["tool_calls_structured"]) > 0:
        return True
    # A resisted injection may be answered in text, and so may an attacked prompt at which no call is right; every
    # other class outside TEXT_CLASSES must make a call.
    if sample["priority_class"] == "adversarial_safe":
        return sample["target"]["expected_tool"] is not None and not expects_words(sample["target"])
    return sample["priority_class"] not in (*TEXT_CLASSES, "injection_resisted")


def has_marker(completion: str) -> bool:
    """Whether a completion contains a synthetic marker, which no model writes."""
    return any(marker in completion for marker in SYNTHETIC_MARKERS)


def _text_rules(sample: dict, parsed: Parsed, tool_format: ToolCallFormat, strict: bool) -> Iterator[Violation]:
    raw = sample["assistant_raw"] or ""
    ends = sum(raw.count(token) for token in tool_format.end_tokens)
    if parsed.diagnosis == Diagnosis.EMPTY:
        yield Violation("R0", "the completion is empty")
    if ends != 1 or not raw.rstrip().endswith(tool_format.end_tokens):
        expected = " or ".join(tool_format.end_tokens)
        yield Violation("R2", f"must end with {expected} and hold no other, found {ends}", is_error=strict)
    for marker in SYNTHETIC_MARKERS:
        if marker in raw:
            yield Violation("marker", f"synthetic marker {marker!r}")


def _plain_text_rules(sample: dict, raw: str, parsed: Parsed, executed: tuple[ToolCall, ...]) -> Iterator[Violation]:
    if parsed.call_starts:
        yield Violation("R1", "plain text must not hold a call tag")
    elif executed:
        yield Violation("R1", f"plain text must not hold a call that a server executes: {executed[0].name}")
    elif written := calls_in_words(raw[parsed.answer_start :], _offered(sample["tools"])):
        yield Violation("R1", f"plain text must not hold a call in the syntax of another format: {', '.join(written)}")


def _offered(tools: str | None) -> tuple[str, ...]:
    try:
        return tuple(parameter_schemas(tools))
    except ValueError:  # which is a rule of its own
        return ()


def _call_form_rules(raw: str, parsed: Parsed, tool_format: ToolCallFormat) -> Iterator[Violation]:
    tags = len(parsed.call_starts)
    if tags != 1:
        yield Violation("R1", f"must hold one call that opens with {tool_format.call_tag}, found {tags}")
    if parsed.diagnosis == Diagnosis.BAD_ARGUMENTS:
        yield Violation("R4", "needs a name and an object of arguments")
    elif not parsed.is_call and parsed.diagnosis not in (Diagnosis.MULTI_TAG, Diagnosis.NO_TAG):
        yield Violation("R3", f"no single call between tag and end: {parsed.diagnosis}")
    if "```" in raw[parsed.answer_start :]:
        yield Violation("R5", "Markdown fence in a call")
    if _FORBIDDEN_PREFIX.search(parsed.text):
        yield Violation("R6", "forbidden prefix before the call")


def _agreement_rule(sample: dict, parsed: Parsed) -> Iterator[Violation]:
    try:
        structured = [(call["name"], json.loads(call["arguments"])) for call in sample["tool_calls_structured"]]
    except (TypeError, ValueError):
        yield Violation("agreement", "arguments in tool_calls_structured are not JSON")
        return
    if structured != [(call.name, call.arguments) for call in parsed.calls]:
        yield Violation("agreement", "tool_calls_structured is not what assistant_raw says")


def _tool_rules(sample: dict, parsed: Parsed) -> Iterator[Violation]:
    try:
        tools = schemas_of(sample["tools"])
        for call in parsed.calls:
            fault = schema_fault(call, tools)
            if fault:
                yield Violation("R4b", fault)
    except ValueError as error:
        yield Violation("tools", str(error))
        return
    for name, tool in tools.items():
        for pattern in tool.unread_patterns:
            yield Violation("tools", f"the pattern {pattern!r} of tool {name!r} is not checked", is_error=False)


def _turn_rules(sample: dict) -> Iterator[Violation]:
    messages = sample["messages"]
    if not messages:
        yield Violation("turn", "there is no context")
    for index, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role not in ROLES:
            yield Violation("turn", f"message {index} has the role {role!r}")
        # A tool may return an empty result.
        elif role != "tool" and not message["tool_calls"] and not (content and not content.isspace()):
            yield Violation("turn", f"message {index} ({role}) is empty")
    for span in sample["injection"]:
        if not is_inside(span, messages):
            yield Violation("turn", f"the injection {span} is not inside its message")


def _label_rules(sample: dict, completion: Completion) -> Iterator[Violation]:
    """Compare all labels with the outcome, which is recomputed from the completion."""
    row_class, is_harmful = sample["priority_class"], sample["priority_class"] in HARMFUL_CLASSES
    if row_class not in PRIORITY_WEIGHTS:
        yield Violation("label", f"unknown priority_class {row_class!r}")
    try:
        outcome = completion.outcome
    except (AttributeError, KeyError, TypeError, ValueError):
        yield Violation("label", "the calls in target are not JSON calls")
        return
    if sample["outcome"] != outcome:
        yield Violation("label", f"outcome says {sample['outcome']}, the completion is {outcome}")
    if sample["split"] not in ("train", "eval"):
        yield Violation("label", f"split is {sample['split']!r}")
    if sample["set"] != ("circuit_breaker" if is_harmful else "retain"):
        yield Violation("label", f"set is {sample['set']}, priority_class {row_class}")
    labels = labels_of(sample, completion.executed, outcome, row_class)
    wrong = [name for name, value in labels.items() if sample["labels"][name] != value]
    if wrong:
        yield Violation("label", f"not what the completion does: {', '.join(wrong)}")
    fault = _class_fault(sample, outcome)
    if fault:
        yield Violation("label", f"{fault}; the completion is {outcome}")


def _class_fault(sample: dict, outcome: Outcome) -> str | None:
    """Describe the requirement of its class that a row misses, or return `None`."""
    row_class, attacked = sample["priority_class"], len(sample["injection"]) > 0
    if row_class == "harmful_flip":
        return None if outcome == Outcome.ATTACK_SUCCESS else "a flip must make the attacker's call"
    if row_class == "harmful_compliance":
        return None if outcome == Outcome.NO_CALL else "compliance in words makes no call and is no refusal"
    if outcome == Outcome.ATTACK_SUCCESS:
        return "the attacker's call stands in the retain set"
    if row_class == "adversarial_safe":
        good = attacked and outcome == Outcome.CORRECT
        return None if good else "adversarial_safe needs an injection and the right call, or the right words"
    if row_class == "benign_twin":
        good = not attacked and outcome == Outcome.CORRECT
        return None if good else "a benign twin has no injection and makes the right call"
    if row_class == "injection_resisted":
        return None if attacked else "what is resisted must be there: injection_resisted needs an injection"
    if row_class == "refusal":
        return None if outcome == Outcome.REFUSAL else "not a refusal"
    return None


def _provenance_rules(sample: dict) -> Iterator[Violation]:
    provenance = sample["provenance"]
    source = provenance["completion_source"]
    missing = [key for key in ("id", "group") if not sample[key]]
    missing += [key for key in _REQUIRED if not provenance[key]]
    if source in GENERATED:
        missing += [key for key in _REQUIRED_IF_SAMPLED if provenance[key] is None]
    if missing:
        yield Violation("provenance", f"missing: {', '.join(missing)}")
    if source not in COMPLETION_SOURCES:
        yield Violation("provenance", f"completion_source is {source!r}")
    if (source == "warned") != (provenance["warning"] is not None):
        yield Violation("provenance", "a completion is `warned` if and only if provenance names the warning")
    if source in GENERATED and provenance["stop_reason"] != "stop":
        yield Violation("provenance", f"what a model wrote must end by itself, not by {provenance['stop_reason']}")
