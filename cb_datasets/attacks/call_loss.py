"""Loss of an attacked prompt: how unlikely the opening of the attacker's call is.

Let x(s) be the prompt with the tokens or vectors s in its slots, and y the opening of the attacker's call:

    loss(s) = -1/|y| sum_t log p(y_t | x(s), y_<t)        nats per token

What all candidates share is computed once: the tokens before the slots, and, for candidates that replace one token of
the same tokens s, everything before the replaced token, in steps of a few slots.
"""

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from .slots import Slots


# Candidates are grouped by their first replaced slot, rounded down to a multiple of this: fewer tokens are computed
# again with small groups, and more forward passes are needed.
_BLOCK = 4


class CallLoss:
    """Loss of one prompt.

    Args:
        network ([`~transformers.PreTrainedModel`]): The attacked model.
        slots ([`Slots`]): The prompt and its slots.
        opening (`list[int]`): Token ids of the opening of the attacker's call.
        batch_size (`int`): Candidates per forward pass.
    """

    def __init__(self, network: Any, slots: Slots, opening: list[int], batch_size: int) -> None:
        self._network, self._batch_size = network, batch_size
        self._embed = network.get_input_embeddings()
        device = self._embed.weight.device
        self._opening = torch.tensor(opening, device=device)
        self._start = slots.positions[0]
        self._slots = torch.tensor(slots.positions, device=device) - self._start
        # The last token of the opening is left out: nothing is predicted from it.
        self._body = torch.tensor(slots.ids[self._start :] + opening[:-1], device=device)
        with torch.no_grad():
            before = torch.tensor([slots.ids[: self._start]], device=device)
            self._before = network(input_ids=before, use_cache=True, logits_to_keep=1).past_key_values

    @torch.no_grad()
    def losses(self, candidates: Sequence[list[int]], shared: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses of `n` candidates, and whether greedy decoding writes the opening after each.

        Args:
            candidates (`Sequence[list[int]]`): Tokens for the slots.
            shared (`list[int]`): Tokens that the candidates are variations of: what a candidate has in common with
                them, from the left, is computed once.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Float and bool tensors of shape `(n,)`, on the CPU.
        """
        groups = defaultdict(list)
        for index, candidate in enumerate(candidates):
            groups[_first_difference(candidate, shared) // _BLOCK].append(index)
        cache = self._cache_of(shared)
        losses, opened = torch.empty(len(candidates)), torch.empty(len(candidates), dtype=torch.bool)
        for block, indices in sorted(groups.items()):
            start = int(self._slots[block * _BLOCK])
            for chosen in torch.tensor(indices).split(self._batch_size):
                tokens = torch.tensor([candidates[index] for index in chosen.tolist()], device=self._body.device)
                ids = self._body.repeat(len(chosen), 1)
                ids[:, self._slots] = tokens
                logits = self._logits(self._embed(ids[:, start:]), _repeat(cache, len(chosen), self._start + start))
                losses[chosen] = self._loss(logits).cpu()
                opened[chosen] = (logits.argmax(dim=-1) == self._opening).all(dim=1).cpu()
        return losses, opened

    def gradient(self, tokens: list[int]) -> torch.Tensor:
        """Gradient of the loss with respect to the one-hot rows of the slots' tokens.

        Returns:
            `torch.Tensor`: Shape `(slots, vocabulary)`, float32, on the CPU.
        """
        weight = self._embed.weight.detach()
        one_hot = torch.nn.functional.one_hot(torch.tensor(tokens, device=weight.device), len(weight)).to(weight.dtype)
        one_hot.requires_grad_()
        loss = self.embedding_losses((one_hot @ weight)[None]).sum()
        return torch.autograd.grad(loss, one_hot)[0].float().cpu()

    def embedding_losses(self, vectors: torch.Tensor) -> torch.Tensor:
        """Losses of vectors in place of the slots' embeddings; differentiable.

        Args:
            vectors (`torch.Tensor` of shape `(n, slots, hidden_size)`): The vectors.

        Returns:
            `torch.Tensor`: Shape `(n,)`.
        """
        body = self._embed(self._body).detach().expand(len(vectors), -1, -1)
        embedded = body.index_copy(1, self._slots, vectors.to(body.dtype))
        return self._loss(self._logits(embedded, _repeat(self._before, len(vectors), self._start)))

    def _cache_of(self, tokens: list[int]) -> Any:
        """Keys and values of the prompt with these tokens, up to its last slot."""
        ids = self._body.clone()
        ids[self._slots] = torch.tensor(tokens, device=ids.device)
        cache = copy.deepcopy(self._before)  # a forward pass appends to its cache
        cache.activate_past_recording()  # sliding windows would forget what `_repeat` goes back to
        ids = ids[None, : int(self._slots[-1]) + 1]
        return self._network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

    def _logits(self, embedded: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits that predict the opening: `(n, |y|, vocabulary)`."""
        return self._network(
            inputs_embeds=embedded, past_key_values=cache, use_cache=True, logits_to_keep=len(self._opening)
        ).logits

    def _loss(self, logits: torch.Tensor) -> torch.Tensor:
        opening = self._opening.expand(len(logits), -1)
        token_losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), opening, reduction="none")
        return token_losses.mean(dim=1)


def _first_difference(candidate: list[int], shared: list[int]) -> int:
    """The first slot in which two candidates differ; 0 if they do not."""
    return next((slot for slot, (a, b) in enumerate(zip(candidate, shared, strict=True)) if a != b), 0)


def _repeat(cache: Any, n: int, length: int) -> Any:
    """The first `length` tokens of a cache of one sequence, for `n` sequences; the cache itself is unchanged."""
    repeated = copy.deepcopy(cache)
    if length < repeated.get_seq_length():
        repeated.crop(length - repeated.get_seq_length())
    repeated.batch_repeat_interleave(n)
    return repeated
