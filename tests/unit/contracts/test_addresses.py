"""Addresses of Redis: what is taken, what is refused by name, and that secrets stay in."""

import ssl

import pytest

from turnline.contracts import InvalidAddress, SyncTurnClient, TurnClient, TurnlineError
from turnline.contracts.addresses import OVERRIDDEN, read_address, where
from turnline.contracts.connection import open_async, open_sync

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("url", "shown", "options"),
    [
        ("redis://h", "h:6379/0", {"db": 0}),
        ("redis://h:6380/2", "h:6380/2", {"db": 2}),
        ("redis://my_redis.ns.svc.:1/", "my_redis.ns.svc.:1/0", {"db": 0}),
        ("redis://h?db=3", "h:6379/3", {"db": 3}),
        ("redis://[::1]:7/1", "[::1]:7/1", {"db": 1}),
        (
            "redis://:p%40ss%3Aw%2Frd%23%3F%26%25@h",
            "h:6379/0",
            {"db": 0, "password": "p@ss:w/rd#?&%"},
        ),
        ("redis://u:p:q@h", "h:6379/0", {"db": 0, "username": "u", "password": "p:q"}),
        ("redis://:p@ss@h", "h:6379/0", {"db": 0, "password": "p@ss"}),
        ("redis://:@h", "h:6379/0", {"db": 0}),
        (
            "redis://h?username=u&password=p&client_name=me&health_check_interval=30",
            "h:6379/0",
            {
                "db": 0,
                "username": "u",
                "password": "p",
                "client_name": "me",
                "health_check_interval": 30,
            },
        ),
        ("unix:///run/a%20b.sock?db=1", "unix:///run/a%20b.sock?db=1", {"db": 1}),
        ("rediss://h", "h:6379/0", {"db": 0, "ssl_check_hostname": True}),
        (
            "rediss://h?ssl_cert_reqs=none&ssl_min_version=TLSv1.3",
            "h:6379/0",
            {
                "db": 0,
                "ssl_cert_reqs": "none",
                "ssl_check_hostname": False,
                "ssl_min_version": ssl.TLSVersion.TLSv1_3,
            },
        ),
    ],
)
def test_an_address_is_read_whole(url: str, shown: str, options: dict[str, object]) -> None:
    """Host, port, database, user, password and options; TLS asks whose the certificate is."""
    address = read_address(url)

    assert address.where == where(url) == shown
    assert dict(address.options) == options
    assert "password" not in address.plain


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "it is a text"),
        ("h:6379", "begins with redis://"),
        ("http://h", "begins with redis://"),
        ("redis:h", "begins with redis://"),
        ("redis+sentinel://h", "begins with redis://"),
        ("redis://", "the host is"),
        ("redis://h1,h2", "the host is"),
        ("redis://a..b", "the host is"),
        ("redis://-h", "the host is"),
        ("redis://[::1", "brackets"),
        ("redis://[zz]", ""),
        ("redis://h\u00f6st", "visible ASCII"),
        ("redis://h /0", "visible ASCII"),
        ("redis://h\n", "visible ASCII"),
        ("redis://h\x00", "visible ASCII"),
        ("redis://h\\x", "backslash"),
        ("redis://h:notaport", "the port is"),
        ("redis://h:0", "the port is"),
        ("redis://h:65536", "the port is"),
        ("redis://h:-1", "the port is"),
        ("redis://h:99999999999999999999", "the port is"),
        ("redis://h/x", "db: a whole number"),
        ("redis://h/-1", "db: a whole number"),
        ("redis://h/1.5", "db: a whole number"),
        ("redis://h/0/1", "db: a whole number"),
        ("redis://h/99999999999999999999", "db: a whole number"),
        ("redis://h/1?db=2", "different databases"),
        ("redis://h?db=", "db: a whole number"),
        ("redis://h?db=1&db=2", "db: it is given twice"),
        ("redis://h?foo=1", "foo is not known; there are client_name"),
        ("redis://h?host=elsewhere", "host is not known"),
        ("redis://h?credential_provider=x", "credential_provider is not known"),
        ("redis://h?ssl_cert_reqs=none", "ssl_cert_reqs: only a rediss:// address"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs: one of none, optional, required"),
        ("rediss://h?ssl_check_hostname=perhaps", "ssl_check_hostname: one of"),
        ("redis://h?socket_connect_timeout=nan", "socket_connect_timeout: a number"),
        ("redis://h?socket_connect_timeout=inf", "socket_connect_timeout: a number"),
        ("redis://h?socket_connect_timeout=0", "socket_connect_timeout: a number"),
        ("redis://h?max_connections=1", "max_connections: a whole number from 16"),
        ("redis://h?client_name=a%20b", "client_name: 1 to 200 visible"),
        ("redis://h?client_name", "NAME=VALUE"),
        ("unix://tmp/redis.sock", "absolute"),
        ("unix:///tmp/%00", "visible characters"),
        ("redis://h/" + "0" * 9_000, "more than 8,192 characters"),
    ],
)
def test_what_is_no_address_is_refused_by_what_belongs_there(url: str, words: str) -> None:
    """One short sentence without control characters, for workers, producers and commands alike."""
    with pytest.raises(InvalidAddress) as error:
        read_address(url)

    assert words in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400
    assert isinstance(error.value, (TurnlineError, ValueError))


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@h:notaport",
        f"redis://:{SECRET}/x@h",
        f"redis://:x/{SECRET}@h",
        f"redis://u:12345/{SECRET}@h",
        f"redis://u:12345#{SECRET}@h",
        f"redis://u:12345?{SECRET}@h",
        f"redis://u:12345?a={SECRET}@h",
        f"redis://u:12345?{SECRET}=a@h",
        f"redis://:p@ss:w/{SECRET}#?&%@h",
        f"redis://:{SECRET} x@h",
        f"redis://:[{SECRET}@h",
        f"redis://{SECRET}:x@h:port",
        f"redis://h:port?password={SECRET}",
        f"redis://h?password={SECRET}&db=x",
        f"redis://h?password=a&{SECRET.replace('3', 'e')}=b",
        f"redis://:{SECRET}@h?password={SECRET}",
        f"{SECRET}://h",
        f"redis://{SECRET}@x@:1",
    ],
)
def test_no_error_repeats_a_secret(url: str) -> None:
    """Wherever a password stands in an address, and whatever its characters make of the rest."""
    with pytest.raises(InvalidAddress) as error:
        read_address(url)

    told = f"{error.value} {error.value!r} {where(url)}"
    assert SECRET not in told
    assert SECRET.replace("3", "e") not in told
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None


@pytest.mark.parametrize(
    "url", [f"redis://:{SECRET}@h/1", f"redis://h/1?password={SECRET}", f"redis://{SECRET}@h/1"]
)
def test_no_good_address_shows_its_secret(url: str) -> None:
    """Neither where it is shown, nor in the repr of what was read."""
    address = read_address(url)

    assert SECRET not in f"{address.where} {address!r} {address} {address.plain}"
    assert address.where == "h:6379/1"


@pytest.mark.parametrize("name", sorted(OVERRIDDEN))
def test_options_that_would_break_reading_are_overridden(name: str) -> None:
    """Both clients read bytes of RESP2, with their own time-outs, whatever the address asks for."""
    for value in ("true", "3", "latin-1"):
        url = f"redis://h?{name}={value}"
        options = open_async(url, retries=0).connection_pool.connection_kwargs  # type: ignore[attr-defined]
        assert options == open_async("redis://h", retries=0).connection_pool.connection_kwargs | {  # type: ignore[attr-defined]
            "retry": options["retry"]
        }
        blocking = open_sync(url, retries=0, timeout_s=7).connection_pool.connection_kwargs  # type: ignore[attr-defined]
        assert blocking["socket_timeout"] == 7
        assert not blocking.get("decode_responses")
        assert blocking.get("protocol") in {None, 2}


async def test_producers_are_told_of_a_wrong_address() -> None:
    """By an error of the contract, from both clients."""
    with pytest.raises(InvalidAddress):
        async with TurnClient.connect("redis://h?foo=1"):
            pass
    with pytest.raises(InvalidAddress), SyncTurnClient.connect("redis://h:x"):
        pass
