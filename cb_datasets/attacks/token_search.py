"""White-box search for tokens around an injection that make the attacker's call likely: greedy coordinate gradient.

Zou et al. 2023 (GCG), arXiv 2307.15043, algorithms 1 and 2. Let loss(s) be the sum over one or several prompts of the
loss of `call_loss.py` for the tokens s in their slots. A step computes its gradient with respect to the one-hot rows
of s, selects for each slot the `top_k` tokens with the most negative gradient, draws `width` candidates that replace
one token of s by one of these, and moves to the candidate with the lowest loss.

There are three differences from the paper:

- A step that does not lower the loss is not taken.
- No candidate is tried twice for the same s. Where fewer than `width` are left, `top_k` doubles until the whole
  vocabulary has been tried, so that a search goes on where the paper's would draw the same candidates again.
- A candidate counts only if its text is tokenized to exactly its tokens (`Slots.round_trips`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .call_loss import CallLoss
from .search_budget import SearchBudget
from .slots import Affixes, Slots


@dataclass(frozen=True)
class SearchResult:
    """Result of one search.

    Args:
        affixes ([`Affixes`]): The text with the lowest loss.
        completions (`list[str]`): The model's greedy completions of the prompts with it.
        won (`bool`): Whether all of them are successes of the attack.
        first_loss, loss (`float`): Loss of the initial and of the returned tokens, in nats per token, mean over the
            prompts.
        steps, tried (`int`): Number of gradient steps, and of candidates whose loss was computed.
    """

    affixes: Affixes
    completions: list[str]
    won: bool
    first_loss: float
    loss: float
    steps: int
    tried: int


def search_tokens(
    losses: Sequence[CallLoss],
    slots: Sequence[Slots],
    usable: torch.Tensor,
    budget: SearchBudget,
    generator: torch.Generator,
    complete: Callable[[list[list[int]]], list[str]],
    are_successes: Callable[[list[str]], bool],
) -> SearchResult:
    """Run the search until every greedy completion is a success, or the budget is spent.

    Args:
        losses (`Sequence[CallLoss]`): Loss of each prompt.
        slots (`Sequence[Slots]`): The prompts, all with the same initial tokens.
        usable (`torch.Tensor` of shape `(vocabulary,)`): Mask of [`~slots.usable_tokens`].
        budget ([`SearchBudget`]): Limits of the search.
        generator (`torch.Generator`): Random generator of the candidates.
        complete (`Callable`): Maps ids of prompts to the model's greedy completions.
        are_successes (`Callable`): Whether all completions are successes of the attack.
    """
    tokens, steps, tried = slots[0].initial, 0, 1
    found, opened = _losses(losses, [tokens], tokens)
    first_loss = best_loss = found[0].item()
    # A low loss alone is no success: the whole completions decide. They are generated only for tokens after which
    # greedy decoding writes every opening, since generation costs more than a forward pass.
    completions = _complete(complete, slots, tokens) if opened[0] else None
    neighbours = None
    while steps < budget.steps and not (completions is not None and are_successes(completions)):
        steps += 1
        if neighbours is None:
            gradient = sum(loss.gradient(tokens) for loss in losses)
            neighbours = _Neighbours(tokens, torch.as_tensor(gradient), usable, budget)
        drawn = neighbours.draw(generator)
        if not drawn:
            break  # a local minimum: every usable token has been tried in every slot
        passed = zip(*(each.may_round_trip(drawn) for each in slots), strict=True)
        candidates = [candidate for candidate, passes in zip(drawn, passed, strict=True) if all(passes)]
        if not candidates:
            continue
        found, opened = _losses(losses, candidates, tokens)
        tried += len(candidates)
        best = _best(found, candidates, best_loss, slots)
        if best is not None:
            tokens, best_loss, neighbours = candidates[best], found[best].item(), None
            completions = _complete(complete, slots, tokens) if opened[best] else None
    completions = completions or _complete(complete, slots, tokens)
    return SearchResult(
        slots[0].affixes(tokens), completions, are_successes(completions), first_loss, best_loss, steps, tried
    )


def _losses(
    losses: Sequence[CallLoss], candidates: list[list[int]], shared: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss of candidates over the prompts, and whether each opening is written in all of them."""
    found, opened = zip(*(loss.losses(candidates, shared) for loss in losses), strict=True)
    return torch.stack(found).mean(dim=0), torch.stack(opened).all(dim=0)


def _complete(
    complete: Callable[[list[list[int]]], list[str]], slots: Sequence[Slots], tokens: list[int]
) -> list[str]:
    return complete([each.prompt_ids(tokens) for each in slots])


def _best(found: torch.Tensor, candidates: list[list[int]], best_loss: float, slots: Sequence[Slots]) -> int | None:
    """The candidate with the lowest loss below `best_loss` that round-trips in every prompt; `None` if none does."""
    for index in found.argsort().tolist():
        if found[index] >= best_loss:
            return None
        if all(each.round_trips(candidates[index]) for each in slots):
            return index
    return None


class _Neighbours:
    """Candidates that differ from some tokens in one slot, drawn without replacement, the most promising first."""

    def __init__(self, tokens: list[int], gradient: torch.Tensor, usable: torch.Tensor, budget: SearchBudget) -> None:
        self._tokens, self._width, self._usable_count = tokens, budget.width, int(usable.sum())
        # Replacements of each slot, best first.
        self._ranked = (-gradient).masked_fill(~usable, -torch.inf).argsort(dim=1, descending=True)
        self._left = torch.ones(len(tokens), self._usable_count, dtype=torch.bool)
        self._top_k = min(budget.top_k, self._usable_count)
        ranked = self._ranked[:, : self._usable_count]
        self._left &= ranked != torch.tensor(tokens)[:, None]

    def draw(self, generator: torch.Generator) -> list[list[int]]:
        """Up to `width` new candidates; none if all have been drawn."""
        while self._left[:, : self._top_k].sum() < self._width and self._top_k < self._usable_count:
            self._top_k = min(2 * self._top_k, self._usable_count)
        slots, ranks = self._left[:, : self._top_k].nonzero(as_tuple=True)
        chosen = torch.randperm(len(slots), generator=generator)[: self._width]
        slots, ranks = slots[chosen], ranks[chosen]
        self._left[slots, ranks] = False
        candidates = torch.tensor(self._tokens).repeat(len(chosen), 1)
        candidates[torch.arange(len(chosen)), slots] = self._ranked[slots, ranks]
        return candidates.tolist()
