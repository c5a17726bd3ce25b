"""What Redis lets a worker do is tried before it starts, and named where it is missing."""

import re
import time
from pathlib import Path

import pytest
import redis as redis_sync

from tests.integration.starting.answering import answering, http
from tests.support.recordings import REPOSITORY
from turnline.contracts.keys import shard_keys
from turnline.ops.embedded import EmbeddedRedis
from turnline.ops.fleet.access import commands, rules
from turnline.worker.errors import StartFailed
from turnline.worker.settings import from_env
from turnline.worker.starting import redis_check
from turnline.worker.starting.redis_check import RedisFound, check_redis
from turnline.worker.starting.redis_rights import COMMANDS, rights

PASSWORD = "s3cretpw"
NEEDED = sorted({str(it.words[0]) for it in rights(shard_keys(0))})
USER = ["on", f">{PASSWORD}", "~turnline:*", "~arq:*", "resetchannels", "&turnline:*", "-@all"]


async def found(url: str, **more: str) -> RedisFound:
    """Check a server."""
    return await check_redis(from_env({"TURNLINE_REDIS_URL": url, **more}))


async def refusal(url: str) -> str:
    """Check a server and return the sentence of the refusal."""
    with pytest.raises(StartFailed) as error:
        await found(url)
    said = str(error.value)
    assert said.isprintable()
    assert PASSWORD not in said
    assert len(said) < 1_500
    return said


@pytest.fixture(scope="module")
def tcp_server():
    """A server on a port, with users of its own."""
    with EmbeddedRedis(port=0) as running:
        yield running


@pytest.fixture
def admin(tcp_server: EmbeddedRedis):
    """All rights on that server, which is empty."""
    with redis_sync.Redis.from_url(tcp_server.url) as client:
        client.flushall()
        yield client


def url_of(server_: EmbeddedRedis) -> str:
    """The address for the user with few rights."""
    return server_.url.replace("redis://", f"redis://few:{PASSWORD}@")


def allow(admin: redis_sync.Redis, *rules: str) -> None:
    admin.execute_command(
        "ACL", "SETUSER", "few", "reset", *USER, *(f"+{it}" for it in NEEDED), *rules
    )


def test_every_command_in_use_is_asked_for() -> None:
    """Those in scripts, and those that Python sends beside them."""
    used: set[str] = set()
    for path in [
        *Path(REPOSITORY, "worker").rglob("*.lua"),
        *Path(REPOSITORY, "contracts").rglob("*.lua"),
    ]:
        used |= set(re.findall(r"redis\.p?call\('([A-Z]+)'", path.read_text()))
    for path in Path(REPOSITORY, "worker").rglob("*.py"):
        used |= set(re.findall(r"(?:execute_command|send)\(\s*\"([A-Z]+)\"", path.read_text()))
    # Done without, for metrics only, or what producers send.
    optional = {"INFO", "HELLO", "PING", "PUBLISH", "WAIT"}

    assert used - set(NEEDED) <= optional
    assert set(COMMANDS) - used <= {"LPUSH"}


def test_the_documented_rights_are_those_asked_for() -> None:
    """As a command that can be copied."""
    documented = Path(REPOSITORY, "docs/starting.md").read_text()
    (line,) = re.findall(r"ACL SETUSER worker .*", documented)

    assert line == f"ACL SETUSER worker reset on >PASSWORD {rules('worker')}"
    assert {it.lower() for it in NEEDED} <= commands("worker")


async def test_the_rights_that_are_asked_for_are_enough(tcp_server: EmbeddedRedis, admin) -> None:
    """No INFO, no CONFIG, no SCRIPT; nothing stays of the try but the fleet's number of shards."""
    allow(admin)

    assert (await found(url_of(tcp_server))).where == tcp_server.url.removeprefix("redis://")
    assert admin.keys() == [b"turnline:{s0}:fleet"]


@pytest.mark.parametrize("command", NEEDED)
async def test_a_missing_command_is_named(tcp_server: EmbeddedRedis, admin, command: str) -> None:
    """With the server's words on it."""
    allow(admin, f"-{command}")

    said = await refusal(url_of(tcp_server))

    assert re.search(rf"\b{command}\b|'{command.lower()}'", said)
    assert "no permissions" in said
    assert "docs/starting.md" in said
    assert admin.keys() == []


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (
            ["resetchannels"],
            "may not SPUBLISH to turnline:{s0}:idle:*, SSUBSCRIBE to turnline:{s0}:idle:*, ",
        ),
        (
            ["resetkeys", "~turnline:*"],
            "may not write arq:job:{s0}:*, write arq:in-progress:{s0}:*",
        ),
        (["resetkeys", "~arq:*"], "may not "),
        (["resetkeys", "%R~turnline:*", "~arq:*"], "may not "),
        (
            ["resetkeys", "~arq:*", "~turnline:{s0}:c:*"],
            "may not write turnline:{s0}:queue, write turnline:{s0}:wake",
        ),
        (["off"], "wants a (different) user and password"),
        ([">other", f"<{PASSWORD}"], "wants a (different) user and password"),
    ],
)
async def test_missing_keys_channels_and_passwords_are_named(
    tcp_server: EmbeddedRedis, admin, rules: list[str], words: str
) -> None:
    """Interrupts would do nothing, jobs never begin: a worker does not start with that."""
    allow(admin, *rules)

    assert words in await refusal(url_of(tcp_server))


async def test_a_user_as_redis_makes_it_is_told_of_its_channels(
    tcp_server: EmbeddedRedis, admin
) -> None:
    """`+@all` and `~*` give no channels."""
    admin.execute_command("ACL", "SETUSER", "few", "reset", "on", f">{PASSWORD}", "~*", "+@all")

    assert "may not SPUBLISH to" in await refusal(url_of(tcp_server))


async def test_a_password_is_asked_for(tcp_server: EmbeddedRedis, admin) -> None:
    """Whose there is none."""
    admin.execute_command("ACL", "SETUSER", "default", "resetpass", f">{PASSWORD}")
    try:
        said = await refusal(tcp_server.url)
    finally:
        with redis_sync.Redis.from_url(tcp_server.url, password=PASSWORD) as again:
            again.execute_command("ACL", "SETUSER", "default", "nopass")

    assert "wants a (different) user and password" in said


async def test_a_replica_and_a_read_only_server_are_told(tcp_server: EmbeddedRedis, admin) -> None:
    """By what it says of itself, and by its refusal of a write where it may not be asked."""
    allow(admin)
    admin.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        said = [await refusal(tcp_server.url), await refusal(url_of(tcp_server))]
    finally:
        admin.execute_command("REPLICAOF", "NO", "ONE")

    assert all("name its primary" in it for it in said)


async def test_a_server_that_keeps_no_writes_is_told(tcp_server: EmbeddedRedis, admin) -> None:
    """Too few replicas; the server's words."""
    admin.config_set("min-replicas-to-write", 1)
    try:
        assert "NOREPLICAS" in (await refusal(tcp_server.url)).upper()
    finally:
        admin.config_set("min-replicas-to-write", 0)


async def test_a_policy_that_could_evict_is_a_warning(tcp_server: EmbeddedRedis, admin) -> None:
    """Only with a limit of memory it does."""
    admin.config_set("maxmemory-policy", "allkeys-lru")
    try:
        (warning,) = (await found(tcp_server.url)).warnings
    finally:
        admin.config_set("maxmemory-policy", "noeviction")

    assert "maxmemory-policy is allkeys-lru" in warning


async def test_a_full_server_is_told_and_a_worker_starts(tcp_server: EmbeddedRedis, admin) -> None:
    """It is workers that make room again."""
    await found(tcp_server.url)
    admin.config_set("maxmemory", 1)
    try:
        assert (await found(tcp_server.url)).warnings == ("its memory is full",)
    finally:
        admin.config_set("maxmemory", 0)


async def test_a_server_without_places_is_tried_again_for_a_while(
    tcp_server: EmbeddedRedis, admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its words are repeated."""
    monkeypatch.setattr(redis_check, "PATIENCE_S", 2.0)
    admin.config_set("maxclients", 1)
    try:
        assert "max number of clients reached" in await refusal(tcp_server.url)
    finally:
        admin.config_set("maxclients", 1_000)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"-DENIED Redis is running in protected mode\r\n", "protected mode"),
        (
            b"-MISCONF Errors writing to the AOF file: \x1b[2J\x07\r\n",
            "writing to the AOF file: [2J)",
        ),
        (b"-ERR " + b"x" * 5_000 + b"\r\n", "xxx"),
        (b"-CLUSTERDOWN Hash slot not served\r\n", "is a node of a cluster"),
        (b"-ERR the password is %b\r\n" % PASSWORD.encode(), "the password is ***"),
        (http(b"<html>", "400 Bad Request"), "cannot be used"),
        (b"\x00\xff\xfe\r\n", "cannot be used"),
        (b"*9999999\r\n", "did not answer all questions within"),
        (b"", "cannot be used"),
    ],
)
async def test_odd_servers_are_told_in_one_sentence(
    answer: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their words without control characters, bounded, and without the password."""
    monkeypatch.setattr(redis_check, "PATIENCE_S", 0.2)
    monkeypatch.setattr(redis_check, "LIMIT_S", 2.0)
    async with answering(answer, hold=bool(answer)) as port:
        assert words in await refusal(f"redis://:{PASSWORD}@127.0.0.1:{port}")


async def test_a_loading_server_is_waited_for_within_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also one that says nothing at all."""
    assert redis_check.LIMIT_S == 10
    monkeypatch.setattr(redis_check, "LIMIT_S", 1.0)
    for begin, then in ((b"", b"-LOADING Redis is loading the dataset in memory\r\n"), (b"", None)):
        began = time.monotonic()
        async with answering(begin, then=then, every_s=0.05, hold=True) as port:
            said = await refusal(f"redis://127.0.0.1:{port}")
        assert "did not answer all questions within 1 s" in said
        assert time.monotonic() - began < 5


async def test_files_of_certificates_are_looked_into(tmp_path: Path) -> None:
    """The option is named."""
    said = await refusal(f"rediss://127.0.0.1:9?ssl_ca_certs={tmp_path}/none.pem")

    assert said.startswith("TURNLINE_REDIS_URL, ssl_ca_certs: it cannot be read: No such file")
