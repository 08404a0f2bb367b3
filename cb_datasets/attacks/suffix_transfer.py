"""Transfer of suffixes: attack success of a suffix found on one prompt on all other prompts."""

from pathlib import Path

from datasets import Dataset

from ..evaluation.statistics import proportion
from ..files import to_dataset
from ..formats import format_of
from ..generation import Backend, Sampling, complete
from ..outcomes import Outcome, outcome_of
from ..sample import PROMPT_FEATURES
from .suffix_search import with_suffix


# The first suffixes, in the order of their prompts, are evaluated on all other prompts.
MAX_SUFFIXES = 5


def measure_transfer(
    prompts: Dataset, suffixes: list[str | None], model: Backend, name: str, sampling: Sampling, work_dir: Path
) -> list[dict]:
    """ASR of each successful suffix on all prompts except the one it was found on.

    Args:
        prompts ([`~datasets.Dataset`]): Attacked prompts.
        suffixes (`list[str | None]`): For each prompt, the suffix that succeeded on it, or `None`.
        model ([`Backend`]): The model that the suffixes were searched on.
        name (`str`): Name of the model, for the progress bar.
        sampling ([`Sampling`]): Sampling parameters of the answers.
        work_dir (`Path`): Folder of finished shards.

    Returns:
        `list[dict]`: `{found_on, suffix, asr}` of the first [`MAX_SUFFIXES`]. The maximum of these rates is an
        optimistic estimate, since the suffix is selected on the prompts that it is evaluated on.
    """
    tool_format = format_of(model.tokenizer.chat_template)
    successful = [(index, suffix) for index, suffix in enumerate(suffixes) if suffix is not None][:MAX_SUFFIXES]
    results = []
    for number, (source_index, suffix) in enumerate(successful, start=1):
        others = [with_suffix(row, suffix) for index, row in enumerate(prompts) if index != source_index]
        if not others:
            break
        label = f"{name}, suffix {number} of {len(successful)} on all others"
        completions = complete(to_dataset(others, PROMPT_FEATURES), model, sampling, work_dir, description=label)
        pairs = zip(others, completions["text"], strict=True)
        outcomes = [outcome_of(text, row["target"], tool_format) for row, text in pairs if text is not None]
        asr = proportion(outcomes.count(Outcome.ATTACK_SUCCESS), len(outcomes))
        results.append({"found_on": prompts[source_index]["id"], "suffix": suffix, "asr": asr})
    return results
