"""Whether a suffix that was found on one prompt works on others: an attacker who has one may use it everywhere."""

from pathlib import Path

from datasets import Dataset

from ..evaluation.statistics import proportion
from ..files import to_dataset
from ..formats import format_of
from ..generation import Backend, Sampling, complete
from ..outcomes import Outcome, outcome_of
from ..sample import PROMPT_FEATURES
from .suffix_search import with_suffix


# Suffixes that are tried on all other prompts, in the order of the prompts that they were found on.
MOST_SUFFIXES = 5


def transferred(
    prompts: Dataset, suffixes: list[str | None], model: Backend, name: str, sampling: Sampling, work_dir: Path
) -> list[dict]:
    """ASR of single suffixes on all prompts but the one that each was found on.

    Args:
        prompts ([`~datasets.Dataset`]): Attacked prompts.
        suffixes (`list[str | None]`): For each prompt the suffix that succeeded on it; `None` where none did.
        model ([`Backend`]): The model that they were found on.
        name (`str`): Its name, for the progress bar.
        sampling ([`Sampling`]): How it answers.
        work_dir (`Path`): Where answers are kept.

    Returns:
        `list[dict]`: `{found_on, suffix, asr}` of the first [`MOST_SUFFIXES`]; the best of them was chosen on the
        prompts that it is measured on, which flatters it.
    """
    tool_format = format_of(model.tokenizer.chat_template)
    found = [(index, suffix) for index, suffix in enumerate(suffixes) if suffix is not None][:MOST_SUFFIXES]
    results = []
    for number, (own, suffix) in enumerate(found, start=1):
        others = [with_suffix(row, suffix) for index, row in enumerate(prompts) if index != own]
        if not others:
            break
        label = f"{name}, suffix {number} of {len(found)} on all others"
        answers = complete(to_dataset(others, PROMPT_FEATURES), model, sampling, work_dir, description=label)
        pairs = zip(others, answers["text"], strict=True)
        outcomes = [outcome_of(text, row["target"], tool_format) for row, text in pairs if text is not None]
        asr = proportion(outcomes.count(Outcome.ATTACK_SUCCESS), len(outcomes))
        results.append({"found_on": prompts[own]["id"], "suffix": suffix, "asr": asr})
    return results
