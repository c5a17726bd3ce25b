"""What a provider may answer to the question at the start, and what becomes of it."""

import asyncio
import gzip
import time
import tracemalloc

import pytest

from tests.integration.starting.answering import LIST, answering, http
from turnline.worker.errors import StartFailed
from turnline.worker.services.provider_client import ProviderClient
from turnline.worker.settings import from_env
from turnline.worker.starting import provider_check
from turnline.worker.starting.provider_check import ProviderFound, check_provider

KEY = "xai-s3cretkey"


async def asked(port: int, model: str = "grok-4.3", named: str = "") -> ProviderFound:
    """Ask a provider on this port, which the settings may name otherwise."""
    base_url = f"http://127.0.0.1:{port}/v1"
    client = ProviderClient(KEY, base_url)
    try:
        return await check_provider(
            from_env(
                {
                    "TURNLINE_BASE_URL": named or base_url,
                    "TURNLINE_MODEL": model,
                    "XAI_API_KEY": KEY,
                }
            ),
            client,
        )
    finally:
        await client.close()


async def refusal(port: int, model: str = "grok-4.3", named: str = "") -> str:
    """Ask, and return the sentence of the refusal."""
    with pytest.raises(StartFailed) as error:
        await asked(port, model, named)
    said = str(error.value)
    assert said.isprintable()
    assert KEY not in said
    assert len(said) < 1_500
    return said


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>", "no list of models"),
        (b"", "no list of models"),
        (b"null", "no list of models"),
        (b"[]", "no list of models"),
        (b'[{"id":"grok-4.3"}]', "no list of models"),
        (b'"text"', "no list of models"),
        (b'{"data":null}', "no list of models"),
        (b'{"data":{"id":"grok-4.3"}}', "no list of models"),
        (b'{"data":["grok-4.3"]}', "no list of models"),
        (b'{"data":[{"name":"grok-4.3"}]}', "no list of models"),
        (b'{"data":[{"id":null}]}', "no list of models"),
        (b'{"data":[{"id":' + b"9" * 5_000 + b"}]}", "no list of models"),
        (b'{"data":[{"id":["grok-4.3"]}]}', "no list of models"),
        (b'{"data":[{"id":"grok-4.3"', "no list of models"),
        (LIST.decode().encode("utf-16"), "no list of models"),
        (b'{"data":[{"id":"\xe9"}]}', "no list of models"),
        (b"[" * 100_000, "no list of models"),
        (b'{"data":[]}', "It lists no models. Set TURNLINE_BASE_URL to a"),
        (b'{"data":[{"id":"b"},{"id":"b"},null,7,{"id":"a"}]}', "It serves a, b. "),
        (b'{"data":[{"id":"a\\u001b[2J\\u202eb\\n"}]}', "It serves a [2J b. "),
        (b'{"data":[{"id":"%b"}]}' % (b"x" * 100_000), "It serves xxx"),
        (
            b'{"data":[%b{"id":"z"}]}' % (b'{"id":"y"},' + b'{"id":"q"},' * 9_000),
            "It serves q, y, z",
        ),
        (b"x" * (provider_check.MOST_BYTES + 1), "more than 4,194,304 bytes"),
    ],
)
async def test_what_is_no_list_of_models_is_refused(body: bytes, words: str) -> None:
    """In one sentence, which is bounded and has visible characters only."""
    async with answering(http(body)) as port:
        assert words in await refusal(port)


@pytest.mark.parametrize(
    "answer",
    [
        http(),
        http(b"\xef\xbb\xbf" + LIST),
        http(kind="text/plain"),
        http(gzip.compress(LIST), headers="content-encoding: gzip\r\n"),
        http(b'{"data":[{"id":"grok-4.3"},null,{"id":3},{"id":"grok-4.3"}],"object":9}'),
    ],
)
async def test_a_list_with_the_model_is_enough(answer: bytes) -> None:
    """Whatever stands beside it, and however it is labelled or packed."""
    async with answering(answer) as port:
        found = await asked(port)

    assert (found.models, found.unchecked) == (1, "")
    assert [model.name for model in found.listed] == ["grok-4.3"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            http(b'{"error":{"message":"no %b \\u0007"}}' % KEY.encode(), "401 x"),
            "(HTTP 401: no ***). Check it",
        ),
        (
            http(b'{"code":"c","error":"Incorrect API key"}', "400 x"),
            "(HTTP 400: Incorrect API key)",
        ),
        (http(b'{"detail":"%b"}' % (b"y" * 9_000), "403 x"), "(HTTP 403: yyy"),
        (http(b"<html>", "403 x"), "(HTTP 403). Check it"),
        (http(b"[" * 9_000, "402 x"), "(HTTP 402). Check it"),
    ],
)
async def test_the_words_of_a_refused_key_are_bounded_and_without_it(
    answer: bytes, words: str
) -> None:
    """The provider's own, as far as it has any; never the key that it may repeat."""
    async with answering(answer) as port:
        said = await refusal(port)

    assert words in said
    assert "refuses the key in XAI_API_KEY" in said


async def test_the_key_follows_no_redirect() -> None:
    """Another host was not named for it."""
    reached: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(await reader.read(4_096))
        writer.close()

    other = await asyncio.start_server(note, "127.0.0.1", 0)
    to = f"http://127.0.0.1:{other.sockets[0].getsockname()[1]}/v1/models?key=1"
    for status in ("301 x", "302 x", "307 x", "308 x"):
        async with answering(http(b"", status, headers=f"location: {to}\r\n")) as port:
            assert f"redirects to {to.partition('?')[0]} (HTTP" in await refusal(port)
    other.close()

    assert reached == []


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-x\r\n", b"\x00\xff garbage\r\n\r\n", b"-ERR unknown\r\n"]
)
async def test_what_does_not_speak_http_is_refused(answer: bytes) -> None:
    """Somebody else listens there."""
    async with answering(answer) as port:
        assert "not HTTP" in await refusal(port)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "ConnectTimeout"),
        (http()[:-3], "ReadError"),
        (http(status="404 x"), "HTTP 404"),
        (http(status="500 x"), "HTTP 500"),
        (http(status="429 x"), "HTTP 429"),
    ],
)
async def test_a_provider_in_trouble_does_not_stop_a_start(answer: bytes, words: str) -> None:
    """Turns wait and are tried again."""
    async with answering(answer) as port:
        found = await asked(port)

    assert found.models is None
    assert found.unchecked.startswith(words)


@pytest.mark.parametrize(
    ("begin", "then", "every_s"),
    [
        (b"", None, 0),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n", 0.05),
        (b"HTTP/1.1 200 OK\r\n\r\n[", b" ", 0.05),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", None, 0),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n", 0.05),
    ],
)
async def test_an_answer_that_does_not_end_is_left_in_time(
    begin: bytes, then: bytes | None, every_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence, drops of headers or body; the limit is for all of it."""
    assert provider_check.LIMIT_S == 10
    monkeypatch.setattr(provider_check, "LIMIT_S", 1.0)
    async with answering(begin, then=then, every_s=every_s, hold=True) as port:
        began = time.monotonic()
        found = await asked(port)

    assert "no whole answer within" in found.unchecked
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("begin", "then"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65_536),
        (b"HTTP/1.1 200 OK\r\n", b"x-a: " + b"y" * 4_000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nx-a: ", b"y" * 65_536),
    ],
)
async def test_an_endless_answer_costs_little(begin: bytes, then: bytes) -> None:
    """Body or headers: a few megabytes, and no waiting."""
    async with answering(begin, then=then) as port:
        tracemalloc.start()
        with pytest.raises(StartFailed):
            await asked(port)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak < 40_000_000


async def test_a_packed_answer_is_unpacked_within_the_limit() -> None:
    """A hundred megabytes of blanks in a hundred kilobytes."""
    bomb = gzip.compress(b" " * 100_000_000, 1)
    async with answering(http(bomb, headers="content-encoding: gzip\r\n")) as port:
        tracemalloc.start()
        said = await refusal(port)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert "more than 4,194,304 bytes" in said
    assert peak < 40_000_000


RICH = b"""{"models":[
    {"id":"grok-4.3","prompt_text_token_price":12500,"aliases":["grok-latest"]},{"id":"grok-4.7"}
]}"""
XAI = "https://api.x.ai/v1"


async def test_the_list_that_says_more_is_asked_for_first() -> None:
    """Its aliases are served too; a host that has the plain list only is asked for that one."""
    rich = {b"/v1/language-models": http(RICH)}
    async with answering(http(status="500 x"), paths=rich) as port:
        found = await asked(port, "grok-latest")
    assert (found.models, found.unchecked) == (2, "")
    assert found.listed[0].input_usd == 1.25

    for other in (http(status="404 x"), http(b"<html>"), http(b'{"models":[]}'), http(b"{}")):
        async with answering(other, paths={b"/v1/models": http()}) as port:
            assert (await asked(port)).models == 1


@pytest.mark.parametrize(
    ("model", "named", "words"),
    [
        ("grok-4", XAI, ""),
        ("grok-4", "", "does not serve the model grok-4. It serves grok-4.3, grok-4.7. Set"),
        ("grok-4.3-0101", XAI, "does not serve the model grok-4.3-0101. It serves"),
        (
            "grok-code-fast-1",
            XAI,
            "the model grok-code-fast-1, retired on 2026-11-19 and replaced by grok-4.7. It serves",
        ),
        ("grok-9", XAI, "does not serve the model grok-9. It serves grok-4.3, grok-4.7. Set"),
        ("grok-9,grok-8", "", "the model grok-9, nor grok-8. It serves grok-4.3, grok-4.7. Set"),
    ],
)
async def test_a_model_that_is_not_served_is_refused(model: str, named: str, words: str) -> None:
    """By the ones that serve; xAI also serves names that redirect."""
    async with answering(http(RICH)) as port:
        if words:
            assert words in await refusal(port, model, named)
        else:
            assert (await asked(port, model, named)).models == 2


async def test_one_served_model_of_a_list_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    """The worker starts, and says which one is missing."""
    async with answering(http(RICH)) as port:
        assert (await asked(port, "grok-9,grok-4.7")).models == 2

    (record,) = (it for it in caplog.records if it.message == "model.not_served")
    assert vars(record)["model"] == "grok-9"


async def test_the_providers_list_wins_over_a_retirement() -> None:
    """It serves what it says it serves."""
    async with answering(http(b'{"models":[{"id":"grok-build-0.1"}]}')) as port:
        assert (await asked(port, "grok-build-0.1", XAI)).models == 1


async def test_a_retired_model_is_refused_though_nobody_answers() -> None:
    """At xAI, by the table, with those that serve; other hosts may still have it."""
    async with answering(http(status="503 x")) as port:
        said = await refusal(port, "grok-code-fast", XAI)
        assert "grok-code-fast, retired on 2026-11-19 and replaced by grok-4.7; on 2026" in said
        assert "it served grok-4.7, grok-4.6, grok-4.5, grok-4.3, grok-4.20-0309-reasoning" in said
        assert "grok-build" not in said

        both = await refusal(port, "grok-code-fast,grok-build-0.1", XAI)
        assert "replaced by grok-4.7, nor grok-build-0.1, retired on 2026-11-19" in both

        assert (await asked(port, "grok-code-fast,grok-4.3", XAI)).unchecked == "HTTP 503"
        assert (await asked(port, "grok-code-fast")).unchecked == "HTTP 503"
        assert (await asked(port, "grok-9", XAI)).unchecked == "HTTP 503"
        assert (await asked(port, "grok-4", XAI)).unchecked == "HTTP 503"
