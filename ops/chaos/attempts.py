"""Whether a turn was attempted again without need."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from turnline.contracts.replies import TurnStarted
from turnline.ops.chaos.disturbances import HITS_REDIS, Disturbance
from turnline.ops.chaos.evidence import Left

_DRAIN_MS: Final = 10_000.0
"""After SIGTERM a worker gives its turns this long to finish. Only then do they run elsewhere."""


def check_attempts(left: Left, disturbances: Sequence[Disturbance]) -> Iterator[tuple[str, str]]:
    """Yield (turn, what is wrong): a second attempt follows only if something disturbed the first.

    `disturbances` are those that concern the conversation.
    """
    started: dict[str, list[tuple[int, str, float]]] = {}
    for event in left.events:
        if isinstance(event, TurnStarted):
            at_ms = float(event.event_id.partition("-")[0])
            started.setdefault(event.turn_id, []).append((event.attempt, event.worker, at_ms))
    failed = {(call.turn_id, call.attempt) for call in left.calls if call.error}
    for turn, attempts in started.items():
        for (attempt, worker, from_ms), (later, _, to_ms) in pairwise(attempts):
            if later == attempt or (turn, attempt) in failed:
                continue
            if not any(_explains(it, worker, from_ms, to_ms) for it in disturbances):
                yield turn, f"attempt {attempt} of {worker} was let alone"


def _explains(disturbance: Disturbance, worker: str, from_ms: float, to_ms: float) -> bool:
    begins_ms = disturbance.from_ms
    if disturbance.kind == "term":
        begins_ms += _DRAIN_MS - 500
    if begins_ms > to_ms or disturbance.to_ms < from_ms - 3_000:
        return False
    return disturbance.worker == worker or disturbance.kind in HITS_REDIS
