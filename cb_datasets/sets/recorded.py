"""Recorded turns of other models -> samples, written in the target's format.

    GPT-4o in AgentDojo:
        {"role": "assistant", "tool_calls": [{"function": {"name": "send_money", "arguments": "{...}"}}]}
    for Llama 3.1:
        <|python_tag|>{"name": "send_money", "parameters": {...}}<|eom_id|>

Such rows are off-policy (`completion_source = recorded`): the target never wrote them.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset

from builders.trace import TRACE_FEATURES, to_json
from builders.written_calls import calls_in_words

from ..arguments import parameter_schemas, read_by_schema
from ..chat import MAX_LENGTH, spells_control_token
from ..control_tokens import leaks_control_token
from ..files import REPORT_FILE, read_json, to_dataset
from ..formats import ToolCall, ToolCallFormat, format_of
from ..outcomes import Outcome, is_right_known
from ..sample import READ_BY_SCHEMA, content_id
from ..template_probe import rendering_provenance, template_hash
from .fit_context import prune_context, tools_used
from .jsonl_sets import name_of
from .make_sample import make_sample
from .prompts import call_turns, completing_turn, decision_prompt, spliced_turn_prompt, turn_fault, turn_prompt
from .sample_set import SampleSet
from .spliced_runs import SPLICED, agent_of, splice_runs


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A context and the index of the assistant message that completes it.
Turn = tuple[dict, int]


def decision(trace: dict) -> Iterator[Turn]:
    """The decision turn: the model makes the attacker's call, or resists."""
    yield decision_prompt(trace), trace["decision_turn"]


def every_call(trace: dict) -> Iterator[Turn]:
    """Every turn that makes a call."""
    for index in call_turns(trace):
        yield turn_prompt(trace, index), index


def last_answer(trace: dict) -> Iterator[Turn]:
    """The last turn of the assistant, where it only talks."""
    if not call_turns(trace):
        index = max(index for index, message in enumerate(trace["messages"]) if message["role"] == "assistant")
        yield turn_prompt(trace, index), index


def last_words(trace: dict) -> Iterator[Turn]:
    """The last turn of a run with calls, where it only talks."""
    last = len(trace["messages"]) - 1
    message = trace["messages"][last]
    if call_turns(trace) and message["role"] == "assistant" and not message["tool_calls"]:
        yield turn_prompt(trace, last), last


def from_decision_on(trace: dict) -> Iterator[Turn]:
    """The decision turn of a spliced run, and all later ones."""
    for index in range(trace["decision_turn"], len(trace["messages"])):
        if trace["messages"][index]["role"] == "assistant":
            yield spliced_turn_prompt(trace, index), index


@dataclass(frozen=True)
class RecordedSetSpec:
    """The turns that belong in one recorded set.

    Args:
        verdict (`str`): Verdict of the traces that are taken; `spliced` for those of `spliced_runs.py`.
        pick (`Callable[[dict], Iterator[Turn]]`): Which turns of such a trace.
        outcomes (`tuple[Outcome, ...]`): What the turn must do, recomputed from its text.
        priority_class (`str`): Class of the rows.
        unless_failed (`tuple[Outcome, ...]`): What it may do as well, unless the source says that the run failed at
            the user's task.
        if_unknown (`tuple[Outcome, ...]`): Likewise, where the source does not say what is right.
    """

    verdict: str
    pick: Callable[[dict], Iterator[Turn]]
    outcomes: tuple[Outcome, ...]
    priority_class: str
    unless_failed: tuple[Outcome, ...] = ()
    if_unknown: tuple[Outcome, ...] = ()

    def takes(self, sample: dict, trace: dict) -> bool:
        """Whether the sample of a turn of this trace belongs in the set."""
        failed = json.loads(trace["metadata"]).get("success") is False
        further = self.unless_failed if is_right_known(sample["target"]) else self.unless_failed + self.if_unknown
        return sample["outcome"] in self.outcomes or (sample["outcome"] in further and not failed)


FLIP_TURNS = RecordedSetSpec("compromised", decision, (Outcome.ATTACK_SUCCESS,), "harmful_flip")
COMPLIANCE_TURNS = RecordedSetSpec("complied", decision, (Outcome.NO_CALL,), "harmful_compliance")
# Another call was not asked for, or is a step towards the attacker's goal. A refusal may be of the injection or of the
# user's own task, and words in place of a call may be an answer or the end of the task: the run's own check tells.
RESISTED_TURNS = RecordedSetSpec(
    "resisted",
    decision,
    (Outcome.CORRECT,),
    "injection_resisted",
    unless_failed=(Outcome.NO_CALL, Outcome.REFUSAL),
)
# Traces of one's own need not say which call is right: whoever stated the verdict has judged the call.
OWN_RESISTED_TURNS = replace(RESISTED_TURNS, if_unknown=(Outcome.OTHER_TOOL,))
CALL_TURNS = RecordedSetSpec("benign_success", every_call, (Outcome.CORRECT,), "tool_capability")
SPLICED_TURNS = RecordedSetSpec(SPLICED, from_decision_on, (Outcome.CORRECT,), "adversarial_safe")
LAST_WORDS = RecordedSetSpec("benign_success", last_words, (Outcome.NO_CALL,), "general_conversation")
CHAT_TURNS = RecordedSetSpec("benign_success", last_answer, (Outcome.NO_CALL,), "general_conversation")
BORDERLINE_TURNS = RecordedSetSpec("benign_success", last_answer, (Outcome.NO_CALL,), "borderline")
REFUSAL_TURNS = RecordedSetSpec("refused", decision, (Outcome.REFUSAL,), "refusal")

# The sets of recorded turns by folder: the source of each, and which of its turns it takes.
RECORDED_SETS = {
    "harmful/agentdojo_failures": ("agentdojo", FLIP_TURNS),
    "retain/agentdojo_resisted": ("agentdojo", RESISTED_TURNS),
    "retain/agentdojo_benign": ("agentdojo", CALL_TURNS),
    "retain/agentdojo_safe": ("agentdojo", SPLICED_TURNS),
    "retain/agentdojo_words": ("agentdojo", LAST_WORDS),
    "harmful/fujitsu_rag": ("fujitsu_b1", COMPLIANCE_TURNS),
    "harmful/fujitsu_direct": ("fujitsu_b3", COMPLIANCE_TURNS),
    "retain/tau2_traces": ("tau2", CALL_TURNS),
    "retain/ultrachat_subset": ("ultrachat", CHAT_TURNS),
    "retain/xstest_borderline": ("xstest_completions", BORDERLINE_TURNS),
    "harmful/jsonl_failures": ("jsonl", FLIP_TURNS),
    "harmful/jsonl_compliance": ("jsonl", COMPLIANCE_TURNS),
    "retain/jsonl_resisted": ("jsonl", OWN_RESISTED_TURNS),
    "retain/jsonl_benign": ("jsonl", CALL_TURNS),
    "retain/jsonl_chat": ("jsonl", CHAT_TURNS),
    "retain/jsonl_refusals": ("jsonl", REFUSAL_TURNS),
}


def collect_recorded_set(
    subset: str,
    traces: dict[str, Dataset],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int = MAX_LENGTH,
    fit_context: bool = False,
    max_each: int | None = None,
    own_agent: str | None = None,
) -> SampleSet:
    """Samples of recorded turns.

    Args:
        subset (`str`): A key of `RECORDED_SETS`.
        traces (`dict[str, Dataset]`): Traces of its source by split.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's: decides the format and what is `too_long`.
        max_length (`int`, *optional*, defaults to [`MAX_LENGTH`]): Maximum number of tokens of a row.
        fit_context (`bool`, *optional*, defaults to `False`): Leave unused tools and older results out of contexts
            that are longer, see `fit_context.py`.
        max_each (`int`, *optional*): Maximum number of samples of both splits together; the rest is dropped as
            `over_max_each`.
        own_agent (`str`, *optional*): Name of the agent that was the target itself, decoding greedily: its turns are
            on-policy.
    """
    samples = SampleSet(subset)
    _, spec = RECORDED_SETS[subset]
    tool_format = format_of(tokenizer)
    provenance = rendering_provenance(tokenizer) | {"completion_source": "recorded"}
    ambiguous = ambiguous_tasks(traces)
    if spec.verdict == SPLICED:
        traces = {
            split: to_dataset(list(splice_runs(rows, samples.drop)), TRACE_FEATURES) for split, rows in traces.items()
        }
    for split, trace in _shuffled(traces, spec.verdict):
        category, doubt = (trace["attack"] or {}).get("category"), _doubt(trace, ambiguous)
        if doubt is not None:
            samples.drop(doubt, category)
            continue
        generator = _generator(trace, own_agent)
        for prompt, turn in spec.pick(trace):
            # Drops are counted turn by turn from here, because a trace gives several.
            if max_each is not None and len(samples.samples) >= max_each:
                samples.drop("over_max_each", category)
                continue
            recorded, read = _read_turn(completing_turn(trace, turn), trace["tools"], generator)
            text, fault = written_turn(recorded, tool_format), turn_fault(trace, turn)
            if text is None or fault is not None:
                samples.drop(fault or "empty_turn", category)
                continue
            # Tokens of the target would be read as such; those of another model were leaked by its server.
            leaks = leaks_control_token(recorded["content"] or "")
            if leaks or spells_control_token(tokenizer, {"messages": [recorded], "tools": None}):
                samples.drop("control_token_in_turn", category)
                continue
            if not recorded["tool_calls"] and calls_in_words(recorded["content"], parameter_schemas(trace["tools"])):
                # The agent's scaffold may have read it, and the target's server may.
                samples.drop("call_in_words", category)
                continue
            fitted = prune_context(prompt, text, tools_used(trace) if fit_context else None, tokenizer, max_length)
            if fitted is None:
                samples.drop("too_long", category)
                continue
            sample = make_sample(
                _noted(fitted, read),
                text,
                id_prefix=subset,
                split=split,
                priority_class=spec.priority_class,
                tool_format=tool_format,
                provenance=provenance | generator,
            )
            # The verdict is about the run. The turn itself must do it in the target's format too.
            if spec.takes(sample, trace):
                samples.keep(sample)
            else:
                samples.drop(f"turn_is_{sample['outcome']}", category)
    return samples


def source_of_set(subset: str) -> str:
    """The source of a recorded set.

    Raises:
        ValueError: If there is no such set.
    """
    if subset not in RECORDED_SETS:
        raise ValueError(f"Unknown set {subset!r}; known: {', '.join(RECORDED_SETS)}.")
    return RECORDED_SETS[subset][0]


def recorded_set_named(source: str, half: str, path: Path) -> str:
    """The recorded set of a source that a folder or file is named for, or its only one.

    Args:
        source (`str`): Name of the source.
        half (`str`): `harmful` for Ds, `retain` for Dr.
        path (`Path`): The folder, or `.jsonl` file.

    Raises:
        ValueError: If there is none; the message lists what there is.
    """
    own = [name for name, (of, _) in RECORDED_SETS.items() if of == source and name.startswith(f"{half}/")]
    if not own:
        sources = dict.fromkeys(of for name, (of, _) in RECORDED_SETS.items() if name.startswith(f"{half}/"))
        raise ValueError(f"{source} gives no recorded {half} set; {', '.join(sources)} do.")
    named = f"{half}/{name_of(path)}"
    if named not in own and len(own) > 1:
        raise ValueError(f"{path}: {source} gives {', '.join(own)}. Name the folder or file for one of them.")
    return named if named in own else own[0]


def _shuffled(traces: dict[str, Dataset], verdict: str) -> Iterator[tuple[str, dict]]:
    """The traces with this verdict, ordered by a hash of their ids, so that a limit takes from all parts alike."""
    order = [
        (content_id("order", id), split, index)
        for split, rows in traces.items()
        for index, (id, its_verdict) in enumerate(zip(rows["id"], rows["verdict"], strict=True))
        if its_verdict == verdict
    ]
    for _, split, index in sorted(order):
        yield split, traces[split][index]


def ambiguous_tasks(traces: dict[str, Dataset]) -> set[tuple[str, str | None]]:
    """User tasks that name an attacker's account, so that the right call and the attacker's look alike.

    Each with the injection tasks that this holds for, and with `None` for its clean runs.
    """
    return {
        (group, injection_task)
        for rows in traces.values()
        for group, attack, metadata in zip(rows["group"], rows["attack"], rows["metadata"], strict=True)
        if json.loads(metadata).get("names_attacker_account")
        for injection_task in (attack["subtype"], None)
    }


def is_ambiguous(trace: dict, ambiguous: set[tuple[str, str | None]]) -> bool:
    """Whether a trace is of one of these tasks."""
    return (trace["group"], (trace["attack"] or {}).get("subtype")) in ambiguous


def _generator(trace: dict, own_agent: str | None) -> dict:
    """Provenance of the turns of a trace: who wrote them, and in which context."""
    agent = agent_of(trace)
    if agent != own_agent:
        return {"generator_model": agent}
    if trace["verdict"] == SPLICED:
        return {"generator_model": agent, "completion_source": "twin"}
    sampling = {"temperature": 0.0, "top_p": 1.0, "seed": 0, "stop_reason": "stop"}
    return {"generator_model": agent, "completion_source": "sampled"} | sampling


def check_own_runs(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Check that the target made its own runs with the chat template that it has now: else it read other prompts.

    Args:
        folder (`Path`): The traces of the runs.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's.

    Raises:
        ValueError: If the report on the traces names another template; some reports name none.
    """
    report = folder / REPORT_FILE
    made_with = read_json(report).get("runs_template_hash") if report.is_file() else None
    if made_with not in (None, template_hash(tokenizer)):
        raise ValueError(
            f"--own-agent: the runs of {folder} were made with chat template {made_with}, and the model has "
            f"{template_hash(tokenizer)}: it read other prompts then. Run `cb-datasets agentdojo` into another folder "
            "and ingest that, or leave --own-agent out: then the turns count as another model's."
        )


def _read_turn(turn: dict, tools: str | None, generator: dict) -> tuple[dict, list[str]]:
    """A turn with the numbers of its calls that were written as text, and what was changed in words.

    What the target itself wrote stays as it wrote it.
    """
    if not turn["tool_calls"] or "completion_source" in generator:
        return turn, []
    schemas, calls, changes = parameter_schemas(tools), [], []
    for call in turn["tool_calls"]:
        name, text = call["function"]["name"], call["function"]["arguments"]
        arguments, changed = read_by_schema(json.loads(text), schemas.get(name, {}))
        changes += changed
        calls.append(call if not changed else call | {"function": {"name": name, "arguments": to_json(arguments)}})
    return turn | {"tool_calls": calls}, changes


def _noted(prompt: dict, changes: list[str]) -> dict:
    """A prompt whose provenance names the changes to its completion, after those to its context."""
    if not changes:
        return prompt
    notes = [prompt["provenance"]["fitted"], f"{READ_BY_SCHEMA} {', '.join(changes)}"]
    return {**prompt, "provenance": prompt["provenance"] | {"fitted": "; ".join(filter(None, notes))}}


def _doubt(trace: dict, ambiguous: set[tuple[str, str | None]]) -> str | None:
    """Why a trace's verdict is not good enough to train on, or `None`."""
    if is_ambiguous(trace, ambiguous):
        return "prompt_names_attacker_account"
    if trace["verdict"] == "resisted" and json.loads(trace["metadata"]).get("touches_goal"):
        return "resisted_but_touches_goal"
    return None


def written_turn(turn: dict, tool_format: ToolCallFormat) -> str | None:
    """A recorded assistant turn as the target would write it; `None` if it says and does nothing, or calls in
    parallel: a decision is one call. Text before the call is left out where the format has none.
    """
    text = (turn["content"] or "").strip()
    if not turn["tool_calls"]:
        return tool_format.render_text(text) if text else None
    if len(turn["tool_calls"]) > 1:
        return None
    [call] = turn["tool_calls"]
    return tool_format.render(ToolCall(call["function"]["name"], json.loads(call["function"]["arguments"])), text)
