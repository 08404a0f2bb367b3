"""The rows of a release: what `datasets` and `transformers` need to render them, and TRL to train on them, is in them.

    tokenizer.apply_chat_template(
        row["messages"],
        tools=json.loads(row["tools"]),
        add_generation_prompt=True,
        return_dict=False,
        **row["chat_template_kwargs"],
    )

gives the tokens that the renderer writes. A row has the columns of a sample or a prompt (`cb_datasets/sample.py`),
with these differences:

    messages               as chat templates read them (`template_form.py`): objects of different keys, so `Json`
    tools                  JSON text; `null` where no tools are offered
    chat_template_kwargs   the date of the prompt, and what was decided about variables of the template:
                           {"date_string": "26 Jul 2024", "enable_thinking": false}, so `Json`, too
    prompt, completion     the messages again, and the completion as a message: the two columns that TRL trains on
    row_labels             the labels. TRL takes a column named `labels` for token ids

**Numbers.** `Json` columns are JSON text, and the decoder of `datasets` 5.2.0 (that of pandas 3.1.1) does not read
every number as it is written: it reads 0.7 as 0.7000000000000001. But it reads 0.700000 as 0.7, and so does any other
decoder. So numbers that it would change are written otherwise, with more zeros or another exponent: [`exact_json`].
Its encoder rounds too (1e-12 becomes 0.0), but the rows of a release are not encoded by it.
"""

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

import pyarrow
from datasets import Dataset, Features, Json, List

from builders.trace import to_json

from ..export import chat_template_kwargs, completion_turn
from ..sample import PROMPT_FEATURES, PROVENANCE, SAMPLE_FEATURES
from ..template_form import published_messages, stored_messages


_KWARGS = {"chat_template_kwargs": Json()}
_TURNS = List(Json())

RELEASED_PROMPT_FEATURES = Features({**PROMPT_FEATURES, "messages": _TURNS, **_KWARGS})
RELEASED_SAMPLE_FEATURES = Features(
    {
        **{name: feature for name, feature in SAMPLE_FEATURES.items() if name != "labels"},
        "row_labels": SAMPLE_FEATURES["labels"],
        "messages": _TURNS,
        "prompt": _TURNS,
        "completion": _TURNS,
        **_KWARGS,
    }
)
# Digits that the decoder of `datasets` reads into an integer, and behind the point.
_MAX_DIGITS, _MAX_DECIMALS = 18, 15
_BATCH_ROWS = 100


def released_row(row: dict) -> dict:
    """A stored sample or prompt as a row of a release.

    Raises:
        ValueError: If the completion of a sample makes no message; it names the row.
    """
    messages, injection = published_messages(row)
    released = {
        **row,
        "messages": messages,
        "injection": injection,
        "tools": row["tools"] or "null",
        "chat_template_kwargs": chat_template_kwargs(row),
    }
    if "assistant_raw" not in row:
        return released
    try:
        completion = [completion_turn(row)]
    except ValueError as reason:
        raise ValueError(f"{row['id']}: {reason}. Run `validate` and `merge` again, which leave it out.") from None
    return released | {"row_labels": released.pop("labels"), "prompt": messages, "completion": completion}


def stored_row(row: dict) -> dict:
    """The inverse of [`released_row`]; a row that is not of a release is returned as it is."""
    if "chat_template_kwargs" not in row:
        return row
    stored = {
        **row,
        # Columns of provenance that releases of older versions lack are null.
        "provenance": dict.fromkeys(PROVENANCE) | row["provenance"],
        "messages": stored_messages(json.loads(each) if isinstance(each, str) else each for each in row["messages"]),
        "tools": None if row["tools"] == "null" else row["tools"],
    }
    if "row_labels" in row:
        stored["labels"] = row["row_labels"]
    features = SAMPLE_FEATURES if "assistant_raw" in row else PROMPT_FEATURES
    return {name: stored[name] for name in features}


def stored_dataset(rows: Dataset) -> Dataset:
    """The stored rows of a loaded release; other datasets are returned as they are."""
    if "chat_template_kwargs" not in rows.column_names:
        return rows
    features = SAMPLE_FEATURES if "assistant_raw" in rows.column_names else PROMPT_FEATURES
    return rows.map(stored_row, features=features, remove_columns=rows.column_names, desc="Reading a release")


def released_table(rows: Iterable[dict], features: Features) -> pyarrow.Table:
    """Released rows as a table.

    Raises:
        ValueError: If a row has a number that `datasets` cannot read; it names the row.
    """
    columns: dict[str, list] = {name: [] for name in features}
    for row in rows:
        try:
            # `prompt` holds the messages, so each is encoded once.
            texts = {id(row[name]): _json_text(row[name]) for name in _json_columns(features)}
        except ValueError as error:
            raise ValueError(
                f"{row['id']}: {error}. Mark the row bad in `cb-datasets view`, and merge again."
            ) from None
        for name, values in columns.items():
            values.append(texts.get(id(row[name]), row[name]))
    schema = features.arrow_schema
    storage = {name: schema.field(name).type for name in features}
    storage |= {
        name: pyarrow.list_(pyarrow.string()) if features[name] == _TURNS else pyarrow.string()
        for name in _json_columns(features)
    }
    arrays = {name: pyarrow.array(values, storage[name]) for name, values in columns.items()}
    return pyarrow.table(arrays).cast(schema)


def rows_of(table: pyarrow.Table) -> Iterator[dict]:
    """The rows of a table, as `load_dataset` gives them."""
    names = _json_columns(Features.from_arrow_schema(table.schema))
    for batch in table.to_batches(_BATCH_ROWS):
        for row in batch.to_pylist():
            yield row | {name: _decoded(row[name]) for name in names}


def _json_columns(features: Features) -> list[str]:
    """Names of the columns that hold JSON text, or lists of it."""
    return [name for name, feature in features.items() if feature in (Json(), _TURNS)]


def _json_text(value: Any) -> str | list[str]:
    return [*map(exact_json, value)] if isinstance(value, list) else exact_json(value)


def _decoded(text: str | list[str]) -> Any:
    return [*map(json.loads, text)] if isinstance(text, list) else json.loads(text)


def exact_json(value: Any) -> str:
    """JSON text that `datasets` and every other decoder read as the same value.

    Raises:
        ValueError: If there is none, as for integers from 2**64 on and for some doubles of extreme size.
    """
    text = to_json(value)
    return text if _reads(text, value) else _spelled(value)


def _reads(text: str, value: Any) -> bool:
    try:
        return to_json(Json().decode_example(text)) == to_json(value)
    except ValueError:
        return False


def _spelled(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_json(key)}: {_spelled(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_spelled, value)) + "]"
    for text in _spellings(value) if isinstance(value, float) else (to_json(value),):
        if _reads(text, value):
            return text
    raise ValueError(f"`datasets` cannot read the number {value} of a call")


def _spellings(number: float) -> Iterator[str]:
    """The same decimal number with ever more zeros, and with the point in every place: 0.7, 7e-1, 0.70, 70e-2, ..."""
    sign, digits, exponent = Decimal(repr(number)).as_tuple()
    for zeros in range(_MAX_DIGITS + 1 - len(digits)):
        text = "".join(map(str, digits)) + "0" * zeros
        for point in range(len(text) + 1):
            whole, decimals = text[:point], text[point:]
            power = int(exponent) - zeros + len(decimals)
            if len(decimals) <= _MAX_DECIMALS and (whole == "0" or not whole.startswith("0")):
                yield f"{'-' * sign}{whole or 0}{'.' * bool(decimals)}{decimals}{f'e{power}' if power else ''}"
