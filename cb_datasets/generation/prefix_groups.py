"""Groups of prompts that begin with the same tokens.

    system A, tools A   user: Pictures of the moon?            assistant:
    system A, tools A   user: Look for Kalo Mirude.            assistant:
    system B, tools B   user: Who wrote this?                  assistant:

The keys and values of the first two are computed once up to `user:`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ..chat import common_prefix


# A prefix is shared if that saves more tokens of prefill: each group also costs a forward pass, and calls in every
# layer of every step.
GROUP_COST = 128


class PrefixGroup(NamedTuple):
    """Prompts that share a prefix.

    Args:
        length (`int`): Number of tokens of the prefix; 0 for prompts that share none.
        prompts (`list[int]`): Indices of the prompts.
    """

    length: int
    prompts: list[int]


class _Cluster(NamedTuple):
    """Neighbours in the sorted prompts: the best groups of them, and the tokens that these save."""

    start: int
    end: int
    saved: int
    groups: tuple[tuple[int, int, int], ...]  # start, end and number of tokens of each


def prefix_groups(prompts: Sequence[list[int]]) -> list[PrefixGroup]:
    """Divide prompts into groups so that the fewest tokens are computed, each prefix counted once.

    The last token of a prompt is never part of a prefix: its logits predict the first token of the completion.
    """
    order = sorted(range(len(prompts)), key=lambda index: prompts[index])
    heads = [prompts[index][:-1] for index in order]
    shared = [len(common_prefix(heads[start : start + 2])) for start in range(len(heads) - 1)]
    clusters = [_Cluster(start, start + 1, 0, ((start, start + 1, 0),)) for start in range(len(heads))]
    # The clusters by their first and by their last prompt. Those that share the most merge first, so a merged cluster
    # has as common prefix what the two prompts at the seam share.
    for seam in sorted(range(len(shared)), key=lambda seam: -shared[seam]):
        merged = _merge(clusters[seam], clusters[seam + 1], shared[seam])
        clusters[merged.start] = clusters[merged.end - 1] = merged
    return [PrefixGroup(length, order[start:end]) for start, end, length in clusters[0].groups] if prompts else []


def _merge(left: _Cluster, right: _Cluster, shared: int) -> _Cluster:
    saved = (right.end - left.start - 1) * shared - GROUP_COST
    if saved > left.saved + right.saved:
        return _Cluster(left.start, right.end, saved, ((left.start, right.end, shared),))
    return _Cluster(left.start, right.end, left.saved + right.saved, left.groups + right.groups)
