"""Upper bound of token searches: free vectors in place of the tokens around an injection.

Schwinn et al. 2024, arXiv 2402.09063. The vectors v in the slots minimise the loss of `call_loss.py`:

    v <- Adam(v, d loss(v) / d v)        from the embeddings of random words, without a bound on their norm

No text has such vectors, so a success says only what a search in token space cannot exceed. It is the check against
masked gradients: a breaker that resists token searches because its loss is rugged or flat has no reason to resist
these. Several restarts and step sizes are run side by side, because one that fails may have been too large or small;
and where the opening of the call does not suffice, y is the whole call that the base makes, since vectors that only
force the opening can leave the rest of the call broken.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from .call_loss import CallLoss
from .search_budget import EmbeddingBudget


# Steps between two generations, which cost as much as several steps. The loss alone decides nothing.
_STEPS_BETWEEN_CHECKS = 10


@dataclass(frozen=True)
class EmbeddingResult:
    """Result of one attack.

    Args:
        completion (`str`): The model's greedy completion for the vectors that succeed, or for those with the lowest
            loss.
        won (`bool`): Whether it is a success of the attack.
        step_size (`float`): The step size that these vectors were found with.
        target (`str`): What the vectors were optimised for: `opening` or `call`.
        first_loss, loss (`float`): Lowest loss of the initial values, and loss of these vectors, in nats per token.
        steps (`int`): Number of gradient steps, over both targets.
    """

    completion: str
    won: bool
    step_size: float
    target: str
    first_loss: float
    loss: float
    steps: int


def search_vectors(
    losses: Mapping[str, CallLoss],
    initial: torch.Tensor,
    deviation: float,
    budget: EmbeddingBudget,
    complete: Callable[[torch.Tensor], list[str]],
    is_success: Callable[[str], bool],
) -> EmbeddingResult:
    """Run all restarts and step sizes, for one target after the other, until one succeeds or the steps are spent.

    Args:
        losses (`Mapping[str, CallLoss]`): Loss of the prompt for each target, by its name.
        initial (`torch.Tensor` of shape `(restarts, slots, hidden_size)`): Initial values.
        deviation (`float`): Standard deviation of the embedding table, the unit of the step sizes.
        budget ([`EmbeddingBudget`]): Limits of the attack.
        complete (`Callable`): Maps vectors `(n, slots, hidden_size)` to the model's greedy completions.
        is_success (`Callable`): Whether a completion is a success of the attack.
    """
    results: list[EmbeddingResult] = []
    for target, loss in losses.items():
        results.append(_descend(target, loss, initial, deviation, budget, complete, is_success))
        if results[-1].won:
            break
    return replace(results[-1], steps=sum(result.steps for result in results))


def _descend(
    target: str,
    loss: CallLoss,
    initial: torch.Tensor,
    deviation: float,
    budget: EmbeddingBudget,
    complete: Callable[[torch.Tensor], list[str]],
    is_success: Callable[[str], bool],
) -> EmbeddingResult:
    sizes = [size for size in budget.step_sizes for _ in range(len(initial))]
    vectors = initial.repeat(len(budget.step_sizes), 1, 1).clone().requires_grad_()
    optimizer = _Adam(vectors, deviation * torch.tensor(sizes, device=vectors.device, dtype=vectors.dtype))
    first_loss = None
    for step in itertools.count():
        found = loss.embedding_losses(vectors)
        first_loss = found.min().item() if first_loss is None else first_loss
        if step % _STEPS_BETWEEN_CHECKS == 0 or step == budget.steps:
            order = found.detach().argsort()  # the lowest loss first: where none succeeds, it is reported
            texts = complete(vectors.detach()[order])
            success = next((index for index, text in enumerate(texts) if is_success(text)), None)
            if success is not None or step == budget.steps:
                best, row = success or 0, int(order[success or 0])
                won = success is not None
                return EmbeddingResult(texts[best], won, sizes[row], target, first_loss, found[row].item(), step)
        [gradient] = torch.autograd.grad(found.sum(), vectors)
        optimizer.step(gradient)
    raise AssertionError("the last step returns")


class _Adam:
    """Adam (Kingma & Ba 2015) with a learning rate for each row of a tensor, which `torch.optim` does not have."""

    def __init__(self, values: torch.Tensor, rates: torch.Tensor) -> None:
        self._values, self._rates, self._count = values, rates[:, None, None], 0
        self._mean, self._square = torch.zeros_like(values), torch.zeros_like(values)

    @torch.no_grad()
    def step(self, gradient: torch.Tensor) -> None:
        self._count += 1
        self._mean.lerp_(gradient, 0.1)
        self._square.lerp_(gradient.square(), 0.001)
        mean, square = self._mean / (1 - 0.9**self._count), self._square / (1 - 0.999**self._count)
        self._values -= self._rates * mean / (square.sqrt() + 1e-8)
