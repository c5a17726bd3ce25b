"""Schemas made to hang or crash a worker: refused by name, or checked, in bounded time."""

import contextlib
import functools
import json
import resource
import secrets
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from tests.support.driving import fleet
from tests.support.lengths import length
from tests.support.slowness import slowness
from turnline.contracts import TurnClient, TurnCompleted, TurnFailed, UserMessage
from turnline.contracts.json_schemas import Schema, Schemas
from turnline.contracts.schema_bounds import BadSchema
from turnline.ops.fuzz.hostile import Hostile, hostile_schemas
from turnline.ops.simulator import Simulator
from turnline.worker.files import UnusableFile, read_json
from turnline.worker.schema_checking import TOO_COSTLY, Checker, apart, budget_s, is_cheap
from turnline.worker.tools.loader import load_tools
from turnline.worker.turn.plan import BadAgents, read_agents

MOST_S = 0.05
"""Processor seconds: for a refusal, and for each begun 100 KB that is checked."""
LOOP_S = 0.03
"""Processor seconds that a check may hold the event loop."""
TICK_S = 0.02
"""The system counts processor time in ticks and ends a process at one."""


@pytest.fixture
def cases() -> list[Hostile]:
    """Each kind twice, or 200 of them, of a seed that a failure shows."""
    seed = secrets.randbelow(1_000_000)
    print(f"seed {seed}")  # noqa: T201  shown where the test fails
    return hostile_schemas(seed, length(64, 200))


def cost_s(work: Callable[[], object]) -> float:
    """Return the processor seconds that something takes on a quiet machine, the best of three."""
    spent: list[float] = []
    for _ in range(3):
        began = time.process_time()
        work()
        spent.append((time.process_time() - began) / slowness())
        if spent[-1] < LOOP_S:
            break
    return min(spent)


def cost_apart_s(schema: Schema, data: bytes) -> float:
    """Return the processor seconds that a check apart takes in its process, the best of three."""
    spent: list[float] = []
    for _ in range(3):
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        apart(schema, data)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        took_s = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
        spent.append(took_s / slowness())
    return min(spent)


def refusal(work: Callable[[], object]) -> str | None:
    """Return how a schema is refused."""
    try:
        work()
    except BadSchema as error:
        return str(error)
    return None


def test_compiling_takes_bounded_time(cases: list[Hostile]) -> None:
    """Each is refused in one line within 50 ms, or accepted within 50 ms."""
    refused = 0
    for case in cases:
        asked = msgspec.json.decode(case.schema) if _is_json(case.schema) else None

        def compile_it(asked: Any = asked, case: Hostile = case) -> None:
            if isinstance(asked, dict):
                Schemas().of_reply(asked)
            else:
                Schemas().read(case.schema)

        assert cost_s(lambda: refusal(compile_it)) < MOST_S, case.name
        told = refusal(compile_it)
        refused += told is not None
        assert told is None or (len(told) <= 300 and told.isprintable() and ":" in told)
    assert len(cases) * 0.3 < refused < len(cases) * 0.9


async def test_checking_takes_bounded_time(cases: list[Hostile]) -> None:
    """In the event loop and apart; what would take longer is refused by name."""
    checker = Checker()
    costly = checked = 0
    allowed_s = 0.0
    try:
        for case in cases:
            try:
                schema = checker.schemas.read(case.schema)
                value = msgspec.json.decode(case.value)
            except (BadSchema, msgspec.MsgspecError, RecursionError):
                continue
            if is_cheap(schema, case.value):
                check = functools.partial(schema.fault, value)
                assert cost_s(check) < LOOP_S, case.name
            else:
                most_s = budget_s(len(case.value)) + TICK_S
                forking_s = cost_apart_s(Schemas().read(b"true"), b"1")  # of all that pytest is
                assert cost_apart_s(schema, case.value) < most_s + 2 * forking_s, case.name
                allowed_s += most_s + TICK_S
            fault = await checker.fault(schema, value, case.value)
            assert fault is None or (len(fault) <= 300 and fault.isprintable())
            checked += 1
            costly += fault == TOO_COSTLY
        assert 0 < _children_s(checker) < allowed_s
    finally:
        await checker.close()
    assert checked > len(cases) * 0.2
    assert 0 < costly < checked


def _children_s(checker: Checker) -> float:
    """Return the processor seconds of all checks that ran apart and are over."""
    if checker._process is None:
        return 0.0
    times = psutil.Process(checker._process.pid).cpu_times()
    return times.children_user + times.children_system


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.encode(msgspec.json.decode(data))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True


def test_a_file_of_tools_is_refused_by_name_in_time(cases: list[Hostile], tmp_path: Path) -> None:
    """As a tool's parameters; reading the JSON itself is not counted."""
    path = tmp_path / "tools.json"
    for case in cases:
        if not _is_json(case.schema):
            continue
        parameters = msgspec.Raw(case.schema)
        path.write_bytes(
            msgspec.json.encode([{"function": {"name": "f", "parameters": parameters}}])
        )
        loaded = load_tools("", str(path))
        reading_s = cost_s(lambda: _read(path))
        if reading_s < 0.1:  # else its noise hides what is measured
            spent_s = cost_s(lambda: load_tools("", str(path)))
            assert spent_s - reading_s < MOST_S, case.name
        assert len(loaded.problems) + len(loaded.schemas) == 1, case.name
        assert all(it.isprintable() and len(it) < 1_000 for it in loaded.problems)


def test_a_file_of_agents_is_refused_by_name_in_time(cases: list[Hostile], tmp_path: Path) -> None:
    """As an agent's `response_format`; reading the TOML itself is not counted."""
    path = tmp_path / "agents.toml"
    tried = 0
    for case in cases:
        if not _is_json(case.schema) or len(case.schema) > 300_000:
            continue
        schema = msgspec.json.decode(case.schema)
        try:
            text = f"[a]\nresponse_format = {_toml(schema)}\n"
        except RecursionError:
            continue
        if not isinstance(schema, dict) or b"null" in case.schema:
            continue
        path.write_text(text)
        began = time.process_time()
        try:
            tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError):
            continue
        reading_s = (time.process_time() - began) / slowness()
        tried += 1

        def read() -> str | None:
            try:
                read_agents(path, [])
            except BadAgents as error:
                return str(error)
            return None

        told = read()
        assert told is None or "response_format: #" in told, case.name
        if reading_s < 0.2:  # else its noise hides what is measured
            assert cost_s(read) - reading_s < MOST_S + reading_s / 2, case.name
    assert tried > len(cases) * 0.4


def _read(path: Path) -> None:
    with contextlib.suppress(UnusableFile):
        read_json(path)


def _toml(value: Any) -> str:
    match value:
        case dict():
            return "{" + ",".join(f"{json.dumps(k)}={_toml(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ",".join(map(_toml, value)) + "]"
        case _:
            return json.dumps(value)


@pytest.mark.timeout(300)
async def test_no_worker_is_held_up(
    redis_url: str, sim: Simulator, cases: list[Hostile], caplog: pytest.LogCaptureFixture
) -> None:
    """Though the producer did not look: turns end by name, no lease is lost, others go on."""
    sim.inject("text;say=%7B%22a%22%3A%7B%22a%22%3A1%7D%7D", times=None)
    async with fleet(redis_url, sim), TurnClient.connect(redis_url) as client:
        client._make._schemas.check = lambda message: None  # type: ignore[method-assign]
        receipts = []
        for number, case in enumerate(cases):
            asked = msgspec.json.decode(case.schema) if _is_json(case.schema) else None
            if not isinstance(asked, dict) or len(case.schema) > 900_000:
                continue
            message = UserMessage(
                conversation_id=f"h{number}", text="go", response_format=asked or None
            )
            receipts.append((case, await client.submit(message)))
        well = await client.ask("well", "go", timeout_s=100)
        assert isinstance(well, TurnCompleted)
        codes: set[str] = set()
        for case, receipt in receipts:
            ending = await client.result(receipt, timeout_s=100)
            assert isinstance(ending, TurnCompleted | TurnFailed), case.name
            assert ending.attempt == 1, case.name
            codes.add(ending.code if isinstance(ending, TurnFailed) else "completed")
    assert codes <= {"completed", "invalid_message", "invalid_reply"}
    assert {"invalid_message", "completed"} <= codes
    lost = {"lease.lost", "heartbeat.failed"}
    assert not lost & {record.getMessage() for record in caplog.records}
