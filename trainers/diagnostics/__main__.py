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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import HfArgumentParser

from cb_datasets.evaluation.results import named_adapters
from cb_datasets.files import stream_rows, stream_tables, write_json
from cb_datasets.sample import SAMPLE_FEATURES
from cb_datasets.splits import choose

from ..docstring_help import docstring_help
from ..objective.hidden_states import get_decoder
from .cosine_stats import COMPLETION_HEAD, PROMPT_TAIL
from .cosines import measure


SCHEMA_VERSION = 1

# Most tokens of one forward pass, padding included.
BATCH_TOKENS = 8192


@dataclass
@docstring_help
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

    model: str
    adapter: str
    data: str
    output: str
    also: list[str] = field(default_factory=list, metadata={"action": "extend"})
    max_rows: int = 200
    seed: int = 0


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
    description = __doc__.strip().split("\n")[0]
    # The annotation is a type that no dataclass is of
    return HfArgumentParser(
        DiagnosticsArguments,  # type: ignore[arg-type]
        prog="python -m trainers.diagnostics",
        description=description,
    )


if __name__ == "__main__":
    main(*make_parser().parse_args_into_dataclasses())
