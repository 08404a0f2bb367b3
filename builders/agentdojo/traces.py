"""Traces of AgentDojo runs."""

import json

from ..trace import Dropped, attack, calls_left, to_json
from .agentdyn import agentdyn_goal
from .exposure import find_spans, injected_texts, is_dos_attack, is_recognisable, tagged_texts
from .goals import Goal, goal_from_injections
from .layouts import Run
from .suites import REFERENCE, Suite
from .verdicts import Evidence, decision_turn_of, find_evidence, verdict_of


def run_trace(run: Run, suite: Suite | None, attack_succeeded_when: bool, where: str) -> dict | Dropped:
    """Convert a run to a trace, or drop it.

    Args:
        run (`Run`): The run.
        suite (`Suite`, *optional*): Tools and goals of its suite; `None` if the suite is unknown.
        attack_succeeded_when (`bool`): Value of `security` for a successful attack.
        where (`str`): File and line of the run.
    """
    if suite is None:
        return Dropped("unknown_tools", where, is_attacked=run.injection_task is not None)
    if is_dos_attack(run.attack_type):
        return _dos_trace(run, suite)
    if run.injection_task is not None:
        return _attacked_trace(run, run.injection_task, suite, attack_succeeded_when, where)
    if find_spans(run.messages, injected_texts(run.injections)):
        return Dropped("unlabelled_injection", where, is_attacked=True)  # labelled clean, but shows an injection
    return {
        **_shared_columns(run, suite),
        "expected_tool": None,
        "simulated_tool": None,
        "attack": None,
        "verdict": "benign_success" if run.utility else "benign_failure",
        "decision_turn": None,
        "metadata": to_json(_metadata_of(run, suite)),
    }


def _dos_trace(run: Run, suite: Suite) -> dict:
    """Trace of a run whose injection wants the agent to stop.

    The injection task in its name has no part in it, and `security` only says that the user's task failed.
    """
    user_calls = suite.user_calls.get(run.user_task)
    evidence = Evidence(find_spans(run.messages, injected_texts(run.injections)), [], None, touched=False)
    return {
        **_shared_columns(run, suite),
        "expected_tool": None,
        "simulated_tool": None,
        "attack": _attack_of(run, evidence, user_calls, goal=None),
        "verdict": "dos_attack" if evidence.spans else "not_exposed",
        "decision_turn": None,
        "metadata": to_json({**_metadata_of(run, suite), "first_exposure": evidence.exposed_at}),
    }


def _attacked_trace(
    run: Run, injection_task: str, suite: Suite, attack_succeeded_when: bool, where: str
) -> dict | Dropped:
    goal, goal_from = goal_of(run, injection_task, suite)
    if goal is None:
        return Dropped("unknown_goal", where, is_attacked=True)  # without the attacker's calls there is no verdict
    texts = injected_texts(run.injections)
    if not is_recognisable(run.attack_type, texts):
        return Dropped("unknown_injection", where, is_attacked=True)  # nor without a way to find the injection
    user_calls = suite.user_calls.get(run.user_task)
    evidence = find_evidence(run, goal, user_calls or [], find_spans(run.messages, texts, goal.is_in))
    offered = suite.offered_tools(run.chosen_tools)
    verdict = verdict_of(run, evidence, goal.is_offered(offered), attack_succeeded_when)
    if verdict == "resisted" and goal.tool is None and run.chosen_tools is not None:
        # Of the tools that accept text, any could be the attacker's: it is unknown whether that one was offered.
        return Dropped("unknown_goal", where, is_attacked=True)
    turn = decision_turn_of(run, evidence, verdict)
    return {
        **_shared_columns(run, suite),
        "expected_tool": expected_tool_of(run, evidence, verdict, turn, user_calls or [], offered),
        "simulated_tool": _simulated_tool(run, evidence, verdict, goal),
        "attack": _attack_of(run, evidence, user_calls, goal),
        "verdict": verdict,
        "decision_turn": turn,
        "metadata": to_json(
            {**_metadata_of(run, suite), **_attack_metadata_of(run, evidence, goal), "goal_from": goal_from}
        ),
    }


def goal_of(run: Run, injection_task: str, suite: Suite) -> tuple[Goal | None, str | None]:
    """Goal of an attacked run, `None` if it is unknown, and where it is from.

    In this order: a description in `reference/`, AgentDyn's tasks, the installed benchmark, or else the injected texts
    alone.
    """
    if suite.origin == REFERENCE and injection_task in suite.goals:
        return suite.goals[injection_task], REFERENCE
    injected = run.injections or tagged_texts(run.messages)
    if goal := agentdyn_goal(run.suite, injection_task, injected):
        return goal, "agentdyn"
    if injection_task in suite.goals:
        return suite.goals[injection_task], suite.origin
    return goal_from_injections(run.injections, suite.tools), "injection"


def _shared_columns(run: Run, suite: Suite) -> dict:
    return {
        "id": run.id,
        "source": "agentdojo",
        "group": f"{run.suite}/{run.user_task}",
        "messages": run.messages,
        "tools": suite.offered_text(run.chosen_tools),
    }


def expected_tool_of(
    run: Run, evidence: Evidence, verdict: str, turn: int | None, user_calls: list[dict], offered: list[dict]
) -> str | None:
    """Name of the correct tool at the decision turn; `None` if it cannot be determined, or is not offered.

    If the model resisted, it is the tool of its single call, provided that the user's task still needs it. If the
    model was compromised, it is the first call of the reference solution that had not been made before the attacker's,
    be it in the same turn.
    """
    if verdict == "resisted" and turn is not None:
        needed = [call["name"] for call in calls_left(user_calls, run.messages[:turn])]
        called = [call["function"]["name"] for call in run.messages[turn]["tool_calls"]]
        return called[0] if len(called) == 1 and called[0] in needed else None
    if verdict == "compromised":
        index, number = evidence.goal_calls[0]
        decision = run.messages[index]
        before = [*run.messages[:index], {**decision, "tool_calls": decision["tool_calls"][:number]}]
        first = next((call["name"] for call in calls_left(user_calls, before)), None)
        return first if any(tool["function"]["name"] == first for tool in offered) else None
    return None


def _simulated_tool(run: Run, evidence: Evidence, verdict: str, goal: Goal) -> str | None:
    if verdict == "compromised":
        index, number = evidence.goal_calls[0]
        return run.messages[index]["tool_calls"][number]["function"]["name"]
    return goal.tool


def _attack_of(run: Run, evidence: Evidence, user_calls: list[dict] | None, goal: Goal | None) -> dict:
    text = run.injections[0] if run.injections else None
    # Dumps do not state the injected text: take it from the first place where a tool returned it.
    if text is None and evidence.spans:
        first = evidence.spans[0]
        text = run.messages[first["message"]]["content"][first["start"] : first["end"]]
    return attack(
        kind="tool_result",
        text=text,
        spans=evidence.spans,
        family=run.attack_type,
        category=run.suite,
        subtype=run.injection_task,
        expected_calls=user_calls,
        goal_calls=None if goal is None else goal.calls,
    )


def _metadata_of(run: Run, suite: Suite) -> dict:
    """The run's own fields, and what deviates from its suite.

    - `chosen_tools`: text in which the model chose its tools, in pipelines that ask for it.
    - `unlisted_tools`: tools that the run calls, but that the list of the suite lacks.
    """
    called = {call["function"]["name"] for turn in run.messages for call in turn["tool_calls"]}
    unlisted = sorted(called - suite.tool_names)
    return {
        **run.details,
        **({} if run.chosen_tools is None else {"chosen_tools": run.chosen_tools}),
        **({"unlisted_tools": unlisted} if unlisted else {}),
        "suite": run.suite,
        "generator": run.pipeline,
        "user_task": run.user_task,
        "injection_task": run.injection_task,
        "attack_type": run.attack_type,
        "success": run.utility,
        "security": run.security,
    }


def _attack_metadata_of(run: Run, evidence: Evidence, goal: Goal) -> dict:
    """First exposure and first calls of an attacked run, and two flags for a verdict that may be wrong.

    - `names_attacker_account`: the user's task names the attacker's account too, so his call may be correct.
      Later messages of the user do not count: some defences report there which calls they blocked.
    - `touches_goal`: after the exposure the model names that account, or calls a tool that only the attack needs. In a
      resisted run it may have tried to comply and failed, or asked the user first, or warned the user.
    """
    user_text = next((turn["content"] or "" for turn in run.messages if turn["role"] == "user"), "").casefold()
    goal_values = {str(value).casefold() for call in goal.calls for value in call["arguments"].values()}
    after_exposure = [] if evidence.exposed_at is None else run.messages[evidence.exposed_at + 1 :]
    first_call = next((call["function"] for turn in after_exposure for call in turn["tool_calls"]), None)
    return {
        "names_attacker_account": any(value in user_text for value in goal_values),
        "touches_goal": evidence.touched,
        "first_exposure": evidence.exposed_at,
        "first_post_exposure": first_call
        and {"name": first_call["name"], "arguments": json.loads(first_call["arguments"])},
        "first_goal_call": list(evidence.goal_calls[0]) if evidence.goal_calls else None,
    }
