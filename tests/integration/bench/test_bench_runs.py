"""The benchmark itself: every system answers rightly, is measured, and leaves nothing behind."""

import signal
import subprocess
import sys

import msgspec
import psutil
import pytest

from tests.support.lengths import first_of, length
from tests.support.recordings import REPOSITORY
from turnline.contracts import TurnClient
from turnline.ops.bench import growth
from turnline.ops.bench.fleet import Size, arq_in_flight, turnline_in_flight
from turnline.ops.bench.lab import open_lab
from turnline.ops.bench.producers import producers
from turnline.ops.bench.running import burst, sample
from turnline.ops.bench.scenarios import ABOUT, DIRECT, INSTANT, Model, Scenario
from turnline.ops.bench.soak import soak

TINY = Scenario(name="tiny", title="tiny", model=INSTANT, conversations=2, seconds=0.02)


async def test_every_system_is_measured_and_answers_rightly() -> None:
    """All run the same turns to the same text, and each process' share is seen."""
    async with open_lab() as lab:
        await lab.start(dict.fromkeys(ABOUT, 1))
        for name in ABOUT:
            for scenario in (TINY, msgspec.structs.replace(TINY, context=20)):
                one = await sample(lab, scenario, name, warm=False)

                assert one.turns >= 2, name
                assert one.wrong == 0, name
                assert min(one.client_cpu_s, one.model_cpu_s, one.wall_s) > 0
                queued = name != DIRECT
                assert (one.worker_cpu_s > 0) == queued, name
                assert (one.redis_commands > 0) == queued, name
                assert (one.worker_peak_mb > 0) == queued, name


async def test_a_burst_on_one_conversation_is_answered_in_turn() -> None:
    """Turnline asks the model once at a time and keeps every message; the floor does not wait."""
    async with open_lab() as lab:
        await lab.start({"turnline": 2, "floor": 2})
        seen = await burst(lab, "turnline", bursts=1)

        assert seen.most_at_once == 1
        assert seen.kept == seen.expected == 20
        assert seen.gap_p50_ms is not None

        at_once = await burst(lab, "floor", bursts=1)

        assert at_once.most_at_once > 1
        assert at_once.gap_p50_ms is None


async def test_a_paced_model_is_slower_than_an_instant_one() -> None:
    """The pace reaches the model: what is added is counted without it."""
    paced = msgspec.structs.replace(TINY, model=Model(chunks=3, ttft_ms=40, itl_ms=5))
    async with open_lab() as lab:
        await lab.start({"floor": 1})
        one = await sample(lab, paced, "floor", warm=False)

        assert one.wrong == 0
        assert min(one.added_first_ms) > 0
        assert one.wall_s > 0.05


async def test_growth_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes of each curve give points; idle conversations are whole ones that answer."""
    monkeypatch.setattr(growth, "_WORKERS", length((1, 2), (1, 2, 3)))
    monkeypatch.setattr(growth, "_ROUND_S", 0.05)
    monkeypatch.setattr(growth, "_INBOXES", (1, 5, 20))
    monkeypatch.setattr(growth, "_KEYS", (0, 1_000, 8_000))
    async with open_lab() as lab:
        curves = await growth.by_workers(lab, rounds=1)
        await lab.start({"turnline": 1})
        curves.append(await growth.by_inbox(lab, rounds=1))
        curves.append(await growth.by_idle_conversations(lab, rounds=1))
        async with TurnClient.connect(lab.redis_url("turnline")) as client:
            assert len((await client.history("idle-999")).messages) == 2
            async with lab.awake("turnline") as system:
                assert (await system.turn("idle-7", "hello")).text == INSTANT.text
            assert len((await client.history("idle-7")).messages) == 4

    assert len(curves) == 6
    for curve in curves:
        assert [point.x for point in curve.points] == sorted(point.x for point in curve.points)
        assert all(point.y > 0 for point in curve.points), curve.name


async def test_a_soak_watches_the_worker() -> None:
    """Turns are right, memory is sampled from the first turn on."""
    async with open_lab() as lab:
        seen = await soak(lab, seconds=0.5)

    assert seen.turns >= 200
    assert seen.wrong == 0
    assert len(seen.rss_mb) > 10
    assert min(mb for _, mb in seen.rss_mb) > 30


async def test_every_producer_is_measured() -> None:
    """Batches take one round trip, single submissions one each."""
    async with open_lab() as lab:
        figures = await producers(lab, rounds=1)

    assert len(figures) == 7
    for it in figures:
        in_batches = it.way.startswith("submit_many")
        assert it.per_s > 0
        assert it.redis_requests < 0.2 if in_batches else it.redis_requests >= 1


@pytest.mark.promise("P8")
async def test_a_fleet_has_as_many_turns_in_flight_as_slots(redis_url: str) -> None:
    """At 8 workers, in full at 24: all of them complete once the model answers."""
    fleet = await turnline_in_flight(redis_url, Size(workers=length(8, 24), slots=100))

    assert fleet.in_flight == fleet.completed == length(800, 2_400)


async def test_a_stock_arq_fleet_stops_at_five_workers_worth(redis_url: str) -> None:
    """The limit that the lease table removes is there in ARQ, at any size."""
    fleet = await arq_in_flight(redis_url, Size(workers=8, slots=20))

    assert fleet.in_flight == 5 * 20


@pytest.mark.parametrize("number", first_of([signal.SIGINT, signal.SIGTERM]))
def test_an_interrupted_run_leaves_no_process(number: signal.Signals) -> None:
    """Frozen ones included."""
    starter = "from turnline.ops.bench.command import bench; bench()"
    with subprocess.Popen(
        [sys.executable, "-c", starter, "--only", "instant-20-c1", "--rounds", "50"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stderr is not None
        while "round 1" not in run.stderr.readline():
            pass
        started = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(number)
        run.stderr.read()

    assert len(started) >= 6
    gone, alive = psutil.wait_procs(started, timeout=20)
    assert (len(gone), alive) == (len(started), [])
