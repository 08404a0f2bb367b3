"""How many tokens each row has: counted once for a tokenizer, in the background, and kept.

{"prompt": 812, "completion": 31}      a prompt without completion has 0; a row that does not render has null
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow
from jinja2 import TemplateError

from ..chat import encode_completion, encode_prompt, template_hash
from ..checks.preflight import histogram
from ..files import stream_file
from .cached_table import CachedTable


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTS = ("prompt", "completion")
# Bars that a histogram has at most.
BARS = 40


class Lengths(CachedTable):
    """Tokens of prompts and completions.

    Args:
        files (`list[Path]`): As for [`CachedTable`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target's.
    """

    NAME = "lengths"
    WHAT = "Counting tokens"
    SCHEMA = pyarrow.schema(dict.fromkeys(PARTS, pyarrow.int32()))

    def __init__(self, files: list[Path], tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._one_at_a_time = threading.Lock()  # a tokenizer serves one thread
        super().__init__(files, of=f"{tokenizer.name_or_path} {len(tokenizer)} {template_hash(tokenizer)}")

    def of(self, row: dict) -> dict[str, int] | None:
        """Tokens of a row; `None` if the chat template does not take it."""
        completion = row.get("assistant_raw")
        with self._one_at_a_time:
            try:
                prompt = len(encode_prompt(self._tokenizer, row))
            except (TemplateError, ValueError, TypeError, KeyError):
                return None
            written = len(encode_completion(self._tokenizer, completion)) if completion else 0
            return dict(zip(PARTS, (prompt, written), strict=True))

    def statistics(self, numbers: np.ndarray) -> dict[str, dict]:
        """`{part: {"rows", "p50", "p95", "max", "histogram"}}` of some rows, and how many were not measured.

        Raises:
            NotReady: If the tokens have not been counted yet.
        """
        batches = self.batches()
        told: dict[str, dict] = {}
        for part in PARTS:
            column = pyarrow.chunked_array([batch[part] for batch in batches], pyarrow.int32())
            lengths = column.take(pyarrow.array(numbers)).drop_null().to_numpy()
            told[part] = _told(lengths[lengths > 0]) | {"not_measured": len(numbers) - len(lengths)}
        return told

    def _make(self) -> Iterator[pyarrow.RecordBatch]:
        for file in self._files:
            for table in stream_file(file):
                lengths = [self.of(row) or dict.fromkeys(PARTS) for row in table.to_pylist()]
                yield pyarrow.RecordBatch.from_pylist(lengths, schema=self.SCHEMA)
                self._bar.update(len(lengths))


def _told(lengths: np.ndarray) -> dict:
    if not len(lengths):
        return {"rows": 0}
    p50, p95 = (int(np.percentile(lengths, share, method="lower")) for share in (50, 95))
    most = int(lengths.max())
    # 1, 2, 5, 10, ... tokens a bar, so that there are few enough.
    widths = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    width = next(width for width in widths if most // width < BARS)
    return {"rows": len(lengths), "p50": p50, "p95": p95, "max": most, "histogram": histogram(lengths, width)}
