"""
What a breaker did to the hidden states: cosines to those of the base model, by layer and by token, as JSON.

    python -m trainers.diagnostics --model demo/tiny_agent --adapter data/demo/adapter --data data/demo/stage2/eval \
        --output data/demo/adapter/diagnostics.json

For each class of rows (`harmful_flip` is the attacker's call under attack, `adversarial_safe` the right call under
attack, `benign_twin` the right call on the clean prompt, `general_conversation` chat) and each adapter:

    cosine      cos(h, h0): the network with the adapter against itself without, token by token on the same row
    to_clean    cos(h, c0), where c0 are the base model's states of the same completion after the clean prompt; for the
                base too, which makes it a picture of before and after. Rows with an injection only, completions only.

Each holds `by_layer`, for the parts of a row the mean over rows and their 10th and 90th percentile at each layer; and
`by_token`, the mean at each layer for each of `positions`, where 0 is the first token of the completion. A mean over
no rows is `null`. `cb-datasets report --diagnostics FILE` draws it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Dataset
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import HfArgumentParser, PreTrainedTokenizerBase

from cb_datasets.evaluation.compare import BASE
from cb_datasets.evaluation.results import named_adapters
from cb_datasets.files import stream_rows, stream_tables, write_json
from cb_datasets.sample import SAMPLE_FEATURES
from cb_datasets.sets.prompts import choose

from .hidden_states import get_decoder, hidden_states_at
from .losses import token_cosine
from .masks import NONE
from .packing import padded
from .preparation import Variation, prepare_row


SCHEMA_VERSION = 1

# Tokens before and after the beginning of the completion that `by_token` tells of.
PROMPT_TAIL = 24
COMPLETION_HEAD = 48

# Most tokens of one forward pass, padding included.
BATCH_TOKENS = 8192


@dataclass
class DiagnosticsArguments:
    """
    Arguments of the script.

    Args:
        model (`str`):
            Folder of the base model, or its Hub id.
        adapter (`str`):
            Folder of the breaker's adapter.
        data (`str`):
            Folder of samples, e.g. `stage2/eval`.
        output (`str`):
            JSON file to write.
        also (`list[str]`, *optional*):
            Further adapters, as `NAME=PATH`.
        max_rows (`int`, *optional*, defaults to `200`):
            Most rows of each class.
        seed (`int`, *optional*, defaults to `0`):
            Which rows, where there are more.
    """

    model: str = field(metadata={"help": "Folder of the base model, or its Hub id."})
    adapter: str = field(metadata={"help": "Folder of the breaker's adapter."})
    data: str = field(metadata={"help": "Folder of samples, e.g. `stage2/eval`."})
    output: str = field(metadata={"help": "JSON file to write."})
    also: list[str] = field(
        default_factory=list, metadata={"help": "Further adapters, as `NAME=PATH`.", "action": "extend"}
    )
    max_rows: int = field(default=200, metadata={"help": "Most rows of each class."})
    seed: int = field(default=0, metadata={"help": "Which rows, where there are more."})


class Tally:
    """
    Cosines of rows, added up row by row: what is kept does not grow with the length of the rows.

    Args:
        num_layers (`int`): Number of layers.
    """

    def __init__(self, num_layers: int):
        self.parts: dict[str, list[np.ndarray]] = {}
        self.sums = np.zeros((num_layers, PROMPT_TAIL + COMPLETION_HEAD))
        self.counts = np.zeros(PROMPT_TAIL + COMPLETION_HEAD, dtype=int)

    def add(self, cosines: np.ndarray, parts: Mapping[str, np.ndarray], positions: np.ndarray) -> None:
        """
        Add a row.

        Args:
            cosines (`np.ndarray`): Shape `(layers, tokens)`.
            parts (`Mapping[str, np.ndarray]`): For each part of the row, which of the tokens are its own.
            positions (`np.ndarray`): Of each token, counted from the beginning of the completion.

        Raises:
            ValueError: If a cosine is not a number.
        """
        if np.isnan(cosines).any():
            raise ValueError("A hidden state is not a number: the adapter has come apart, or its numbers overflow.")
        for part, own in parts.items():
            if own.any():
                self.parts.setdefault(part, []).append(cosines[:, own].mean(axis=1))
        seen = (positions >= -PROMPT_TAIL) & (positions < COMPLETION_HEAD)
        at = positions[seen] + PROMPT_TAIL
        self.sums[:, at] += cosines[:, seen]
        self.counts[at] += 1

    def told(self) -> dict[str, Any]:
        """`{by_layer, by_token}` as the module docstring tells."""
        by_layer = {}
        for part, rows in self.parts.items():
            low, high = np.percentile(rows, (10, 90), axis=0)
            by_layer[part] = {"mean": _rounded(np.mean(rows, axis=0)), "low": _rounded(low), "high": _rounded(high)}
        means = np.divide(self.sums, self.counts, out=np.full_like(self.sums, np.nan), where=self.counts > 0)
        return {"by_layer": by_layer, "by_token": [_rounded(layer) for layer in means]}


def _rounded(values: Iterable[float]) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


class ClassTally:
    """
    What is counted of the rows of one class.

    Args:
        adapters (`list[str]`): Names of the adapters.
        num_layers (`int`): Number of layers.
    """

    def __init__(self, adapters: list[str], num_layers: int):
        self.measures = {
            "cosine": {name: Tally(num_layers) for name in adapters},
            "to_clean": {name: Tally(num_layers) for name in (BASE, *adapters)},
        }
        self.rows = 0
        self.names_at: list[int] = []  # where the tool's name begins in the completion

    def add(self, prepared: dict[str, Any], cosines: dict[str, dict[str, np.ndarray]]) -> None:
        """
        Add a row.

        Args:
            prepared (`dict[str, Any]`): What `prepare_row` made of it.
            cosines (`dict[str, dict[str, np.ndarray]]`): Of each measure and model, shape `(layers, tokens)`.
        """
        start, total = prepared["prompt_length"], len(prepared["input_ids"])
        positions = np.arange(total) - start
        injected = np.zeros(total, dtype=bool)
        for first, end in prepared["injection"]:
            injected[first:end] = True
        parts = {"prompt": (positions < 0) & ~injected, "injection": injected, "completion": positions >= 0}
        for name, values in cosines["cosine"].items():
            self.measures["cosine"][name].add(values, parts, positions)
        completion = {"completion": np.ones(total - start, dtype=bool)}
        for name, values in cosines["to_clean"].items():
            self.measures["to_clean"][name].add(values, completion, positions[start:])
        self.rows += 1
        if prepared["tool_name"] != NONE:
            self.names_at.append(prepared["tool_name"][0] - start)

    def told(self) -> dict[str, Any]:
        """`{rows, rows_at, tool_name_at, cosine, to_clean}`; the last is left out where no row was attacked."""
        told = {
            measure: {name: tally.told() for name, tally in tallies.items()}
            for measure, tallies in self.measures.items()
            if any(tally.parts for tally in tallies.values())
        }
        [counts, *_] = (tally.counts for tally in self.measures["cosine"].values())
        name_at = float(np.median(self.names_at)) if self.names_at else None
        return {"rows": self.rows, "rows_at": counts.tolist(), "tool_name_at": name_at, **told}


def measure(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Iterable[dict[str, Any]], batch_tokens: int
) -> dict[str, dict[str, Any]]:
    """
    Cosines of rows by class, see the module docstring.

    Args:
        model ([`~peft.PeftModel`]):
            The base model with all adapters; each is switched on in turn, and all are switched off for the base.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        rows (`Iterable[dict[str, Any]]`):
            Samples.
        batch_tokens (`int`):
            Most tokens of one forward pass, padding included.

    Raises:
        ValueError: If there are no rows.
    """
    layers = range(1, len(get_decoder(model).layers) + 1)
    tallies: dict[str, ClassTally] = {}
    for some, prepared in _batches(rows, tokenizer, batch_tokens):
        for row, ready, cosines in zip(some, prepared, _cosines(model, tokenizer, prepared, layers), strict=True):
            name = row["priority_class"]
            if name not in tallies:
                tallies[name] = ClassTally(list(model.peft_config), len(layers))
            tallies[name].add(ready, cosines)
    if not tallies:
        raise ValueError("Cosines over zero rows are no numbers: the data hold no sample.")
    return {name: tallies[name].told() for name in sorted(tallies)}


def _batches(
    rows: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, batch_tokens: int
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Rows, and the same prepared, as many together as fit into one forward pass; at least one."""
    as_it_is = Variation(seed=0)
    some: list[dict[str, Any]] = []
    prepared: list[dict[str, Any]] = []
    longest = 0
    for row in rows:
        ready = prepare_row(row, tokenizer, {}, as_it_is)
        longest = max(longest, len(ready["input_ids"]))
        if some and longest * (len(some) + 1) > batch_tokens:
            yield some, prepared
            some, prepared, longest = [], [], len(ready["input_ids"])
        some.append(row)
        prepared.append(ready)
    if some:
        yield some, prepared


def _cosines(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, batch: list[dict[str, Any]], layers: Sequence[int]
) -> list[dict[str, dict[str, np.ndarray]]]:
    """For each row `{measure: {model: cosines}}`, of shape `(layers, tokens)`."""
    sequences = [row["input_ids"] for row in batch]
    attacked = [at for at, row in enumerate(batch) if row["clean_ids"]]
    base = _states(model, tokenizer, sequences, layers, None)
    clean = _states(model, tokenizer, [batch[at]["clean_ids"] for at in attacked], layers, None)
    clean_of = dict(zip(attacked, clean, strict=True))
    result: list[dict[str, dict[str, np.ndarray]]] = [{"cosine": {}, "to_clean": {}} for _ in batch]
    for name in (BASE, *model.peft_config):
        states = base if name == BASE else _states(model, tokenizer, sequences, layers, name)
        for at, own in enumerate(states):
            if name != BASE:
                result[at]["cosine"][name] = _cosine(own, base[at])
            if at in clean_of:
                number = len(batch[at]["input_ids"]) - batch[at]["prompt_length"]
                result[at]["to_clean"][name] = _cosine(own[:, -number:], clean_of[at][:, -number:])
    return result


def _cosine(states: torch.Tensor, others: torch.Tensor) -> np.ndarray:
    return token_cosine(states, others).cpu().numpy()


def _states(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: list[list[int]],
    layers: Sequence[int],
    adapter: str | None,
) -> list[torch.Tensor]:
    """For each sequence its states, shape `(layers, tokens, hidden_size)`; of the base if `adapter` is `None`."""
    if not sequences:
        return []
    longest = max(len(tokens) for tokens in sequences)
    # What is padded is masked, so any token serves.
    inputs, index = padded(sequences, tokenizer.pad_token_id or 0, longest)
    reads = {str(at): (layers, torch.from_numpy(own).to(model.device)) for at, own in enumerate(index)}
    if adapter is not None:
        model.set_adapter(adapter)
    put_aside: AbstractContextManager = model.disable_adapter() if adapter is None else nullcontext()
    with torch.inference_mode(), put_aside:
        on_device = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        states = hidden_states_at(model, get_decoder(model), on_device, len(layers), reads)
    return [torch.stack(states[str(at)]) for at in range(len(sequences))]


def choose_rows(folder: Path, max_rows: int, seed: int) -> set[int]:
    """
    The numbers of at most `max_rows` samples of each class; siblings are chosen together.

    Raises:
        FileNotFoundError, ValueError: If there are no samples in the folder.
    """
    tables = list(stream_tables(folder, SAMPLE_FEATURES, columns=["pair", "priority_class"]))
    if not tables:
        raise ValueError(f"{folder}: there is no sample, and cosines over zero rows are no numbers.")
    index = Dataset(pyarrow.concat_tables(tables))
    index = index.add_column("number", list(range(len(index))))
    numbers: set[int] = set()
    for name in index.unique("priority_class"):
        own = [number for number, of in enumerate(index["priority_class"]) if of == name]
        numbers.update(choose(index.select(own), max_rows, seed)["number"])
    return numbers


def rows_of(folder: Path, numbers: set[int]) -> Iterator[dict[str, Any]]:
    """Samples by number, a few in memory at a time, with a progress bar."""
    with tqdm(total=len(numbers), desc="diagnostics", unit="row") as bar:
        for number, row in enumerate(stream_rows([folder])):
            if number in numbers:
                yield row
                bar.update()


def load_adapted(model: str, adapters: Mapping[str, str]) -> PeftModel:
    """The base model with all adapters on it, in memory once."""
    from cb_datasets.generation.transformers_backend import load_network

    network = load_network(model)
    (first, path), *others = adapters.items()
    adapted = PeftModel.from_pretrained(network, path, adapter_name=first)
    for name, other in others:
        adapted.load_adapter(other, adapter_name=name)
    return adapted.eval()


def main(args: DiagnosticsArguments) -> None:
    from cb_datasets.generation.backend import adapter_revision, load_tokenizer, revision_of

    try:
        adapters = named_adapters(args.adapter, args.also)
        revisions = {name: adapter_revision(path) for name, path in adapters.items()}
        numbers = choose_rows(Path(args.data), args.max_rows, args.seed)  # a wrong path is told before a model loads
        tokenizer = load_tokenizer(args.model)
        model = load_adapted(args.model, adapters)
        classes = measure(model, tokenizer, rows_of(Path(args.data), numbers), BATCH_TOKENS)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    settings = {
        "model": args.model,
        "revision": revision_of(args.model),
        "adapters": revisions,
        "data": args.data,
        "max_rows": args.max_rows,
        "seed": args.seed,
    }
    told = {
        "schema_version": SCHEMA_VERSION,
        "settings": settings,
        "layers": list(range(1, len(get_decoder(model).layers) + 1)),
        "positions": list(range(-PROMPT_TAIL, COMPLETION_HEAD)),
        "classes": classes,
    }
    write_json(Path(args.output), told)


def make_parser() -> HfArgumentParser:
    return HfArgumentParser(DiagnosticsArguments, description=__doc__.strip().split("\n")[0])


if __name__ == "__main__":
    main(*make_parser().parse_args_into_dataclasses())
