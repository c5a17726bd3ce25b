"""The queue of injected scenarios: which request gets which, how often, with what probability."""

import fnmatch
import itertools
import random
from collections import OrderedDict
from typing import Annotated, Final

import msgspec

from turnline.ops.simulator.faults import catalogue
from turnline.ops.simulator.faults.scenario import Scenario

_COUNTED_KEYS: Final = 10_000


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A wish about requests to come. The body of `POST /sim/faults`."""

    scenario: str
    """As in the header, e.g. `rst;at=tokens:5`; several are joined by `|`."""
    nth: Annotated[int, msgspec.Meta(ge=1)] = 1
    """The first matching request that is meant, counted from now."""
    times: Annotated[int, msgspec.Meta(ge=1)] | None = 1
    """How many requests are hit. None: all from then on."""
    probability: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Chance of each matching request to be hit."""
    seed: int = 0
    """Seed of these chances."""
    conversation: str = "*"
    """Pattern of conversation ids, with `*` and `?`."""
    path: str = "*"
    """Pattern of the requests' paths, likewise."""
    model: str = "*"
    """Pattern of the models that are asked for, likewise."""
    key: str = "*"
    """Pattern of the API keys that are used, likewise."""


class RuleState(msgspec.Struct, kw_only=True):
    """A rule and what became of it so far."""

    id: int
    rule: Rule
    matched: int = 0
    hits: int = 0


class _Active(msgspec.Struct):
    state: RuleState
    scenarios: list[Scenario]
    rng: random.Random


class RuleBook:
    """All rules that still wait for requests."""

    def __init__(self) -> None:
        self._rules: dict[int, _Active] = {}
        self._ids = itertools.count(1)
        self._failures: OrderedDict[str, int] = OrderedDict()

    def add(self, rule: Rule) -> int:
        """Add a rule and return its id.

        Raises:
            BadScenario: The scenario is unknown.
        """
        scenarios = catalogue.read(rule.scenario)
        number = next(self._ids)
        state = RuleState(id=number, rule=rule)
        self._rules[number] = _Active(state, scenarios, random.Random(rule.seed))
        return number

    def remove(self, number: int) -> bool:
        """Remove a rule; False if it was gone already."""
        return self._rules.pop(number, None) is not None

    def clear(self) -> None:
        """Remove all rules and forget the counts of `fail`."""
        self._rules.clear()
        self._failures.clear()

    def states(self) -> list[RuleState]:
        """Return all rules that are still active."""
        return [active.state for active in self._rules.values()]

    def hit(
        self, conversation_id: str | None, path: str = "", model: str = "", key: str = ""
    ) -> list[Scenario]:
        """Return the scenarios that hit this request; every rule that it matches counts it."""
        found: list[Scenario] = []
        for number, active in list(self._rules.items()):
            state, rule = active.state, active.state.rule
            if not (
                _fits(conversation_id or "", rule.conversation)
                and _fits(path, rule.path)
                and _fits(model, rule.model)
                and _fits(key, rule.key)
            ):
                continue
            state.matched += 1
            if state.matched < rule.nth or active.rng.random() >= rule.probability:
                continue
            state.hits += 1
            found += active.scenarios
            if rule.times is not None and state.hits >= rule.times:
                del self._rules[number]
        return found

    def fails_again(self, key: str, times: int) -> bool:
        """Count a request under a key; True for the first `times`."""
        failed = self._failures.pop(key, 0)
        self._failures[key] = failed + 1
        if len(self._failures) > _COUNTED_KEYS:
            self._failures.popitem(last=False)
        return failed < times


def _fits(name: str, pattern: str) -> bool:
    return pattern == "*" or fnmatch.fnmatchcase(name, pattern)
