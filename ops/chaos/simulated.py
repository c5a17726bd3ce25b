"""Client of the simulator's own routes: faults, and the record of all requests."""

import http.client
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec

from turnline.ops.simulator.faults.rules import Rule, RuleState
from turnline.ops.simulator.model.usage import Usage
from turnline.ops.simulator.request_ledger import Continuity

_PAGE: Final = 200
_ASKED: Final = ("/chat/completions", "/responses")
"""How the paths of requests for replies end."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One request as the simulator noted it: what is needed of its ledger."""

    seq: int
    path: str
    received_at_ms: float
    body: msgspec.Raw
    conversation_id: str | None = None
    duration_ms: float | None = None
    outcome: str
    tokens_streamed: int = 0
    usage: Usage | None = None
    usage_reported: bool = False
    continuity: Continuity | None = None
    scenarios: tuple[str, ...] = ()
    disconnected_at_ms: float | None = None


class _Page(msgspec.Struct):
    entries: list[Entry]
    last_seq: int
    dropped_entries: int
    dropped_bodies: int


class _Faults(msgspec.Struct):
    faults: list[RuleState]


class LedgerIncomplete(Exception):
    """The simulator had to drop part of its record; nothing can be concluded from the rest."""


class SimAdmin:
    """A client of one simulator."""

    def __init__(self, base_url: str) -> None:
        """Take the address that models are asked at."""
        address = urlsplit(base_url)
        assert address.hostname is not None
        self._where = (address.hostname, address.port)

    def add_faults(
        self,
        faults: Mapping[str, float],
        seed: int,
        *,
        conversation: str = "*",
        path: str = "*",
    ) -> None:
        """Let each such model call meet each scenario with its probability."""
        rules = [
            Rule(
                scenario=scenario,
                times=None,
                probability=chance,
                seed=seed * 1000 + n,
                conversation=conversation,
                path=path,
            )
            for n, (scenario, chance) in enumerate(faults.items())
        ]
        self._ask("POST", "/sim/faults", msgspec.json.encode(rules))

    def add_rule(self, scenario: str, *, times: int | None = 1, conversation: str = "*") -> None:
        """Let the next calls meet a scenario."""
        rule = Rule(scenario=scenario, times=times, conversation=conversation)
        self._ask("POST", "/sim/faults", msgspec.json.encode(rule))

    def remove_faults(self) -> int:
        """Take all rules away; return how often those with a probability struck."""
        states = msgspec.json.decode(self._ask("GET", "/sim/faults"), type=_Faults)
        self._ask("DELETE", "/sim/faults")
        return sum(state.hits for state in states.faults)

    def entries(
        self, *, conversation: str | None = None, bodies: bool = True, all_kept: bool = True
    ) -> Iterator[Entry]:
        """Read the record of all requests for replies, oldest first.

        Args:
            conversation: Only those of this conversation.
            bodies: Whether to read the requests' bodies too; else they are null, and may have been
                dropped: a long run has more of them than the simulator keeps.
            all_kept: Whether entries of other conversations may not have been dropped either.

        Raises:
            LedgerIncomplete: Entries were dropped, or bodies that were asked for.
        """
        since = 0
        only = f"&conversation={conversation}" if conversation else ""
        while True:
            path = f"/sim/ledger?since={since}&limit={_PAGE}&bodies={bodies:d}{only}"
            page = msgspec.json.decode(self._ask("GET", path), type=_Page)
            if (all_kept and page.dropped_entries) or (bodies and page.dropped_bodies):
                raise LedgerIncomplete(
                    f"{page.dropped_entries} entries and {page.dropped_bodies} bodies were dropped"
                )
            yield from (it for it in page.entries if it.path.endswith(_ASKED))
            if page.last_seq == since or not page.entries:
                return
            since = page.last_seq

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        connection = http.client.HTTPConnection(*self._where, timeout=60)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"the simulator answered {response.status}: {data.decode()}")
        return data
