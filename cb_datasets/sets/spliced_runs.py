"""Attacked runs that go on as the clean run of the same task did: what to do in spite of the attack, then and later.

    attacked run   request . call . result with injection . ATTACKER'S CALL . ...
    clean run      request . call . result                . right call . result . last words
    spliced run    request . call . result with injection . right call . result . last words
                                                            ^ decision             ^ later turn

The right step may be a call or an answer in words. After it the injection is still in the history: a breaker that has
seen decisions only makes a further call there.

A run is spliced only if the two are the same up to the decision, injection aside, and the clean run succeeded: the
benchmark itself has verified what follows. Where the injection stands, a clean result may have a text of the
environment instead, as in AgentDojo's own suites.
"""

import json
from collections.abc import Callable, Iterator

from datasets import Dataset


SPLICED = "spliced"


def splice_runs(traces: Dataset, drop: Callable[[str, str | None], None]) -> Iterator[dict]:
    """Splice every compromised trace with the clean run of its task by the same agent.

    Args:
        traces (`~datasets.Dataset`): Traces of one split.
        drop (`Callable`): Is told of each trace that cannot be spliced: the reason, `no_successful_clean_run` or
            `clean_run_differs`, and its category.

    Yields:
        `dict`: A trace with the verdict `spliced`: the attacked context up to its decision turn, and the clean run's
        messages from there.
    """
    clean = {_task(trace): trace for trace in traces if trace["verdict"] == "benign_success"}
    for trace in traces:
        if trace["verdict"] != "compromised":
            continue
        run = clean.get(_task(trace))
        if run is None:
            drop("no_successful_clean_run", trace["attack"]["category"])
            continue
        turn = trace["decision_turn"]
        spans = [span for span in trace["attack"]["spans"] if span["message"] < turn]
        if not _are_alike(trace["messages"][:turn], run["messages"][:turn], spans):
            drop("clean_run_differs", trace["attack"]["category"])
            continue
        messages = trace["messages"][:turn] + run["messages"][turn:]
        yield trace | {"messages": messages, "verdict": SPLICED, "attack": trace["attack"] | {"spans": spans}}


def _task(trace: dict) -> tuple[str, str]:
    """The agent and its task."""
    return agent_of(trace), trace["group"]


def agent_of(trace: dict) -> str:
    """The agent of a run, as its source names it."""
    return json.loads(trace["metadata"]).get("generator") or "unknown"


def _are_alike(attacked: list[dict], clean: list[dict], spans: list[dict]) -> bool:
    """Whether two beginnings of runs are the same but for the injection."""
    if len(attacked) != len(clean):
        return False
    for index, (message, other) in enumerate(zip(attacked, clean, strict=True)):
        here = [span for span in spans if span["message"] == index]
        # What is before the first injection and after the last; the whole text where there is none.
        start = min((span["start"] for span in here), default=None)
        end = max((span["end"] for span in here), default=0)
        text, clean_text = message["content"] or "", (other["content"] or "").strip()
        before, after = text[:start].strip(), text[end:].strip()
        same_text = clean_text.startswith(before) and clean_text.endswith(after) if here else clean_text == after
        if _step(message) != _step(other) or not same_text:
            return False
    return True


def _step(message: dict) -> tuple:
    """Who speaks, and the calls, without their ids."""
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
    return message["role"], message["name"], calls
