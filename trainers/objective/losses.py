"""The losses of circuit breaking as pure functions of tensors.

A run minimises a weighted sum of named terms, each a mean over tokens `i` with weights `w_i`:

    loss = sum over terms of  c_term(t) * 1/N * sum_i w_i * value_i,        N = sum_i w_i

and each term's function returns its `value_i`. Notation, after Representation Rerouting
(https://huggingface.co/papers/2406.04313, section 3 and Algorithm 1): `h` is a hidden state of the adapted network and
`h0` that of the frozen network (the same network with the adapter disabled), at a layer `l` of the term's layers `L`;
`p` and `p0` are the next-token distributions of the two networks. Ds is the circuit breaker set, Dr the retain set.

| term                     | role    | inputs                                           | purpose                     |
|--------------------------|---------|--------------------------------------------------|-----------------------------|
| `rr`                     | breaker | `h`, `h0` on Ds                                  | reroute harmful states      |
| `unlikelihood`           | breaker | `p` on Ds                                        | avoid the attacker's tool   |
| `stop`                   | breaker | `p` after the name of a wrong tool               | end a wrong call            |
| `triplet`                | breaker | `h`, `h0` on Ds and on Dr                        | separate the states of both |
| `retain_l2`, `retain_kl` | retain  | `h`, `h0`, or `p`, `p0`, on Dr                   | preserve other behaviour    |
| `distill`, `twin`        | retain  | `p` or `h` under attack, `p0` or `h0` without it | teach the right call        |
| `ce`, `splice`           | retain  | `p` under attack, also after a wrong opening     | teach the right call        |

The inputs hold only the tokens that a term is computed on, so no function needs a mask or could divide by zero. They
have shape `(tokens, hidden_size)`, one tensor per layer, or `(tokens, vocabulary)`; values have shape `(tokens,)`. All
arithmetic is in float32: in bfloat16 `cos(x, x)` comes out as 0.992.
"""

import math
from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F


SCHEDULES = ("linear", "cosine", "constant")

# Measures of `retain_l2`, and the norm that states have in the second
DISTANCES = ("absolute", "scaled")
SCALED_NORM = 10.0


def weighted_mean(values: torch.Tensor, weights: torch.Tensor, num_items: torch.Tensor | float) -> torch.Tensor:
    """
    `1/N * sum_i w_i * value_i`.

    Args:
        values (`torch.Tensor`):
            Shape `(tokens,)`.
        weights (`torch.Tensor`):
            Shape `(tokens,)`.
        num_items (`torch.Tensor` or `float`):
            N. The sum of the weights; or, for a batch whose loss is averaged with those of other batches, the mean of
            that sum over the batches, so that the average is the mean over all their tokens.
    """
    return (values * weights).sum() / num_items


def token_cosine(hidden: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """`cos(h, h0)` of each token."""
    return F.cosine_similarity(hidden.float(), reference.float(), dim=-1)


def _mean_over_layers(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return reduce(torch.add, values) / len(values)


def rr(hidden: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    Representation Rerouting, on Ds (section 3, L_s of Algorithm 1):

        rr_i = 1/|L| * sum_l ReLU(cos(h_li, h0_li))

    The ReLU stops the gradient where a state is orthogonal to the frozen one or beyond.
    """
    return _mean_over_layers([F.relu(token_cosine(h, h0)) for h, h0 in zip(hidden, reference, strict=True)])


def retain_l2(
    hidden: Sequence[torch.Tensor], reference: Sequence[torch.Tensor], measure: str = "absolute"
) -> torch.Tensor:
    """
    Distance to the frozen states, on Dr (section 3, L_r of Algorithm 1):

        absolute    retain_l2_i = 1/|L| * sum_l || h_li - h0_li ||_2
        scaled      retain_l2_i = 1/|L| * sum_l 10 || h_li - h0_li ||_2 / || h0_li ||_2

    In the published code, which has the absolute distance, N is the number of positions of the padded batch; those
    without weight add distance 0.

    The norm of hidden states differs by model, from ten to thousands, and the absolute distance grows with it while
    the cosine of `rr` does not. The scaled one is that of states with norm 10, about that of Llama 3 8B at the target
    layers of the published run, so that the published weight has the same meaning for every model. It is divided token
    by token because the norms of a few tokens, the first among them, are a hundred times those of the others
    (https://huggingface.co/papers/2402.17762, section 2): after division by a layer's mean they would dominate.

    Args:
        hidden, reference (`Sequence[torch.Tensor]`):
            For each layer, states of the adapted and of the frozen network, shape `(tokens, hidden_size)`.
        measure (`str`, *optional*, defaults to `"absolute"`):
            One of [`DISTANCES`].
    """
    pairs = zip(hidden, reference, strict=True)
    if measure == "absolute":
        return _mean_over_layers([distance(h, h0) for h, h0 in pairs])
    return _mean_over_layers([SCALED_NORM * relative_distance(h, h0) for h, h0 in pairs])


def distance(hidden: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """`|| h - h0 ||_2` of each token."""
    # At distance 0, where every run starts, `vector_norm` has gradient 0; the root of a sum of squares would have NaN
    return torch.linalg.vector_norm(hidden.float() - reference.float(), dim=-1)


def relative_distance(hidden: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """`|| h - h0 ||_2 / || h0 ||_2` of each token."""
    return distance(hidden, reference) / torch.linalg.vector_norm(reference.float(), dim=-1)


def twin(hidden: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    Context distillation in hidden states: those of the right call under attack should be those that the frozen network
    has for the same call without the attack.

        twin_i = 1/|L| * sum_l || h_li(attacked) - h0_li(clean) ||_2 / || h0_li(clean) ||_2
    """
    return _mean_over_layers([relative_distance(h, h0) for h, h0 in zip(hidden, reference, strict=True)])


def kl(logits: torch.Tensor, reference: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """
    Distillation (https://huggingface.co/papers/1503.02531, section 2), the value of two terms:

        kl_i = T^2 * KL( p0_i^(1/T) || p_i^(1/T) )

    `retain_kl` compares the two networks on the same row of Dr. `distill` is context distillation
    (https://huggingface.co/papers/2209.15189): `p0` is given the clean prompt and `p` the attacked one, both followed
    by the right call.

    Args:
        logits (`torch.Tensor`):
            Shape `(tokens, vocabulary)`, of the adapted network.
        reference (`torch.Tensor`):
            Shape `(tokens, vocabulary)`, of the frozen network.
        temperature (`float`, *optional*, defaults to `1.0`):
            T.
    """
    log_p, log_p0 = (F.log_softmax(x.float() / temperature, dim=-1) for x in (logits, reference))
    return temperature**2 * F.kl_div(log_p, log_p0, reduction="none", log_target=True).sum(-1)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    `-log p(y_i)`, the value of three terms: `ce` on the right call under attack; `stop` on the end of the turn after
    the whole name of a wrong tool; and `splice`, a recovery loss, on the right call from its tool's name after a wrong
    opening. The opening often determines the call, so that one early token decides it unless the model has learned to
    recover.

    Args:
        logits (`torch.Tensor`):
            Shape `(tokens, vocabulary)`.
        targets (`torch.Tensor`):
            Shape `(tokens,)`, token ids.
    """
    return F.cross_entropy(logits.float(), targets, reduction="none")


def unlikelihood(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Unlikelihood (https://huggingface.co/papers/1908.04319, equation 4), on the tokens that make a call the attacker's:
    the first that differs from the right call, and the first two of its tool's name.

        unlikelihood_i = -log(1 - p(y_i))
    """
    logits = logits.float()
    total = logits.logsumexp(-1)
    log_p = logits.gather(-1, targets[:, None])[:, 0] - total
    # Where p is almost 1, 1 - p loses its digits; there it is computed as the sum over the other tokens
    others = logits.scatter(-1, targets[:, None], -math.inf).logsumexp(-1)
    return torch.where(log_p > -0.7, total - others, -torch.log1p(-log_p.clamp(max=-0.7).exp()))


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of the next-token distribution in nats. Not a term of the loss; it rises where a model collapses."""
    log_p = F.log_softmax(logits.float(), dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def triplet(
    hidden: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
    harmful: torch.Tensor,
    margins: tuple[float, float],
) -> torch.Tensor:
    """
    Triplet loss (https://huggingface.co/papers/2506.11938, section 4), on both sets:

        Dr:  triplet_i = 1/|L| * sum_l ReLU( d(h_li, h0_li) - d(h_li, c_l) + m_Dr )
        Ds:  triplet_i = 1/|L| * sum_l ReLU( d(h_li, c_l) - d(h_li, h0_li) + m_Ds )
        d(a, b)        = 1/2 * || a - b ||_2 + 1/2 * (1 - cos(a, b))

    with `c_l` the mean harmful state of the batch. It pulls a state of Dr towards its frozen state and away from that
    mean, and a state of Ds towards that mean and away from its frozen state. In a batch without rows of Ds there is no
    mean, and all values are 0.

    Args:
        hidden, reference (`Sequence[torch.Tensor]`):
            For each layer, states of the adapted and of the frozen network, shape `(tokens, hidden_size)`.
        harmful (`torch.Tensor`):
            Whether each token belongs to a row of Ds, shape `(tokens,)`.
        margins (`tuple[float, float]`):
            `m_Dr` and `m_Ds`. They are distances between states, so they have to suit the model.
    """
    values = torch.zeros_like(harmful, dtype=torch.float32)
    if not harmful.any():
        return values
    breaker, retain = ([h[mask] for h in hidden] for mask in (harmful, ~harmful))
    breaker0, retain0 = ([h0[mask] for h0 in reference] for mask in (harmful, ~harmful))
    center = [h.float().mean(0, keepdim=True) for h in breaker]
    retain_margin, breaker_margin = margins
    values = values.masked_scatter(harmful, _triplet(breaker, center, breaker0, breaker_margin))
    return values.masked_scatter(~harmful, _triplet(retain, retain0, center, retain_margin))


def _triplet(
    hidden: Sequence[torch.Tensor],
    positive: Sequence[torch.Tensor],
    negative: Sequence[torch.Tensor],
    margin: float,
) -> torch.Tensor:
    """Triplet loss of states; `positive` and `negative` have their shape or the shape `(1, hidden_size)`."""

    def d(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return 0.5 * distance(a, b) + 0.5 * (1 - token_cosine(a, b))

    return _mean_over_layers(
        [F.relu(d(h, near) - d(h, far) + margin) for h, near, far in zip(hidden, positive, negative, strict=True)]
    )


def schedule(name: str, step: int, total_steps: int) -> tuple[float, float]:
    """
    Factors of the breaker terms and of the retain terms, at optimizer step `t` of `T`.

        linear      1 - t / 2T              t / 2T                      Algorithm 1: to one half each
        cosine      (3 + cos(pi t/T)) / 4   (1 - cos(pi t/T)) / 4       between the same ends, slower near both
        constant    1                       1

    Args:
        name (`str`):
            One of [`SCHEDULES`].
        step (`int`):
            t. The first optimizer step is step 1, whatever the gradient accumulation.
        total_steps (`int`):
            T.

    Returns:
        `tuple[float, float]`: Factor of the breaker terms, factor of the retain terms.
    """
    if name == "constant":
        return 1.0, 1.0
    progress = step / total_steps
    retain = progress / 2 if name == "linear" else (1 - math.cos(math.pi * progress)) / 4
    return 1 - retain, retain
