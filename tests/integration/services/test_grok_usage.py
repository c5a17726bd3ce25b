"""What Grok's completions report as their tokens, over real bytes."""

import asyncio
import contextlib

import pytest

from tests.integration.services.wire import (
    STREAM_HEAD,
    Connection,
    Turn,
    WireServer,
    chunk,
    delta,
    failed,
    finish,
    frame,
    ran,
    sse,
    streaming,
    turn,
    usage,
)
from turnline.worker.errors import Truncated
from turnline.worker.pipeline.context import OpenAILLMContext
from turnline.worker.pipeline.frames import LLMTokenUsage
from turnline.worker.pipeline.stream_events import ProviderUsage


def counted(prompt: int, completion: int) -> bytes:
    """A content chunk with running counts."""
    return frame(
        choices=[{"index": 0, "delta": {"content": "x"}}],
        usage={
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
    )


@pytest.mark.parametrize(
    ("payloads", "reported"),
    [
        pytest.param([counted(10, 1), counted(10, 2), counted(10, 3)], [(10, 3, 13)], id="1"),
        pytest.param([delta(content="x"), usage(10, 3)], [(10, 3, 13)], id="2"),
        pytest.param(
            [counted(0, 1), counted(7, 5), counted(99, 4), counted(3, 2)], [(7, 5, 12)], id="3"
        ),
        pytest.param([counted(0, 4)], [(0, 4, 4)], id="4"),
        pytest.param([delta(content="x")], [], id="4-none"),
        pytest.param([usage(0, 0)], [], id="4-zeros"),
    ],
)
async def test_the_first_prompt_and_the_largest_completion_are_reported(
    payloads: list[bytes], reported: list[tuple[int, int, int]]
) -> None:
    """First prompt above zero, largest completion, their sum; once, or not at all."""
    run, _ = await ran(streaming(*payloads, finish()))

    assert run.reported == reported


async def test_a_report_outside_of_a_completion_counts_nowhere() -> None:
    """A report that belongs to no completion counts nowhere."""
    async with turn(streaming(finish(), usage(10, 3))) as (run, _):
        await run.service.start_llm_usage_metrics(LLMTokenUsage(99, 99, 198))
        await run.run()

        assert run.reported == [(10, 3, 13)]


async def test_what_was_counted_before_a_failure_is_reported_once() -> None:
    """What was counted before a failure is reported once, then the failure comes."""

    async def script(connection: Connection) -> None:
        await connection.send(STREAM_HEAD + chunk(sse(counted(5, 1))) + b"0\r\n\r\n")

    run, _, _ = await failed(Truncated, script)

    assert run.reported == [(5, 1, 6)]
    assert (run.service.calls[0].outcome, run.service.calls[0].error) == ("failed", "truncated")


async def test_what_was_counted_before_a_cancellation_is_reported_once() -> None:
    """What was counted before a cancellation is reported once, and the cancellation goes on."""

    async def script(connection: Connection) -> None:
        await connection.send(STREAM_HEAD + chunk(sse(counted(5, 1), counted(5, 2))))
        await connection.client_left()

    async with turn(script) as (run, server):
        task = asyncio.create_task(run.run())
        seen = asyncio.Event()
        run.on_text = lambda _: seen.set() if len(run.text) == 2 else None
        await seen.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

        assert task.cancelled()
        assert run.reported == [(5, 2, 7)]
        assert run.service.calls[0].outcome == "cancelled"
        await server.left.wait()


async def test_nothing_is_carried_from_one_completion_to_the_next() -> None:
    """Nothing is carried from one completion to the next; the turn has the sum."""
    first, second = [counted(5, 1), finish()], [counted(6, 2), finish()]
    async with turn(streaming(*first), streaming(*second)) as (run, _):
        await run.run()
        await run.run()

        assert run.reported == [(5, 1, 6), (6, 2, 8)]


async def test_without_metrics_nothing_is_reported_and_the_ledger_has_it_all() -> None:
    """Without metrics the text is the same, and nothing is reported; the ledger has it all."""
    run, _ = await ran(streaming(counted(5, 1), finish()), metrics=False)

    assert (run.text, run.reported) == ("x", [])
    (noted,) = run.service.calls
    assert noted.metric is not None
    assert noted.metric.total_tokens == 6
    assert noted.usage == ProviderUsage(5, 1, 0, 0, 6)


async def test_completions_that_share_a_service_never_mix_their_counts() -> None:
    """Two completions that share a service never mix their counts."""
    together = asyncio.Barrier(2)

    async def script(connection: Connection) -> None:
        mine = b"77" in server.requests[-1].raw
        first, second = (
            (counted(77, 1), counted(77, 3)) if mine else (counted(10, 1), counted(10, 9))
        )
        await connection.send(STREAM_HEAD + chunk(sse(first)))
        await together.wait()
        await connection.send(chunk(sse(second, finish(), b"[DONE]")) + b"0\r\n\r\n")

    async with WireServer(script) as server:
        run = Turn(server.client)
        await run.pipeline.queue_frame(run._start)
        contexts = [OpenAILLMContext([{"role": "user", "content": text}]) for text in ("ten", "77")]
        await asyncio.gather(*(run.service._process_context(context) for context in contexts))

        assert sorted(run.reported) == [(10, 9, 19), (77, 3, 80)]


async def test_the_providers_own_numbers_are_kept_beside_the_seeds_three() -> None:
    """The seed's triple stays available; the provider's own numbers are kept beside it."""
    details = {
        "prompt_tokens_details": {"cached_tokens": 287},
        "completion_tokens_details": {"reasoning_tokens": 313},
        "cost_in_usd_ticks": 739000,
    }
    report = usage(288, 27, **{**details, "total_tokens": 628})
    run, _ = await ran(streaming(delta(content="x"), finish(), report))

    (call,) = run.service.calls
    assert run.reported == [(288, 27, 315)]
    assert call.usage == ProviderUsage(288, 27, 313, 287, 628, 739000)
    assert call.usage_state == "reported"
    assert call.metric is not None
    assert (call.metric.reasoning_tokens, call.metric.cache_read_input_tokens) == (313, 287)
    assert call.counted_usage.total_tokens == 628


@pytest.mark.promise("P7")
async def test_a_cut_call_is_estimated_from_its_chunks() -> None:
    """Without a report, what was sent and streamed is counted; the cost is unknown."""

    async def script(connection: Connection) -> None:
        pieces = sse(delta(reasoning_content="h"), delta(content="a"), delta(content="b"))
        await connection.send(STREAM_HEAD + chunk(pieces) + b"0\r\n\r\n")

    run, _, _ = await failed(Truncated, script)

    (call,) = run.service.calls
    assert call.usage_state == "estimated"
    prompt = call.request_bytes // 4
    assert call.counted_usage == ProviderUsage(prompt, 2, 1, 0, prompt + 3)
    assert call.is_unpriced
