"""When a worker counts as alive and as ready."""

from typing import NamedTuple

import pytest

from turnline.worker.probes.pulse import Pulse, PulseLimits, Stage

LIMITS = PulseLimits(stall_s=15, answer_s=3, look_s=6)


class Moved(NamedTuple):
    loop: float = 100
    thread: float = 100
    answered: float = 100


NOW = Moved()


def pulse(moved: Moved = NOW, looked: float = 100, stage: Stage = "serving") -> Pulse:
    made = Pulse(LIMITS, lambda: moved, lambda: looked, clock=lambda: 100.0)
    made.stage = stage
    return made


def test_a_worker_that_moves_is_alive_and_ready() -> None:
    """Nothing is wrong with it."""
    assert pulse().standing() == pulse().unready() == []


@pytest.mark.parametrize(
    ("moved", "says"),
    [
        (Moved(loop=84), "the event loop has stood still for 16.0 s"),
        (Moved(thread=84), "the heartbeat has stood still for 16.0 s"),
    ],
)
def test_what_stands_still_is_named(moved: Moved, says: str) -> None:
    """The worker is neither alive nor ready then."""
    assert pulse(moved).standing() == [says]
    assert says in pulse(moved).unready()


@pytest.mark.parametrize(
    ("moved", "looked", "says"),
    [
        (Moved(answered=96), 100, "Redis has not answered for 4.0 s"),
        (Moved(), 90, "it has not looked for work for 10.0 s"),
        (Moved(), 0, "it has not looked for work yet"),
    ],
)
def test_without_redis_it_lives_and_is_not_ready(moved: Moved, looked: float, says: str) -> None:
    """To end it would help nobody."""
    assert pulse(moved, looked).standing() == []
    assert pulse(moved, looked).unready() == [says]


def test_before_and_after_it_serves_it_is_not_ready() -> None:
    """While it starts nothing of it moves yet; while it drains, all must."""
    stood = Moved(0, 0, 0)
    assert pulse(stood, 0, "starting").standing() == []
    assert pulse(stood, 0, "starting").unready() == ["it is starting"]
    assert pulse(stage="draining").unready() == ["it is draining"]
    assert pulse(Moved(loop=0), stage="draining").standing() != []
