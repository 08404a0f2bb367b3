"""The commands that write samples for other programs, and read them back: `export`, `import`."""

from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..terminal import print_line
from .output import dropped


app = typer.Typer()


class ExportLayout(StrEnum):
    SAMPLES = "samples"
    SFT = "sft"
    DPO = "dpo"
    OPENAI = "openai"


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Folder of samples, e.g. stage2/train.")],
    output: Annotated[Path, typer.Option(help="The JSONL file to write.")],
    layout: Annotated[
        ExportLayout,
        typer.Option("--format", help="samples: all columns; sft, dpo: rows for TRL; openai: rows for fine-tuning."),
    ] = ExportLayout.SAMPLES,
) -> None:
    """Samples as JSON lines: valid against canonical_sample_schema.json, or in the layout of another trainer."""
    from ..export import TRL_FEATURES, export_jsonl, export_rows, is_exact, write_jsonl
    from ..files import count_rows, stream_rows
    from ..sample import SAMPLE_FEATURES

    if layout == ExportLayout.SAMPLES:
        export_jsonl(stream_rows([folder], SAMPLE_FEATURES), output)
        print_line(f"export: {count_rows([folder])} rows -> {output}")
        return
    drops, written = Counter[str](), Counter[str]()

    def rows() -> Iterator[dict]:
        for row in export_rows(lambda: stream_rows([folder], SAMPLE_FEATURES), layout, drops):
            written["rows"] += 1
            written["inexact"] += layout in TRL_FEATURES and not is_exact(row)
            yield row
        if not written["rows"]:
            raise ValueError(f"{folder}: no sample gives a row for {layout}; {dropped(drops)}.")

    write_jsonl(rows(), output)
    print_line(
        f"export {layout}: {written['rows']} rows of {count_rows([folder])} samples, {dropped(drops)} -> {output}"
    )
    if written["inexact"]:
        print_line(f"  numbers of {written['inexact']} rows change in load_dataset, see docs/collaborators.md")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A JSONL file as `export` writes it.")],
    output: Annotated[Path, typer.Option(help="Folder of samples to write.")],
) -> None:
    """JSON lines -> samples; each line must be valid against canonical_sample_schema.json."""
    from ..export import import_jsonl
    from ..files import REPORT_FILE, write_json

    rows = import_jsonl(file, output)
    write_json(output / REPORT_FILE, {"file": file.name, "rows": rows})
    print_line(f"import: {rows} rows -> {output}")
