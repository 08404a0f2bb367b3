"""Tasks of lm-eval (EleutherAI's language model evaluation harness), run by the library itself.

It gets the network that is loaded here, with the adapter of a breaker active or with none. Tasks that generate, such
as IFEval, are asked through the chat template; tasks by log-likelihood, such as MMLU, as plain text. Both are the
harness's usual way for a chat model, but leaderboards differ: compare a breaker with its base here, not with figures
from elsewhere.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ...chat import DATE_STRING
from ..compare import BASE
from ..statistics import Z_95, mcnemar
from .finished_parts import FinishedParts


if TYPE_CHECKING:
    from ...generation.transformers_backend import TransformersBackend

_INSTALL = "pip install 'cb-datasets[lm-eval]'"


@dataclass(frozen=True)
class LmEvalTask:
    """A task, or a group of tasks.

    Args:
        name (`str`): Its name in lm-eval.
        manager (`lm_eval.tasks.TaskManager`): Where lm-eval finds it.
        generates (`bool`): Whether the model writes answers, instead of scoring given ones.
    """

    name: str
    manager: Any
    generates: bool


def load_tasks(names: Iterable[str]) -> list[LmEvalTask]:
    """Load tasks with their data, so that what is missing is an error before a model is loaded.

    Args:
        names (`Iterable[str]`): Names of tasks or groups, or paths of YAML files with tasks of one's own.

    Raises:
        ValueError: If lm-eval is not installed, or does not load a task.
    """
    tasks = []
    for name in dict.fromkeys(names):
        task_manager = _import_lm_eval()
        try:
            own = Path(name) if name.endswith((".yaml", ".yml")) else None
            task = yaml.load(own.read_text(encoding="utf-8"), _AnyTag)["task"] if own else name
            # Without the library's own tasks, whose thousands of files take it half a minute to list.
            manager = task_manager(include_path=str(own.parent), include_defaults=False) if own else task_manager()
            loaded = manager.load([task])["tasks"].values()
        except Exception as error:  # the library and the data libraries below it raise errors of many kinds
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(
                f"--lm-eval {name}: lm-eval does not load it ({reason}). Tasks download their data: the first time, "
                "run with the network and HF_HUB_OFFLINE=0. `lm-eval ls tasks` lists names."
            ) from error
        kinds = {each.get_config("output_type") == "generate_until" for each in loaded}
        if len(kinds) != 1:
            raise ValueError(f"--lm-eval {name}: it has tasks that generate and tasks that do not. Name them singly.")
        tasks.append(LmEvalTask(task, manager, kinds.pop()))
    return tasks


class _AnyTag(yaml.SafeLoader):
    """Reads the YAML of a task for its name: lm-eval's own tags, `!function`, are left unread."""


_AnyTag.add_multi_constructor("!", lambda loader, suffix, node: None)


def _import_lm_eval() -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ValueError(f"--lm-eval needs the package lm-eval ({error}): {_INSTALL}.") from error
    return TaskManager


def measure_tasks(
    tasks: Iterable[LmEvalTask],
    models: "Mapping[str, TransformersBackend]",
    batch_size: int,
    limit: int | None,
    parts: FinishedParts,
) -> dict:
    """`{task: {n, generates, few_shot, version, models, changed}}`: metrics by model, and McNemar's test on the base.

    Args:
        tasks (`Iterable[LmEvalTask]`): The tasks.
        models (`Mapping[str, TransformersBackend]`): The base model and breakers by name.
        batch_size (`int`): Sequences per forward pass.
        limit (`int`, *optional*): Maximum number of questions of each task, of each in a group; for trials.
        parts ([`FinishedParts`]): Finished parts of an earlier run; a task for one model is one.
    """
    measured = {}
    for task in tasks:
        by_model = {
            name: parts.json(f"lm_eval-{task.name}-{limit}-{name}", partial(run_task, task, model, batch_size, limit))
            for name, model in models.items()
        }
        base = by_model[BASE]
        measured[task.name] = {
            **{key: base[key] for key in ("n", "few_shot", "version")},
            "limit": limit,
            "generates": task.generates,
            "models": {name: own["metrics"] for name, own in by_model.items()},
            "changed": {
                name: {
                    metric: mcnemar(*(list(each.values()) for each in (base["hits"][metric], hits)))
                    for metric, hits in own["hits"].items()
                }
                for name, own in by_model.items()
                if name != BASE
            },
        }
    return measured


def run_task(task: LmEvalTask, model: "TransformersBackend", batch_size: int, limit: int | None) -> dict:
    """`{n, few_shot, version, metrics, hits}` of a task for one model.

    `hits` has, for each metric that is 0 or 1 for a question, whether each question is one.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    # It warns that the network is given and not loaded, which is meant.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with model.network() as network:
        results = lm_eval.simple_evaluate(
            HFLM(
                pretrained=network,
                tokenizer=model.tokenizer,
                batch_size=batch_size,
                chat_template_args={"date_string": DATE_STRING},
            ),
            tasks=[task.name],
            task_manager=task.manager,
            limit=limit,
            apply_chat_template=task.generates,
        )
    metrics = dict(_metrics(results["results"][task.name]))
    return {
        "n": sum(counts["effective"] for counts in results["n-samples"].values()),
        "few_shot": sorted({shots for shots in results["n-shot"].values() if isinstance(shots, int)}),
        "version": results["versions"].get(task.name),
        "metrics": metrics,
        "hits": {name: hits for name in metrics if (hits := _hits(results["samples"], name))},
    }


def _metrics(results: Mapping[str, Any]) -> Iterable[tuple[str, dict]]:
    """`{value, low, high}` of each metric, with the interval of the library's standard error."""
    for key, value in results.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = results.get(f"{name}_stderr,{filtered}")
        spread = Z_95 * error if isinstance(error, int | float) else None
        low, high = (None, None) if spread is None else (value - spread, value + spread)
        yield name if filtered == "none" else f"{name} ({filtered})", {"value": value, "low": low, "high": high}


def _hits(samples: Mapping[str, list[dict]], metric: str) -> dict[str, bool]:
    """Whether each question is a hit, by its name; empty if the metric is not 0 or 1 for every question."""
    name, _, filtered = metric.removesuffix(")").partition(" (")
    values = {
        f"{task}/{sample['doc_id']}": sample.get(name)
        for task, own in sorted(samples.items())
        for sample in sorted(own, key=lambda sample: sample["doc_id"])
        if sample.get("filter", "none") == (filtered or "none")
    }
    if not all(value in (0, 1) for value in values.values()):
        return {}
    return {name: bool(value) for name, value in values.items()}
