"""`cb-datasets <step>`: the pipeline by hand. Each command parses flags, calls one function and prints one summary.

The Makefile runs the same commands; `make -n demo` shows them with all their flags.
"""

import os
import sys
import traceback
from importlib.metadata import version
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..stop_signals import Stopped, stop_signals
from ..terminal import print_line, show_log_messages, shown
from . import attack, build, check, evaluate, export, generate, merge, merge_adapter, publish
from .guide_hints import command_hint, flag_hint


# Typer brings its own copy of click, of which it exports neither the context nor the errors of its parser.
_UsageError: Any = typer.BadParameter.__mro__[1]


class Commands(TyperGroup):
    """The commands. Where one is written as in the data generation guide, the error says what to write here."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple:
        if args and args[0] not in self.commands and (hint := command_hint(args[0])):
            print_line(f"error: {args[0]} is a script of the data generation guide: {hint}", file=sys.stderr)
            raise typer.Exit(2)
        name, command, words = super().resolve_command(ctx, args)
        _check_none_empty(words)
        return name, command, words

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            unknown, param = getattr(error, "option_name", None), getattr(error, "param", None)
            command = error.ctx.info_name if error.ctx else ""
            hint = flag_hint(command, [unknown] if unknown else param.opts if param else [])
            if hint is None:
                raise
            print_line(f"error: {command} {'has no' if unknown else 'needs'} {': '.join(hint)}", file=sys.stderr)
            raise typer.Exit(2) from None


def _check_none_empty(words: list[str]) -> None:
    """Refuse an empty value, as an unset variable of a script gives: for a path it would be the folder `.`."""
    for before, word in pairwise(["", *words]):
        is_empty = word == "" and before not in generate.MAY_BE_EMPTY
        if is_empty or (word.startswith("--") and word.endswith("=")):
            named = word.removesuffix("=") or (before if before.startswith("-") else "an argument")
            raise ValueError(f"{named}: the value is empty. Give one, or leave it out.")


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"cb-datasets {version('cb-datasets')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make, check and evaluate circuit-breaker data for tool-calling agents."""


# In the order of `--help`: their commands stand side by side, `cb-datasets validate`.
for group in (build, generate, evaluate, check, merge, export, attack, merge_adapter, publish):
    app.add_typer(group.app)


def main() -> None:
    """Run the command line. Expected errors are one line on stderr and exit code 1."""
    show_log_messages()
    try:
        with stop_signals():
            app()
    except Stopped as stopped:
        print(f"\nstopped by {stopped.signal}: run the same command again to go on", file=sys.stderr)
        raise
    except Exception as error:
        from ..disk_faults import error_line

        message = error_line(error)
        # A fault of ours is shown whole; its text may quote the data, too.
        text = f"error: {message}" if message is not None else traceback.format_exc()
        print(shown(text), file=sys.stderr)
        _close_output()
        sys.exit(1)


def _close_output() -> None:
    """Write what standard output still holds, or forget it: Python would fail once more when it exits."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
