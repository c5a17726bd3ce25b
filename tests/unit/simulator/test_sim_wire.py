"""The simulator's bytes: chunks as xAI writes them, requests as any client writes them."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.recordings import recorded
from turnline.ops.simulator.chat.chunks import Chunk, ChunkWriter, Completion, Delta
from turnline.ops.simulator.http.http1 import BadRequest, RequestReader


@recorded("xai/chat.*.jsonl")
def test_recordings_are_written_again_byte_for_byte(path: Path) -> None:
    """The structs know every key of chunks and completions, their order, and which are absent."""
    for line in path.read_bytes().splitlines():
        kind = Chunk if b'"chat.completion.chunk"' in line else Completion
        assert msgspec.json.encode(msgspec.json.decode(line, type=kind)) == line


@recorded("xai/chat.*streaming*.jsonl")
def test_the_quick_way_writes_the_recorded_bytes(path: Path) -> None:
    """A content chunk put together from ready bytes is the chunk that was recorded."""
    for line in path.read_bytes().splitlines():
        chunk = msgspec.json.decode(line, type=Chunk)
        if not chunk.choices or set(msgspec.to_builtins(chunk.choices[0].delta)) != {"content"}:
            continue
        writer = ChunkWriter(chunk.id, chunk.model, chunk.system_fingerprint, None)
        text = chunk.choices[0].delta.content
        assert isinstance(text, str)
        event = writer.prefix + str(chunk.created).encode() + writer.content(text)
        assert event == b"data: " + line + b"\n\n"


@given(st.text(), st.sampled_from([None, "default"]))
def test_the_quick_way_and_the_struct_agree(text: str, tier: str | None) -> None:
    """Whatever the text, both ways of writing a content chunk give the same bytes."""
    writer = ChunkWriter("an-id", "grok-4.3", "fp", tier)

    assert writer.content(text) == writer.tail(Delta(content=text))


REQUEST = (
    b"POST /v1/chat%20x?a=1&b= HTTP/1.1\r\nHost: sim\r\nX-Sim:  text;say=hi \r\n"
    b"Content-Length: 5\r\n\r\nhello"
)
CHUNKED = (
    b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3;note=1\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
)


@given(st.lists(st.integers(1, 40), max_size=30))
def test_requests_are_found_however_the_bytes_are_cut(sizes: list[int]) -> None:
    """Segments may end anywhere: the same three requests come out."""
    reader, found = RequestReader(), []
    data = REQUEST + CHUNKED + REQUEST
    for size in [*sizes, len(data)]:
        reader.feed(data[:size])
        data = data[size:]
        while (request := reader.next()) is not None:
            found.append(request)

    assert [request.body for request in found] == [b"hello"] * 3
    assert (found[0].path, found[0].query) == ("/v1/chat x", {"a": "1", "b": ""})
    assert found[2].headers["x-sim"] == "text;say=hi"
    assert reader.buffered_bytes == 0


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [("1.1", "", True), ("1.1", "close", False), ("1.0", "", False), ("1.0", "keep-alive", True)],
)
def test_a_connection_is_kept_as_the_client_wishes(
    version: str, connection: str, keeps: bool
) -> None:
    """HTTP/1.1 keeps connections unless told otherwise, HTTP/1.0 the other way round."""
    reader = RequestReader()
    reader.feed(f"GET / HTTP/{version}\r\nconnection: {connection}\r\n\r\n".encode())
    request = reader.next()

    assert request is not None
    assert request.keeps_alive is keeps


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"a" * 70_000, 431),
    ],
)
def test_bytes_that_are_no_request_are_refused(data: bytes, status: int) -> None:
    """Nonsense ends in a status, never in an exception of another kind."""
    reader = RequestReader()
    reader.feed(data)

    with pytest.raises(BadRequest) as refused:
        reader.next()
    assert refused.value.status == status
