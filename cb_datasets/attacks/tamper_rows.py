"""The rows that someone fine-tunes a breaker on: benign ones of Dr, and harmful ones of Ds.

benign     clean requests with the right call or answer: what a downstream user trains on
harmful    attacked prompts with the attacker's call as the target: what an attacker with the weights trains on
"""

from collections import Counter
from typing import TYPE_CHECKING

from datasets import Dataset

from .. import chat
from ..sample import CIRCUIT_BREAKER
from ..splits import chosen_order
from ..template_probe import check_rendering
from .tampering_results import KINDS


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Classes of the benign rows. Refusals, and right calls under attack, teach what the breaker is for.
BENIGN_CLASSES = ("benign_twin", "tool_capability", "general_conversation")


def select_tamper_rows(samples: Dataset) -> dict[str, Dataset]:
    """The rows that can be trained on, `benign` and `harmful`.

    Harmful rows whose attack was cut from the prompt (`provenance.redacted`) are in neither.

    Args:
        samples ([`~datasets.Dataset`]): Merged rows of `SAMPLE_FEATURES`.

    Raises:
        ValueError: If one of the two has no row.
    """
    columns = zip(samples["set"], samples["priority_class"], samples["injection"], samples["provenance"], strict=True)
    kinds = [_kind_of(*values) for values in columns]
    chosen = {kind: samples.select([index for index, own in enumerate(kinds) if own == kind]) for kind in KINDS}
    if missing := [kind for kind, rows in chosen.items() if len(rows) == 0]:
        raise ValueError(
            f"Of {len(samples)} rows, none is {' or '.join(missing)}. Name the merged data of both sets (stage2); "
            f"benign rows are clean and of {', '.join(BENIGN_CLASSES)}, harmful ones have their attack in the prompt."
        )
    return chosen


def _kind_of(subset: str, priority_class: str, injection: list[dict], provenance: dict) -> str | None:
    if subset == CIRCUIT_BREAKER:
        return None if provenance["redacted"] else "harmful"
    return "benign" if priority_class in BENIGN_CLASSES and not injection else None


def tokenize_tamper_rows(
    rows: Dataset, tokenizer: "PreTrainedTokenizerBase", count: int, seed: int, max_length: int
) -> tuple[Dataset, dict]:
    """Choose rows by a hash of their ids and tokenize them. Rows that are too long are passed over, none is truncated.

    Args:
        rows ([`~datasets.Dataset`]): Rows of `SAMPLE_FEATURES`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's tokenizer.
        count (`int`): Maximum number of rows.
        seed (`int`): Another seed chooses others.
        max_length (`int`): Maximum number of tokens of a row.

    Returns:
        `tuple[Dataset, dict]`: `input_ids` and `completion_mask` of each row, and how many rows these are: `rows`, of
        `available` ones, after `too_long`; and their number by `classes`.

    Raises:
        ValueError: If the rows were made for another model, or all are too long.
    """
    tokenized: list[dict] = []
    classes, too_long = Counter[str](), 0
    for index in chosen_order(rows, seed, key="id"):
        if len(tokenized) == count:
            break
        row = rows[index]
        check_rendering([row], tokenizer, "tampering")
        sample = chat.encode_sample(tokenizer, row)
        if len(sample.ids) > max_length:
            too_long += 1
            continue
        classes[row["priority_class"]] += 1
        mask = [0] * sample.prompt_length + [1] * len(sample.completion.ids)
        tokenized.append({"input_ids": sample.ids, "completion_mask": mask})
    if not tokenized:
        raise ValueError(f"All {too_long} rows to train on are longer than the {max_length} tokens of the model.")
    summary = {"rows": len(tokenized), "available": len(rows), "too_long": too_long, "classes": dict(classes)}
    return Dataset.from_list(tokenized), summary
