"""Perplexity, agreement with the base model, and KL divergence from it, on held-out turns.

Over the tokens `y_i` of the assistant's turns, with `p0` and `p` the next-token distributions of the base model and of
a breaker that read the same tokens before:

    perplexity          exp( mean_i -log p(y_i) )
    perplexity_ratio    exp( mean_i log p0(y_i) - log p(y_i) )      the breaker's perplexity over the base model's
    agreement           fraction of tokens at which both have the same most probable token
    kl_mean, kl_p99     KL(p0 || p) = sum_v p0(v) (log p0(v) - log p(v)), nats per token: mean and 99th percentile

Intervals are 95 % percentile intervals of a bootstrap over conversations: tokens of one are correlated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
from datasets import Dataset, Features, List, Value, concatenate_datasets
from tqdm import tqdm

from ..compare import BASE
from ..statistics import bootstrap, bootstrap_quantile
from .finished_parts import FinishedParts
from .held_out import HeldOutTurn


if TYPE_CHECKING:
    import torch

    from ...generation.transformers_backend import NextTokenLogits, TransformersBackend

# Turns of a part: the most work that a killed run loses.
PART_TURNS = 100

_QUANTILE = 0.99

# A turn's tokens for one model. KL and agreement of the base model are with itself.
TURN_FEATURES = Features(
    {
        "turn": Value("string"),
        "model": Value("string"),
        "nll": List(Value("float32")),  # -log p(y_i), nats
        "kl": List(Value("float32")),  # KL(p0 || p), nats
        "agrees": List(Value("bool")),
    }
)


def measure_text(
    turns: Sequence[HeldOutTurn], models: Mapping[str, "TransformersBackend"], batch_size: int, parts: FinishedParts
) -> Dataset:
    """The values of every token of held-out turns: rows of `TURN_FEATURES`, one for each turn and model.

    Args:
        turns (`Sequence[HeldOutTurn]`): The turns.
        models (`Mapping[str, TransformersBackend]`): The base model and breakers by name, on the same weights.
        batch_size (`int`): Turns per forward pass.
        parts ([`FinishedParts`]): Finished parts of an earlier run.
    """
    starts = range(0, len(turns), PART_TURNS)
    finished = []
    with tqdm(total=len(turns), desc="ability, held-out text", unit="turn") as bar:
        for number, start in enumerate(starts):
            part = turns[start : start + PART_TURNS]
            name = f"text-{number:05d}-of-{len(starts):05d}"
            finished.append(parts.rows(name, partial(_measure_part, part, models, batch_size, bar)))
            bar.update(min(start + PART_TURNS, len(turns)) - bar.n)
    return concatenate_datasets(finished)


def _measure_part(
    turns: Sequence[HeldOutTurn], models: Mapping[str, "TransformersBackend"], batch_size: int, bar: tqdm
) -> Dataset:
    # Turns of similar length share a batch, which pads little.
    ordered = sorted(turns, key=lambda turn: len(turn.prompt_ids) + len(turn.completion_ids))
    rows: dict[str, list] = {name: [] for name in TURN_FEATURES}
    for start in range(0, len(ordered), batch_size):
        batch = ordered[start : start + batch_size]
        for model, values in _measure_batch(batch, models).items():
            for turn, (nll, kl, agrees) in zip(batch, values, strict=True):
                row = {"turn": turn.id, "model": model, "nll": nll, "kl": kl, "agrees": agrees}
                for name, value in row.items():
                    rows[name].append(value)
        bar.update(len(batch))
    return Dataset.from_dict(rows, features=TURN_FEATURES)


# Of one turn: `-log p(y_i)`, KL and agreement of each token.
_Values = tuple[list[float], list[float], list[bool]]


def _measure_batch(
    turns: Sequence[HeldOutTurn], models: Mapping[str, "TransformersBackend"]
) -> dict[str, list[_Values]]:
    import torch

    tokens = [turn.prompt_ids for turn in turns], [turn.completion_ids for turn in turns]
    values: dict[str, list[_Values]] = {name: [([], [], []) for _ in turns] for name in models}
    others = {name: model.completion_logits(*tokens) for name, model in models.items() if name != BASE}
    for base in models[BASE].completion_logits(*tokens):
        with torch.inference_mode():
            log_p0 = base.logits.float().log_softmax(-1)
            _add(values[BASE], base, log_p0, log_p0)
            for name, chunks in others.items():
                _add(values[name], base, log_p0, next(chunks).logits.float().log_softmax(-1))
    return values


def _add(values: list[_Values], chunk: "NextTokenLogits", log_p0: "torch.Tensor", log_p: "torch.Tensor") -> None:
    """Add the values of a chunk's tokens, from log probabilities of shape `(tokens, vocabulary)`."""
    nll = -log_p.gather(-1, chunk.targets[:, None])[:, 0]
    # Where p0 is 0 its logarithm may be -inf, and the product NaN instead of 0.
    kl = (log_p0.exp() * (log_p0 - log_p)).nan_to_num(0.0, posinf=float("inf")).sum(-1)
    agrees = log_p.argmax(-1) == log_p0.argmax(-1)
    for row, *token in zip(chunk.rows, nll.tolist(), kl.tolist(), agrees.tolist(), strict=True):
        for column, value in zip(values[row], token, strict=True):
            cast(list, column).append(value)


@dataclass(frozen=True)
class _Tokens:
    """The tokens of one model in one slice, in the order of the turns; arrays of shape `(tokens,)`."""

    nll: np.ndarray
    kl: np.ndarray
    agrees: np.ndarray
    conversation: np.ndarray  # number of the conversation of each token


def text_figures(turns: Sequence[HeldOutTurn], rows: Dataset, seed: int) -> dict[str, dict[str, dict]]:
    """`{slice: {model: {figure: {value, low, high}}}}`, see the head of the module; the base has perplexity only.

    Args:
        turns (`Sequence[HeldOutTurn]`): The turns.
        rows ([`~datasets.Dataset`]): The values of their tokens, see [`measure_text`].
        seed (`int`): Seed of the bootstrap.
    """
    by_key = {(row["turn"], row["model"]): row for row in rows}
    models = list(dict.fromkeys(rows["model"]))
    figures: dict[str, dict[str, dict]] = {}
    for name in dict.fromkeys(turn.slice for turn in turns):
        own = [turn for turn in turns if turn.slice == name]
        tokens = {model: _tokens(own, [by_key[turn.id, model] for turn in own]) for model in models}
        figures[name] = {model: dict(_figures(tokens[BASE], tokens[model], model, seed)) for model in models}
    return figures


def _tokens(turns: Sequence[HeldOutTurn], rows: Sequence[dict]) -> _Tokens:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(turn.conversation for turn in turns))}
    conversation = [numbers[turn.conversation] for turn in turns for _ in turn.completion_ids]
    nll, kl, agrees = (np.concatenate([row[name] for row in rows]).astype(float) for name in ("nll", "kl", "agrees"))
    return _Tokens(nll, kl, agrees, np.asarray(conversation))


def _figures(base: _Tokens, own: _Tokens, model: str, seed: int) -> Iterator[tuple[str, dict]]:
    yield "perplexity", _exp(_mean(own.nll, own.conversation, seed))
    if model == BASE:
        return
    yield "perplexity_ratio", _exp(_mean(own.nll - base.nll, own.conversation, seed))
    yield "agreement", _mean(own.agrees, own.conversation, seed)
    yield "kl_mean", _mean(own.kl, own.conversation, seed)
    low, high = bootstrap_quantile(own.kl, own.conversation, _QUANTILE, seed)
    quantile = float(np.quantile(own.kl, _QUANTILE, method="inverted_cdf"))
    yield "kl_p99", {"value": quantile, "low": low, "high": high}


def _mean(values: np.ndarray, conversation: np.ndarray, seed: int) -> dict:
    low, high = bootstrap(np.bincount(conversation, values), np.bincount(conversation), seed)
    return {"value": float(values.mean()), "low": low, "high": high}


def _exp(mean: dict) -> dict:
    return {name: None if value is None else float(np.exp(value)) for name, value in mean.items()}
