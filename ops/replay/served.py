"""Reads over HTTP what a simulator has served."""

from http.client import HTTPConnection
from urllib.parse import urlsplit

import msgspec

from turnline.contracts.conversation import Usage
from turnline.ops.simulator.model.usage import Usage as WireUsage
from turnline.ops.simulator.request_ledger import Continuity

_TIMEOUT_S = 60.0


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """One request, as far as it is compared with what workers noted."""

    seq: int
    path: str = ""
    conversation_id: str | None = None
    status: int | None = None
    outcome: str = "open"
    """`whole`, `cut`, `error` or `open`."""
    usage: WireUsage | None = None
    usage_reported: bool = False
    continuity: Continuity | None = None
    """How it goes on from the request before it, on `/v1/responses`."""

    @property
    def reported(self) -> Usage | None:
        """What was reported to the client; None if nothing was."""
        used = self.usage
        if used is None or not self.usage_reported:
            return None
        ticks = used.cost_in_usd_ticks
        return Usage(
            prompt_tokens=used.prompt_tokens,
            completion_tokens=used.completion_tokens,
            reasoning_tokens=used.completion_tokens_details.reasoning_tokens,
            cached_tokens=used.prompt_tokens_details.cached_tokens,
            total_tokens=used.total_tokens,
            cost_usd_ticks=ticks if isinstance(ticks, int) else 0,
        )


class _Page(msgspec.Struct, frozen=True):
    entries: list[Served]
    dropped_entries: int


_decode = msgspec.json.Decoder(_Page).decode


def read_ledger(base_url: str) -> dict[str, list[Served]]:
    """Return all requests by conversation, each in the order received.

    Raises:
        OSError: The simulator does not answer.
        AssertionError: It had to drop entries: what is left proves nothing.
    """
    at = urlsplit(base_url)
    connection = HTTPConnection(at.hostname or "", at.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/sim/ledger?bodies=0")
        page = _decode(connection.getresponse().read())
    finally:
        connection.close()
    assert page.dropped_entries == 0, "the simulator's ledger was too small: --ledger-entries 0"
    served: dict[str, list[Served]] = {}
    for entry in page.entries:
        served.setdefault(entry.conversation_id or "", []).append(entry)
    return served
