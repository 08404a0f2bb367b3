"""Commands of the command line, run as in a terminal but in the test's own process."""

import contextlib
import io
import logging
import subprocess
import sys
from pathlib import Path
from unittest import mock

from cb_datasets.cli import main


ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess:
    """Run `cb-datasets`, and return its exit code and what it printed.

    A process of its own would import PyTorch and Transformers each time, which takes longer than most commands.
    """
    words, out, err = list(map(str, arguments)), io.StringIO(), io.StringIO()
    factory = logging.getLogRecordFactory()
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["cb-datasets", *words]),
        mock.patch.object(logging.getLogger(), "handlers", []),  # pytest's, beside which warnings are not printed
    ):
        try:
            main()
            code: int | str | None = 0
        except SystemExit as ended:
            code = ended.code
    logging.setLogRecordFactory(factory)
    return subprocess.CompletedProcess(words, int(code or 0), out.getvalue(), err.getvalue())
