"""Errors of the scripts: one line each, with exit status 1, or 2 for a wrong command line."""

import re
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from .recipe import nearest


# Longest message of the parser, in characters, that is printed whole.
MAX_LENGTH = 300

_UNKNOWN = re.compile(r"(?:unrecognized arguments: |ambiguous option: )(\S+)")


@contextmanager
def errors_in_one_line(to_go_on: str = "Repeat the command.") -> Iterator[None]:
    """
    End the script with one line for what its user can act on: wrong data or a full disk, with exit status 1, and a
    signal, Ctrl-C among them, with that of the shell.

    Args:
        to_go_on (`str`, *optional*):
            What is said of a stopped script.
    """
    from cb_datasets.disk_faults import error_line
    from cb_datasets.stop_signals import Stopped, stop_signals
    from cb_datasets.terminal import print_line, show_log_messages, shown_line

    show_log_messages()
    try:
        with stop_signals():
            yield
    except (KeyboardInterrupt, Stopped) as stop:
        stopped = stop if isinstance(stop, Stopped) else Stopped(signal.SIGINT)
        sys.stderr.write("\n")  # below the progress bar
        print_line(f"Stopped by {stopped.signal}. {to_go_on}", file=sys.stderr)
        raise stopped from None
    except Exception as error:
        message = str(error) if isinstance(error, FloatingPointError) else error_line(error)
        if message is None:
            raise
        raise SystemExit(shown_line(" ".join(message.split()))) from error


class OneLineUsage(ArgumentParser):
    """A parser whose error is one line: the usage of two hundred flags would bury it."""

    def error(self, message: str) -> NoReturn:
        usage_error(message, (flag for action in self._actions for flag in action.option_strings))

    def parse_strictly(self, words: list[str], parse: Any) -> list[Any]:
        """What `parse` returns for the words, but for the last: words that no flag takes, which are an error."""
        *parsed, unknown = parse(words, return_remaining_strings=True)
        if unknown:
            self.error(f"unrecognized arguments: {unknown[0]}")
        return parsed


def usage_error(message: str, flags: Iterable[str] = ()) -> NoReturn:
    """End the script with one line on what is wrong with the command line, and exit status 2."""
    from cb_datasets.terminal import print_line

    if len(message) > MAX_LENGTH:  # all choices of a flag
        message = f"{message[:MAX_LENGTH]} ..."
    unknown = _UNKNOWN.match(message)
    name = unknown[1].partition("=")[0].strip("-") if unknown else None
    found = nearest(name, [flag.strip("-") for flag in flags if "_" in flag or "-" not in flag[2:]]) if name else None
    hint = f"Did you mean --{found}?" if found else "--help lists the flags."
    print_line(f"error: {' '.join(message.split())}. {hint}", file=sys.stderr)
    raise SystemExit(2)
