"""How soon readers saw something new after the worker of their turn was killed."""

from collections.abc import Iterable, Iterator, Sequence

from turnline.contracts.replies import TERMINAL, AnyEvent, TextDelta, TurnStarted
from turnline.ops.chaos.disturbances import Disturbance


def recoveries_s(
    streams: Iterable[Sequence[AnyEvent]], kills: Sequence[Disturbance]
) -> list[float]:
    """Return the seconds from each SIGKILL to the first new text of each turn it cut off.

    Turns that ended without further text, for instance by an interrupt, are left out. Redis stamps
    events with its own clock: it must be this machine's.
    """
    found = [
        (first_ms - kill.from_ms) / 1000
        for events in streams
        for turn in _by_turn(events)
        for kill in kills
        if (first_ms := _next_text_ms(turn, kill)) is not None
    ]
    return sorted(found)


def _by_turn(events: Iterable[AnyEvent]) -> Iterator[list[AnyEvent]]:
    turns: dict[str, list[AnyEvent]] = {}
    for event in events:
        turns.setdefault(event.turn_id, []).append(event)
    yield from turns.values()


def _at_ms(event: AnyEvent) -> float:
    return float(event.event_id.partition("-")[0])


def _next_text_ms(turn: Sequence[AnyEvent], kill: Disturbance) -> float | None:
    """Return when a later attempt first spoke, if this kill cut off the one before."""
    running: TurnStarted | None = None
    for event in turn:
        if _at_ms(event) > kill.from_ms:
            break
        if isinstance(event, TERMINAL):
            return None
        if isinstance(event, TurnStarted):
            running = event
    if running is None or running.worker != kill.worker:
        return None
    for event in turn:
        if isinstance(event, TextDelta) and event.attempt > running.attempt:
            return _at_ms(event)
    return None
