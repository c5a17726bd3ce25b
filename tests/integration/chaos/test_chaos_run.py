"""A short `turnline chaos` on real processes, and the same with a promise broken on purpose."""

import pytest

from tests.support.lengths import first_of, length
from turnline.ops.chaos import session
from turnline.ops.chaos.report import Report
from turnline.ops.chaos.run_options import Deployment, Run, Wires

SEED = 20_261_122


def run(
    seconds: float,
    *,
    scale: float,
    patience_s: float,
    sabotage: str | None = None,
    itl_ms: float = 4,
    wire: Wires = "responses",
    deployment: Deployment = "server",
    shards: int = 1,
    reshard: int | None = None,
    limits: bool = False,
) -> Report:
    options = Run(
        seconds=seconds,
        seed=SEED,
        wire=wire,
        deployment=deployment,
        shards=shards,
        reshard=reshard,
        workers=4,
        conversations=20,
        think_s=0.5,
        scale=scale,
        patience_s=patience_s,
        itl_ms=itl_ms,
        command=f"seed {SEED}",
        limits=limits,
        sabotage=sabotage,
    )
    return session.run(options, lambda _: None)


@pytest.mark.promise("P1", "P2", "P3", "P4", "P6", "P7", "P13")
@pytest.mark.timeout(180)
def test_seconds_of_chaos_break_no_promise() -> None:
    """Kills, stops, terminations, Redis restarts, faults of both wires: every column is zero."""
    seconds, scale = length((7, 3), (20, 1.5))  # as many disturbances, closer together
    report = run(seconds, scale=scale, patience_s=60, wire="both")

    assert report.named == [], report.command
    assert report.token_difference == 0
    assert report.turns > 5 * seconds
    assert report.kills >= 5
    assert report.stops >= 1
    assert report.redis_restarts >= 2
    assert report.faults > 10
    assert min(report.wires["chat"], report.wires["responses"]) > 20


@pytest.mark.promise("P1", "P2", "P3", "P4", "P6", "P7", "P13")
@pytest.mark.parametrize(("deployment", "shards"), first_of([("cluster", 6), ("sentinel", 1)]))
@pytest.mark.timeout(300)
def test_seconds_of_failovers_break_no_promise(deployment: Deployment, shards: int) -> None:
    """Primaries killed, frozen, replaced, slots moved: no producer or reader is told an error.

    What a crash loses because no replica had it yet is in a column of its own.
    """
    seconds, scale = length((15, 2), (20, 1.5))
    report = run(seconds, scale=scale, patience_s=60, deployment=deployment, shards=shards)

    assert [it for it in report.named if not it.by] == [], report.command
    assert report.lost_by_failover.get("failover", 0) == 0, report.named
    assert report.turns > 5 * seconds
    assert sum(report.failovers.values()) >= 1
    assert report.redis_restarts == 0


@pytest.mark.promise("P1", "P2", "P3", "P4", "P6", "P7", "P13")
@pytest.mark.timeout(180)
def test_seconds_of_resharding_break_no_promise() -> None:
    """From one shard to twelve and back, beside all other disturbances; commands are killed, too.

    Provider, tenants and turns are held to limits meanwhile. Half of the producers begin with the
    one number in mind, half with the other.
    """
    seconds, scale = length((6, 2.5), (20, 1.5))
    report = run(seconds, scale=scale, patience_s=60, reshard=12, limits=True)

    assert report.named == [], report.command
    assert report.token_difference == 0
    assert report.turns > 5 * seconds
    assert report.resharded is not None
    assert report.resharded.done >= 1
    assert report.resharded.moved >= 5


@pytest.mark.parametrize(
    ("sabotage", "column"),
    [("count-abandoned", "tokens")],
)
@pytest.mark.timeout(180)
def test_a_broken_promise_is_named(sabotage: str, column: str) -> None:
    """Workers that skip one check: the checker says which promise is broken.

    The other sabotages need a kill or a zombie at the right moment and more time than a suite has:
    `turnline chaos --sabotage NAME`.
    """
    report = run(length(8, 10), scale=3, sabotage=sabotage, patience_s=5, itl_ms=40)

    assert report.violations[column] > 0, report.violations
