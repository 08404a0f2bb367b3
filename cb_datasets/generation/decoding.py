"""Completions of many prompts, decoded so that no token is computed twice and none is padding.

    slot 0   prompt 1 ........ end | prompt 5 ... end
    slot 1   prompt 2 ... end | prompt 4 ......... end
    slot 2   prompt 3 ................. end | prompt 6 ...

A slot that is free gets the next prompt while the others go on. Prefixes that prompts share are computed once
(`prefix_groups.py`) and stored once (`decoding_attention.py`), and so are prompts that are completed several times.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from .backend import Sampling
from .decoding_attention import NextToken, Prefill, Prefix, Segment, Slots, Step, decoding_attention
from .prefix_groups import PrefixGroup, prefix_groups


# Most tokens of a prefill, if it has more than one prompt: it bounds the memory of activations.
_PREFILL_TOKENS = 4096

# Part of the slots that have to be free before the next prompts get them: a prefill of few tokens takes about as long
# as a step of all slots.
_REFILL = 1 / 8


@dataclass
class _Sequence:
    """A completion so far."""

    index: int  # of its prompt
    prefix: Prefix
    rest: list[int]  # the prompt after the prefix
    tokens: list[int] = field(default_factory=list)


def decode(
    network: Any, prompts: Sequence[list[int]], sampling: Sampling, end_ids: Iterable[int], batch_size: int
) -> list[list[list[int]]]:
    """Tokens of `sampling.num_samples` completions per prompt.

    Args:
        network (`PreTrainedModel` or `PeftModel`): A network that [`~decoding_attention.supports`].
        prompts (`Sequence[list[int]]`): Token ids of the prompts.
        sampling ([`Sampling`]): Sampling parameters. Samples are drawn from PyTorch's global generator.
        end_ids (`Iterable[int]`): Tokens that end a completion.
        batch_size (`int`): Number of slots.
    """
    with torch.inference_mode(), decoding_attention(network):
        return _Decoder(network, prompts, sampling, frozenset(end_ids), batch_size).run()


class _Decoder:
    """The sequences that wait and those that have a slot."""

    def __init__(
        self,
        network: Any,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        end_ids: frozenset[int],
        batch_size: int,
    ) -> None:
        self._network, self._end_ids, self._max_new_tokens = network, end_ids, sampling.max_new_tokens
        self._choose = _chooser(sampling)
        groups = prefix_groups(prompts)
        self._waiting = deque(sequence for group in groups for sequence in _sequences(prompts, group, sampling))
        # Samples in the order in which they started: in the order of their ends, the first would be the shortest.
        self._samples: list[list[list[int]]] = [[] for _ in prompts]
        longest = max((len(sequence.rest) for sequence in self._waiting), default=0)
        # The last token of a completion has no successor, so its keys and values are not needed.
        self._slots = Slots(min(batch_size, len(self._waiting)), longest + sampling.max_new_tokens - 1)
        self._running: list[_Sequence] = []  # by slot: the first slots are taken, the others free

    def run(self) -> list[list[list[int]]]:
        while self._waiting or self._running:
            free = self._slots.number - len(self._running)
            refill = self._waiting and (not self._running or free >= self._slots.number * _REFILL)
            sequences, logits = self._start() if refill else self._continue()
            for sequence, token in zip(sequences, self._choose(logits.float()).tolist(), strict=True):
                sequence.tokens.append(token)
            self._free_slots()
        return self._samples

    def _start(self) -> tuple[list[_Sequence], torch.Tensor]:
        """Prefill the next sequences, and return them with the logits of their first tokens."""
        first = len(self._running)
        prefilled: list[_Sequence] = []
        segments: list[Segment] = []
        rows: list[int] = []  # of each sequence in `prefilled`
        ids: list[int] = []
        positions: list[int] = []
        while self._waiting and len(self._running) < self._slots.number:
            sequence = self._waiting[0]
            slot, repeats = len(self._running), bool(prefilled) and _same_prompt(prefilled[-1], sequence)
            if not repeats:
                if ids and len(ids) + len(sequence.rest) > _PREFILL_TOKENS:
                    break
                prefix, rest = sequence.prefix, sequence.rest
                if prefix.ids and not prefix.layers:
                    self._forward(prefix.ids, range(len(prefix.ids)), prefix, 1)
                segments.append(Segment(len(ids), len(ids) + len(rest), slot, prefix))
                positions += range(len(prefix.ids), len(prefix.ids) + len(rest))
                ids += rest
                prefilled.append(sequence)
            rows.append(len(prefilled) - 1)
            self._samples[sequence.index].append(sequence.tokens)
            self._running.append(self._waiting.popleft())
        ends = torch.tensor([segment.end - 1 for segment in segments], device=self._network.device)
        logits = self._forward(ids, positions, Prefill(self._slots, segments), ends)
        for slot, row in enumerate(rows, first):
            if segments[row].slot != slot:
                self._slots.copy(segments[row].slot, slot, len(prefilled[row].rest))
        return self._running[first:], logits[rows]

    def _continue(self) -> tuple[list[_Sequence], torch.Tensor]:
        """Run the last token of each sequence, and return them with the logits of their next tokens."""
        running = self._running
        lengths = [len(sequence.rest) + len(sequence.tokens) - 1 for sequence in running]
        positions = [len(sequence.prefix.ids) + length for sequence, length in zip(running, lengths, strict=True)]
        prefixes = [sequence.prefix for sequence in running]
        step = NextToken(self._slots, lengths, prefixes, self._network.device)
        return running, self._forward([sequence.tokens[-1] for sequence in running], positions, step, 0)

    def _forward(
        self, ids: list[int], positions: Sequence[int], step: Step, logits_to_keep: int | torch.Tensor
    ) -> torch.Tensor:
        output = self._network(
            input_ids=torch.tensor([ids], device=self._network.device),
            position_ids=torch.tensor([list(positions)], device=self._network.device),
            use_cache=False,
            logits_to_keep=logits_to_keep,
            decoding=step,
        )
        return output.logits[0]

    def _free_slots(self) -> None:
        """Take out the sequences that have ended; those in the last slots move to the free ones."""
        for slot in reversed(range(len(self._running))):
            sequence = self._running[slot]
            if sequence.tokens[-1] not in self._end_ids and len(sequence.tokens) < self._max_new_tokens:
                continue
            last = self._running.pop()
            if last is not sequence:
                self._running[slot] = last
                self._slots.copy(len(self._running), slot, len(last.rest) + len(last.tokens) - 1)


def _sequences(prompts: Sequence[list[int]], group: PrefixGroup, sampling: Sampling) -> Iterable[_Sequence]:
    """The sequences of a group. Those of similar length are neighbours, and the longest come first: they show at once
    whether the memory suffices. The samples of a prompt are neighbours, too."""
    prefix = Prefix(prompts[group.prompts[0]][: group.length])
    for index in sorted(group.prompts, key=lambda index: (-len(prompts[index]), prompts[index])):
        for _ in range(sampling.num_samples):
            yield _Sequence(index, prefix, prompts[index][group.length :])


def _same_prompt(one: _Sequence, other: _Sequence) -> bool:
    return one.prefix is other.prefix and one.rest == other.rest


def _chooser(sampling: Sampling) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function that chooses a token from each row of logits."""
    return _most_likely if sampling.temperature == 0 else partial(_draw, sampling)


def _most_likely(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1)


def _draw(sampling: Sampling, logits: torch.Tensor) -> torch.Tensor:
    no_ids: Any = None  # these two look at the logits alone
    logits = TemperatureLogitsWarper(sampling.temperature)(no_ids, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(no_ids, logits)
    return logits.softmax(-1).multinomial(1)[:, 0]
