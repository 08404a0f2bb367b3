"""A release of one source: the traces of a builder as a dataset repository of their own, with a card.

    README.md                              the card: description, licence, citation, counts, drops by reason
    manifest.json                          hash of every file; number and hash of the rows of every split
    data/train-00000-of-00001.parquet      the traces, as `load_source` gives them

`push.py` sends it as it sends a release of samples: to a private repository, in one tagged commit.
"""

from pathlib import Path

from datasets import Dataset
from huggingface_hub import DatasetCard

from builders.base import TraceBuilder, summarize_traces
from builders.trace import TRACE_FEATURES

from ..counts import listed
from ..markdown import cell, code
from ..row_groups import STREAM_ROWS
from .check import folder_faults
from .dataset_card import yaml_header
from .folder import SOURCE_RELEASE, WrittenSplit, replacing_folder, write_manifest, write_split
from .release import raise_if_any, source_fault


SOURCE_CARD_TEMPLATE = Path(__file__).parents[2] / "cards" / "source_card.md.jinja"
TAGS = ["agents", "prompt-injection", "safety", "tool-calling"]


def make_source_release(
    name: str, builder: TraceBuilder, repo_id: str, output: Path, token: str | None = None
) -> dict:
    """Write the release folder of a source, exactly as it will be on the Hub.

    Args:
        name (`str`): Name of the source.
        builder ([`~builders.base.TraceBuilder`]): As `prepare_source` returns it.
        repo_id (`str`): The Hub repository, `owner/name`, for the card.
        output (`Path`): The release folder. An older release there is replaced when the new one is complete.
        token (`str`, *optional*): The token in use, which no file may contain.

    Returns:
        `dict`: The manifest.

    Raises:
        ReleaseError: If the source may not be redistributed, or the Hub would reject the folder.
    """
    traces = builder.as_dataset()
    names = sorted({name, *(source for rows in traces.values() for source in rows.unique("source"))})
    sheet = {"licence": builder.licence, "redistributable": builder.redistributable}
    faults = [f"{source}: {why}." for source in names if (why := source_fault(source, sheet))]
    raise_if_any(faults)
    with replacing_folder(output, SOURCE_RELEASE) as folder:
        splits = {split: _write(rows, folder, f"data/{split}") for split, rows in traces.items()}
        _card(name, builder, repo_id, splits, folder).save(folder / "README.md")
        manifest = write_manifest(folder, {"default": splits}, SOURCE_RELEASE)
        raise_if_any(folder_faults(folder, token))
    return manifest


def _write(rows: Dataset, folder: Path, name: str) -> WrittenSplit:
    return write_split(rows.with_format("arrow").iter(STREAM_ROWS), TRACE_FEATURES, folder, name)


def _card(
    name: str, builder: TraceBuilder, repo_id: str, splits: dict[str, WrittenSplit], folder: Path
) -> DatasetCard:
    title = f"{name}: traces for circuit breakers"
    features = {"default": TRACE_FEATURES}
    counts = summarize_traces(builder.as_dataset(), builder.dropped())
    return DatasetCard.from_template(
        yaml_header(title, {"default": splits}, features, [builder.licence], TAGS, folder),
        template_path=str(SOURCE_CARD_TEMPLATE),
        title=title,
        repo_id=repo_id,
        info=builder.info,
        note=builder.NOTE,
        origins=builder.origins(builder.as_dataset()),
        revision=builder.config.source_revision,
        splits={split: written.rows for split, written in splits.items()},
        counts=counts,
        cell=cell,
        code=code,
        listed=lambda numbers: listed(dict(numbers)) or "none",
    )
