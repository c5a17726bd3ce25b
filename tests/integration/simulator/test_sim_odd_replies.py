"""Replies in shapes that few servers send, and replies without measure."""

import json

import pytest

from turnline.ops.simulator import Simulator
from turnline.ops.simulator.chat.chunk_faults import SHAPES

ENDS = {"parts", "surrogates", "whole-json", "garbage"}


async def reply(post, sim: Simulator, shape: str) -> bytes:
    sim.inject(f"odd-reply;shape={shape},size=200000")
    response = await post()
    assert response.status == 200
    return response.body


@pytest.mark.parametrize("shape", SHAPES)
async def test_each_shape_is_what_it_says(post, sim: Simulator, shape: str) -> None:
    """In place of what the model would have said, or around it."""
    body = await reply(post, sim, shape)

    marks = {
        "parts": b'"content":[{"type":"text"',
        "no-finish": b"[DONE]",
        "surrogates": rb'"\ude00"',
        "whole-json": b'"message":{"role":"assistant"',
        "garbage": b"data: {]]}~\n\n",
        "endless": b"and so on, and so on",
        "arguments": b"and so on, and so on",
        "calls": b'"id":"call_199"',
        "long-names": b"x" * 20_000,
        "deep": rb"{\"a\":" * 200,
    }
    assert marks[shape] in body
    assert (b'"finish_reason"' in body) == (
        shape in {"parts", "surrogates", "whole-json", "garbage"}
    )
    if shape == "whole-json":
        assert json.loads(body)["object"] == "chat.completion"
    if shape in {"endless", "arguments"}:
        assert 130_000 < len(body) < 250_000


async def test_a_shape_may_be_chosen_for_some_conversations(post, sim: Simulator) -> None:
    """The others are answered as ever."""
    sim.inject("odd-reply;shape=garbage", times=None, conversation="odd-*")

    odd = await post(headers={"x-grok-conv-id": "odd-1"})
    plain = await post(headers={"x-grok-conv-id": "plain-1"})

    assert b"{]]}~" in odd.body
    assert b"{]]}~" not in plain.body
