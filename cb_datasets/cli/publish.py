"""The commands that publish and show data: `push`, `publish-source`, `push-model`, `view`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..counts import listed
from ..path_rules import check_exists
from ..terminal import print_line
from .build import config_fields
from .options import takes
from .output import table
from .paths import data_folder, input_file, input_folder, model_path, output_file, output_path, own_or_file


if TYPE_CHECKING:
    from ..publish.push import PushTarget

app = typer.Typer()

RepoArgument = Annotated[str, typer.Argument(help="The repository, owner/name; created private if it does not exist.")]


@dataclass
class Publishing:
    """Options of a push."""

    output: Annotated[
        Path | None,
        typer.Option(
            callback=output_path,
            help="Folder of the release, by default <data>/release, data/sources/<name> or <adapter>_release.",
        ),
    ] = None
    revision: Annotated[str | None, typer.Option(help="Branch to push to, by default main.")] = None
    create_pr: Annotated[bool, typer.Option(help="Open a pull request instead of committing.")] = False
    tag: Annotated[str | None, typer.Option(help="Tag of the release, by default the next of v1, v2, ...")] = None
    gated: Annotated[bool, typer.Option(help="Gate the repository: other readers must request access.")] = False
    dry_run: Annotated[bool, typer.Option(help="Write the folder and print what would be sent; send nothing.")] = False

    def target(self, repo: str, repo_type: str) -> "PushTarget":
        """The repository."""
        from ..publish.push import PushTarget

        return PushTarget(repo, repo_type, self.revision, self.create_pr, self.tag, self.gated)

    def token(self) -> str | None:
        """The token to push with, which no file may contain; a dry run needs none."""
        from huggingface_hub import get_token

        from ..publish.push import token_in_use

        return get_token() if self.dry_run else token_in_use()

    def send(
        self,
        command: str,
        target: "PushTarget",
        folder: Path,
        manifest: dict,
        token: str | None,
        is_owned: Callable[[str], bool],
        read_back: Callable[[str, str, dict, str], None],
    ) -> str | None:
        """Push the folder of a release, read it back, and print the result.

        Returns:
            `str`, *optional*: The revision to load it by; `None` in a dry run.
        """
        from ..publish.push import push_folder

        if self.dry_run or token is None:
            print_line(f"{command}: {target.repo_id}: nothing was sent (--dry-run) -> {folder}")
            return None
        pushed = push_folder(folder, target, token, is_owned)
        read_back(target.repo_id, pushed.commit, manifest, token)
        print_line(f"{command}: {pushed.url}, commit {pushed.commit}: read back and verified")
        if self.create_pr:
            print_line(f"  pull request: {pushed.pull_request or 'none: nothing differs from what is there'}")
        return pushed.tag or pushed.commit


@app.command()
@takes(Publishing)
def push(
    repo: RepoArgument,
    data: Annotated[
        Path,
        typer.Option(callback=data_folder, help="The data folder of a recipe, with stage2/, prompts/ and reports/."),
    ],
    publishing: Publishing,
) -> None:
    """Publish the dataset as one commit of a private Hub repository, tagged and verified."""
    from ..publish.folder import is_dataset_file
    from ..publish.release import make_release
    from ..publish.verify import read_back

    target = publishing.target(repo, "dataset")
    token = publishing.token()
    folder = publishing.output or data / "release"
    manifest = make_release(data, repo, folder, token)
    _print_folder(folder, manifest)
    revision = publishing.send("push", target, folder, manifest, token, is_dataset_file, read_back)
    for config in manifest["configs"] if revision else ():
        print_line(f'  load_dataset("{repo}", "{config}", revision="{revision}")')


@app.command()
@takes(Publishing)
def publish_source(
    name: Annotated[str, typer.Argument(help="Name of the source, e.g. agentdojo, tau2, ultrachat, jsonl.")],
    repo: RepoArgument,
    publishing: Publishing,
    config: Annotated[str | None, typer.Option(help="Configuration of the source, e.g. airline of tau2.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            callback=input_folder,
            help="Local copy of the source's files; by default they are downloaded where possible.",
        ),
    ] = None,
    data_files: Annotated[
        list[Path] | None, typer.Option(callback=input_file, help="The files themselves; repeatable.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="jsonl: licence of your files, e.g. cc-by-4.0.")] = None,
) -> None:
    """Publish the traces of a source as one commit of a private Hub repository, tagged and verified."""
    from builders import prepare_source

    from ..publish.folder import is_dataset_file
    from ..publish.source import make_source_release
    from ..publish.verify import read_back

    target = publishing.target(repo, "dataset")
    token = publishing.token()
    builder = prepare_source(name, config, data_dir, data_files, **config_fields(name, {"licence": licence}))
    folder = publishing.output or Path("data", "sources", name)
    manifest = make_source_release(name, builder, repo, folder, token)
    _print_folder(folder, manifest)
    revision = publishing.send("publish-source", target, folder, manifest, token, is_dataset_file, read_back)
    if revision:
        print_line(f'  load_dataset("{repo}", revision="{revision}")')


@app.command()
@takes(Publishing)
def push_model(
    repo: RepoArgument,
    adapter: Annotated[
        Path, typer.Option(callback=input_folder, help="Folder of the adapter, as written by the trainer.")
    ],
    report: Annotated[Path, typer.Option(callback=input_folder, help="Folder of the evaluation of this adapter.")],
    publishing: Publishing,
    dataset: Annotated[str | None, typer.Option(help="Training dataset, owner/name@revision.")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the base model, where a local copy of it was trained on.")
    ] = None,
    allow_failed_gates: Annotated[
        bool,
        typer.Option(
            "--allow-failed-gates", help="Publish a breaker whose evaluation failed a gate; the card says so."
        ),
    ] = False,
) -> None:
    """Publish the adapter with its evaluation as one commit of a private Hub repository, tagged."""
    from ..publish.adapter import is_adapter_file, make_adapter_release
    from ..publish.push import check_repository, check_revision
    from ..publish.verify import read_files_back

    target = publishing.target(repo, "model")
    if base_model is not None:
        check_repository(base_model, "--base-model")
    if dataset is not None:
        name, at, trained_on = dataset.partition("@")
        check_repository(name, "--dataset")
        if at:
            check_revision(trained_on, "--dataset")
    token = publishing.token()
    folder = publishing.output or adapter.with_name(f"{adapter.name}_release")
    manifest = make_adapter_release(adapter, report, repo, folder, dataset, token, base_model, allow_failed_gates)
    table(["file", "bytes"], [(name, file["bytes"]) for name, file in manifest["files"].items()])
    revision = publishing.send("push-model", target, folder, manifest, token, is_adapter_file, read_files_back)
    if revision:
        print_line(f'  PeftModel.from_pretrained(model, "{repo}", revision="{revision}")')


def _print_folder(folder: Path, manifest: dict) -> None:
    rows = [
        (
            config,
            listed({split: part["rows"] for split, part in splits.items()}),
            sum(len(p["files"]) for p in splits.values()),
        )
        for config, splits in manifest["configs"].items()
    ]
    table(["config", "rows", "files"], rows)
    size = sum(file["bytes"] for file in manifest["files"].values())
    print_line(f"  {len(manifest['files']) + 1} files, {size / 1e6:.1f} MB -> {folder}")


def _may_be_hub_id(path: str) -> bool:
    """Whether a path that is not there may be the Hub id of a dataset, `owner/name`."""
    return path.count("/") == 1 and path[0] not in "./~" and Path(path).suffix not in (".jsonl", ".parquet")


@app.command()
def view(
    path: Annotated[
        str,
        typer.Argument(
            callback=own_or_file, help="A data folder, a release, a set, a Parquet file, or a Hub id owner/name."
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 for any free one.")] = 8008,
    model: Annotated[
        str | None, typer.Option(callback=model_path, help="Model whose tokenizer measures rows.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Tag or commit of a Hub id.")] = None,
    marks: Annotated[
        Path | None,
        typer.Option(callback=output_file, help="File of audit marks, by default <path>/audit/marks.parquet."),
    ] = None,
) -> None:
    """Serve a local page to browse and mark rows."""
    from ..audit.marks import Marks
    from ..audit.row_store import RowStore
    from ..audit.view import AuditServer
    from .output import tokenizer

    folder = Path(path)
    if revision is not None and folder.exists():
        raise ValueError(
            f"--revision: {path} is on this machine, and has no revisions. Leave it out, or name a Hub id."
        )
    if folder.exists() or not _may_be_hub_id(path):
        check_exists("PATH", folder, "path")
    else:
        from ..publish.download import download_release

        marks = marks or Path("audit") / path.replace("/", "__") / "marks.parquet"
        folder = download_release(path, revision)
    home = folder.parent if folder.is_file() else folder
    store, kept = RowStore(folder), Marks(marks or home / "audit" / "marks.parquet")
    with AuditServer(store, kept, port, tokenizer(model) if model else None) as server:
        print_line(f"view: {len(store)} rows on {server.url} (end with Ctrl-C); marks -> {kept.path}")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
