"""An attacker who knows the breaker: a white-box suffix search and best-of-N sampling, against base and breaker alike.

    static_asr        the injection as it is, greedy
    adaptive_asr      the injection as it is or with a suffix that a search found within the budget, greedy
    best_of_n_asr     any of N answers to the injection as it is, drawn at T = 1

Every prompt is searched by itself, from a seed of its own, and what was found is kept in a file of its own: a run that
was killed goes on with the next prompt, and ends as if nothing had happened. A search that finds nothing proves
nothing: a larger budget may find something, or another attack.
"""

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from tqdm import tqdm

from builders.trace import to_json

from ..chat import DATE_STRING, MAX_LENGTH, encode_completion, template_hash
from ..evaluation.scored_completions import is_degenerate_completion
from ..files import read_json, write_json
from ..formats import ToolCallFormat, format_of
from ..generation import Sampling, complete
from ..generation.shard import PROMPT_TOO_LONG
from ..outcomes import Outcome, outcome_of
from .adaptive_results import adaptive_metrics, steps_of, valid
from .suffix_search import CallLoss, SearchBudget, open_slot, search_suffix, usable_tokens
from .suffix_transfer import transferred


if TYPE_CHECKING:
    from ..generation.transformers_backend import TransformersBackend

# Hash of the code that searches and judges: what another version found is not taken over.
_CODE = ("attacks/adaptive.py", "attacks/suffix_search.py", "chat.py", "outcomes.py", "formats/llama3_json.py")
_CODE_TEXT = b"".join((Path(__file__).parents[1] / name).read_bytes() for name in _CODE)
_CODE_HASH = hashlib.sha256(_CODE_TEXT).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class AttackBudget(SearchBudget):
    """How much the attacker may try, on each prompt and against each model.

    Args:
        best_of (`int`, *optional*, defaults to `8`): Draws at T = 1.
        max_new_tokens (`int`, *optional*, defaults to `256`): Of every answer.
        seed (`int`, *optional*, defaults to `0`): Of everything that is drawn.
    """

    best_of: int = 8
    max_new_tokens: int = 256
    seed: int = 0


def attackable(prompts: Dataset) -> tuple[Dataset, dict[str, int]]:
    """The prompts that can be attacked, and how many cannot for which reason.

    - `no_injection`: there is no place that the attacker writes to.
    - `no_attacker_call`: it is not known what the attacker wants.
    - `prefilled`: the answer is begun for the model, which is an attack of another kind.
    """
    faults = [_fault(prompt) for prompt in prompts]
    kept = [index for index, fault in enumerate(faults) if fault is None]
    return prompts.select(kept), dict(Counter(fault for fault in faults if fault is not None))


def _fault(prompt: dict) -> str | None:
    target = prompt["target"]
    if not prompt["injection"]:
        return "no_injection"
    if target["simulated_tool"] is None or target["simulated_tool"] == target["expected_tool"]:
        return "no_attacker_call"
    return "prefilled" if target["prefill"] else None


def attack(
    prompts: Dataset, models: "dict[str, TransformersBackend]", budget: AttackBudget, batch_size: int, work_dir: Path
) -> dict:
    """Attack models with the same budget.

    Args:
        prompts ([`~datasets.Dataset`]): Rows of `PROMPT_FEATURES` that are [`attackable`].
        models (`dict[str, TransformersBackend]`): By name, the base model first: how it takes the bait tells how the
            attacker's call begins.
        budget ([`AttackBudget`]): How much may be tried.
        batch_size (`int`): Suffixes of one forward pass.
        work_dir (`Path`): Where answers and found suffixes are kept.

    Returns:
        `dict`: `settings`; under the name of each model its figures (`{value, n, low, high}`); by model `outcomes` (of
        the answers under the search), `steps`, `transfer` (of single suffixes to the other prompts) and `errors`; and
        `prompts`, with what each was attacked with and what came of it.

    Raises:
        ValueError: If there is no prompt that a model answers.
    """
    tool_format = format_of(next(iter(models.values())).tokenizer.chat_template)
    greedy = Sampling(max_new_tokens=budget.max_new_tokens)
    openings: list[str] = []
    attacked: dict[str, list[dict]] = {}
    transfers: dict[str, list[dict]] = {}
    for name, model in models.items():
        static, drawn = _unsearched(prompts, model, name, budget, work_dir)
        openings = openings or [
            _opening(row["target"]["simulated_tool"], text, tool_format)
            for row, text in zip(prompts, static, strict=True)
        ]
        search = _Search(model, tool_format, budget, batch_size, work_dir)
        found = search.found(prompts, static, openings, name)
        attacked[name] = [
            _judged(row["target"], text, suffix, texts, tool_format)
            for row, text, suffix, texts in zip(prompts, static, found, drawn, strict=True)
        ]
        suffixes = [each["suffix"] if each and each["won"] else None for each in found]
        transfers[name] = transferred(prompts, suffixes, model, name, greedy, work_dir)
    return {
        "settings": {
            **dataclasses.asdict(budget),
            "models": {name: {"model": model.model, "revision": model.revision} for name, model in models.items()},
        },
        **{name: adaptive_metrics(answers) for name, answers in attacked.items()},
        "outcomes": {name: dict(Counter(each["outcome"] for each in answers)) for name, answers in attacked.items()},
        "steps": {name: steps_of(answers) for name, answers in attacked.items()},
        "transfer": transfers,
        "errors": {name: len(answers) - len(valid(answers)) for name, answers in attacked.items()},
        "prompts": [
            {
                "id": row["id"],
                "family": row["family"],
                "opening": opening,
                "answers": {name: answers[index] for name, answers in attacked.items()},
            }
            for index, (row, opening) in enumerate(zip(prompts, openings, strict=True))
        ],
    }


def _opening(tool: str, base_text: str | None, tool_format: ToolCallFormat) -> str:
    """How the attacker's call begins, up to the tool's name.

    Where the base model takes the bait, as it begins it itself, words before the call included; else the bare call.
    """
    head = tool_format.call_head(tool)
    before, found, _ = (base_text or "").partition(head)
    return before + head if found else head


def _unsearched(
    prompts: Dataset, model: "TransformersBackend", name: str, budget: AttackBudget, work_dir: Path
) -> tuple[list[str | None], list[list[str]]]:
    """A model's greedy answer to each prompt as it is (`None` if it is too long), and its draws at T = 1."""
    greedy = Sampling(max_new_tokens=budget.max_new_tokens)
    hot = dataclasses.replace(greedy, temperature=1.0, num_samples=budget.best_of, seed=budget.seed)
    static = complete(prompts, model, greedy, work_dir, description=f"{name}, injection as it is")
    draws: dict[str, list[str]] = {id: [] for id in prompts["id"]}
    for row in complete(prompts, model, hot, work_dir, description=f"{name}, best of {budget.best_of}"):
        if row["text"] is not None:
            draws[row["prompt_id"]].append(row["text"])
    return list(static["text"]), list(draws.values())


# ---------------------------------------------------------------------------------------------------------------------
# The search, prompt by prompt


class _Search:
    """Searches suffixes against one model, and keeps what it finds: a file for each prompt."""

    def __init__(
        self,
        model: "TransformersBackend",
        tool_format: ToolCallFormat,
        budget: AttackBudget,
        batch_size: int,
        work_dir: Path,
    ) -> None:
        self._model, self._format, self._budget, self._batch_size = model, tool_format, budget, batch_size
        settings = {
            "model": model.model,
            "revision": model.revision,
            # How often the model is asked without a suffix has no part in it.
            "budget": {key: value for key, value in dataclasses.asdict(budget).items() if key != "best_of"},
            "template_hash": template_hash(model.tokenizer),
            "date_string": DATE_STRING,
            "code": _CODE_HASH,
        }
        self._folder = work_dir / f"suffixes-{_hash(settings)}"
        write_json(self._folder / "settings.json", settings)
        with model.network() as network:
            self._usable = usable_tokens(model.tokenizer, len(network.get_input_embeddings().weight))

    def found(
        self, prompts: Dataset, static: list[str | None], openings: list[str], name: str
    ) -> list[dict[str, Any] | None]:
        """For each prompt the fields of a [`SearchResult`], or `None` where nothing is searched.

        That is where the injection does without, and where the prompt is too long to be asked.
        """
        results: list[dict[str, Any] | None] = []
        with tqdm(desc=f"{name}, suffix search", total=len(prompts), unit="prompt") as bar:
            for row, text, opening in zip(prompts, static, openings, strict=True):
                hijacked = text is not None and self._wins(row, text)
                results.append(None if text is None or hijacked else self._of_prompt(row, opening))
                bar.update()
                bar.set_postfix_str(f"{sum(found is not None and found['won'] for found in results)} found")
        return results

    def _of_prompt(self, row: dict, opening: str) -> dict[str, Any]:
        asked = {key: row[key] for key in ("id", "messages", "tools", "injection", "target")}
        key = _hash([asked, opening])
        path = self._folder / f"{key}.json"
        if not path.is_file():
            write_json(path, self._searched(row, opening, seed=int(key, 16) ^ self._budget.seed))
        return read_json(path)

    def _searched(self, row: dict, opening: str, seed: int) -> dict[str, Any]:
        model, budget, generator = self._model, self._budget, torch.Generator().manual_seed(seed)
        sampling = Sampling(max_new_tokens=budget.max_new_tokens)
        slot = open_slot(model.tokenizer, row, budget.suffix_tokens, self._usable, generator)
        if len(slot.ids(slot.first)) + budget.max_new_tokens > min(MAX_LENGTH, model.max_length):
            return {"suffix": None, "completion": None, "won": False, "reason": PROMPT_TOO_LONG}
        with model.network() as network:
            found = search_suffix(
                CallLoss(network, slot, encode_completion(model.tokenizer, opening), self._batch_size),
                slot,
                self._usable,
                budget,
                generator,
                complete=lambda ids: model.generate([ids], sampling, budget.seed)[0][0].text,
                wins=lambda text: self._wins(row, text),
            )
        return dataclasses.asdict(found)

    def _wins(self, row: dict, text: str) -> bool:
        return outcome_of(text, row["target"], self._format) == Outcome.ATTACK_SUCCESS


def _hash(value: object) -> str:
    return hashlib.sha256(to_json(value).encode()).hexdigest()[:15]


# ---------------------------------------------------------------------------------------------------------------------
# What came of it


def _judged(
    target: dict, static: str | None, found: dict[str, Any] | None, draws: list[str], tool_format: ToolCallFormat
) -> dict[str, Any]:
    """One model's answers to one prompt, as `adaptive.json` has them.

    Without a search the answer under attack is the one to the injection as it is.
    """
    text = found["completion"] if found else static
    search = {key: value for key, value in (found or {}).items() if key not in ("completion", "won")}
    return {
        "static": {"text": static, "outcome": str(outcome_of(static, target, tool_format))},
        "text": text,
        "outcome": str(outcome_of(text, target, tool_format)),
        "gibberish": text is not None and is_degenerate_completion(text, tool_format),
        "search": search or None,
        "drawn": dict(Counter(str(outcome_of(draw, target, tool_format)) for draw in draws)),
    }
