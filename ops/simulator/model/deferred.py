"""Deferred completions: an id now, the answer once, when it is ready."""

from collections import OrderedDict
from typing import Final

import msgspec

from turnline.ops.simulator.faults.response_plan import Plan
from turnline.ops.simulator.ledger import Entry

_KEPT: Final = 10_000


class _Waiting(msgspec.Struct, frozen=True):
    ready_at_s: float
    plan: Plan
    asked: Entry


class DeferredStore:
    """Answers that wait to be fetched; each is given out once."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()

    def put(self, request_id: str, plan: Plan, asked: Entry, ready_at_s: float) -> None:
        """Keep an answer until it is fetched."""
        self._waiting[request_id] = _Waiting(ready_at_s, plan, asked)
        if len(self._waiting) > _KEPT:
            self._waiting.popitem(last=False)

    def is_ready(self, request_id: str, now_s: float) -> bool | None:
        """Whether an answer can be fetched; None if there is none of this id."""
        waiting = self._waiting.get(request_id)
        return None if waiting is None else waiting.ready_at_s <= now_s

    def take(self, request_id: str) -> Plan:
        """Give an answer out. The request that asked for it has its usage reported by this."""
        waiting = self._waiting.pop(request_id)
        waiting.asked.usage_reported = True
        return waiting.plan
