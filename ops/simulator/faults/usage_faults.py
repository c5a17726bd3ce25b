"""Scenarios that bend the reported usage away from the invariants."""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from msgspec import UNSET

from turnline.ops.simulator.faults.scenario import Scenario
from turnline.ops.simulator.faults.scenario_entry import Effect
from turnline.ops.simulator.model.usage import Usage

_with = msgspec.structs.replace
UsageRun = Callable[[Usage, Scenario], Usage]


def cached_over_prompt(usage: Usage, extra: int) -> Usage:
    """Report more cached tokens than the prompt has, as Azure does."""
    details = _with(usage.prompt_tokens_details, cached_tokens=usage.prompt_tokens + extra)
    return _with(usage, prompt_tokens_details=details)


def _cached(usage: Usage, scenario: Scenario) -> Usage:
    return cached_over_prompt(usage, scenario.number("extra", 138))


def _no_ticks(usage: Usage, _scenario: Scenario) -> Usage:
    return _with(usage, cost_in_usd_ticks=UNSET)


def _zero_ticks(usage: Usage, _scenario: Scenario) -> Usage:
    return _with(usage, cost_in_usd_ticks=0)


def _total(usage: Usage, scenario: Scenario) -> Usage:
    return _with(usage, total_tokens=usage.total_tokens + scenario.number("off", 7))


USAGE: Final[Mapping[str, Effect[UsageRun]]] = {
    "cached-over-prompt": Effect(_cached, ("extra",), "more cached tokens than prompt tokens"),
    "ticks-zero": Effect(_zero_ticks, (), "cost 0"),
    "ticks-absent": Effect(_no_ticks, (), "no cost"),
    "total-inconsistent": Effect(_total, ("off",), "a total that is not the sum"),
}
