"""How long producers waited while the servers were disturbed, by their own clocks."""

from collections.abc import Sequence

from turnline.contracts.layout import Layout
from turnline.ops.chaos.checker import shards_of
from turnline.ops.chaos.disturbances import HITS_REDIS, Disturbance
from turnline.ops.chaos.journal import Journal


def longest_outages_s(
    journal: Journal, disturbances: Sequence[Disturbance], layout: Layout
) -> dict[str, float]:
    """Return the seconds that the slowest call took, by the kind of disturbance it fell into.

    Only calls in shards on the server that was struck count: `submit`, and all that failed. Kinds
    without any are left out.
    """
    calls = [
        (shards_of(chat.conversation, layout), it.slowest_from_ms, it.slowest_ms)
        for chat in journal.chats
        for it in chat.sent
        if it.slowest_ms
    ]
    calls += [
        (shards_of(it.conversation, layout), it.at_ms - it.took_ms, it.took_ms)
        for it in journal.errors
        if it.verb in {"submit", "forget"}
    ]
    found: dict[str, float] = {}
    for each in disturbances:
        if each.kind not in HITS_REDIS:
            continue
        took = [
            ms
            for shards, at_ms, ms in calls
            if any(map(each.concerns, shards))
            and at_ms <= each.to_ms
            and at_ms + ms >= each.from_ms
        ]
        name = name_of(each)
        if took:
            found[name] = max(found.get(name, 0.0), round(max(took) / 1000, 2))
    return found


def name_of(disturbance: Disturbance) -> str:
    """Return the kind, and whether another server took over."""
    took_over = disturbance.failed_over and disturbance.kind != "failover"
    return f"{disturbance.kind}, taken over" if took_over else str(disturbance.kind)
