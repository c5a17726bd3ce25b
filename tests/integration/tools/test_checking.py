"""Checks apart: what ends their process is no fault of a schema, and numbers hold nothing up."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import msgspec
import psutil
import pytest

from tests.support.slowness import slowness
from tests.support.wait import wait_until
from turnline.contracts.json_schemas import Schema, Schemas
from turnline.contracts.numbers import number
from turnline.contracts.schema_bounds import BadSchema
from turnline.worker import schema_checking as checking
from turnline.worker.schema_checking import NOT_CHECKED, TOO_COSTLY, Checker, is_cheap
from turnline.worker.turn.reply_format import InvalidReply, parsed_reply

PATTERN = {"items": {"type": "string", "pattern": "^(a+)+$"}}
DOUBLING = {"type": "array", "anyOf": [{"items": {"$ref": "#"}}, {"items": {"$ref": "#"}}]}


def compiled(schema: object) -> Schema:
    return Schemas().compiled(schema)


@pytest.fixture
async def checker() -> AsyncIterator[Checker]:
    """A checker that is closed when the test is over."""
    made = Checker()
    yield made
    await made.close()


def helper(checker: Checker) -> psutil.Process:
    """Return the process that forks, which has to be there."""
    assert checker._process is not None
    return psutil.Process(checker._process.pid)


def is_over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def fault(checker: Checker, schema: object, value: object) -> str | None:
    return await checker.fault(compiled(schema), value, msgspec.json.encode(value))


async def test_the_process_holds_no_keys(checker: Checker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What checks values of others' making has nothing of the worker's environment to lose."""
    monkeypatch.setenv("XAI_API_KEY", "xai-secret")
    monkeypatch.setenv("TURNLINE_REDIS_URL", "redis://:secret@127.0.0.1/0")
    assert await fault(checker, PATTERN, ["aa"]) is None
    found = helper(checker).environ()

    assert "PYTHONPATH" in found
    assert [name for name, value in found.items() if "secret" in value] == []


async def test_the_process_is_there_before_it_is_needed() -> None:
    """A schema that may cost much has it started at once; a cheap one does not."""
    checker = Checker()
    try:
        checker.expect(compiled({"type": "object"}))
        await asyncio.sleep(0)
        assert checker._early is None
        checker.expect(compiled(PATTERN))
        await wait_until(lambda: checker._process is not None, "the process")
        first = helper(checker)
        assert await fault(checker, PATTERN, ["aa"]) is None
        assert helper(checker) == first
    finally:
        await checker.close()
    assert is_over(first)


async def test_closing_while_it_starts_leaves_nothing_behind() -> None:
    """The process ends, however early that is."""
    checker = Checker()
    checker.expect(compiled(PATTERN))
    await asyncio.sleep(0)
    await checker.close()

    assert psutil.Process().children() == [] or checker._process is None


async def test_a_killed_process_is_replaced(checker: Checker) -> None:
    """Between checks and in the middle of one: none is refused for it."""
    assert await fault(checker, PATTERN, ["aa"]) is None
    first = helper(checker)
    first.kill()
    assert await fault(checker, PATTERN, ["aa"]) is None
    second = helper(checker)
    assert second.pid != first.pid
    second.suspend()
    waiting = asyncio.create_task(fault(checker, PATTERN, ["b"]))
    await wait_until(lambda: bool(checker._waiting), "the question")
    second.kill()
    found = await waiting
    assert found is not None
    assert "does not match" in found


async def test_a_process_that_hangs_is_replaced(
    checker: Checker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended when it does not answer in time."""
    assert await fault(checker, PATTERN, ["aa"]) is None
    first = helper(checker)
    first.suspend()
    started = checker._started

    async def started_patiently() -> asyncio.subprocess.Process:
        monkeypatch.setattr(checking, "_WAIT_S", 30.0 if is_over(first) else 0.2)
        return await started()

    monkeypatch.setattr(checker, "_started", started_patiently)
    assert await fault(checker, PATTERN, ["aa"]) is None
    assert is_over(first)


async def test_a_checker_that_is_closed_says_so() -> None:
    """What waits and what comes later is answered, and no process is left."""
    checker = Checker()
    assert await fault(checker, PATTERN, ["aa"]) is None
    process = helper(checker)
    process.suspend()
    waiting = asyncio.create_task(fault(checker, PATTERN, ["aa"]))
    await wait_until(lambda: bool(checker._waiting), "the question")
    await checker.close()
    assert await waiting == NOT_CHECKED
    assert await fault(checker, PATTERN, ["aa"]) == NOT_CHECKED
    assert not process.is_running()


async def test_a_process_ends_with_its_worker() -> None:
    """However that ended: it reads the end of its questions."""
    checker = Checker()
    assert await fault(checker, PATTERN, ["aa"]) is None
    process, asked = helper(checker), checker._process
    assert asked is not None
    assert asked.stdin is not None
    asked.stdin.close()
    await wait_until(lambda: is_over(process), "the end")
    await checker.close()


async def test_a_hundred_checks_at_once(checker: Checker) -> None:
    """Each has its own answer; what is costly is named and ends alone; no process is left over."""
    deep: object = 5
    for _ in range(40):
        deep = [deep]
    values = [deep if n % 10 == 0 else ["a" * n + "b" * (n % 2)] for n in range(100)]
    schemas = [DOUBLING if n % 10 == 0 else PATTERN for n in range(100)]
    found = await asyncio.gather(
        *(fault(checker, *case) for case in zip(schemas, values, strict=True))
    )
    for n, told in enumerate(found):
        if n % 10 == 0:
            assert told == TOO_COSTLY
        elif n % 2:
            assert told is not None
            assert "does not match" in told
        else:
            assert told is None
    process = helper(checker)
    await wait_until(lambda: not process.children(), "their ends")


@pytest.mark.parametrize("literal", ["1e308", "1e-99", "9e30", "2.2250738585072011e-308"])
def test_numbers_hold_no_loop(literal: str) -> None:
    """Neither are they read slowly, nor checked where that would be slow."""
    data = ("[" + ",".join([literal] * 100_000) + "]").encode()
    began = time.process_time()
    value = msgspec.json.Decoder(float_hook=number).decode(data)
    assert (
        time.process_time() - began
    ) / slowness() < 0.2  # msgspec's own reading: 0.8 s for the first
    assert value[0] == float(literal)
    assert not is_cheap(compiled({"contains": {"type": "string"}}), data[:60_000])
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.Decoder(float_hook=number).decode(b"1e400")


async def test_a_long_reply_is_decoded_apart(checker: Checker) -> None:
    """Its value is passed on as it was written; what is no JSON is refused as ever."""
    schema = compiled({"type": "array"})
    text = "[" + ",".join(["[]"] * 1_300_000) + "]"
    began = time.process_time()
    value = await parsed_reply(text, schema, checker)
    assert (time.process_time() - began) / slowness() < 0.1
    assert bytes(value).decode() == text
    with pytest.raises(InvalidReply, match="not JSON"):
        await parsed_reply(text[:-1], schema, checker)
    with pytest.raises(InvalidReply, match="not of type"):
        await parsed_reply(text, compiled({"type": "object"}), checker)


def test_a_reference_to_a_place_far_beyond_a_list() -> None:
    """It is refused by name, however many digits it has."""
    for place in ("9" * 5000, "7", "\u0660"):
        with pytest.raises(BadSchema, match="a reference to nothing"):
            compiled({"$ref": f"#/x/{place}", "x": [{}]})


async def test_signals_that_end_a_worker_end_no_check(checker: Checker) -> None:
    """The process that forks goes on for as long as its worker drains."""
    assert await fault(checker, PATTERN, ["aa"]) is None
    process = helper(checker)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    assert await fault(checker, PATTERN, ["aa"]) is None
    assert helper(checker).pid == process.pid
