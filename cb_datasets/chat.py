"""The one renderer: messages, tools and a tokenizer in, token ids out.

Generation, training, preflight and evaluation all use it, so a model is trained on exactly the ids that it is
prompted with:

    prompt       <|begin_of_text|>...<|start_header_id|>assistant<|end_header_id|>\\n\\n   the chat template
    completion   <|python_tag|>{"name": "read_file", "parameters": {...}}<|eom_id|>      verbatim, as generated

The two are encoded separately and joined: a template would render the call without its tag, and joint encoding could
merge tokens across the boundary. The loss mask is "after the prompt's tokens", nothing else.

In a prompt only the template writes control tokens: text of messages, calls and tools that spells one is encoded as
plain text, see `control_tokens.py`. A completion is the model's own, and its special tokens are parsed.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast
from weakref import WeakKeyDictionary

from .control_tokens import ControlTokens, control_tokens
from .formats import format_of
from .template_form import template_messages
from .text_marks import private_use_characters


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Templates print today's date by default; data made on two days must not differ.
DATE_STRING = "26 Jul 2024"

# Hash of the source that encodes prompts: what another version encoded is not reused.
_RENDERER = ("chat.py", "control_tokens.py", "template_form.py", "template_openings.py", "text_marks.py")
RENDERER_HASH = hashlib.sha256(
    b"".join(Path(__file__).with_name(name).read_bytes() for name in _RENDERER)
).hexdigest()[:16]

# Longer rows, in tokens, are dropped with a named reason; nothing is ever truncated.
MAX_LENGTH = 8192


def render_prompt(tokenizer: "PreTrainedTokenizerBase", row: dict, date_string: str = DATE_STRING) -> str:
    """Text of a prompt, up to and including the header of the turn to generate.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer, with its chat template.
        row (`dict`): A prompt or a sample: `messages` and `tools` are read.
        date_string (`str`, *optional*, defaults to [`DATE_STRING`]): The date that the template prints.
    """
    return _render(tokenizer, row, date_string)[0]


def _render(tokenizer: "PreTrainedTokenizerBase", row: dict, date_string: str) -> tuple[str, str]:
    """Text of a prompt, and the same with control tokens masked that are not the template's."""
    turns, tools = _contents(tokenizer, row)
    masks: dict[str, str] = {}
    control = control_tokens(tokenizer)
    if control.template_opens or control.concern(turns) or _tools_concern(control, row["tools"]):
        (turns, tools), masks = control.mask((turns, tools))
    masked = apply_template(tokenizer, turns, tools, date_string)
    if not masks:
        return masked, masked
    for mask in masks:
        masked = masked.replace(json.dumps(mask)[1:-1], mask)  # some templates escape all but ASCII
    return masked.translate({ord(mask): character for mask, character in masks.items()}), masked


def apply_template(
    tokenizer: "PreTrainedTokenizerBase",
    turns: list[dict],
    tools: list[dict | Callable] | None,
    date_string: str,
    add_generation_prompt: bool = True,
) -> str:
    """Text that the chat template writes, on a pinned day: templates ask for the date in two ways."""
    day = datetime.strptime(date_string, "%d %b %Y")
    rendered = tokenizer.apply_chat_template(
        turns,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        date_string=date_string,
        strftime_now=day.strftime,
        tokenize=False,
    )
    return cast(str, rendered)


def _contents(tokenizer: "PreTrainedTokenizerBase", row: dict) -> tuple[list[dict], list[dict | Callable] | None]:
    """What the template gets: messages and tools."""
    return template_messages(row["messages"], format_of(tokenizer)), _tools(row["tools"]) if row["tools"] else None


@lru_cache(maxsize=256)
def _tools(text: str) -> list[dict | Callable]:
    return json.loads(text)


@lru_cache(maxsize=256)
def _tools_concern(control: ControlTokens, text: str | None) -> bool:
    return text is not None and control.concern(_tools(text))


def spells_control_token(tokenizer: "PreTrainedTokenizerBase", row: dict) -> bool:
    """Whether text of a row's messages or tools spells a control token, which its prompt then has as plain text."""
    turns, tools = _contents(tokenizer, row)
    control = control_tokens(tokenizer)
    if not (control.concern(turns) or _tools_concern(control, row["tools"])):
        return False
    return control.spelled_in((turns, tools))


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as text and as tokens.

    Args:
        text (`str`): Output of the template.
        ids (`list[int]`): Its tokens.
        offsets (`list[tuple[int, int]]`): The characters `[start, end)` of each token.
    """

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", row: dict, date_string: str = DATE_STRING) -> list[int]:
    """Token ids of a prompt. The template writes the BOS token itself, so none is added."""
    return encoded_prompt(tokenizer, row, date_string).ids


def encoded_prompt(tokenizer: "PreTrainedTokenizerBase", row: dict, date_string: str = DATE_STRING) -> EncodedPrompt:
    """A prompt with its tokens. The prefix that prompts share, system prompt and tools, is encoded once and cached."""
    text, masked = _render(tokenizer, row, date_string)
    control = control_tokens(tokenizer)
    if masked != text and not control.reads_alike(text, masked):
        return EncodedPrompt(text, *control.encode(text, masked))
    return EncodedPrompt(text, *_encode(tokenizer, text, _shared_by(row)))


def _shared_by(row: dict) -> tuple:
    """The parts of a row that decide how its prompt begins."""
    first = row["messages"][0]
    return row["tools"], first["content"] if first["role"] == "system" else None


_TextOrIds = TypeVar("_TextOrIds", str, list[int])


def common_prefix(sequences: list[_TextOrIds]) -> _TextOrIds:
    """Longest common prefix of texts, or of lists of token ids; there is at least one."""
    first, last = min(sequences), max(sequences)  # of a sorted list, the first and the last differ earliest
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


@dataclass(frozen=True)
class _Head:
    """A prefix that prompts share, and the tokens of the part of it that no continuation can change.

    A tokenizer splits a text at its special tokens and, in between, with its pre-tokenizer, which reads from left to
    right; tokens never cross either boundary. So a text may be encoded in two parts if it is cut at such a boundary,
    and if the boundary does not depend on what follows `text`: two pieces before the end it does not.
    """

    text: str
    cut: int  # characters of `text` that are encoded
    ids: list[int]
    offsets: list[tuple[int, int]]


_Tokens = tuple[list[int], list[tuple[int, int]]]


class _HeadsByTokenizer(WeakKeyDictionary):
    """A cache, which is empty where it is pickled.

    `Dataset.map` pickles the globals that its function reads, to name its result by their hash. With this cache's
    content that would take a second for each tokenizer in it, and the name would depend on what was encoded before.
    """

    def __reduce__(self) -> tuple:
        return type(self), ()


# For each tokenizer, by `_shared_by`: the first prompt, then a head; `None` where prompts cannot be encoded in parts.
_HEADS: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple, str | _Head | None]]" = _HeadsByTokenizer()
_MOST_HEADS = 512


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str, shared_by: tuple) -> _Tokens:
    heads = _HEADS.setdefault(tokenizer, {})
    head = heads.get(shared_by)
    if isinstance(head, _Head) and text.startswith(head.text):
        ids, offsets = _encode_all(tokenizer, text[head.cut :])
        return head.ids + ids, head.offsets + [(start + head.cut, end + head.cut) for start, end in offsets]
    if shared_by not in heads:
        if len(heads) >= _MOST_HEADS:
            heads.clear()
        heads[shared_by] = text
    elif head is not None:
        # A prompt that begins differently shortens the head to their common prefix.
        before = head if isinstance(head, str) else head.text
        heads[shared_by] = _head_of(tokenizer, common_prefix([before, text]))
    return _encode_all(tokenizer, text)


def _head_of(tokenizer: "PreTrainedTokenizerBase", text: str) -> _Head | None:
    if not tokenizer.is_fast:
        return None
    # It may end inside a control token, whose pieces are no boundaries.
    text = control_tokens(tokenizer).without_beginning(text)
    ids, offsets = _encode_all(tokenizer, text)
    added = tokenizer.added_tokens_decoder  # made anew at each access, from a thousand tokens in Mistral's case
    special = [end for id, (_, end) in zip(ids, offsets, strict=True) if id in added]
    cut = special[-1] if special else 0
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    if pre_tokenizer is not None:
        pieces = pre_tokenizer.pre_tokenize_str(text[cut:])
        cut += pieces[-3][1][0] if len(pieces) > 2 else 0
    elif cut == len(text):
        cut = special[-2] if len(special) > 1 else 0
    first, rest = _encode_all(tokenizer, text[:cut]), _encode_all(tokenizer, text[cut:])
    # Some tokenizers treat the start of a text differently from its middle: theirs are not encoded in parts.
    return _Head(text, cut, *first) if first[0] + rest[0] == ids else None


def _encode_all(tokenizer: "PreTrainedTokenizerBase", text: str) -> _Tokens:
    if not tokenizer.is_fast:
        return tokenizer(text, add_special_tokens=False)["input_ids"], []
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoding["input_ids"], encoding["offset_mapping"]


def encode_completion(tokenizer: "PreTrainedTokenizerBase", assistant_raw: str) -> list[int]:
    """Token ids of a completion: its special tokens are parsed and none are added."""
    return tokenizer(assistant_raw, add_special_tokens=False)["input_ids"]


@dataclass(frozen=True)
class EncodedCompletion:
    """A completion as tokens.

    Args:
        ids (`list[int]`): Its tokens.
        call, tool_name (`tuple[int, int]`, *optional*): The tokens `[start, end)` of its call, from the tag to the end
            token, and of the tool's name in it; `None` where it does not make one well-formed call.
        answer_start (`int`): The first token of the answer; those before it are thinking.
    """

    ids: list[int]
    call: tuple[int, int] | None
    tool_name: tuple[int, int] | None
    answer_start: int = 0


def encoded_completion(
    tokenizer: "PreTrainedTokenizerBase", assistant_raw: str, tools: str | None = None
) -> EncodedCompletion:
    """A completion with its tokens, and the positions of its call from the parser of the tokenizer's format.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        assistant_raw (`str`): The completion.
        tools (`str`, *optional*): JSON text of the tools offered.
    """
    ids, offsets = _encode_all(tokenizer, assistant_raw)
    parsed = format_of(tokenizer).parse(assistant_raw, tools)
    call, name = (span and _tokens_of(offsets, *span) for span in (parsed.call_span, parsed.name_span))
    thought = sum(end <= parsed.answer_start for _, end in offsets) if parsed.answer_start else 0
    return EncodedCompletion(ids, call, name, min(thought, len(ids) - 1))


@dataclass(frozen=True)
class EncodedSample:
    """A prompt and its completion, as they are trained on."""

    prompt: EncodedPrompt
    completion: EncodedCompletion

    @property
    def ids(self) -> list[int]:
        """All tokens."""
        return self.prompt.ids + self.completion.ids

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the completion. The loss is on those after them, and nowhere else."""
        return len(self.prompt.ids)


def encode_sample(tokenizer: "PreTrainedTokenizerBase", row: dict, date_string: str = DATE_STRING) -> EncodedSample:
    """The tokens of a sample. Training and preflight both take them from here.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's tokenizer.
        row (`dict`): A sample.
        date_string (`str`, *optional*, defaults to [`DATE_STRING`]): The date that the template prints.
    """
    prompt = encoded_prompt(tokenizer, row, date_string)
    return EncodedSample(prompt, encoded_completion(tokenizer, row["assistant_raw"], row["tools"]))


def injection_tokens(
    tokenizer: "PreTrainedTokenizerBase", row: dict, date_string: str = DATE_STRING
) -> list[tuple[int, int]]:
    """Token ranges `[start, end)` of the row's injection, in prompt order.

    Templates trim, quote and escape contents, so character offsets in a message are not offsets in the prompt. Each
    span is marked in the message, the marked prompt is rendered, and the marks are located and removed again.

    Raises:
        ValueError: If the template does not print a span exactly once, or a span holds only what templates trim.
    """
    return injection_tokens_in(tokenizer, row, encoded_prompt(tokenizer, row, date_string), date_string)


def injection_tokens_in(
    tokenizer: "PreTrainedTokenizerBase", row: dict, prompt: EncodedPrompt, date_string: str = DATE_STRING
) -> list[tuple[int, int]]:
    """[`injection_tokens`] of a prompt that has been encoded already."""
    # One prompt may have the text of another in its messages: the marks are characters that are not in this one.
    unused = private_use_characters(prompt.text)
    start_mark, end_mark = next(unused), next(unused)
    marked = {**row, "messages": _mark(row["messages"], row["injection"], start_mark, end_mark)}
    pieces = re.split(f"([{start_mark}{end_mark}])", render_prompt(tokenizer, marked, date_string))
    # Text, mark, text, mark, ..., text: a mark is at the end of the text before it, marks not counted.
    ends_of = [*accumulate(map(len, pieces[::2]))]
    starts, ends = (
        [end for end, mark in zip(ends_of, pieces[1::2], strict=False) if mark == wanted]
        for wanted in (start_mark, end_mark)
    )
    if not len(starts) == len(ends) == len(row["injection"]):
        raise ValueError(f"{row['id']}: the chat template prints {len(starts)} of {len(row['injection'])} injections.")
    if "".join(pieces[::2]) != prompt.text:
        raise ValueError(f"{row['id']}: the chat template alters a message when its injection is marked.")
    if any(start == end for start, end in zip(starts, ends, strict=True)):
        raise ValueError(f"{row['id']}: an injection is nothing but white space at an end of its message.")
    return [_tokens_of(prompt.offsets, start, end) for start, end in zip(starts, ends, strict=True)]


def _mark(messages: list[dict], spans: list[dict], start_mark: str, end_mark: str) -> list[dict]:
    contents = [message["content"] for message in messages]
    for span in sorted(spans, key=lambda span: -span["start"]):
        text = contents[span["message"]]
        # Templates trim contents: white space at the ends of a message would be printed if a mark stood outside of it
        first, last = len(text) - len(text.lstrip()), len(text.rstrip())
        start, end = (min(max(span[edge], first), last) for edge in ("start", "end"))
        contents[span["message"]] = text[:start] + start_mark + text[start:end] + end_mark + text[end:]
    return [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]


def _tokens_of(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    inside = [index for index, (left, right) in enumerate(offsets) if left < end and right > start]
    return inside[0], inside[-1] + 1
