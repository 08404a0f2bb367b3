"""Which terms apply to which rows: the plan of a run that uses every term."""

import pytest

from cb_datasets.sample import HARMFUL_CLASSES, RETAIN_CLASSES
from trainers.objective.terms import TERMS, Plan


ALL_TERMS = Plan(
    classes={name: term.classes for name, term in TERMS.items()},
    target_layers=(1,),
    retain_layers=(1,),
    num_layers=2,
)


def terms_of(priority_class: str, redacted: bool) -> set[str]:
    return set(ALL_TERMS.terms_of({"priority_class": priority_class, "redacted": redacted}))


def test_the_terms_of_a_flip_and_of_a_safe_twin():
    assert terms_of("harmful_flip", redacted=False) == {"rr", "unlikelihood", "triplet"}
    assert terms_of("adversarial_safe", redacted=False) == {"retain_l2", "distill", "twin", "splice", "ce", "stop"}


@pytest.mark.parametrize("priority_class", [*HARMFUL_CLASSES, *RETAIN_CLASSES])
def test_a_redacted_row_reaches_only_terms_against_its_own_call(priority_class: str):
    # Nothing in a redacted prompt asks for the wrong call, so the row must teach no completion. Of its own call,
    # states can be rerouted, and the attacker's tool is as wrong as under the attack.
    expected = {"harmful_flip": {"rr", "unlikelihood"}, "harmful_compliance": {"rr"}}
    assert terms_of(priority_class, redacted=True) == expected.get(priority_class, set())
