"""The commands that write samples for other programs, and read them back: `export`, `import`."""

from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..path_rules import check_writable
from ..terminal import print_line
from .options import read_tool_schema
from .output import dropped, tokenizer
from .paths import input_file, input_folder, model_path, output_of_either_kind, output_path, own_or_file


app = typer.Typer()


class ExportLayout(StrEnum):
    SAMPLES = "samples"
    SFT = "sft"
    DPO = "dpo"
    OPENAI = "openai"


@app.command()
def export(
    folder: Annotated[
        Path,
        typer.Argument(
            callback=input_folder,
            help="Samples, e.g. stage2/train; or a data folder with harmful/, retain/ and stage2/.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            callback=output_of_either_kind, help="The JSONL file to write; for a data folder, the folder of files."
        ),
    ],
    layout: Annotated[
        ExportLayout,
        typer.Option("--format", help="samples: all columns; sft, dpo: rows for TRL; openai: rows for fine-tuning."),
    ] = ExportLayout.SAMPLES,
) -> None:
    """Samples as JSON lines: valid against canonical_sample_schema.json, or in the layout of another trainer.

    Of a data folder every set, the merged splits and their reports are written, as one tree of files.
    """
    from ..export import TRL_FEATURES, export_jsonl, export_rows, is_exact, write_jsonl
    from ..files import count_rows, stream_rows
    from ..sample import SAMPLE_FEATURES
    from ..sets.jsonl_sets import export_tree, is_jsonl
    from ..text_faults import checked, text_faults

    if (folder / "stage2").is_dir() and not is_jsonl(output):
        if layout != ExportLayout.SAMPLES:
            raise ValueError(f"--format {layout} takes one folder of samples, e.g. {folder / 'stage2' / 'train'}.")
        for file, count in export_tree(folder, output).items():
            print_line(f"export: {file}" + (f", {count} rows" if count is not None else ""))
        return

    check_writable("--output", output, "file")

    def samples() -> Iterator[dict]:
        return checked(stream_rows([folder], SAMPLE_FEATURES), folder, text_faults)

    if layout == ExportLayout.SAMPLES:
        export_jsonl(samples(), output)
        print_line(f"export: {count_rows([folder])} rows -> {output}")
        return
    drops, written = Counter[str](), Counter[str]()

    def rows() -> Iterator[dict]:
        for row in export_rows(samples, layout, drops):
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
    file: Annotated[
        Path, typer.Argument(callback=input_file, help="A JSONL file as `export` writes it, or with fewer columns.")
    ],
    output: Annotated[Path, typer.Option(callback=output_path, help="Folder of samples to write.")],
    model: Annotated[
        str | None,
        typer.Option(
            callback=model_path,
            help="Model that wrote the completions, for records that do not state its template.",
        ),
    ] = None,
    tool_schema: Annotated[
        Path | None,
        typer.Option(
            callback=own_or_file, help="Tools for records without any: a file, or the package's b4_standard_v1."
        ),
    ] = None,
) -> None:
    """JSON lines -> samples.

    A record needs messages, assistant_raw and set; columns that it lacks are filled, and then it must be valid against
    canonical_sample_schema.json.
    """
    from ..export import import_jsonl
    from ..files import REPORT_FILE, write_json
    from ..sets.fill_record import RecordFiller
    from ..sets.jsonl_sets import name_of

    tools = read_tool_schema(tool_schema)["tools"] if tool_schema else None
    filler = RecordFiller(name_of(file), tokenizer(model) if model else None, tools)
    rows = import_jsonl(file, output, filler.fill)
    write_json(output / REPORT_FILE, {"file": file.name, "rows": rows, "filled": sorted(filler.columns)})
    if notice := filler.notice(file):
        print_line(notice)
    print_line(f"import: {rows} rows -> {output}")
