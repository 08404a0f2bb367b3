"""Published figures: shown beside what was evaluated here, with its own rate for each part of a benchmark."""

from cb_datasets.evaluation.metric_table import METRICS
from cb_datasets.evaluation.results import make_results
from cb_datasets.report.live_section import LIVE
from cb_datasets.report.published_figures import BENCHMARKS, published_sections
from tests.cb_datasets.fake_results import scored, small_live, small_results


PROMPT = {"messages": [], "injection": [], "target": {}}


def results_of(**completions):
    settings = {"adapters": {"breaker": "base+breaker"}}
    return make_results(settings, {}, [PROMPT] * len(completions["base"]), completions)


def case(index, outcome, kind, family="base"):
    return scored(index, "injecagent", outcome, category=kind, family=family, place="tool result")


def rows_of(section, benchmark):
    return [row[1:] for row in section.rows if row[0] == benchmark]


def test_each_part_has_its_own_rate_beside_what_was_published():
    base = [
        case(0, "attack_success", "dh"),
        case(1, "correct", "dh"),
        case(2, "malformed", "dh"),  # no valid output
        case(3, "attack_success", "ds"),
    ]
    breaker = [case(index, "correct", kind) for index, kind in enumerate(("dh", "dh", "dh", "ds"))]
    [section] = published_sections(results_of(base=base, breaker=breaker), {})
    ours_base, ours_breaker, *others = rows_of(section, "InjecAgent, direct harm, base")
    assert ours_base[0] == "base" and ours_base[3].startswith("50.0 [") and ours_base[4] == "here, n = 2"
    assert ours_breaker[0] == "breaker" and ours_breaker[3].startswith("0.0 [") and ours_breaker[4] == "here, n = 3"
    assert ("Llama 3.1 8B", "-", "-", "73", "published, not run here") in others
    assert rows_of(section, "InjecAgent, data stealing, base")[0][3].startswith("100.0 [")
    assert rows_of(section, "InjecAgent, all cases")[0][3].startswith("50.0 ["), "of all outputs"
    assert not rows_of(section, "InjecAgent, direct harm, enhanced") and not rows_of(section, "AgentDojo")
    assert "arXiv 2403.02691" in section.paragraphs[1] and "2602.03117" not in section.paragraphs[1]


def test_live_runs_stand_beside_the_benchmark_of_their_suites():
    results, live = small_results(), small_live()
    assert published_sections(results, {LIVE: {**live, "suites": ["office_test_0"]}}) == []
    [section] = published_sections(results, {LIVE: {**live, "suites": ["banking", "slack"]}})
    ours = rows_of(section, "AgentDojo")[0]
    assert ours[0] == "base" and "banking, slack" in ours[4] and "%" not in "".join(ours)
    assert ("GPT-4o", "69", "50", "48", "published, not run here") in rows_of(section, "AgentDojo")


def test_live_runs_of_weights_that_are_not_evaluated_do_not_stand_there():
    other = small_live(adapter="before")
    assert published_sections(small_results(), {LIVE: {**other, "suites": ["banking"]}}) == []


def test_nothing_is_shown_where_no_benchmark_was_evaluated():
    assert published_sections(small_results(), {}) == []


def test_every_benchmark_is_of_a_metric_or_of_suites():
    assert all((each.metric in METRICS) != bool(each.suites) for each in BENCHMARKS)
