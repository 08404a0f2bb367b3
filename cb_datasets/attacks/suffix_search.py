"""White-box search for an injection suffix that makes the attacker's call likely: greedy coordinate gradient (GCG).

Zou et al. 2023, arXiv 2307.15043, algorithm 1. Let x(s) be the prompt whose injection ends with the L suffix tokens s,
and y the opening of the attacker's call. The loss is

    loss(s) = -1/|y| sum_t log p(y_t | x(s), y_<t)

A step computes the gradient of the loss with respect to the one-hot rows of s, selects for each position the `top_k`
tokens with the most negative gradient, samples `width` suffixes that replace one token of s by one of these, and moves
to the suffix with the lowest loss.

There are two differences from the paper. A step that does not lower the loss is not taken. And since an attacker sends
text, not ids, a suffix is a candidate only if its text in the prompt is tokenized to exactly its ids
(`SuffixSlot.round_trips`).
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

# Attempts to sample an initial suffix that round-trips; suffixes of whole words nearly always do.
_MAX_ATTEMPTS = 200


@dataclass(frozen=True)
class SearchBudget:
    """Limits of one search.

    Args:
        steps (`int`, *optional*, defaults to `50`): Maximum number of gradient steps.
        width (`int`, *optional*, defaults to `64`): Candidate suffixes per step.
        suffix_tokens (`int`, *optional*, defaults to `10`): Length of the suffix.
        top_k (`int`, *optional*, defaults to `64`): Replacement tokens considered per position and step.
    """

    steps: int = 50
    width: int = 64
    suffix_tokens: int = 10
    top_k: int = 64


@dataclass(frozen=True)
class SearchResult:
    """Result of one search.

    Args:
        suffix (`str`): The suffix with the lowest loss.
        completion (`str`): The model's greedy completion of the prompt with this suffix.
        won (`bool`): Whether this completion is a success of the attack.
        first_loss, loss (`float`): Loss of the initial and of the returned suffix, in nats per token.
        steps, tried (`int`): Number of gradient steps, and of suffixes whose loss was computed.
    """

    suffix: str
    completion: str
    won: bool
    first_loss: float
    loss: float
    steps: int
    tried: int


# ---------------------------------------------------------------------------------------------------------------------
# The suffix in the prompt


def with_suffix(row: dict, suffix: str) -> dict:
    """Append a suffix to the last injection of an attacked prompt; the injection's span grows with it."""
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
class SuffixSlot:
    """The place of a suffix in an attacked prompt.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the attacked model.
        row (`dict`): The prompt without a suffix.
        before, after (`list[int]`): Token ids of the prompt before and after the suffix.
        initial (`list[int]`): Initial suffix.
    """

    tokenizer: "PreTrainedTokenizerBase"
    row: dict
    before: list[int]
    after: list[int]
    initial: list[int]

    def prompt_ids(self, suffix: list[int]) -> list[int]:
        """Token ids of the prompt with this suffix."""
        return self.before + suffix + self.after

    def suffix_text(self, suffix: list[int]) -> str:
        """Text of a suffix, as an attacker would write it."""
        return _decode(self.tokenizer, suffix)

    def round_trips(self, suffix: list[int]) -> bool:
        """Whether the prompt with the suffix's text is tokenized to exactly these suffix ids."""
        suffixed = with_suffix(self.row, self.suffix_text(suffix))
        return encode_prompt(self.tokenizer, suffixed) == self.prompt_ids(suffix)


def make_slot(
    tokenizer: "PreTrainedTokenizerBase", row: dict, length: int, usable: torch.Tensor, generator: torch.Generator
) -> SuffixSlot:
    """Locate a suffix of `length` tokens at the end of the injection, initialised with random words.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the attacked model.
        row (`dict`): An attacked prompt with `messages`, `tools` and `injection`.
        length (`int`): Number of suffix tokens.
        usable (`torch.Tensor` of shape `(vocabulary,)`): Mask of [`usable_tokens`].
        generator (`torch.Generator`): Random generator of the initial suffix.

    Raises:
        ValueError: If no sampled suffix round-trips.
    """
    tokens = usable.nonzero()[:, 0].tolist()
    # Whole words with a leading space rarely merge with their neighbours when the text is tokenized.
    words = [token for token in tokens if re.fullmatch(r" [^\W\d_]+", _decode(tokenizer, [token]))] or tokens
    for _ in range(_MAX_ATTEMPTS):
        suffix = [words[index] for index in torch.randint(len(words), (length,), generator=generator).tolist()]
        text = _decode(tokenizer, suffix)
        suffixed = with_suffix(row, text)
        ids = encode_prompt(tokenizer, suffixed)
        # The suffix is the last `len(text)` characters of the last span; this maps them to token positions.
        span = _last_span(suffixed)
        suffix_span = {**span, "start": span["end"] - len(text)}
        [(start, stop)] = injection_tokens(tokenizer, {**suffixed, "injection": [suffix_span]})
        if ids[start:stop] == suffix:
            return SuffixSlot(tokenizer, row, ids[:start], ids[stop:], suffix)
    raise ValueError(
        f"{row['id']}: no random suffix of {length} tokens is tokenized to its own ids. Try another --suffix-tokens."
    )


def usable_tokens(tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> torch.Tensor:
    """Mask of tokens that an attacker can write: not special, printable, and tokenized to themselves.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tokenizer of the attacked model.
        vocabulary (`int`): Number of rows of the embedding, which may exceed the number of tokens.

    Returns:
        `torch.Tensor`: Shape `(vocabulary,)`, bool.
    """
    tokens = [token for token in range(len(tokenizer)) if token not in tokenizer.added_tokens_decoder]
    texts = [_decode(tokenizer, [token]) for token in tokens]
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    usable = torch.zeros(vocabulary, dtype=torch.bool)
    for token, text, ids in zip(tokens, texts, encoded, strict=True):
        usable[token] = ids == [token] and text.isprintable() and bool(text.strip())
    return usable


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return cast(str, tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


# ---------------------------------------------------------------------------------------------------------------------
# The search


class CallLoss:
    """Loss of suffixes of one prompt. The tokens before the suffix are prefilled once.

    Args:
        network ([`~transformers.PreTrainedModel`]): The attacked model.
        slot ([`SuffixSlot`]): The prompt.
        opening (`list[int]`): Token ids of the opening of the attacker's call.
        batch_size (`int`): Suffixes per forward pass.
    """

    def __init__(self, network: Any, slot: SuffixSlot, opening: list[int], batch_size: int) -> None:
        self._network = network
        self._embed = network.get_input_embeddings()
        self._batch_size = batch_size
        device = self._embed.weight.device
        self._opening = torch.tensor(opening, device=device)
        with torch.no_grad():
            # Without the last token of the opening, which nothing is predicted from.
            self._after_embeds = self._embed(torch.tensor(slot.after + opening[:-1], device=device))
            before = torch.tensor([slot.before], device=device)
            self._cache = network(input_ids=before, use_cache=True, logits_to_keep=1).past_key_values

    @torch.no_grad()
    def losses(self, suffixes: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of `n` suffixes of equal length, and whether greedy decoding writes the opening after each.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Float and bool tensors of shape `(n,)`.
        """
        losses, opened = [], []
        for batch in torch.tensor(suffixes, device=self._opening.device).split(self._batch_size):
            logits = self._logits(self._embed(batch))
            losses.append(self._loss(logits))
            opened.append((logits.argmax(dim=-1) == self._opening).all(dim=1))
        return torch.cat(losses).cpu(), torch.cat(opened).cpu()

    def gradient(self, suffix: list[int]) -> torch.Tensor:
        """Gradient of the loss with respect to the one-hot rows of one suffix; shape `(L, vocabulary)`."""
        weight = self._embed.weight.detach()
        one_hot = torch.nn.functional.one_hot(torch.tensor(suffix, device=weight.device), len(weight)).to(weight.dtype)
        one_hot.requires_grad_()
        loss = self._loss(self._logits((one_hot @ weight)[None]))
        return torch.autograd.grad(loss.sum(), one_hot)[0].float().cpu()

    def _logits(self, suffixes: torch.Tensor) -> torch.Tensor:
        """Logits that predict the opening, `(n, |y|, vocabulary)`, for embedded suffixes `(n, L, hidden_size)`."""
        cache = copy.deepcopy(self._cache)  # a forward pass appends to its cache
        cache.batch_repeat_interleave(len(suffixes))
        embeddings = torch.cat([suffixes, self._after_embeds.expand(len(suffixes), -1, -1)], dim=1)
        return self._network(
            inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=len(self._opening)
        ).logits

    def _loss(self, logits: torch.Tensor) -> torch.Tensor:
        opening = self._opening.expand(len(logits), -1)
        token_losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), opening, reduction="none")
        return token_losses.mean(dim=1)


def search_suffix(
    call_loss: CallLoss,
    slot: SuffixSlot,
    usable: torch.Tensor,
    budget: SearchBudget,
    generator: torch.Generator,
    complete: Callable[[list[int]], str],
    is_success: Callable[[str], bool],
) -> SearchResult:
    """Run the search until the model's greedy completion is a success, or the budget is spent.

    Args:
        call_loss ([`CallLoss`]): Loss of suffixes of this prompt.
        slot ([`SuffixSlot`]): The prompt.
        usable (`torch.Tensor` of shape `(vocabulary,)`): Mask of [`usable_tokens`].
        budget ([`SearchBudget`]): Limits of the search.
        generator (`torch.Generator`): Random generator of the candidates.
        complete (`Callable`): Maps prompt ids to the model's greedy completion.
        is_success (`Callable`): Whether a completion is a success of the attack.
    """
    suffix, steps, tried = slot.initial, 0, 1
    losses, opened = call_loss.losses([suffix])
    first_loss = best_loss = losses[0].item()
    # A low loss alone is no success: the whole completion decides. It is generated only for suffixes after which
    # greedy decoding writes the opening, since generation costs more than a forward pass.
    completion = complete(slot.prompt_ids(suffix)) if opened[0] else None
    while steps < budget.steps and not (completion is not None and is_success(completion)):
        steps += 1
        sampled = _sample_candidates(suffix, call_loss.gradient(suffix), usable, budget, generator)
        candidates = [candidate for candidate in sampled if slot.round_trips(candidate)]
        if not candidates:
            continue  # the next step samples others from the same gradient
        losses, opened = call_loss.losses(candidates)
        tried += len(candidates)
        best = int(losses.argmin())
        if losses[best] < best_loss:
            suffix, best_loss = candidates[best], losses[best].item()
            completion = complete(slot.prompt_ids(suffix)) if opened[best] else None
    if completion is None:
        completion = complete(slot.prompt_ids(suffix))
    return SearchResult(
        slot.suffix_text(suffix), completion, is_success(completion), first_loss, best_loss, steps, tried
    )


def _sample_candidates(
    suffix: list[int],
    gradient: torch.Tensor,
    usable: torch.Tensor,
    budget: SearchBudget,
    generator: torch.Generator,
) -> list[list[int]]:
    """Sample `budget.width` suffixes that differ in one token, a top-k token by gradient; duplicates are dropped."""
    replacements = (-gradient).masked_fill(~usable, -torch.inf).topk(min(budget.top_k, int(usable.sum()))).indices
    positions = torch.randint(len(suffix), (budget.width,), generator=generator)
    ranks = torch.randint(replacements.shape[1], (budget.width,), generator=generator)
    candidates = torch.tensor(suffix).repeat(budget.width, 1)
    candidates[torch.arange(budget.width), positions] = replacements[positions, ranks]
    unique = [list(candidate) for candidate in dict.fromkeys(map(tuple, candidates.tolist()))]
    return [candidate for candidate in unique if candidate != suffix]
