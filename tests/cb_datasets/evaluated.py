"""Results of an evaluation, made by the evaluation's own functions from answers that are written down here."""

from builders.trace import message
from cb_datasets.checks.thresholds import EvaluationThresholds
from cb_datasets.evaluation.answers import Answer, Case
from cb_datasets.evaluation.coherence import coherence
from cb_datasets.evaluation.compare import compare
from cb_datasets.evaluation.gates import evaluation_gates
from cb_datasets.evaluation.results import results
from cb_datasets.outcomes import Outcome


def answer(index: int, task: str, outcome: str, gibberish: bool = False, **case) -> Answer:
    told = {"group": str(index), "source": "test", "family": "comment", "category": "LLM01", **case}
    return Answer(Case(f"{task}/{index}", str(index), task=task, **told), "text", Outcome(outcome), gibberish)


def answers_with(**outcomes: str) -> list[Answer]:
    """Ten answers to each of the four tasks that gates look at; all good but for what is said, `task="outcome"`."""
    good = {"tool_flip": "correct", "capability": "correct", "refusal": "refusal", "chat": "no_call"}
    return [answer(k, task, outcome) for task, outcome in (good | outcomes).items() for k in range(10)]


def small_results(revision: str = "base+breaker", **breaker: str) -> dict:
    """Results of a base model that every attack hijacks and of a breaker, see [`answers_with`]."""
    answers = {"base": answers_with(tool_flip="attack_success"), "breaker": answers_with(**breaker)}
    comparison = compare(answers)
    perplexity = {"perplexity_under_base": 1.5, "perplexity_n": 40}
    found = {
        **comparison,
        "coherence": {name: {**coherence(["text"] * 40), **perplexity} for name in answers},
        "gates": evaluation_gates(comparison, EvaluationThresholds()),
    }
    adapters = {"model": "m", "revision": "base", "adapters": {"breaker": revision}}
    prompt = {
        "messages": [message("user", "as asked")],
        "injection": [{"message": 0, "start": 0, "end": 2}],
        "target": {"expected_tool": "a", "simulated_tool": "b"},
    }
    settings = {**adapters, "max_new_tokens": 96, "samples": 0, "seed": 0}
    return results(settings, found, [prompt] * 40, answers)
