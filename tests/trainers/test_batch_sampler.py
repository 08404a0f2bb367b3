"""Which rows a run trains on, in which order and how often."""

from collections import Counter
from itertools import chain, islice

import pytest

from trainers.batch_sampler import CircuitBreakerBatchSampler, ClassPool, class_stream


RETAIN_ROWS = {"adversarial_safe": range(100, 110), "benign_twin": range(200, 240), "refusal": range(300, 307)}
WEIGHTS = {"adversarial_safe": 2.0, "benign_twin": 1.0, "refusal": 1.0}


def sampler(batch_size=4, retain_batch_size=6, num_batches=10, seed=0, retain_rows=RETAIN_ROWS):
    return CircuitBreakerBatchSampler(
        range(9), retain_rows, WEIGHTS, batch_size, retain_batch_size, num_steps=num_batches, seed=seed
    )


def test_every_batch_holds_the_same_number_of_rows_of_each_set():
    batches = list(sampler())
    assert len(batches) == len(sampler()) == 10
    for batch in batches:
        assert all(row < 100 for row in batch[:4])
        assert all(row >= 100 for row in batch[4:])
        assert len(batch) == 10


def test_each_pass_over_ds_has_every_row_once_in_a_new_order():
    rows = [row for batch in sampler(batch_size=3, num_batches=9) for row in batch[:3]]
    passes = [rows[:9], rows[9:18], rows[18:]]
    assert all(sorted(one) == list(range(9)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3


def test_tail_of_the_larger_set_is_reached():
    # Zipping the sets would stop at the end of Ds, after 9 of 57 rows of Dr.
    drawn = {row for batch in sampler(num_batches=16) for row in batch[4:]}
    assert drawn == {row for rows in RETAIN_ROWS.values() for row in rows}


def retain_stream(number):
    masses = {name: WEIGHTS[name] * len(rows) for name, rows in RETAIN_ROWS.items()}
    pools = {name: ClassPool(rows, (0, i)) for i, (name, rows) in enumerate(RETAIN_ROWS.items())}
    return [pools[name].draw() for name in islice(class_stream(masses), number)]


def test_weights_set_how_often_a_row_is_drawn():
    drawn = Counter(retain_stream(6700))
    per_class = {name: [drawn[row] for row in rows] for name, rows in RETAIN_ROWS.items()}
    # 6700 draws over a mass of 2 x 10 + 40 + 7 = 67: a row of weight 1 is drawn 100 times, one of weight 2 200 times
    assert all(abs(n - 200) <= 1 for n in per_class["adversarial_safe"])
    assert all(abs(n - 100) <= 1 for n in per_class["benign_twin"] + per_class["refusal"])


def test_quotas_hold_in_every_stretch_of_the_stream():
    drawn = retain_stream(670)
    for start in range(0, 670, 67):
        stretch = drawn[start : start + 67]
        names = Counter(name for row in stretch for name, rows in RETAIN_ROWS.items() if row in rows)
        assert abs(names["adversarial_safe"] - 20) <= 1
        assert abs(names["benign_twin"] - 40) <= 1
        assert abs(names["refusal"] - 7) <= 1


def test_order_is_a_function_of_the_seed():
    assert list(sampler(seed=1)) == list(sampler(seed=1))
    assert list(sampler(seed=1)) != list(sampler(seed=2))
    reordered = dict(reversed(RETAIN_ROWS.items()))
    assert list(sampler(retain_rows=reordered)) == list(sampler())


@pytest.mark.parametrize("size", [1, 2])
def test_smaller_batches_have_the_same_rows_in_the_same_order(size):
    whole, small = sampler(batch_size=4, retain_batch_size=4), sampler(size, size, num_batches=40 // size)
    assert [row for batch in whole for row in batch[:4]] == [row for batch in small for row in batch[:size]]
    assert [row for batch in whole for row in batch[4:]] == [row for batch in small for row in batch[size:]]


# The siblings of rows 0 to 8 of Ds are the adversarial_safe rows 100 to 108 and the benign twins 200 to 208.
SIBLINGS = {row: [100 + row, 200 + row] for row in range(9)}


def paired(batches_per_step=1, batch_size=3, retain_batch_size=6, num_steps=9):
    rows = {"adversarial_safe": range(100, 109), "benign_twin": range(200, 209), "refusal": range(300, 309)}
    weights = dict.fromkeys(rows, 1.0)
    arguments = {"num_steps": num_steps, "seed": 0, "batches_per_step": batches_per_step, "siblings": SIBLINGS}
    return list(CircuitBreakerBatchSampler(range(9), rows, weights, batch_size, retain_batch_size, **arguments))


def test_siblings_share_a_micro_batch():
    # A step has 3 rows of Ds and 2 of each class of Dr, so all of these can be siblings until a pool runs low
    for batch in paired(num_steps=3):
        siblings = {sibling for row in batch[:3] for sibling in SIBLINGS[row]}
        assert sum(row in siblings for row in batch[3:]) == 4


def test_siblings_are_drawn_without_replacement_too():
    drawn = Counter(row for batch in paired() for row in batch[3:])
    assert set(drawn.values()) == {2}  # 54 rows of Dr, 18 of each class of 9


def test_a_step_holds_the_same_rows_however_it_is_divided():
    whole = paired()
    divided = paired(batches_per_step=3, batch_size=1, retain_batch_size=2)
    for step, batch in enumerate(whole):
        micro = divided[3 * step : 3 * step + 3]
        assert [len(rows) for rows in micro] == [3, 3, 3]
        assert sorted(chain.from_iterable(micro)) == sorted(batch)
        for rows in micro:
            siblings = set(SIBLINGS[rows[0]])
            # all of its siblings in the step are in its own micro-batch
            assert siblings & set(batch) == siblings & set(rows)


def test_a_set_without_rows_is_left_out():
    assert [len(batch) for batch in sampler(retain_rows={})] == [4] * 10
