"""
Cosines of a breaker's hidden states to those of the base model, by layer and by token, as JSON.

    python -m trainers.diagnostics --model demo/tiny_agent --adapter data/demo/adapter --data data/demo/stage2/eval \
        --output data/demo/report/diagnostics.json

For each class of rows (`harmful_flip` is the attacker's call under attack, `adversarial_safe` the right call under
attack, `benign_twin` the right call on the clean prompt, `general_conversation` chat) and each adapter:

    cosine      cos(h, h0): the model with the adapter against the base model, token by token on the same row
    to_clean    cos(h, c0), where c0 are the base model's states of the same completion after the clean prompt; also
                for the base model itself, for comparison. Completions of rows with an injection only.

Each has `by_layer`, for each part of a row the mean over rows and their 10th and 90th percentiles at each layer, and
`by_token`, the mean at each layer for each of `positions`, where 0 is the first token of the completion. A mean over
no rows is `null`. `cb-datasets report --diagnostics FILE` plots the cosines.
"""

import sys
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
from cb_datasets.path_rules import NamedPath, Role, check_all_apart
from cb_datasets.public_name import model_label, public_name
from cb_datasets.sample import SAMPLE_FEATURES
from cb_datasets.splits import choose
from cb_datasets.text_faults import check_rows

from ..command_line import OneLineUsage, errors_in_one_line
from ..docstring_help import docstring_help
from ..objective.hidden_states import get_decoder
from ..setting_checks import check_output
from .cosine_stats import COMPLETION_HEAD, PROMPT_TAIL
from .cosines import measure_cosines


SCHEMA_VERSION = 1

# Maximum number of tokens of a forward pass, padding included.
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
            Additional adapters, as `NAME=PATH`; repeatable.
        tokenizer (`str`, *optional*):
            Folder of the tokenizer, where it is not the model's own.
        max_rows (`int`, *optional*, defaults to `200`):
            Maximum number of rows of each class.
        seed (`int`, *optional*, defaults to `0`):
            Seed that selects the rows of a class with more of them.
    """

    model: str
    adapter: str
    data: str
    output: str
    also: list[str] = field(default_factory=list, metadata={"action": "extend"})
    tokenizer: str | None = None
    max_rows: int = 200
    seed: int = 0


def choose_rows(folder: Path, max_rows: int, seed: int) -> set[int]:
    """
    Choose at most `max_rows` samples of each class, siblings together, and return their numbers.

    Raises:
        FileNotFoundError, ValueError: If there are no samples in the folder.
    """
    tables = list(stream_tables(folder, SAMPLE_FEATURES, columns=["pair", "priority_class"]))
    if not tables:
        raise ValueError(f"{folder}: there are zero rows, so there are no cosines to average.")
    index = Dataset(pyarrow.concat_tables(tables))
    index = index.add_column("number", list(range(len(index))))
    numbers: set[int] = set()
    for name in index.unique("priority_class"):
        of_class = [number for number, row_class in enumerate(index["priority_class"]) if row_class == name]
        numbers.update(choose(index.select(of_class), max_rows, seed)["number"])
    return numbers


def stream_chosen(folder: Path, numbers: set[int]) -> Iterator[dict[str, Any]]:
    """Samples with these numbers, a few in memory at a time, with a progress bar."""
    with tqdm(total=len(numbers), desc="diagnostics", unit="row") as bar:
        for number, row in enumerate(stream_rows([folder])):
            if number in numbers:
                yield row
                bar.update()


def load_adapted(model: str, adapters: Mapping[str, str]) -> PeftModel:
    """Load the base model once, with all adapters on it."""
    from cb_datasets.generation.model_files import loading
    from cb_datasets.generation.transformers_backend import load_causal_lm

    network = load_causal_lm(model)
    (first, path), *others = adapters.items()
    with loading(path, "adapter"):
        adapted = PeftModel.from_pretrained(network, path, adapter_name=first)
    for name, path in others:
        with loading(path, "adapter"):
            adapted.load_adapter(path, adapter_name=name)
    return adapted.eval()


def main(args: DiagnosticsArguments) -> None:
    with errors_in_one_line():
        write_json(Path(args.output), diagnose(args))


def diagnose(args: DiagnosticsArguments) -> dict[str, Any]:
    """
    The content of the JSON file.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: If an argument is wrong, before a model is loaded.
    """
    from cb_datasets.generation.backend import adapter_revision, check_adapters, revision_of
    from cb_datasets.generation.model_files import check_model_files
    from cb_datasets.generation.tokenizer import check_model, load_tokenizer

    data, output = Path(args.data), Path(args.output)
    if args.max_rows < 1:
        raise ValueError(f"--max_rows must be at least 1, got {args.max_rows}.")
    if output.is_dir():
        raise FileExistsError(f"--output: {output} is a folder. Name a file.")
    check_output("--output", str(output.parent))
    adapters = named_adapters(args.adapter, args.also)
    models = {"--model": args.model, "--tokenizer": args.tokenizer, "--adapter": args.adapter}
    loaded = [NamedPath(flag, Path(path), Role.MODEL) for flag, path in models.items() if path]
    check_all_apart([*loaded, NamedPath("--data", data, Role.READ), NamedPath("--output", output, Role.WRITE)])
    check_adapters(adapters.values(), args.model)
    revisions = {name: adapter_revision(path) for name, path in adapters.items()}
    check_model(args.model)
    check_model_files(args.model)
    check_rows(stream_rows([data], SAMPLE_FEATURES), data)
    numbers = choose_rows(data, args.max_rows, args.seed)
    tokenizer = load_tokenizer(args.tokenizer or args.model)
    model = load_adapted(args.model, adapters)
    classes = measure_cosines(model, tokenizer, stream_chosen(data, numbers), BATCH_TOKENS)
    revision = revision_of(args.model)
    settings = {
        "model": model_label(public_name(args.model), revision),
        "revision": revision,
        "adapters": revisions,
        "data": public_name(args.data),
        "max_rows": args.max_rows,
        "seed": args.seed,
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": settings,
        "layers": list(range(1, len(get_decoder(model).layers) + 1)),
        "positions": list(range(-PROMPT_TAIL, COMPLETION_HEAD)),
        "classes": classes,
    }


def make_parser() -> HfArgumentParser:
    # The annotation of the parser fits no dataclass
    types: Any = DiagnosticsArguments
    description = __doc__.strip().split("\n")[0]

    class Parser(OneLineUsage, HfArgumentParser):
        pass

    return Parser(types, allow_abbrev=False, prog="python -m trainers.diagnostics", description=description)


def parse_arguments(args: list[str] | None = None) -> list[Any]:
    """Parse the command line; a wrong flag is one line."""
    parser: Any = make_parser()
    return parser.parse_strictly(sys.argv[1:] if args is None else args, parser.parse_args_into_dataclasses)


if __name__ == "__main__":
    main(*parse_arguments())
