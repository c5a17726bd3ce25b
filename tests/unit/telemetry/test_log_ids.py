"""Ids in log lines: of what a task runs, in all that it and those it starts say."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from turnline.worker.logs import JsonFormatter, TextFormatter, WithIds, bind_log_context

log = logging.getLogger("turnline.test")


@pytest.fixture(params=[JsonFormatter, TextFormatter])
def lines(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(request.param())
    handler.addFilter(WithIds())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield stream
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


async def test_each_task_says_its_own_ids(lines: io.StringIO) -> None:
    """Two conversations at once never mix; a task that they start says theirs."""

    async def inner() -> None:
        log.info("inner")

    async def run(name: str) -> None:
        bind_log_context(conversation_id=name, trace_id=f"trace-of-{name}")
        await asyncio.sleep(0)
        log.info("outer", extra={"attempt": 1})
        await asyncio.create_task(inner())

    await asyncio.gather(run("one"), run("two"))

    said = lines.getvalue().splitlines()
    assert len(said) == 4
    for name in ("one", "two"):
        own = [line for line in said if f"trace-of-{name}" in line]
        assert len(own) == 2
        assert all(f"{name}" in line for line in own)
    if said[0].startswith("{"):
        assert {json.loads(line)["conversation_id"] for line in said} == {"one", "two"}


async def test_a_line_says_what_it_says_itself(lines: io.StringIO) -> None:
    """A field of its own wins."""
    bind_log_context(conversation_id="task's")

    log.info("event", extra={"conversation_id": "line's"})

    assert "line's" in lines.getvalue()
    assert "task's" not in lines.getvalue()
