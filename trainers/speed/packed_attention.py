"""Attention of a packed row (`packing.py`), as an attention function of Transformers.

What models ask of their attention, and how the packed row gets it:

    sliding window      a band in the mask of a group; the window of Flash Attention
    sinks (gpt-oss)     a further logit of each head's softmax, without a value: written out; Flash Attention rescaled
    soft cap (Gemma 2)  written out; Flash Attention here has none, and SDPA of Transformers leaves it out

The positions of the keys of a segment are 0, 1, 2, ...: those of its prefixes come before its own. So a mask by index
is a mask by position, whatever the segment shares.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward, use_gqa_in_sdpa
from transformers.masking_utils import sdpa_mask


ATTENTION = "circuit_breaker_packed"

REMEDY = "Set `padding_free: false` and `shared_prefix: false`."

# Keyword arguments that models hand down to their attention and that do not change its result.
_WITHOUT_EFFECT = {
    "cache_position",
    "layer_idx",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
}

# Those that SDPA of Transformers applies to an ordinary batch.
_OF_SDPA = {"cache", "is_causal", "position_bias"}


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    segments: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    Attention of a packed row, or of an ordinary batch, which has no `segments`.

    Args:
        module, query, key, value, attention_mask, dropout, scaling:
            Arguments of an attention function of Transformers; `query` has shape `(batch, heads, tokens, head_size)`.
        softcap (`float`, *optional*):
            Bound `c` of the scores: `c * tanh(score / c)`.
        s_aux (`torch.Tensor`, *optional*):
            The attention sink of each head: a logit of the softmax that no value belongs to.
        segments (`dict[str, Any]`, *optional*):
            `segments` of the inputs that [`packed`] returns.
        kwargs:
            `sliding_window`, the number of tokens, up to and including itself, that a token attends to, and arguments
            that do not change the result.

    Raises:
        ValueError: If the model passes an argument that is not known here, and that may change the result.
    """
    # Qwen2-MoE has the window in its mask only. Others pass `None` where a layer does not use its module's window.
    sliding_window = kwargs.pop("sliding_window", getattr(module, "sliding_window", None))
    if segments is None:
        _refuse_unknown(module, kwargs, _WITHOUT_EFFECT | _OF_SDPA)
        if softcap is None and s_aux is None:  # a sliding window is in the mask
            return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
        mask = _additive_mask(query, key, attention_mask)
        return _written_out(query, key, value, mask, dropout, scaling, softcap, s_aux).transpose(1, 2), None
    if kwargs.get("is_causal"):
        del kwargs["is_causal"]
    _refuse_unknown(module, kwargs, _WITHOUT_EFFECT)
    if sliding_window is not None and sliding_window >= segments["max_k"]:
        sliding_window = None
    # Token-major, so that selecting or splitting tokens moves contiguous memory
    states = [state[0].transpose(0, 1) for state in (query, key, value)]
    if softcap is None and not dropout and _has_flash(query, value):
        return _attend_in_one_call(states, segments, scaling, sliding_window, s_aux)[None], None
    return _attend_by_group(states, segments, dropout, scaling, sliding_window, softcap, s_aux)[None], None


def _refuse_unknown(module: nn.Module, kwargs: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(name for name, value in kwargs.items() if value is not None and name not in known)
    if unknown:
        raise ValueError(
            f"{type(module).__name__} passes {', '.join(f'`{name}`' for name in unknown)} to its attention, which the "
            f"attention of packed rows does not support. {REMEDY}"
        )


def _has_flash(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether Flash Attention supports this device, dtype and head size."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    if value.shape[-1] > query.shape[-1] or query.shape[-1] > 256 or query.shape[-1] % 8:
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _attend_in_one_call(
    states: Sequence[torch.Tensor],
    segments: Mapping[str, Any],
    scaling: float | None,
    sliding_window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Flash Attention of all segments. States are query, key and value, of shape `(tokens, heads, head_size)`."""
    query, key, value = states
    if "keys" in segments:
        key, value = (state.index_select(0, segments["keys"]) for state in (key, value))
    value_size = value.shape[-1]
    value = F.pad(value, (0, query.shape[-1] - value_size))  # DeepSeek's values are smaller than its keys
    ends = tuple(segments[name] for name in ("cu_seq_q", "cu_seq_k", "max_q", "max_k"))
    # The window is causal from the end: a segment's last query attends to all its keys, the one before to all but one
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    if sinks is None:
        output = varlen_attn(query, key, value, *ends, scale=scaling, window_size=window, enable_gqa=True)
    else:
        output = FlashAttentionWithSinks.apply(query, key, value, sinks, ends, scaling, window)
    return cast(torch.Tensor, output)[..., :value_size]  # a tuple only with `return_aux`


class FlashAttentionWithSinks(torch.autograd.Function):
    """
    Flash Attention with one more logit in each head's softmax, which has no value.

    A sink `s` turns the log-sum-exp `l` of a token's scores into `l' = log(exp(l) + exp(s))` and its output `o` into
    `o' = exp(l - l') * o`. The backward of Flash Attention computes the probabilities `p = exp(score - l)` and the
    gradient `p * (dp - do . o)` of the scores from `l` and `o`, so that with `l'` and `o'` it is the one with sinks.
    Rescaling the output of `varlen_attn` instead would lose a part of the gradient without an error: the log-sum-exp
    that it returns has none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor,
        ends: tuple[torch.Tensor, torch.Tensor, int, int],
        scaling: float | None,
        window: tuple[int, int],
    ) -> torch.Tensor:
        settings = (window == (-1, 0), scaling, list(window))
        output, lse, rng_state = torch.ops.torch_attn._varlen_attn(query, key, value, *ends, *settings, True)
        if lse.shape != (query.shape[1], query.shape[0]):
            raise RuntimeError(f"The log-sum-exp of Flash Attention has the shape {tuple(lse.shape)}. {REMEDY}")
        with_sinks = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
        output = (output * torch.exp(lse - with_sinks).t()[..., None]).to(output.dtype)
        ctx.save_for_backward(query, key, value, sinks, output, with_sinks, rng_state)
        ctx.ends, ctx.settings = ends, settings
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, sinks, output, with_sinks, rng_state = ctx.saved_tensors
        causal, scaling, window = ctx.settings
        states = torch.ops.torch_attn._varlen_attn_backward(
            grad.contiguous(), query, key, value, output, with_sinks, *ctx.ends, causal, rng_state, scaling, window
        )
        grad_sinks = None
        if ctx.needs_input_grad[3]:
            probabilities = torch.exp(sinks.to(with_sinks.dtype)[:, None] - with_sinks)
            grad_sinks = -(probabilities * (grad.float() * output).sum(-1).t()).sum(1).to(sinks.dtype)
        return (*states, grad_sinks, None, None, None)


def _attend_by_group(
    states: Sequence[torch.Tensor],
    segments: Mapping[str, Any],
    dropout: float,
    scaling: float | None,
    sliding_window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention of one group of segments after another. States as in [`_attend_in_one_call`]."""
    outputs, groups = [], segments["groups"]
    by_group = [state.split([group["size"] for group in groups]) for state in states]
    for number, group in enumerate(groups):
        rows, length = group["shape"]
        own = [state[number] for state in by_group]
        if "pad" in group:
            own = [state.index_select(0, group["pad"]) for state in own]
        q, k, v = (state.unflatten(0, (rows, length)) for state in own)
        if group["prefix"]:
            # Keys and values of the prefix come before those of each segment: expanded, not copied, until `cat`
            prefixes = (
                torch.cat([state[other][start:end] for other, start, end in group["prefix"]]).expand(rows, -1, -1, -1)
                for state in by_group[1:]
            )
            k, v = (torch.cat(pair, dim=1) for pair in zip(prefixes, (k, v), strict=True))
        q, k, v = (state.transpose(1, 2) for state in (q, k, v))
        window = None if sliding_window is None or sliding_window >= k.shape[2] else sliding_window
        if softcap is not None or sinks is not None:
            output = _written_out(q, k, v, _group_mask(group, q, k, window), dropout, scaling, softcap, sinks)
        else:
            mask = _group_mask(group, q, k, window) if group["prefix"] or window is not None else None
            output = _sdpa(q, k, v, mask, dropout, scaling)
        output = output.transpose(1, 2).flatten(0, 1)
        outputs.append(output.index_select(0, group["unpad"]) if "unpad" in group else output)
    return torch.cat(outputs)


def _group_mask(group: dict[str, Any], q: torch.Tensor, k: torch.Tensor, sliding_window: int | None) -> torch.Tensor:
    """Additive mask of a group's attention call."""
    # Made once for all layers with the same window, and additive: SDPA would convert a boolean mask in every call
    masks = group.setdefault("masks", {})
    if sliding_window not in masks:
        masks[sliding_window] = _causal_mask(q, k.shape[2], sliding_window)
    return cast(torch.Tensor, masks[sliding_window])


def _causal_mask(q: torch.Tensor, num_keys: int, sliding_window: int | None = None) -> torch.Tensor:
    """Additive mask of queries at the last positions of their keys."""
    num_queries = q.shape[2]
    hidden = q.new_full((num_queries, num_keys), -torch.inf)
    first = num_keys - num_queries  # position of the first query
    mask = hidden.triu(first + 1)
    return mask if sliding_window is None else mask + hidden.tril(first - sliding_window)


def _additive_mask(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mask of an ordinary batch, which is boolean, or `None` where it is causal, as an additive one."""
    if mask is None:
        return _causal_mask(query, key.shape[2])
    if mask.dtype != torch.bool:
        return mask
    # Not -inf: a row of padding, with no key at all, would be NaN
    return query.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(query.dtype).min)


def _written_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention with a soft cap or sinks, which SDPA does not have. States as in [`_sdpa`]."""
    k, v = (repeat_kv(state, q.shape[1] // state.shape[1]) for state in (k, v))
    scores = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], dim=-1)
    probabilities = scores.softmax(-1, dtype=torch.float32).to(q.dtype)[..., : k.shape[2]]
    return F.dropout(probabilities, dropout) @ v


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float, scaling: float | None
) -> torch.Tensor:
    """SDPA of one group. States have the shape `(rows, heads, tokens, size)`."""
    grouped = k.shape[1] < q.shape[1]
    # Not every kernel supports fewer heads for keys and values than for queries
    if grouped and not use_gqa_in_sdpa(mask, k, v):
        k, v = (repeat_kv(state, q.shape[1] // state.shape[1]) for state in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
