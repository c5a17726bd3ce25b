"""Parts of `turnline chaos` that decide by themselves: plan, recovery, sabotage, report."""

from collections.abc import Mapping
from importlib import resources
from typing import Any

import pytest
from click.testing import CliRunner

from turnline.contracts.layout import Layout
from turnline.contracts.replies import AnyEvent, TextDelta, TurnStarted
from turnline.ops.chaos import command
from turnline.ops.chaos.disturbances import (
    ALWAYS,
    CLUSTER_PER_MINUTE,
    EVENT_FAULTS,
    FAULTS,
    MALFORMED,
    PER_MINUTE,
    SENTINEL_PER_MINUTE,
    Disturbance,
    Kind,
    planned,
)
from turnline.ops.chaos.evidence import Evidence
from turnline.ops.chaos.fault_run import Outcome
from turnline.ops.chaos.figures import percentile
from turnline.ops.chaos.journal import Journal
from turnline.ops.chaos.recovery import recoveries_s
from turnline.ops.chaos.report import judge
from turnline.ops.chaos.reshards import Resharded
from turnline.ops.chaos.run_options import Run
from turnline.ops.chaos.sabotage import SABOTAGES, LuaPatch, patched
from turnline.ops.simulator.faults import catalogue

PACKAGES = {
    "submit": "turnline.contracts.scripts",
    "forget": "turnline.contracts.scripts",
    "release": "turnline.worker.queue.lua",
    "renew": "turnline.worker.queue.lua",
}


def test_a_seed_gives_the_same_plan_and_another_one_another() -> None:
    """A run can be repeated by its seed."""
    assert planned(7, 60) == planned(7, 60)
    assert planned(7, 60) != planned(8, 60)


@pytest.mark.parametrize("seed", range(20))
def test_ten_minutes_hold_as_many_disturbances_as_promised(seed: int) -> None:
    """At least 200 kills, 50 stops and 5 restarts of Redis, with any seed."""
    kinds = [each.kind for each in planned(seed, 600)]

    assert kinds.count("kill") >= 200
    assert kinds.count("stop") >= 50
    assert kinds.count("redis-kill") + kinds.count("redis-clean") >= 5


@pytest.mark.parametrize("seed", range(20))
def test_the_shortest_run_restarts_redis_both_ways(seed: int) -> None:
    """However short, a run has the rare disturbances too."""
    kinds = {each.kind for each in planned(seed, 20)}

    assert kinds >= {"redis-kill", "redis-clean", "kill", "stop"}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("per_minute", [CLUSTER_PER_MINUTE, SENTINEL_PER_MINUTE])
def test_the_shortest_run_of_several_servers_replaces_a_primary_in_each_way(
    seed: int, per_minute: Mapping[Kind, float]
) -> None:
    """Killed, frozen, as planned; what needs one private server is left out."""
    kinds = {each.kind for each in planned(seed, 20, per_minute=per_minute)}

    assert kinds >= ALWAYS & per_minute.keys()
    assert not kinds & {"redis-kill", "redis-clean", "redis-full"}
    assert ("slot-move" in kinds) == (per_minute is CLUSTER_PER_MINUTE)


def test_every_fault_is_one_that_the_simulator_knows() -> None:
    """A scenario misspelt here would end a run before it began."""
    for scenario in {**FAULTS, **EVENT_FAULTS, **MALFORMED}:
        assert catalogue.read(scenario)
    assert sum(FAULTS.values()) + sum(EVENT_FAULTS.values()) < 0.35
    assert PER_MINUTE.keys() | CLUSTER_PER_MINUTE.keys() >= ALWAYS


def started(attempt: int, worker: str, at_ms: int) -> TurnStarted:
    return TurnStarted(
        conversation_id="c", turn_id="t", attempt=attempt, worker=worker, event_id=f"{at_ms}-0"
    )


def delta(attempt: int, at_ms: int) -> TextDelta:
    return TextDelta(
        conversation_id="c", turn_id="t", attempt=attempt, text="x", event_id=f"{at_ms}-0"
    )


@pytest.mark.parametrize(
    ("worker", "at_ms", "expected"),
    [("w1", 1_500.0, [2.5]), ("w2", 1_500.0, []), ("w1", 500.0, []), ("w1", 9_000.0, [])],
)
def test_recovery_is_from_the_kill_to_the_next_attempts_first_text(
    worker: str, at_ms: float, expected: list[float]
) -> None:
    """Only of turns that the killed worker was running."""
    stream: list[AnyEvent] = [
        started(1, "w1", 1_000),
        delta(1, 1_100),
        started(2, "w2", 3_900),
        delta(2, 4_000),
    ]
    kill = Disturbance(kind="kill", worker=worker, from_ms=at_ms, to_ms=at_ms)

    assert recoveries_s([stream], [kill]) == expected


def test_percentiles_are_values_that_occurred() -> None:
    """By the nearest rank; nothing gives 0."""
    values = [float(n) for n in range(1, 101)]

    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([3.0], 0.99) == 3
    assert percentile([], 0.5) == 0


def judged(resharded: Resharded, **evidence: Any) -> list[str]:
    """What is broken about a run in which nothing but the number of shards was looked at."""
    outcome = Outcome(
        journal=Journal(),
        disturbances=[],
        faults=0,
        deaths=[],
        refused_starts=0,
        on_queue=0,
        is_done=True,
        seconds=1,
        resharded=resharded,
    )
    left = Evidence(left={}, replies={}, dead=[], lives={}, requests={}, **evidence)
    report = judge(outcome, left, [], Run(seconds=1, seed=1, reshard=48))
    assert report.violations["broken"] == len(report.named)
    assert report.is_clean == (not report.named)
    return [violation.what for violation in report.named]


def test_a_reshard_that_did_not_come_to_its_end_breaks_a_promise() -> None:
    """The words of the command, the number in the end, and shards that do not know it."""
    done = Resharded(shards=48, done=3)

    assert judged(done, layout=Layout(48, 0, (1,))) == []
    assert judged(Resharded(shards=48, failures=["?"]), layout=Layout(48)) == ["?"]
    for layout in (Layout(1), Layout(48, 1, (1,))):
        assert len(judged(done, layout=layout)) == 1
    assert judged(done, layout=Layout(48), disagreeing=[7]) == [
        "shards [7] do not know that there are 48"
    ]


@pytest.mark.parametrize(
    "options",
    ["--reshard 1", "--cluster --reshard 6", "--shards 3", "--reshard 2 --upgrade-from HEAD"],
)
def test_options_that_do_not_go_together_are_refused(options: str) -> None:
    """Before anything is started."""
    done = CliRunner().invoke(command.chaos, options.split())

    assert done.exit_code == 2, done.output


def lua_patches() -> list[Any]:
    found = []
    for name, (_, apply) in SABOTAGES.items():
        for cell in apply.__closure__ or ():
            for patch in cell.cell_contents:
                assert isinstance(patch, LuaPatch)
                found.append(pytest.param(patch, id=f"{name}-{patch.script}"))
    return found


@pytest.mark.parametrize("patch", lua_patches())
def test_every_sabotage_fits_the_script_it_is_meant_for(patch: LuaPatch) -> None:
    """A script that changed must not make a sabotage, and so a check of the checker, a no-op."""
    package = PACKAGES.get(patch.script, "turnline.worker.store.lua")
    text = resources.files(package).joinpath(f"{patch.script}.lua").read_text(encoding="utf-8")

    changed = patched(patch.script, text, (patch,))

    assert changed != text
    with pytest.raises(RuntimeError, match="has changed"):
        patched(patch.script, "return 1", (patch,))
