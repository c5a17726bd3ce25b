"""All scenarios by name, and the sorting of those that apply to one request."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from turnline.ops.simulator.config import Pacing, read_coalesce
from turnline.ops.simulator.faults.http_faults import HTTP
from turnline.ops.simulator.faults.scenario import BadScenario, Effect, Scenario, parse
from turnline.ops.simulator.faults.stream_faults import STREAM, USAGE
from turnline.ops.simulator.faults.transport_faults import TRANSPORT
from turnline.ops.simulator.model.content import CONTENT
from turnline.ops.simulator.responses.event_faults import EVENTS


def pace(pacing: Pacing, scenario: Scenario) -> Pacing:
    """Return another pace.

    Raises:
        BadScenario: One of the values is none.
    """
    changed: dict[str, float | tuple[int, int]] = {
        key: scenario.real(key, 0)
        for key in ("speed", "ttft_ms", "itl_ms", "ttft_median_ms", "itl_median_ms", "keepalive_s")
        if key in scenario.args
    }
    if "coalesce" in scenario.args:
        try:
            changed["coalesce"] = read_coalesce(scenario.text("coalesce"))
        except ValueError as error:
            raise BadScenario(f"pace: coalesce {error}") from None
    return msgspec.structs.replace(pacing, **changed)


CONTROL: Final[Mapping[str, Effect[Callable[..., object]]]] = {
    "pace": Effect(
        pace,
        (
            "speed", "ttft_ms", "itl_ms", "ttft_median_ms", "itl_median_ms", "keepalive_s",
            "coalesce",
        ),
        "another pace for this answer",
    ),
    "usage-every-chunk": Effect(bool, (), "the running usage in every chunk"),
    "fail": Effect(
        bool,
        ("n", "with", "key"),
        "the first n requests with the same key (default: the conversation) get the scenario"
        " `with` (default: unavailable), later ones succeed",
    ),
    "refuse": Effect(
        bool, ("seconds",), "reset this connection and refuse new ones for some seconds"
    ),
    "decrypt": Effect(
        bool, ("text",), "400 if the request has sealed reasoning, whoever has sealed it"
    ),
    "reasoning-ids": Effect(
        bool, ("found",), "found=0: reasoning without sealed content is not found by its id"
    ),
    "reasoning-text": Effect(bool, (), "the thought as reasoning_text in place of a summary"),
    "no-reasoning-item": Effect(bool, (), "no reasoning item, although reasoning is counted"),
    "encrypted": Effect(
        bool, ("shape",), "sealed content is missing, null or empty although it was asked for"
    ),
}  # fmt: skip

GROUPS: Final[Mapping[str, Mapping[str, Effect[Callable[..., object]]]]] = {
    "content": CONTENT,
    "usage": USAGE,
    "http": HTTP,
    "stream": STREAM,
    "events": EVENTS,
    "transport": TRANSPORT,
    "control": CONTROL,
}


def read(text: str) -> list[Scenario]:
    """Parse scenarios and check that each exists and takes its arguments.

    Raises:
        BadScenario: Names what is unknown.
    """
    scenarios = parse(text)
    for scenario in scenarios:
        check(scenario)
    return scenarios


def check(scenario: Scenario) -> str:
    """Find the group of a scenario.

    Raises:
        BadScenario: Its name or one of its arguments is unknown.
    """
    for group, effects in GROUPS.items():
        effect = effects.get(scenario.name)
        if effect is None:
            continue
        unknown = sorted(scenario.args.keys() - set(effect.args))
        if unknown:
            takes = ", ".join(effect.args) or "nothing"
            raise BadScenario(f"{scenario.name} takes {takes}, not {', '.join(unknown)}")
        return group
    raise BadScenario(f"no scenario is called {scenario.name!r}; GET /sim/scenarios lists them")


def sort(scenarios: Iterable[Scenario]) -> Mapping[str, list[Scenario]]:
    """Sort scenarios by the group that they are of.

    Raises:
        BadScenario: One is unknown.
    """
    groups: dict[str, list[Scenario]] = {group: [] for group in GROUPS}
    for scenario in scenarios:
        groups[check(scenario)].append(scenario)
    return groups


def listing() -> dict[str, dict[str, dict[str, object]]]:
    """Every scenario with its arguments and what it does, by group."""
    return {
        group: {
            name: {"args": list(effect.args), "help": effect.help}
            for name, effect in effects.items()
        }
        for group, effects in GROUPS.items()
    }
