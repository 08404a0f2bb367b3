"""Growth of a running time with the length of the input: a ratio, which a slow machine does not change."""

import time
from collections.abc import Callable


# How much longer the longer input is. Quadratic time would grow by its square.
FACTOR = 8


def growth(run: Callable[[str], object], make: Callable[[int], str], length: int) -> float:
    """How many times longer `run` takes for a text [`FACTOR`] times as long, the best of several measurements."""

    def seconds(text: str) -> float:
        times = []
        for _ in range(5):
            started = time.process_time()
            run(text)
            times.append(time.process_time() - started)
        return min(times)

    return seconds(make(length * FACTOR)) / max(seconds(make(length)), 1e-5)
