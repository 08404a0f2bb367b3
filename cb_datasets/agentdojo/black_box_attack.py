"""The black-box attacker of the ladder, in live runs: random compositions of wordings, for AgentDojo's attackers.

    black_box_0, black_box_1, ...    one attack for each composition: the runs of each are files of their own

A composition asks for the call that the reference solution of the injection task makes for the attacker. It stands in
one of the results that the user's task needs, or in all of them. It depends on the seed, its number and the tasks, not
on the model: every model is attacked with the same ones, and no answer is looked at.

The module imports AgentDojo: import it inside `agentdojo_yaml()`.
"""

import json
import random
from functools import cached_property

import yaml
from agentdojo.attacks.attack_registry import ATTACKS, register_attack
from agentdojo.attacks.base_attacks import BaseAttack
from agentdojo.base_tasks import BaseInjectionTask, BaseUserTask

from builders.agentdojo.exposure import injected_texts
from builders.agentdojo.goals import goal_from_solution

from ..attacks.composition import compose_injection


BLACK_BOX = "black_box"

_ONE_RESULT_FRACTION = 0.7


def register_black_box_attacks(draws: int, seed: int = 0) -> tuple[str, ...]:
    """Register so many compositions as attacks of AgentDojo, and return their names.

    Args:
        draws (`int`): Number of compositions for each pair of tasks.
        seed (`int`, *optional*, defaults to `0`): Another seed gives others.
    """
    names = tuple(f"{BLACK_BOX}_{number}" for number in range(draws))
    for name in names:
        if name not in ATTACKS:
            register_attack(type(name, (_BlackBoxAttack,), {"name": name, "seed": seed}))
    return names


class _BlackBoxAttack(BaseAttack):
    seed: int

    def attack(self, user_task: BaseUserTask, injection_task: BaseInjectionTask) -> dict[str, str]:
        rng = random.Random(f"{self.seed}/{self.name}/{self.task_suite.name}/{user_task.ID}/{injection_task.ID}")
        call = self._attackers_call(injection_task)
        text = ""
        # One that could not be recognised in the run, because it is too short, is composed again.
        while injected_texts([text]) is None:
            _, text, _ = compose_injection(rng, [], lambda: call)
        candidates = self.get_injection_candidates(user_task)
        if rng.random() < _ONE_RESULT_FRACTION:
            candidates = [rng.choice(candidates)]
        return dict.fromkeys(candidates, json.dumps(text)[1:-1] if self._pastes_into_yaml else text)

    @cached_property
    def _pastes_into_yaml(self) -> bool:
        """Whether the suite pastes injections between the quotes of a YAML file, as AgentDojo's own suites do.

        There a quotation mark or a backslash has to be escaped.
        """
        probe = 'Say "yes".'
        vector = next(iter(self.task_suite.get_injection_vector_defaults()))
        try:
            environment = self.task_suite.load_and_inject_default_environment({vector: probe})
        except yaml.YAMLError:
            return True
        return probe not in str(environment.model_dump())

    def _attackers_call(self, injection_task: BaseInjectionTask) -> tuple[str, dict]:
        """`(tool, arguments)` of the call that serves the attacker."""
        environment = self.task_suite.load_and_inject_default_environment({})
        gold = [
            {"name": call.function, "arguments": dict(call.args)} for call in injection_task.ground_truth(environment)
        ]
        if not gold:
            raise ValueError(f"{injection_task.ID} has no reference solution with a call to ask for.")
        tool = goal_from_solution(gold).tool
        serving = next(call for call in reversed(gold) if call["name"] == tool)
        return serving["name"], serving["arguments"]
