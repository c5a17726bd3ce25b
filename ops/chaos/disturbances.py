"""The plan of a run: what is done to the fleet, when, and to whom. A seed decides it beforehand."""

import random
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

import msgspec

Kind = Literal[
    "kill", "stop", "term", "redis-kill", "redis-clean", "redis-full", "flush", "cut", "outage",
    "primary-kill", "primary-stop", "failover", "replica-kill", "slot-move",
]  # fmt: skip
PER_MINUTE: Final[Mapping[Kind, float]] = {
    "kill": 23.0,
    "stop": 7.0,
    "term": 4.0,
    "redis-kill": 0.8,
    "redis-clean": 0.4,
    "redis-full": 1.0,
    "flush": 3.0,
    "cut": 3.0,
    "outage": 0.5,
}
"""`cut` ends Redis connections, `outage` makes the model fail for a few calls in a row."""
_ON_ONE_SERVER: Final = frozenset({"redis-kill", "redis-clean", "redis-full"})
SENTINEL_PER_MINUTE: Final[Mapping[Kind, float]] = {
    **{kind: rate for kind, rate in PER_MINUTE.items() if kind not in _ON_ONE_SERVER},
    "primary-kill": 2.5,
    "primary-stop": 2.5,
    "failover": 7.0,
    "replica-kill": 1.0,
}
"""The same where there are several servers: their loss stands for restarts of the only one."""
CLUSTER_PER_MINUTE: Final[Mapping[Kind, float]] = {**SENTINEL_PER_MINUTE, "slot-move": 3.0}
"""The same in a cluster."""
HITS_REDIS: Final = frozenset(
    {*_ON_ONE_SERVER, "cut", "primary-kill", "primary-stop", "failover", "slot-move"}
)
ALWAYS: Final[frozenset[Kind]] = frozenset(
    {"redis-kill", "redis-clean", "primary-kill", "primary-stop", "failover", "slot-move"}
)
"""Happen at least once in a run, however short."""

FAULTS: Final[Mapping[str, float]] = {
    "fin;at=tokens:4": 0.006,
    "rst;at=tokens:6": 0.008,
    "rst;at=before-headers": 0.006,
    "accept-close": 0.004,
    "eof;at=tokens:5": 0.006,
    "rst;at=before-usage": 0.003,
    "status=500": 0.006,
    "unavailable": 0.006,
    "rate-limit;retry_after=1,limit=1000": 0.006,
    "capacity": 0.004,
    "ok-json": 0.005,
    "error-frame;at=tokens:3": 0.005,
    "truncated-json;at=tokens:4": 0.004,
    "bad-chunk-size;at=tokens:3": 0.006,
    "garbage": 0.003,
    "html=524;retry_after=1": 0.003,
    "stall;at=tokens:3,seconds=1.5": 0.006,
    "stall;at=before-headers,seconds=1": 0.004,
    "stall-keepalive;at=tokens:2,seconds=1.2": 0.003,
    "duplicate-finish": 0.01,
    "no-done": 0.005,
    "split-utf8": 0.01,
    "dribble;bytes=40,ms=1": 0.005,
    "comment;at=tokens:2": 0.01,
    "gzip": 0.005,
    "close": 0.01,
    "idle-close;ms=20": 0.005,
    "safety": 0.002,
    "context-length": 0.001,
}
"""Scenarios of the simulator and the chance of each model call to meet it."""
EVENT_FAULTS: Final[Mapping[str, float]] = {
    "incomplete;at=tokens:9": 0.004,
    "failed;at=tokens:3": 0.006,
    "failed;at=tokens:2,error=0": 0.003,
    "error-event;at=tokens:3": 0.005,
    "error-event;at=tokens:2,shape=nested": 0.003,
    "error-event;at=after_headers": 0.003,
    "terminal-output;shape=other": 0.003,
    "terminal-output;shape=empty": 0.005,
    "terminal-output;shape=missing": 0.005,
    "usage-missing": 0.003,
    "response-done": 0.005,
    "done-marker": 0.01,
    "no-created": 0.005,
    "same-ids": 0.01,
    "interleaved": 0.005,
    "done-only": 0.005,
    "deltas-only": 0.01,
    "late-added": 0.005,
    "sequence;shape=gap": 0.005,
    "unknown-event": 0.01,
    "unknown-item": 0.005,
    "no-event-line": 0.01,
    "event-mismatch": 0.005,
    "doom-loop;at=tokens:2": 0.005,
    "reasoning-text": 0.01,
    "no-reasoning-item": 0.005,
    "encrypted;shape=missing": 0.005,
    "encrypted;shape=null": 0.005,
    "decrypt": 0.004,
}
"""The same on the wire of responses alone; most of these are no reason to ask again."""
CONFLICTING: Final = frozenset({"context-length", *(it.partition(";")[0] for it in EVENT_FAULTS)})
"""Faults of which another one at the same call can make a request that nobody understands."""
MALFORMED: Final[Mapping[str, float]] = {
    "odd-reply;shape=garbage": 0.1,
    "truncated-json;at=tokens:2": 0.1,
    "error-frame;at=tokens:1,text=something%20went%20wrong": 0.1,
    "bad-utf8;at=tokens:2": 0.05,
}
"""The same for the few conversations whose replies are malformed."""
TERMINAL_CODES: Final = frozenset({"safety", "context_too_long", "crashed"})
"""Error codes of turns that one of the faults above explains."""
TWICE_CODES: Final = frozenset({"truncated", "malformed_stream", "not_a_stream", "reply_error"})
"""Error codes that two of them explain."""


class Planned(NamedTuple):
    """One disturbance to come."""

    at_s: float
    kind: Kind
    victim: float
    """Who is struck: a position (0 to 1) in the list of those that can be."""
    lasts_s: float
    """How long until it is undone."""


class Disturbance(msgspec.Struct, frozen=True, kw_only=True):
    """One disturbance as it happened."""

    kind: Kind
    worker: str = ""
    """Name of the worker struck; empty if it was all of them."""
    from_ms: float
    """Wall clock, ms since the Unix epoch."""
    to_ms: float
    """When it was undone: the worker runs again, Redis answers again, all servers agree."""
    node: str = ""
    """Name of the server struck, where there are several."""
    shards: frozenset[int] | None = None
    """Whose shards were on it; None: all of them, or it has nothing to do with them."""
    failed_over: bool = False
    """Whether another server took over from it."""

    def concerns(self, shard: int) -> bool:
        """Whether it may have been felt in a shard."""
        return self.shards is None or shard in self.shards


_LASTS_S: Final[Mapping[Kind, tuple[float, float]]] = {
    "kill": (0.0, 1.0),
    "stop": (0.3, 6.0),
    "term": (0.0, 0.5),
    "redis-kill": (0.0, 1.0),
    "redis-clean": (0.0, 1.0),
    "redis-full": (0.1, 0.8),
    "primary-kill": (0.2, 5.0),
    "primary-stop": (0.3, 6.0),
    "replica-kill": (0.2, 3.0),
}


def planned(
    seed: int,
    seconds: float,
    *,
    scale: float = 1.0,
    per_minute: Mapping[Kind, float] = PER_MINUTE,
) -> list[Planned]:
    """Draw what happens in a run.

    Args:
        seed: The same seed gives the same plan.
        seconds: How long the run takes; the last tenth of a second is left alone.
        scale: Multiplies how often everything happens.
        per_minute: What happens, and how often.
    """
    found: list[Planned] = []
    for kind, rate in per_minute.items():
        rng = random.Random(f"{seed} {kind}")
        every_s = 60 / (rate * scale)
        if kind in ALWAYS:
            every_s = min(every_s, seconds / 1.5)
        at_s = every_s * rng.uniform(0.3, 1.0)
        while at_s < seconds - 0.1:
            lasts_s = rng.uniform(*_LASTS_S.get(kind, (0.0, 0.0)))
            found.append(Planned(at_s, kind, rng.random(), lasts_s))
            at_s += every_s * rng.uniform(0.6, 1.4)
    return sorted(found)
