"""Shows how a fleet stands, over HTTP: to Prometheus, and as one JSON document."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from redis.exceptions import RedisError

from turnline.contracts.addresses import where
from turnline.contracts.refusals import reason
from turnline.ops.fleet.fleet_status import LOOK_S, FleetStatus, FleetWatch
from turnline.worker.probes.answering import METRICS_KIND
from turnline.worker.probes.small_http import Answer, Answering, verdict

FRESH_S: Final = 1.0
"""Whoever asks within so many seconds of a look is told what it saw."""
_METRICS: Final[Mapping[str, tuple[str, str]]] = {
    "waiting": ("turnline_fleet_waiting", "Conversations that are due and run by nobody."),
    "running": ("turnline_fleet_running", "Conversations that workers run."),
    "demand": ("turnline_fleet_demand", "Slots that there is work for."),
    "deferred": ("turnline_fleet_deferred", "Conversations that wait for a time or an answer."),
    "held": ("turnline_fleet_held", "Conversations that wait for others of their tenant."),
    "oldest_waiting_s": (
        "turnline_fleet_oldest_waiting_seconds",
        "How long the first of the waiting conversations has been due.",
    ),
    "workers": ("turnline_fleet_workers", "Workers that are alive."),
    "slots": ("turnline_fleet_slots", "Conversations that they can run at once."),
    "dead_letters": ("turnline_fleet_dead_letters", "Dead letters that are kept."),
    "breakers_open": ("turnline_fleet_breakers_open", "Providers that are not called."),
    "budgets_used_up": ("turnline_fleet_budgets_used_up", "Budgets of which nothing is left."),
    "spent_today_usd": ("turnline_fleet_spent_today_usd", "Spent since midnight UTC."),
    "spent_today_tokens": ("turnline_fleet_spent_today_tokens", "Tokens since midnight UTC."),
    "look_s": ("turnline_fleet_look_seconds", "How long Redis took to tell."),
}
"""(name, what it is) of each number of a status that is a metric."""
UP: Final = "turnline_fleet_up"
NAMES: Final = (UP, *(name for name, _ in _METRICS.values()))


class Blind(NamedTuple):
    """Nothing is known: Redis does not tell."""

    error: str

    def document(self) -> bytes:
        """Return it as JSON."""
        return msgspec.json.encode({"ok": False, "error": self.error})


def page_of(status: FleetStatus | Blind) -> bytes:
    """Return metrics as Prometheus reads them: where nothing is known, only that."""
    is_up = isinstance(status, FleetStatus)
    lines = [
        f"# HELP {UP} Whether Redis tells how the fleet stands.",
        f"# TYPE {UP} gauge",
        f"{UP} {int(is_up)}",
    ]
    for field, (name, about) in _METRICS.items() if is_up else ():
        lines += [f"# HELP {name} {about}", f"# TYPE {name} gauge"]
        lines.append(f"{name} {getattr(status, field)}")
    return "\n".join([*lines, ""]).encode()


def document_of(status: FleetStatus | Blind) -> bytes:
    """Return it as one JSON object."""
    return status.document() if isinstance(status, Blind) else msgspec.json.encode(status)


class Exporter:
    """Looks when it is asked, once for all that ask at the same time."""

    def __init__(self, watch: FleetWatch, redis_url: str) -> None:
        """Look at nothing yet."""
        self._watch = watch
        self._where = where(redis_url)
        self._last: FleetStatus | Blind = Blind("it has not looked yet")
        self._looked_at_s = float("-inf")
        self._looking = asyncio.Lock()

    @property
    def answers(self) -> Mapping[str, Answering]:
        """What a `SmallServer` answers."""
        return {
            "/metrics": self.metrics,
            "/status.json": self.document,
            "/readyz": self.readyz,
            "/livez": self.livez,
        }

    async def status(self) -> FleetStatus | Blind:
        """Return how the fleet stands, in `LOOK_S` at most; never raises for what Redis does."""
        async with self._looking:
            if time.monotonic() - self._looked_at_s > FRESH_S:
                self._last = await self._look()
                self._looked_at_s = time.monotonic()
            return self._last

    async def _look(self) -> FleetStatus | Blind:
        try:
            return await self._watch.look()
        except TimeoutError:
            return Blind(f"Redis at {self._where} has not told all within {LOOK_S:g} s")
        except (RedisError, OSError) as error:
            return Blind(f"Redis at {self._where}: {reason(error)} ({type(error).__name__})")

    async def metrics(self) -> Answer:
        """Answer Prometheus."""
        return Answer(200, page_of(await self.status()), METRICS_KIND)

    async def document(self) -> Answer:
        """Answer programs: 503 where nothing is known, so that no scaler takes that for zero."""
        status = await self.status()
        code = 503 if isinstance(status, Blind) else 200
        return Answer(code, document_of(status) + b"\n", "application/json")

    async def readyz(self) -> Answer:
        """Tell whether Redis tells."""
        status = await self.status()
        return verdict([status.error] if isinstance(status, Blind) else [])

    async def livez(self) -> Answer:
        """Tell that this answers."""
        return verdict([])
