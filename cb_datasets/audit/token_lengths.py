"""Token counts of each row, computed once per tokenizer in the background and cached on disk.

{"prompt": 812, "completion": 31}      a prompt without completion has 0, a row that does not render has nulls
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow

from ..chat import RENDERER_HASH, encode_completion, encode_prompt
from ..checks.preflight import histogram
from ..formats.chat_template import RENDER_ERRORS
from ..publish.released_rows import stored_row
from ..row_groups import stream_file
from ..template_probe import template_hash
from .cached_table import CachedTable


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTS = ("prompt", "completion")
# Maximum number of bars of a histogram.
BARS = 40


class TokenLengths(CachedTable):
    """Token counts of prompts and completions.

    Args:
        files (`list[Path]`): As for [`CachedTable`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The target model's tokenizer.
    """

    NAME = "lengths"
    DESCRIPTION = "Counting tokens"
    SCHEMA = pyarrow.schema(dict.fromkeys(PARTS, pyarrow.int32()))

    def __init__(self, files: list[Path], tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # a tokenizer is not thread-safe
        cache_key = f"{tokenizer.name_or_path} {len(tokenizer)} {template_hash(tokenizer)} {RENDERER_HASH}"
        super().__init__(files, cache_key=cache_key)

    def count_tokens(self, row: dict) -> dict[str, int] | None:
        """Token counts of a row; `None` if the chat template cannot render it."""
        completion = row.get("assistant_raw")
        with self._lock:
            try:
                prompt = len(encode_prompt(self._tokenizer, row))
            except RENDER_ERRORS:
                return None
            completion_tokens = len(encode_completion(self._tokenizer, completion)) if completion else 0
            return dict(zip(PARTS, (prompt, completion_tokens), strict=True))

    def statistics(self, numbers: np.ndarray) -> dict[str, dict]:
        """`{part: {"rows", "p50", "p95", "max", "histogram", "not_measured"}}` of some rows.

        Raises:
            NotReady: If the tokens have not been counted yet.
        """
        batches = self.batches()
        statistics: dict[str, dict] = {}
        for part in PARTS:
            column = pyarrow.chunked_array([batch[part] for batch in batches], pyarrow.int32())
            lengths = column.take(pyarrow.array(numbers)).drop_null().to_numpy()
            statistics[part] = _summary(lengths[lengths > 0]) | {"not_measured": len(numbers) - len(lengths)}
        return statistics

    def _compute_batches(self) -> Iterator[pyarrow.RecordBatch]:
        for file in self._files:
            for table in stream_file(file):
                lengths = [self.count_tokens(stored_row(row)) or dict.fromkeys(PARTS) for row in table.to_pylist()]
                yield pyarrow.RecordBatch.from_pylist(lengths, schema=self.SCHEMA)
                self._bar.update(len(lengths))


def _summary(lengths: np.ndarray) -> dict:
    """Number of rows, quantiles and histogram of some lengths."""
    if not len(lengths):
        return {"rows": 0}
    p50, p95 = (int(np.percentile(lengths, percent, method="lower")) for percent in (50, 95))
    longest = int(lengths.max())
    # The smallest width among 1, 2, 5, 10, ... tokens with which the histogram has at most [`BARS`] bars.
    widths = (digit * 10**power for power in range(9) for digit in (1, 2, 5))
    width = next(width for width in widths if longest // width < BARS)
    return {"rows": len(lengths), "p50": p50, "p95": p95, "max": longest, "histogram": histogram(lengths, width)}
