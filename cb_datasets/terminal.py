r"""Text of strangers on the terminal: shown, never obeyed.

An id such as `a\x1b]0;owned\x07` sets the window's title if it is printed as it is, and `\x1b[2J` clears the screen. A
character that a terminal would act on becomes one that it shows, so that positions in a text stay what they are:

    a␛]0;owned␇    a control character as its picture
    a�[2J           other characters that a terminal acts on, such as those that reverse the order of a line
"""

import logging
import sys
from contextlib import suppress
from typing import Any, TextIO


_LINE_BREAKS = {0x2028, 0x2029}
# Marks, overrides and isolates that change the order of the text around them, and zero-width ones that hide.
_INVISIBLE = {0x061C, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)}
# Halves of surrogate pairs, which no terminal's encoding has.
_SURROGATES = range(0xD800, 0xE000)

_ONE_LINE = (
    {code: 0x2400 + code for code in range(0x20)}
    | {0x7F: 0x2421}
    | dict.fromkeys((*range(0x80, 0xA0), *_LINE_BREAKS, *_INVISIBLE, *_SURROGATES), 0xFFFD)
)
_LINES = {code: shown for code, shown in _ONE_LINE.items() if chr(code) not in "\n\t"}


def shown(text: str) -> str:
    """A text in which only line breaks and tabs are left to the terminal."""
    return text.translate(_LINES)


def shown_line(text: str) -> str:
    """A text on one line, in which nothing is left to the terminal."""
    return text.translate(_ONE_LINE)


def show_log_messages() -> None:
    """Make all further log messages of this process texts that a terminal shows: they quote names from the data."""
    logging.setLogRecordFactory(_shown_record)
    # On some CPUs each import of bitsandbytes warns that it cannot fetch a kernel, of which nothing here has use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def _shown_record(*arguments: Any, **options: Any) -> logging.LogRecord:
    record = logging.LogRecord(*arguments, **options)
    with suppress(TypeError, ValueError):  # some libraries pass arguments that their text has no place for
        record.msg, record.args = shown(record.getMessage()), ()
    return record


def print_line(text: str, end: str = "\n", file: TextIO | None = None) -> None:
    """Print a text on one line."""
    print(shown_line(text), end=end, file=file or sys.stdout, flush=True)
