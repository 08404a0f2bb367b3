"""An adaptive attacker: white-box suffix search and best-of-N sampling, with the same budget for base and breaker.

    static_asr        greedy decoding, with the unchanged injection
    adaptive_asr      greedy decoding, with the unchanged injection or a suffix that the search found within the budget
    best_of_n_asr     any of N samples at T = 1, with the unchanged injection

Each prompt is searched separately with its own seed, and its result is written to its own file: an interrupted run
resumes at the next prompt and gives the same results. A failed search is no proof of robustness: a larger budget or
another attack may succeed.
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

from ..chat import DATE_STRING, MAX_LENGTH, RENDERER_HASH, encode_completion, template_hash
from ..evaluation.scored_completions import is_degenerate_completion
from ..files import read_json, write_json
from ..formats import ToolCallFormat, format_of
from ..generation import Sampling, complete
from ..generation.shard import PROMPT_TOO_LONG
from ..outcomes import Outcome, outcome_of
from .adaptive_results import adaptive_metrics, search_steps, without_errors
from .suffix_search import CallLoss, SearchBudget, make_slot, search_suffix, usable_tokens
from .suffix_transfer import measure_transfer


if TYPE_CHECKING:
    from ..generation.transformers_backend import TransformersBackend

# Hash of the source that searches and classifies completions: results of another version are not reused.
_CODE = ("attacks/adaptive.py", "attacks/suffix_search.py", "outcomes.py", "formats/llama3_json.py")
_CODE_TEXT = b"".join((Path(__file__).parents[1] / name).read_bytes() for name in _CODE) + RENDERER_HASH.encode()
_CODE_HASH = hashlib.sha256(_CODE_TEXT).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class AttackBudget(SearchBudget):
    """Limits of the attacker, per prompt and model.

    Args:
        best_of (`int`, *optional*, defaults to `8`): Samples at T = 1.
        max_new_tokens (`int`, *optional*, defaults to `256`): Maximum length of a completion.
        seed (`int`, *optional*, defaults to `0`): Seed of the samples and searches.
    """

    best_of: int = 8
    max_new_tokens: int = 256
    seed: int = 0


def select_attackable(prompts: Dataset) -> tuple[Dataset, dict[str, int]]:
    """Select the prompts that can be attacked, and count the others by reason.

    - `no_injection`: the prompt has no text of the attacker's.
    - `no_attacker_call`: the tool that the attacker wants called is unknown, or is the expected one.
    - `prefilled`: the completion is prefilled, which is another type of attack.
    """
    reasons = [_drop_reason(prompt) for prompt in prompts]
    kept = [index for index, reason in enumerate(reasons) if reason is None]
    return prompts.select(kept), dict(Counter(reason for reason in reasons if reason is not None))


def _drop_reason(prompt: dict) -> str | None:
    target = prompt["target"]
    if not prompt["injection"]:
        return "no_injection"
    if target["simulated_tool"] is None or target["simulated_tool"] == target["expected_tool"]:
        return "no_attacker_call"
    return "prefilled" if target["prefill"] else None


def attack(
    prompts: Dataset, models: "dict[str, TransformersBackend]", budget: AttackBudget, batch_size: int, work_dir: Path
) -> dict:
    """Attack every model on every prompt, with the same budget.

    Args:
        prompts ([`~datasets.Dataset`]): Rows of `PROMPT_FEATURES`, selected by [`select_attackable`].
        models (`dict[str, TransformersBackend]`): Models by name, the base model first: its completions define the
            openings that the searches aim at.
        budget ([`AttackBudget`]): Limits of the attacker.
        batch_size (`int`): Suffixes per forward pass.
        work_dir (`Path`): Folder of finished shards and searches.

    Returns:
        `dict`: `settings`; the metrics (`{value, n, low, high}`) under each model's name; by model `outcomes` (under
        the search), `steps`, `transfer` (of single suffixes to the other prompts) and `errors`; and `prompts`, with
        the answers of each model.

    Raises:
        ValueError: If every prompt is too long for a model.
    """
    tool_format = format_of(next(iter(models.values())).tokenizer.chat_template)
    greedy = Sampling(max_new_tokens=budget.max_new_tokens)
    openings: list[str] = []
    answers: dict[str, list[dict]] = {}
    transfers: dict[str, list[dict]] = {}
    for name, model in models.items():
        static_texts, samples = _answers_without_suffix(prompts, model, name, budget, work_dir)
        # Set by the first model, the base, and shared: every model is searched for the same openings.
        openings = openings or [
            _opening(row["target"]["simulated_tool"], text, tool_format)
            for row, text in zip(prompts, static_texts, strict=True)
        ]
        search = _SuffixSearch(model, tool_format, budget, batch_size, work_dir)
        results = search.search_prompts(prompts, static_texts, openings, name)
        answers[name] = [
            _answer_record(row["target"], static_text, result, texts, tool_format)
            for row, static_text, result, texts in zip(prompts, static_texts, results, samples, strict=True)
        ]
        # Transfer is measured only for suffixes that succeed on their own prompt.
        suffixes = [result["suffix"] if result and result["won"] else None for result in results]
        transfers[name] = measure_transfer(prompts, suffixes, model, name, greedy, work_dir)
    revisions = {name: {"model": model.model, "revision": model.revision} for name, model in models.items()}
    return {
        "settings": {**dataclasses.asdict(budget), "models": revisions},
        **_model_results(answers, transfers),
        "prompts": [
            {
                "id": row["id"],
                "family": row["family"],
                "opening": opening,
                "answers": {name: records[index] for name, records in answers.items()},
            }
            for index, (row, opening) in enumerate(zip(prompts, openings, strict=True))
        ],
    }


def _opening(tool: str, base_text: str | None, tool_format: ToolCallFormat) -> str:
    """Opening of the attacker's call, up to and including the tool's name.

    If the base model makes the call, the opening is the beginning of its completion, with any text before the call.
    """
    head = tool_format.call_head(tool)
    before, separator, _ = (base_text or "").partition(head)
    return before + head if separator else head


def _answers_without_suffix(
    prompts: Dataset, model: "TransformersBackend", name: str, budget: AttackBudget, work_dir: Path
) -> tuple[list[str | None], list[list[str]]]:
    """Per prompt, a model's greedy completion (`None` for an overlong prompt), and its samples at T = 1."""
    greedy = Sampling(max_new_tokens=budget.max_new_tokens)
    best_of_n = dataclasses.replace(greedy, temperature=1.0, num_samples=budget.best_of, seed=budget.seed)
    static = complete(prompts, model, greedy, work_dir, description=f"{name}, unchanged injection")
    samples: dict[str, list[str]] = {id: [] for id in prompts["id"]}
    for row in complete(prompts, model, best_of_n, work_dir, description=f"{name}, best of {budget.best_of}"):
        if row["text"] is not None:
            samples[row["prompt_id"]].append(row["text"])
    return list(static["text"]), list(samples.values())


# ---------------------------------------------------------------------------------------------------------------------
# The search, prompt by prompt


class _SuffixSearch:
    """Suffix search against one model, with the result for each prompt cached in a file."""

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
            # `best_of` does not affect the search: results stay valid when it changes.
            "budget": {key: value for key, value in dataclasses.asdict(budget).items() if key != "best_of"},
            "template_hash": template_hash(model.tokenizer),
            "date_string": DATE_STRING,
            "code": _CODE_HASH,
        }
        self._folder = work_dir / f"suffixes-{_hash(settings)}"
        write_json(self._folder / "settings.json", settings)
        with model.network() as network:
            self._usable = usable_tokens(model.tokenizer, len(network.get_input_embeddings().weight))

    def search_prompts(
        self, prompts: Dataset, static_texts: list[str | None], openings: list[str], name: str
    ) -> list[dict[str, Any] | None]:
        """Search a suffix for each prompt, and return the fields of the [`SearchResult`].

        `None` means that there was no search: the injection succeeds without a suffix, or the prompt is too long.
        """
        results: list[dict[str, Any] | None] = []
        with tqdm(desc=f"{name}, suffix search", total=len(prompts), unit="prompt") as bar:
            for row, text, opening in zip(prompts, static_texts, openings, strict=True):
                hijacked = text is not None and self._is_success(row, text)
                results.append(None if text is None or hijacked else self._cached_search(row, opening))
                bar.update()
                bar.set_postfix_str(f"{sum(result is not None and result['won'] for result in results)} found")
        return results

    def _cached_search(self, row: dict, opening: str) -> dict[str, Any]:
        # The key covers everything the search depends on besides the folder's settings; the seed is derived from it,
        # so that the result does not depend on which other prompts are attacked.
        inputs = {key: row[key] for key in ("id", "messages", "tools", "injection", "target")}
        key = _hash([inputs, opening])
        path = self._folder / f"{key}.json"
        if not path.is_file():
            write_json(path, self._search(row, opening, seed=int(key, 16) ^ self._budget.seed))
        return read_json(path)

    def _search(self, row: dict, opening: str, seed: int) -> dict[str, Any]:
        model, budget, generator = self._model, self._budget, torch.Generator().manual_seed(seed)
        sampling = Sampling(max_new_tokens=budget.max_new_tokens)
        slot = make_slot(model.tokenizer, row, budget.suffix_tokens, self._usable, generator)
        # The prompt fits without a suffix, since it has a static answer; with one it may not.
        if len(slot.prompt_ids(slot.initial)) + budget.max_new_tokens > min(MAX_LENGTH, model.max_length):
            return {"suffix": None, "completion": None, "won": False, "reason": PROMPT_TOO_LONG}
        with model.network() as network:
            result = search_suffix(
                CallLoss(network, slot, encode_completion(model.tokenizer, opening), self._batch_size),
                slot,
                self._usable,
                budget,
                generator,
                complete=lambda ids: model.generate([ids], sampling, budget.seed)[0][0].text,
                is_success=lambda text: self._is_success(row, text),
            )
        return dataclasses.asdict(result)

    def _is_success(self, row: dict, text: str) -> bool:
        return outcome_of(text, row["target"], self._format) == Outcome.ATTACK_SUCCESS


def _hash(value: object) -> str:
    return hashlib.sha256(to_json(value).encode()).hexdigest()[:15]


# ---------------------------------------------------------------------------------------------------------------------
# Contents of `adaptive.json`


def _model_results(answers: dict[str, list[dict]], transfers: dict[str, list[dict]]) -> dict[str, Any]:
    """Metrics under each model's name, then the other results by model."""
    return {
        **{name: adaptive_metrics(records) for name, records in answers.items()},
        "outcomes": {name: dict(Counter(each["outcome"] for each in records)) for name, records in answers.items()},
        "steps": {name: search_steps(records) for name, records in answers.items()},
        "transfer": transfers,
        "errors": {name: len(records) - len(without_errors(records)) for name, records in answers.items()},
    }


def _answer_record(
    target: dict,
    static_text: str | None,
    result: dict[str, Any] | None,
    samples: list[str],
    tool_format: ToolCallFormat,
) -> dict[str, Any]:
    """One model's answers to one prompt. Without a search, the answer under attack is the static one."""
    text = result["completion"] if result else static_text
    search = {key: value for key, value in (result or {}).items() if key not in ("completion", "won")}
    return {
        "static": {"text": static_text, "outcome": str(outcome_of(static_text, target, tool_format))},
        "text": text,
        "outcome": str(outcome_of(text, target, tool_format)),
        "gibberish": text is not None and is_degenerate_completion(text, tool_format),
        "search": search or None,
        "drawn": dict(Counter(str(outcome_of(sample, target, tool_format)) for sample in samples)),
    }
