"""Figures that others published of the same benchmarks, beside those of an evaluation.

    InjecAgent, direct harm, base wording    here: base       -       -       74.1%   this evaluation
                                             Llama 3.1 8B     -       -       73%     recorded outputs, valid only
                                             GPT-4o           -       -       4%      recorded outputs, valid only

They were not run here: other prompts around the same cases, another parser, other versions of a model. They say in
which range a benchmark's figures lie, and not which of two models is the better one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..evaluation.metric_table import is_hit
from ..evaluation.results import model_names, scored_completion
from ..evaluation.statistics import proportion
from .live_section import LIVE, live_summary
from .section import Section


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, or a part of one, with the figures that were published.

    Args:
        name (`str`): Its name in the table.
        source (`str`): Who published the figures.
        published (`tuple`): `(model, utility, utility under attack, ASR)` in per cent, `None` where none is stated.
        metric (`str`, *optional*): The metric of an evaluation that is its ASR; live runs where there is none.
        prompts (`Mapping[str, str]`): The prompts that the metric is of: fields of a prompt and their values.
        suites (`frozenset[str]`): Suites of live runs that are part of it.
    """

    name: str
    source: str
    published: tuple[tuple[str, float | None, float | None, float | None], ...]
    metric: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    suites: frozenset[str] = frozenset()


_INJECAGENT = "InjecAgent (Zhan et al. 2024, arXiv 2403.02691), outputs recorded by xInjecAgent, valid ones only"

BENCHMARKS = (
    Benchmark(
        "InjecAgent, direct harm, base",
        _INJECAGENT,
        (
            ("Llama 3.1 8B", None, None, 73),
            ("Llama 3 70B", None, None, 59),
            ("Mistral Small 24B", None, None, 57),
            ("GPT-4.1", None, None, 5),
            ("GPT-4o", None, None, 4),
        ),
        "injecagent_asr_valid",
        {"category": "dh", "family": "base"},
    ),
    Benchmark(
        "InjecAgent, direct harm, enhanced",
        _INJECAGENT,
        (("Llama 3.1 8B", None, None, 97),),
        "injecagent_asr_valid",
        {"category": "dh", "family": "enhanced"},
    ),
    Benchmark(
        "InjecAgent, data stealing, base",
        _INJECAGENT,
        (("Llama 3.1 8B", None, None, 82),),
        "injecagent_asr_valid",
        {"category": "ds", "family": "base"},
    ),
    Benchmark(
        "InjecAgent, data stealing, enhanced",
        _INJECAGENT,
        (("Llama 3.1 8B", None, None, 98),),
        "injecagent_asr_valid",
        {"category": "ds", "family": "enhanced"},
    ),
    Benchmark(
        "InjecAgent, all cases",
        "Meta SecAlign (Chen et al. 2025, arXiv 2507.02735); the trained attacker is PISmith's",
        (
            ("Llama 3.3 70B", None, None, 53.8),
            ("Meta-SecAlign-70B", None, None, 0.5),
            ("Meta-SecAlign-8B", None, None, 0),
            ("Meta-SecAlign-8B, trained attacker", None, None, 99),
        ),
        "injecagent_asr",
    ),
    Benchmark(
        "LLMail-Inject, submissions",
        "LLMail-Inject (Abdelnabi et al. 2025, arXiv 2506.09956): 3,324 of 461,640, models behind defences",
        (("Phi-3 and GPT-4o mini", None, None, 100 * 3324 / 461640),),
        "llmail_asr",
    ),
    Benchmark(
        "AgentDojo",
        "AgentDojo (Debenedetti et al. 2024, arXiv 2406.13352) and its results page; Meta SecAlign (arXiv 2507.02735)",
        (
            ("GPT-4o", 69, 50, 48),
            ("GPT-4o, tool_filter", 72, 56, 7),
            ("GPT-4o, repeat_user_prompt", 85, 67, 28),
            ("GPT-4o, spotlighting", 72, 56, 42),
            ("GPT-4o, pi_detector", 41, 21, 8),
            ("Llama 3 70B", 34, 18, 26),
            ("Llama 3.3 70B", 60, None, 15),
            ("Meta-SecAlign-70B", 85, None, 2),
        ),
        suites=frozenset({"banking", "slack", "travel", "workspace"}),
    ),
    Benchmark(
        "AgentDyn",
        "AgentDyn (Li et al. 2026, arXiv 2602.03117): 60 clean and 560 attacked runs",
        (
            ("GPT-4o", 53, 55, 39),
            ("GPT-5 mini", 65, 65, 0.4),
            ("Gemini 2.5 Pro", 53, 48, 22),
            ("Meta-SecAlign-70B", 55, 54, 9),
            ("Meta-SecAlign-8B", 5, 7, 6),
            ("Llama 3.3 70B", 10, 6, 13),
            ("GPT-4o, DRIFT", 30, 27, 0.9),
            ("GPT-4o, Progent", 7, 6, 1.8),
            ("GPT-4o, tool_filter", 8, 5, 4.5),
        ),
        suites=frozenset({"shopping", "github", "dailylife"}),
    ),
)

_COLUMNS = ["model", "utility \u2191", "utility under attack \u2191", "ASR \u2193", "measured"]

_EXPLAINED = (
    "In per cent. Figures that others published were not run here: prompts, parsers and versions of models differ, so "
    "they say in which range a benchmark's figures lie. A benchmark is shown if it was evaluated here."
)


def published_sections(results: dict, attack_results: Mapping[str, dict]) -> list[Section]:
    """The section with published figures of the benchmarks that were evaluated here; none if none was.

    Args:
        results (`dict`): The results of the evaluation.
        attack_results (`Mapping[str, dict]`): Results of other commands by file, live runs among them.
    """
    live = live_summary(attack_results, results["settings"])
    suites = attack_results[LIVE]["suites"] if live else []
    ours = {
        benchmark.name: list(_measured(benchmark, results, live["metrics"] if live else {}, suites))
        for benchmark in BENCHMARKS
    }
    shown = [benchmark for benchmark in BENCHMARKS if ours[benchmark.name]]
    if not shown:
        return []
    rows: list[tuple[str, ...]] = []
    for benchmark in shown:
        rows += [(benchmark.name, *row) for row in ours[benchmark.name]]
        rows += [(benchmark.name, *_published(*figures)) for figures in benchmark.published]
    sources = "; ".join(dict.fromkeys(benchmark.source for benchmark in shown))
    return [Section("published", "Beside published figures", [_EXPLAINED, f"From: {sources}."], _COLUMNS, rows)]


def _published(model: str, *figures: float | None) -> tuple[str, ...]:
    return model, *("-" if figure is None else f"{figure:.3g}" for figure in figures), "published, not run here"


def _measured(
    benchmark: Benchmark, results: dict, live: Mapping[str, dict], suites: list[str]
) -> Iterator[tuple[str, ...]]:
    """A row for each model that was evaluated on the benchmark here."""
    if benchmark.metric is not None:
        for model in model_names(results):
            answers = (scored_completion(record, model) for record in _select(results["prompts"], benchmark.prompts))
            if hits := [hit for answer in answers if (hit := is_hit(benchmark.metric, answer)) is not None]:
                yield model, "-", "-", _percent(proportion(sum(hits), len(hits))), f"here, n = {len(hits)}"
    elif suites and benchmark.suites.issuperset(suites):
        for model in (name for name in model_names(results) if name in live):
            rates = [live[model].get(name) for name in ("utility", "utility_under_attack", "targeted_asr")]
            counts = " / ".join(str(rate["n"]) for rate in rates[:2] if rate)
            yield model, *map(_percent, rates), f"here, n = {counts}: {', '.join(suites)}"


def _select(records: list[dict], wanted: Mapping[str, str]) -> list[dict]:
    return [record for record in records if all(record[name] == value for name, value in wanted.items())]


def _percent(rate: dict | None) -> str:
    return "-" if rate is None else f"{100 * rate['value']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
