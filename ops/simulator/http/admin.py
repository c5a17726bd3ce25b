"""The simulator's own routes under `/sim`: faults, ledger, scenarios, health."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from turnline.ops.simulator.faults import catalogue
from turnline.ops.simulator.faults.response_plan import Plan, body_plan, json_plan
from turnline.ops.simulator.faults.rules import Rule, RuleBook
from turnline.ops.simulator.faults.scenario import BadScenario
from turnline.ops.simulator.http.http1 import Request
from turnline.ops.simulator.model.api_errors import PLAIN
from turnline.ops.simulator.request_ledger import Ledger

PREFIX: Final = "/sim/"


class Admin:
    """Answers requests under `/sim`; they leave no trace in the ledger."""

    def __init__(self, rules: RuleBook, ledger: Ledger) -> None:
        self._rules = rules
        self._ledger = ledger
        self._decode_rules = msgspec.json.Decoder(Rule | list[Rule]).decode
        self._routes: Mapping[tuple[str, str], Callable[[Request], Plan]] = {
            ("GET", "/sim/health"): self._health,
            ("GET", "/sim/scenarios"): self._scenarios,
            ("GET", "/sim/faults"): self._list_faults,
            ("POST", "/sim/faults"): self._add_faults,
            ("DELETE", "/sim/faults"): self._remove_faults,
            ("GET", "/sim/ledger"): self._read_ledger,
            ("DELETE", "/sim/ledger"): self._clear_ledger,
        }

    def respond(self, request: Request) -> Plan:
        """Answer one request."""
        route = self._routes.get((request.method, request.path))
        if route is None:
            known = ", ".join(f"{method} {path}" for method, path in self._routes)
            return body_plan(404, PLAIN, f"no such route; there are {known}\n".encode())
        return route(request)

    def _health(self, _request: Request) -> Plan:
        return _ok({"ok": True, "entries": len(self._ledger)})

    def _scenarios(self, _request: Request) -> Plan:
        return _ok(catalogue.listing())

    def _list_faults(self, _request: Request) -> Plan:
        return _ok({"faults": self._rules.states()})

    def _add_faults(self, request: Request) -> Plan:
        try:
            given: Rule | list[Rule] = self._decode_rules(request.body)
            rules = given if isinstance(given, list) else [given]
            numbers = [self._rules.add(rule) for rule in rules]
        except (msgspec.DecodeError, BadScenario) as error:
            return body_plan(400, PLAIN, f"{error}\n".encode())
        return _ok({"ids": numbers})

    def _remove_faults(self, request: Request) -> Plan:
        number = request.query.get("id")
        if number is None:
            self._rules.clear()
            return _ok({"removed": True})
        return _ok({"removed": number.isdigit() and self._rules.remove(int(number))})

    def _read_ledger(self, request: Request) -> Plan:
        query = request.query
        since, limit = query.get("since", "0"), query.get("limit", "0")
        if not since.isdigit() or not limit.isdigit():
            return body_plan(400, PLAIN, b"since and limit take numbers\n")
        entries = self._ledger.entries(conversation=query.get("conversation"), since=int(since))
        if query.get("summary", "0") not in {"", "0"}:
            return _ok(self._ledger.summary(entries))
        if int(limit):
            entries = entries[: int(limit)]
        if query.get("bodies", "1") == "0":
            entries = [msgspec.structs.replace(entry, body=None) for entry in entries]
        return _ok(
            {
                "entries": entries,
                "last_seq": entries[-1].seq if entries else int(since),
                "dropped_entries": self._ledger.dropped_entries,
                "dropped_bodies": self._ledger.dropped_bodies,
            }
        )

    def _clear_ledger(self, _request: Request) -> Plan:
        self._ledger.clear()
        return _ok({"cleared": True})


def _ok(payload: object) -> Plan:
    return json_plan(payload, end=b"\n")
