"""Redis behind TLS with a certification authority of one's own: who may speak to whom."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from redis.asyncio import Redis

from tests.support.recordings import REPOSITORY
from turnline.contracts import (
    StoreIncompatible,
    StoreUnavailable,
    SyncTurnClient,
    TurnClient,
    UserMessage,
)
from turnline.worker.errors import StartFailed
from turnline.worker.settings import from_env
from turnline.worker.starting.redis_check import check_redis

FOLDER = Path(REPOSITORY, "tests/support/certificates")
"""An authority, a server called localhost, one called elsewhere.example, and a client."""
CA = f"ssl_ca_certs={FOLDER}/ca.pem"
CLIENT = f"ssl_certfile={FOLDER}/client.pem&ssl_keyfile={FOLDER}/client.pem"


@contextlib.asynccontextmanager
async def behind_tls(
    redis: Redis, name: str = "server", *, asks: bool = False
) -> AsyncIterator[str]:
    """End TLS before a server, as a proxy beside it does; yield the address without options.

    Args:
        redis: A client of that server.
        name: Of the certificate.
        asks: Whether clients have to have a certificate too.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(FOLDER / "ca.pem"))
    context.load_cert_chain(FOLDER / f"{name}.pem")
    context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_NONE
    given = redis.connection_pool.connection_kwargs

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_read, to_write = await asyncio.open_unix_connection(given["path"])
        await asyncio.gather(pipe(reader, to_write), pipe(to_read, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"rediss://localhost:{server.sockets[0].getsockname()[1]}/{given['db']}"
    finally:
        server.close()


async def outcome(url: str) -> str:
    """Submit with both clients and check as a worker does; return what all of them said."""
    message = UserMessage(conversation_id="c", turn_id="t", text="hi")
    said: list[str] = []
    try:
        async with TurnClient.connect(url, patience_s=2) as client:
            said.append((await client.submit(message)).status)
    except (StoreIncompatible, StoreUnavailable) as error:
        said.append(str(error))
    try:
        with SyncTurnClient.connect(url, patience_s=2) as blocking:
            said.append((await asyncio.to_thread(blocking.submit, message)).status)
    except (StoreIncompatible, StoreUnavailable) as error:
        said.append(str(error))
    try:
        await check_redis(from_env({"TURNLINE_REDIS_URL": url}))
        said.append("started")
    except StartFailed as error:
        said.append(str(error))
    assert str(FOLDER) not in "".join(said)
    return "; ".join(said)


async def test_an_authority_of_ones_own_is_enough(redis: Redis) -> None:
    """The name in the certificate is the host's."""
    async with behind_tls(redis) as url:
        assert await outcome(f"{url}?{CA}") == "accepted; duplicate; started"


async def test_a_certificate_that_nobody_vouches_for_is_refused(redis: Redis) -> None:
    """Nothing of a message goes to whoever has taken the server's place."""
    async with behind_tls(redis) as url:
        said = await outcome(url)
    assert said.count("its certificate is not accepted") == 3
    assert await redis.dbsize() == 0


async def test_a_certificate_for_another_name_is_refused(redis: Redis) -> None:
    """Unless the address says that names do not matter."""
    async with behind_tls(redis, "elsewhere") as url:
        said = await outcome(f"{url}?{CA}")
        assert said.count("its certificate is not accepted") == 3
        assert await redis.dbsize() == 0
        options = f"{CA}&ssl_check_hostname=false"
        assert await outcome(f"{url}?{options}") == "accepted; duplicate; started"


async def test_a_server_that_asks_for_a_certificate_is_shown_one(redis: Redis) -> None:
    """Without it, nobody gets in."""
    async with behind_tls(redis, asks=True) as url:
        assert await outcome(f"{url}?{CA}&{CLIENT}") == "accepted; duplicate; started"
        await redis.flushdb()
        said = await outcome(f"{url}?{CA}")
        assert "accepted" not in said.replace("not accepted", "")
        assert "started" not in said
    assert await redis.dbsize() == 0
