"""What a chat template does, found out by rendering: it is checked before any work, and named by a hash."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from builders.trace import message, to_json, tool_call

from .chat import DATE_STRING, apply_template
from .formats import format_of
from .formats.chat_template import RENDER_ERRORS, settings_of
from .template_form import template_messages


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# A conversation of each kind that a prompt ends with, and a tool that no prompt of real data offers.
_NAME = "probe_of_template"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Says whether the template shows tools.",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    },
}
_SYSTEM = "A system prompt."
_PROBES = (
    [message("user", "Hello.")],
    [
        message("system", _SYSTEM),
        message("user", "Hello."),
        message("assistant", None, [tool_call(_NAME, {"text": "a"}, "call_0")]),
        message("tool", "A result.", tool_call_id="call_0", name=_NAME),
    ],
)


@dataclass(frozen=True)
class TemplateProbe:
    """What a chat template writes at the edges of every prompt, found out by rendering.

    Args:
        bos (`int`): How many BOS tokens a prompt has.
        headers (`tuple[tuple[int, ...], ...]`): What may end it: token ids of the header of the turn to generate,
            after a user's turn and after a tool's result. A template without a header ends with the last token of
            that turn.
        prompts (`tuple[str, ...]`): The prompts: a user's first words, and a tool's result after a call, with a
            system prompt.
        fault (`str`, *optional*): Why no prompts can be written with the template.
    """

    bos: int
    headers: tuple[tuple[int, ...], ...]
    prompts: tuple[str, ...]
    fault: str | None = None


def check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Check that prompts of agents can be written with a tokenizer's chat template.

    Raises:
        ValueError: If the template does not show tools, cannot write a call and its result, leaves out the system
            prompt, does not open the model's turn, does not write the same twice, or is of no known format; if the
            tokenizer has no end tokens of that format.
    """
    tool_format, vocabulary = format_of(tokenizer), tokenizer.get_vocab()
    if missing := [token for token in tool_format.end_tokens if token not in vocabulary]:
        raise ValueError(
            f"The tool-call format {tool_format.name} is not this tokenizer's, which has no token "
            f"{' or '.join(missing)} to end a turn with."
        )
    if fault := probe_template(tokenizer).fault:
        raise ValueError(fault)


def probe_template(tokenizer: "PreTrainedTokenizerBase") -> TemplateProbe:
    """Render two short conversations with a tool."""
    return _probe(tokenizer, tokenizer.chat_template)


@lru_cache(maxsize=16)
def _probe(tokenizer: "PreTrainedTokenizerBase", template: str) -> TemplateProbe:
    tool_format, rendered, headers, faults = format_of(tokenizer), [], [], []
    for messages in _PROBES:
        turns = template_messages(messages, tool_format)
        try:
            opened, again, closed = (
                apply_template(tokenizer, turns, [_PROBE_TOOL], DATE_STRING, opens) for opens in (True, True, False)
            )
        except RENDER_ERRORS as error:
            faults.append(f"The chat template cannot write a call and its result: {error}")
            continue
        if opened != again:
            faults.append("The chat template does not write the same prompt twice; no stage could repeat another.")
        # Once among the tools, and once in each call.
        if opened.count(_NAME) < 1 + sum(len(turn.get("tool_calls", ())) for turn in turns):
            faults.append(
                "The chat template shows the model no tools, so it cannot call any. Take one that does: "
                "`cb-datasets tokenizer MODEL --chat-template FILE`."
            )
        if turns[0]["content"] == _SYSTEM and _SYSTEM not in opened:
            faults.append(
                "The chat template leaves out the system prompt after a tool's result. Take one that does not: "
                "`cb-datasets tokenizer MODEL --chat-template FILE`."
            )
        rendered.append(opened)
        header = opened.removeprefix(closed) if opened.startswith(closed) else ""
        if header or not opened.rstrip().endswith(tool_format.end_tokens):
            headers.append(tuple(_ids(tokenizer, header) or _ids(tokenizer, opened)[-1:]))
        else:
            faults.append("The chat template ignores `add_generation_prompt`: no prompt opens the model's turn.")
    bos = _ids(tokenizer, rendered[0]).count(tokenizer.bos_token_id) if rendered else 0
    if bos > 1:
        faults.append(f"The chat template writes {tokenizer.bos_token} {bos} times.")
    return TemplateProbe(bos, tuple(headers), tuple(rendered), faults[0] if faults else None)


def rendering_provenance(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str | None]:
    """How prompts are written for a tokenizer, as the provenance of a sample has it."""
    settings = settings_of(tokenizer.chat_template)
    return {
        "prompt_format": format_of(tokenizer).name,
        "template_hash": template_hash(tokenizer),
        "template_settings": to_json(settings) if settings else None,
        "date_string": DATE_STRING,
    }


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def template_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Short hash of the chat template and of what it writes; data and model must agree on it."""
    written = "".join([tokenizer.chat_template, *probe_template(tokenizer).prompts])
    return hashlib.sha256(written.encode()).hexdigest()[:12]


def check_rendering(
    rows: Iterable[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase", dataset_name: str
) -> None:
    """Raise an error for rows that were made for another model than the one to be trained: it was prompted with other
    tokens, and what it wrote is not how this one writes a call.

    Args:
        rows (`Iterable[Mapping[str, Any]]`): Samples; `id` and `provenance` are read.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the model to be trained.
        dataset_name (`str`): Name of the dataset in the error.

    Raises:
        ValueError: If a row's format or template is unknown or not the tokenizer's.
    """
    own = _own_rendering(tokenizer)
    others = [row for row in rows if any(row["provenance"][name] != value for name, value in own.items())]
    if not others:
        return
    theirs = {name: others[0]["provenance"][name] for name in own}
    more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
    first = f"Row {others[0]['id']}{more} of the {dataset_name} dataset"
    unknown = [f"`provenance.{name}`" for name, value in theirs.items() if value is None]
    if unknown:
        raise ValueError(
            f"{first} has no {' and no '.join(unknown)}, so it may have been made for another model. Make the data "
            "with this model, or import them with its tokenizer: `cb-datasets import --model`."
        )
    raise ValueError(
        f"{first} was made for another model: it has {_described(theirs)}, and the tokenizer {tokenizer.name_or_path} "
        f"has {_described(own)}. Make the data with this model, or train the model of the data."
    )


def check_prompts(prompts: Iterable[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase", place: object) -> None:
    """Raise an error for prompts that were made for another model: what begins a call there, and which right answers
    can be written, is another matter with this one.

    Args:
        prompts (`Iterable[Mapping[str, Any]]`): Prompts. One that does not say what it was made for passes.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the model to be asked.
        place (`object`): Where they are from, for the message.

    Raises:
        ValueError: If a prompt's format or template is not the tokenizer's.
    """
    own = _own_rendering(tokenizer)
    for row in prompts:
        theirs = {name: row["provenance"][name] for name in own}
        if any(theirs[name] not in (None, value) for name, value in own.items()):
            raise ValueError(
                f"{place}: the prompt {row['id']} was made for another model: for {_described(theirs)}, and the "
                f"tokenizer {tokenizer.name_or_path} has {_described(own)}. Make the prompts for this one with "
                "`cb-datasets generate-eval --model`, or ask the model that they are for."
            )


def _own_rendering(tokenizer: "PreTrainedTokenizerBase") -> dict[str, str]:
    return {"prompt_format": format_of(tokenizer).name, "template_hash": template_hash(tokenizer)}


def _described(rendering: Mapping[str, str | None]) -> str:
    template = f" and chat template {rendering['template_hash']}" if rendering["template_hash"] else ""
    return f"format {rendering['prompt_format']}{template}"
