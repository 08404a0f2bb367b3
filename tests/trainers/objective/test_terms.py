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
def test_a_redacted_row_reaches_no_term_but_rerouting(priority_class: str):
    # Nothing in a redacted prompt asks for the wrong call, so the row must neither punish nor teach a completion.
    expected = {"rr"} if priority_class in HARMFUL_CLASSES else set()
    assert terms_of(priority_class, redacted=True) == expected


def test_rerouting_is_the_only_term_that_the_table_allows_on_redacted_rows():
    assert [name for name, term in TERMS.items() if term.on_redacted] == ["rr"]
