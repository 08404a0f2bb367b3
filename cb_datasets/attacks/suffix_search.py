"""A suffix to the injection that makes the attacker's call likely: greedy coordinate gradient, white-box.

Zou et al. 2023, arXiv 2307.15043, algorithm 1. With x(s) the prompt that ends its injection in the L tokens s, and y
the opening of the attacker's call,

    loss(s) = -1/|y| sum_t log p(y_t | x(s), y_<t)

A step takes the gradient of the loss with respect to the one-hot rows of s, keeps for every position the `top_k`
tokens that promise the steepest descent, draws `width` suffixes that differ from s in one of them, and goes to the
best.

Two departures from the paper: a step that does not lower the loss is not taken, and an attacker sends text, not ids.
So a suffix is tried only if the prompt with its text is encoded to just these ids (`Slot.survives`).
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from ..chat import encode_prompt, injection_tokens


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Draws of a first suffix until one survives. A suffix of whole words nearly always does.
_FIRST_DRAWS = 200


@dataclass(frozen=True)
class SearchBudget:
    """How much a search may try.

    Args:
        steps (`int`, *optional*, defaults to `50`): Most gradient steps.
        width (`int`, *optional*, defaults to `64`): Suffixes tried in a step.
        suffix_tokens (`int`, *optional*, defaults to `10`): Length of the suffix.
        top_k (`int`, *optional*, defaults to `64`): Tokens that a position may change to in a step.
    """

    steps: int = 50
    width: int = 64
    suffix_tokens: int = 10
    top_k: int = 64


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        suffix (`str`): The best suffix.
        completion (`str`): What the model answers to it, greedily.
        won (`bool`): Whether that answer is what was searched for.
        first_loss, loss (`float`): Of the suffix that the search began with, and of the best, in nats per token.
        steps, tried (`int`): Gradient steps made, and suffixes whose loss was computed.
    """

    suffix: str
    completion: str
    won: bool
    first_loss: float
    loss: float
    steps: int
    tried: int


# ---------------------------------------------------------------------------------------------------------------------
# Where the suffix stands


def with_suffix(row: dict, suffix: str) -> dict:
    """An attacked prompt whose injection, the last one if there are several, ends with `suffix`, inside its span."""
    last = _last_span(row)
    message = row["messages"][last["message"]]
    content = message["content"][: last["end"]] + suffix + message["content"][last["end"] :]
    messages, spans = list(row["messages"]), list(row["injection"])
    messages[last["message"]] = {**message, "content": content}
    spans[spans.index(last)] = {**last, "end": last["end"] + len(suffix)}
    return {**row, "messages": messages, "injection": spans}


def _last_span(row: dict) -> dict:
    return max(row["injection"], key=lambda span: (span["message"], span["end"]))


@dataclass(frozen=True)
class Slot:
    """An attacked prompt with room for a suffix.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's.
        row (`dict`): The prompt without the suffix.
        before, after (`list[int]`): Ids of the prompt on both sides of the suffix.
        first (`list[int]`): A suffix to begin with.
    """

    tokenizer: "PreTrainedTokenizerBase"
    row: dict
    before: list[int]
    after: list[int]
    first: list[int]

    def ids(self, suffix: list[int]) -> list[int]:
        """Ids of the prompt with this suffix."""
        return self.before + suffix + self.after

    def text(self, suffix: list[int]) -> str:
        """What an attacker writes to have the model read this suffix."""
        return _decoded(self.tokenizer, suffix)

    def survives(self, suffix: list[int]) -> bool:
        """Whether the model reads the suffix as these ids when its text is put into the prompt."""
        return encode_prompt(self.tokenizer, with_suffix(self.row, self.text(suffix))) == self.ids(suffix)


def open_slot(
    tokenizer: "PreTrainedTokenizerBase", row: dict, length: int, usable: torch.Tensor, generator: torch.Generator
) -> Slot:
    """Room for a suffix of `length` tokens at the end of the injection, filled with words drawn at random.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's.
        row (`dict`): An attacked prompt: `messages`, `tools` and `injection` are read.
        length (`int`): Tokens of the suffix.
        usable (`torch.Tensor` of shape `(vocabulary,)`): As [`usable_tokens`] gives it.
        generator (`torch.Generator`): Decides the draw.

    Raises:
        ValueError: If no draw is encoded as it was drawn.
    """
    tokens = usable.nonzero()[:, 0].tolist()
    words = [token for token in tokens if re.fullmatch(r" [^\W\d_]+", _decoded(tokenizer, [token]))] or tokens
    for _ in range(_FIRST_DRAWS):
        suffix = [words[index] for index in torch.randint(len(words), (length,), generator=generator).tolist()]
        text = _decoded(tokenizer, suffix)
        longer = with_suffix(row, text)
        ids = encode_prompt(tokenizer, longer)
        end = _last_span(longer)
        place = {**end, "start": end["end"] - len(text)}
        [(start, stop)] = injection_tokens(tokenizer, {**longer, "injection": [place]})
        if ids[start:stop] == suffix:
            return Slot(tokenizer, row, ids[:start], ids[stop:], suffix)
    raise ValueError(f"{row['id']}: no suffix of {length} tokens is encoded as it was drawn. Try another length.")


def usable_tokens(tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> torch.Tensor:
    """Which tokens an attacker can write: ordinary ones of printable text that is encoded to them again.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's.
        vocabulary (`int`): Rows of its embedding, which may be more than it has tokens.

    Returns:
        `torch.Tensor`: Of shape `(vocabulary,)` and type bool.
    """
    known = [token for token in range(len(tokenizer)) if token not in tokenizer.added_tokens_decoder]
    texts = [_decoded(tokenizer, [token]) for token in known]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    usable = torch.zeros(vocabulary, dtype=torch.bool)
    for token, text, again in zip(known, texts, encoded, strict=True):
        usable[token] = again == [token] and text.isprintable() and bool(text.strip())
    return usable


def _decoded(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return cast(str, tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


# ---------------------------------------------------------------------------------------------------------------------
# The search


class CallLoss:
    """The loss of suffixes of one prompt. What stands before the suffix is read once and kept.

    Args:
        network ([`~transformers.PreTrainedModel`]): The model.
        slot ([`Slot`]): The prompt.
        opening (`list[int]`): Ids of the opening of the attacker's call.
        batch_size (`int`): Suffixes of one forward pass.
    """

    def __init__(self, network: Any, slot: Slot, opening: list[int], batch_size: int) -> None:
        self._network = network
        self._embed = network.get_input_embeddings()
        self._batch_size = batch_size
        device = self._embed.weight.device
        self._opening = torch.tensor(opening, device=device)
        with torch.no_grad():
            self._rest = self._embed(torch.tensor(slot.after + opening[:-1], device=device))
            before = torch.tensor([slot.before], device=device)
            self._before = network(input_ids=before, use_cache=True, logits_to_keep=1).past_key_values

    @torch.no_grad()
    def of(self, suffixes: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses of suffixes of one length, and whether each has the model open the attacker's call greedily.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Of shape `(n,)`; float and bool.
        """
        losses, opened = [], []
        for part in torch.tensor(suffixes, device=self._opening.device).split(self._batch_size):
            logits = self._logits(self._embed(part))
            losses.append(self._loss(logits))
            opened.append((logits.argmax(dim=-1) == self._opening).all(dim=1))
        return torch.cat(losses).cpu(), torch.cat(opened).cpu()

    def gradient(self, suffix: list[int]) -> torch.Tensor:
        """Of the loss with respect to the one-hot rows of one suffix; of shape `(L, vocabulary)`."""
        weight = self._embed.weight.detach()
        one_hot = torch.nn.functional.one_hot(torch.tensor(suffix, device=weight.device), len(weight)).to(weight.dtype)
        one_hot.requires_grad_()
        loss = self._loss(self._logits((one_hot @ weight)[None]))
        return torch.autograd.grad(loss.sum(), one_hot)[0].float().cpu()

    def _logits(self, suffixes: torch.Tensor) -> torch.Tensor:
        """What the model expects at each token of the opening, after embedded suffixes of shape `(n, L, width)`."""
        cache = copy.deepcopy(self._before)  # a forward pass appends to the cache that it is given
        cache.batch_repeat_interleave(len(suffixes))
        embeddings = torch.cat([suffixes, self._rest.expand(len(suffixes), -1, -1)], dim=1)
        return self._network(
            inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=len(self._opening)
        ).logits

    def _loss(self, logits: torch.Tensor) -> torch.Tensor:
        opening = self._opening.expand(len(logits), -1)
        token_losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), opening, reduction="none")
        return token_losses.mean(dim=1)


def search_suffix(
    loss: CallLoss,
    slot: Slot,
    usable: torch.Tensor,
    budget: SearchBudget,
    generator: torch.Generator,
    complete: Callable[[list[int]], str],
    wins: Callable[[str], bool],
) -> SearchResult:
    """Search until the model's greedy answer is the one that is looked for, or the budget is spent.

    Args:
        loss ([`CallLoss`]): Of suffixes of this prompt.
        slot ([`Slot`]): The prompt.
        usable (`torch.Tensor` of shape `(vocabulary,)`): As [`usable_tokens`] gives it.
        budget ([`SearchBudget`]): How much may be tried.
        generator (`torch.Generator`): Decides the draws.
        complete (`Callable`): The model's greedy answer to the ids of a prompt. It is asked for the best suffix so
            far whenever that has the model open the call, and for the last one: a low loss alone is no success.
        wins (`Callable`): Whether an answer is the one that is looked for.
    """
    suffix, steps, tried = slot.first, 0, 1
    losses, opened = loss.of([suffix])
    first_loss = best_loss = losses[0].item()
    completion = complete(slot.ids(suffix)) if opened[0] else None
    while steps < budget.steps and not (completion is not None and wins(completion)):
        steps += 1
        drawn = _neighbours(suffix, loss.gradient(suffix), usable, budget, generator)
        candidates = [candidate for candidate in drawn if slot.survives(candidate)]
        if not candidates:
            continue
        losses, opened = loss.of(candidates)
        tried += len(candidates)
        lowest = int(losses.argmin())
        if losses[lowest] < best_loss:
            suffix, best_loss = candidates[lowest], losses[lowest].item()
            completion = complete(slot.ids(suffix)) if opened[lowest] else None
    if completion is None:
        completion = complete(slot.ids(suffix))
    return SearchResult(slot.text(suffix), completion, wins(completion), first_loss, best_loss, steps, tried)


def _neighbours(
    suffix: list[int],
    gradient: torch.Tensor,
    usable: torch.Tensor,
    budget: SearchBudget,
    generator: torch.Generator,
) -> list[list[int]]:
    """`budget.width` draws of the suffix with one token changed for one that the gradient favours; each once."""
    promising = (-gradient).masked_fill(~usable, -torch.inf).topk(min(budget.top_k, int(usable.sum()))).indices
    positions = torch.randint(len(suffix), (budget.width,), generator=generator)
    ranks = torch.randint(promising.shape[1], (budget.width,), generator=generator)
    drawn = torch.tensor(suffix).repeat(budget.width, 1)
    drawn[torch.arange(budget.width), positions] = promising[positions, ranks]
    return [list(each) for each in dict.fromkeys(map(tuple, drawn.tolist())) if list(each) != suffix]
