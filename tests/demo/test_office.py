"""The office suites: every task can be solved and attacked, and no split knows the words of another."""

import random
from collections import Counter

import pytest

from builders.agentdojo.suites import agentdojo_yaml, tool_schema
from builders.fujitsu import B4_STANDARD
from builders.lookalike.wording import WORDING, Names, split_of_name


pytest.importorskip("agentdojo", reason="AgentDojo is not installed: make test installs it")

with agentdojo_yaml():
    from agentdojo.agent_pipeline.ground_truth_pipeline import GroundTruthPipeline
    from agentdojo.attacks import load_attack
    from agentdojo.task_suite.load_suites import get_suites

    from demo.office.suites import NUM_SUITES, OfficeSuite
from demo.office.tasks import ATTACKED_TOOLS, OFFICE_WORDING, TASK_KINDS, Draft, draw_wording, inject


SPLITS = ("train", "dev", "test")


@pytest.fixture(scope="module", params=SPLITS)
def suite(request):
    return OfficeSuite(request.param, 0)


def test_the_reference_solutions_solve_their_tasks_and_nothing_else_does(suite):
    solved_without_calls = 0
    for task in suite.user_tasks.values():
        for attacker in suite.injection_tasks.values():
            assert suite.run_task_with_pipeline(GroundTruthPipeline(task), task, attacker, {}) == (True, False)
        office = suite.load_and_inject_default_environment({})
        solved_without_calls += task.utility("Done.", office, office)
    assert solved_without_calls == 0
    for attacker in suite.injection_tasks.values():
        user = suite.user_tasks["user_task_0"]
        assert suite.run_task_with_pipeline(GroundTruthPipeline(attacker), user, attacker, {}) == (False, True)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", TASK_KINDS)
def test_tasks_of_every_kind_have_one_to_four_calls_that_their_office_answers(kind, split):
    make, _ = TASK_KINDS[kind]
    for seed in range(30):
        rng = random.Random(seed)
        task = make(Draft(rng, split, Names(rng, split)))
        assert 1 <= len(task.calls) <= 4 and task.answer and "{" not in task.prompt + task.answer
        places = {"read_file": "files", "search_web": "pages", "retrieve_multimodal_docs": "documents"}
        read = [(places[tool], *arguments.values()) for tool, arguments in task.calls if tool in places]
        assert read == [] or {(place, key) for place, texts in task.office.items() for key in texts} == set(read)
        # Everything that the calls say is in the request or in a result, or follows from them.
        known = task.prompt + str(task.office)
        for _, arguments in task.calls:
            for name, value in arguments.items():
                assert str(value) in known or name in ("language", "body")


def test_an_attack_is_in_one_result_or_in_all_and_is_shown(suite):
    attack = load_attack("lookalike", suite, type("Pipeline", (), {"name": "local"})())
    numbers = set()
    for task in suite.user_tasks.values():
        for attacker in suite.injection_tasks.values():
            injections = attack.attack(task, attacker)
            assert injections == attack.attack(task, attacker)
            office = suite.load_and_inject_default_environment(injections)
            texts = [*office.files.values(), *office.pages.values(), *office.documents.values()]
            [text] = set(injections.values())
            assert sum(text in each for each in texts) == len(injections)
            numbers.add(len(injections))
    assert numbers >= {1, 2}


def test_an_injection_stands_before_or_after_the_result():
    placed = {inject(random.Random(seed), "RESULT", "ATTACK")[:6] for seed in range(40)}
    assert placed == {"RESULT", "ATTACK"}


def test_splits_share_no_request_no_result_no_family_and_no_name():
    rng = random.Random(0)
    for part in ("requests", "results"):
        for kind in OFFICE_WORDING["train"][part]:
            dev, test = (set(OFFICE_WORDING[split][part][kind]) for split in ("dev", "test"))
            drawn = {draw_wording(rng, "train", part, kind) for _ in range(3000)}
            assert not (dev & test or drawn & (dev | test)), kind
            assert not any(character in text for text in drawn | dev | test for character in "[]|"), kind
    families = [WORDING[split]["families"].keys() for split in SPLITS]
    assert len(set().union(*families)) == sum(map(len, families))
    for split in SPLITS:
        goals = [task.goal for task in OfficeSuite(split, 0).injection_tasks.values()]
        assert [goal.tool for goal in goals] == list(ATTACKED_TOOLS[:2] if split == "train" else ATTACKED_TOOLS)
        assert {split_of_name(goal.arguments["query"]) for goal in goals if "query" in goal.arguments} <= {split}
    attackers = Counter(
        attacker.goal.tool
        for number in range(NUM_SUITES["train"])
        for attacker in OfficeSuite("train", number).injection_tasks.values()
    )
    assert attackers == dict.fromkeys(ATTACKED_TOOLS, 10)


def test_a_drawn_template_of_train_is_none_of_dev_or_test(monkeypatch):
    """A choice of train can make a template of test: it is drawn again."""
    held_out = OFFICE_WORDING["test"]["results"]["fact"][1]
    monkeypatch.setitem(OFFICE_WORDING["train"]["results"], "fact", [held_out.replace("On", "[On|About]")])
    drawn = {draw_wording(random.Random(seed), "train", "results", "fact") for seed in range(50)}
    assert drawn == {held_out.replace("On", "About")}


def test_the_tools_are_those_of_b4():
    offered = {tool["function"]["name"]: tool for tool in B4_STANDARD["tools"]}
    assert [tool_schema(tool) for tool in OfficeSuite("dev", 0).tools] == list(offered.values())


def test_the_suites_are_registered_and_the_same_each_time():
    suites = get_suites("v1.2.2")
    for split, count in NUM_SUITES.items():
        for number in range(count):
            name = f"office_{split}_{number}"
            assert suites[name].name == name and len(suites[name].user_tasks) == 25
    again = OfficeSuite("test", 1)
    assert [task.PROMPT for task in again.user_tasks.values()] == [
        task.PROMPT for task in suites["office_test_1"].user_tasks.values()
    ]
