"""What instrumented libraries do inside a tool belongs to the call of that tool."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.telemetry.collector import Collector
from tests.integration.tools.bench import calling
from tests.support.processes import WorkerProcess, worker_process
from tests.support.wait import wait_until
from turnline.contracts import TurnClient, TurnCompleted, UserMessage
from turnline.ops.simulator import Simulator

TOOLS = '''
import os
import pathlib
from contextlib import asynccontextmanager

import aiohttp
import httpx2
import redis.asyncio
import requests
from opentelemetry import baggage, trace
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.instrumentation.httpx import HTTPX2ClientInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor

from turnline.worker.tools import ToolContext, tool

for instrumentor in (
    AioHttpClientInstrumentor, HTTPX2ClientInstrumentor, RedisInstrumentor, RequestsInstrumentor
):
    instrumentor().instrument()

URL, SIGN = os.environ["SHOP"], pathlib.Path(os.environ["SIGN"])


@tool(retry_safe=True)
async def look_up(context: ToolContext) -> dict[str, str]:
    """Ask everybody."""
    span = trace.get_current_span().get_span_context()
    assert context.traceparent == f"00-{span.trace_id:032x}-{span.span_id:016x}-01"
    async with aiohttp.ClientSession() as session, session.get(URL) as answer:
        await answer.read()
    async with httpx2.AsyncClient() as client:
        await client.get(URL)
    async with redis.asyncio.from_url(os.environ["TURNLINE_REDIS_URL"]) as store:
        await store.get("stock")
    trace.get_current_span().set_attribute("shop.found", 1)
    if not SIGN.exists():
        SIGN.touch()
        await __import__("asyncio").sleep(120)
    return {"tenant": str(baggage.get_baggage("tenant"))}


@tool
def fetch() -> str:
    """Ask in a thread."""
    with requests.Session() as session:
        return str(session.get(URL).status_code)
'''


@contextlib.asynccontextmanager
async def shop() -> AsyncIterator[str]:
    """An HTTP server that answers anything."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


def start(
    folder: Path, redis_url: str, sim: Simulator, collector: Collector, url: str
) -> contextlib.AbstractContextManager[WorkerProcess]:
    """A worker process with tools that use instrumented libraries."""
    (folder / "shop_tools.py").write_text(TOOLS)
    return worker_process(
        redis_url,
        sim.base_url,
        tools="shop_tools",
        lease_s="1",
        heartbeat_s="0.2",
        SHOP=url,
        SIGN=str(folder / "begun"),
        PYTHONPATH=str(folder),
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=collector.url + "/v1/traces",
        OTEL_BSP_SCHEDULE_DELAY="50",
    )


def tree(spans: list[Any]) -> dict[str, Any]:
    """Spans by their ids."""
    return {span.span_id: span for span in spans}


async def test_all_that_a_tool_does_is_below_its_call(
    redis_url: str, sim: Simulator, client: TurnClient, tmp_path: Path
) -> None:
    """By aiohttp, httpx, Redis and, in a thread, requests; also in the attempt after a kill."""
    sign = tmp_path / "begun"
    sim.inject(calling("look_up"))
    with Collector() as collector:
        async with shop() as url:
            message = UserMessage(conversation_id="c", text="Hi", baggage="tenant=acme")
            with start(tmp_path, redis_url, sim, collector, url) as victim:
                receipt = await client.submit(message)
                await wait_until(sign.exists, "the first attempt's tool waits", 20)
                await wait_until(
                    lambda: sum(it.name == "GET" for it in collector.spans) == 3,
                    "they are told",
                    20,
                )
                victim.signal(signal.SIGKILL)
                victim.process.wait()
            with start(tmp_path, redis_url, sim, collector, url) as worker:
                assert isinstance(await client.result(receipt, timeout_s=30), TurnCompleted)
                asked = bytes(sim.ledger.entries()[-1].body).decode()
                sim.inject(calling("fetch"))
                other = await client.submit(UserMessage(conversation_id="c", text="And?"))
                assert isinstance(await client.result(other, timeout_s=30), TurnCompleted)
                worker.signal(signal.SIGTERM)
                worker.gone_within(15)
        spans = collector.spans

    known = tree(spans)
    assert {span.trace_id.hex() for span in spans} == {receipt.trace_id, other.trace_id}
    assert len(known) == len(spans), "a span is told twice"
    above = [known[span.parent_span_id].name for span in spans if span.name == "GET"]
    assert sorted(above) == ["execute_tool fetch"] + ["execute_tool look_up"] * 6
    assert "acme" in asked


@pytest.mark.parametrize("instrument", [False, True])
async def test_a_worker_by_itself_makes_no_traces(
    redis_url: str, sim: Simulator, client: TurnClient, tmp_path: Path, instrument: bool
) -> None:
    """Its own requests and commands hang below its spans, or are not told at all."""
    program = ["opentelemetry-instrument"] if instrument else []
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("TURNLINE_")},
        "TURNLINE_REDIS_URL": redis_url,
        "TURNLINE_BASE_URL": sim.base_url,
        "XAI_API_KEY": "xai-test",
        "TURNLINE_POLL_S": "0.1",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
    }
    with Collector() as collector:
        environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        process = await asyncio.create_subprocess_exec(*program, "turnline", "worker", env=environ)
        receipt = await client.submit(UserMessage(conversation_id="c", text="Hi"))
        assert isinstance(await client.result(receipt, timeout_s=30), TurnCompleted)
        await wait_until(lambda: any(s.name == "turn" for s in collector.spans), "it is told", 10)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 15) == 0
        spans = collector.spans

    known = tree(spans)
    assert {span.trace_id.hex() for span in spans} == {receipt.trace_id}
    posts = [span for span in spans if span.name == "POST"]
    assert [known[span.parent_span_id].name.split()[0] for span in posts] == ["chat"] * instrument
