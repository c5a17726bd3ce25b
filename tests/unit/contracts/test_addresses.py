"""Addresses of Redis: what is taken, what is refused by name, and that secrets stay in."""

import ssl

import pytest
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from turnline.contracts import InvalidAddress, SyncTurnClient, TurnClient, TurnlineError
from turnline.contracts.addresses import OVERRIDDEN, Address, read_address, where
from turnline.contracts.connection import how_to_connect

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
        ("redis://:[p,s]s@h", "h:6379/0", {"db": 0, "password": "[p,s]s"}),
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
    assert address.kind == "server"
    assert dict(address.options) == options
    assert not address.service
    assert not address.sentinel_options


@pytest.mark.parametrize(
    ("url", "nodes", "socket_path", "is_tls"),
    [
        ("redis://h", (("h", 6379),), "", False),
        ("rediss://h:1", (("h", 1),), "", True),
        ("REDIS://[::1]", (("::1", 6379),), "", False),
        ("redis://[fe80::1%25eth0]:7", (("fe80::1%eth0", 7),), "", False),
        ("redis://[fe80::1%eth0]", (("fe80::1%eth0", 6379),), "", False),
        ("unix:///run/a%20b.sock", (), "/run/a b.sock", False),
        ("redis+sentinel://h/m", (("h", 26379),), "", False),
        ("rediss+sentinel://a:1,b/m", (("a", 1), ("b", 26379)), "", True),
        (
            "redis+sentinel://[::1]:7,[::2],h/m",
            (("::1", 7), ("::2", 26379), ("h", 26379)),
            "",
            False,
        ),
        ("redis+cluster://h", (("h", 6379),), "", False),
        ("rediss+cluster://10.0.0.1:7,h", (("10.0.0.1", 7), ("h", 6379)), "", True),
        ("redis+cluster://h,H,h:6379,h:1", (("h", 6379), ("h", 1)), "", False),
    ],
)
def test_hosts_and_ports_are_told(
    url: str, nodes: tuple[tuple[str, int], ...], socket_path: str, is_tls: bool
) -> None:
    """Each node once, with the port that such servers have where none is said."""
    address = read_address(url)

    assert address.nodes == nodes
    assert address.socket_path == socket_path
    assert address.is_tls == is_tls


TLS = {"ssl_check_hostname": True}


@pytest.mark.parametrize(
    ("url", "shown", "service", "options", "sentinel_options"),
    [
        (
            "redis+sentinel://h1,h2:1/my.master_1-a",
            "redis+sentinel://h1:26379,h2:1/my.master_1-a/0",
            "my.master_1-a",
            {"db": 0},
            {},
        ),
        (
            "redis+sentinel://u:p%40%2C@h/m/3?sentinel_username=s&sentinel_password=q%26&client_name=me",
            "redis+sentinel://h:26379/m/3",
            "m",
            {"db": 3, "username": "u", "password": "p@,", "client_name": "me"},
            {"username": "s", "password": "q&"},
        ),
        (
            "redis+sentinel://h/m/?db=2&sentinel_password=&socket_connect_timeout=2&password=p",
            "redis+sentinel://h:26379/m/2",
            "m",
            {"db": 2, "password": "p", "socket_connect_timeout": 2.0},
            {"socket_connect_timeout": 2.0},
        ),
        (
            "rediss+sentinel://h/m?ssl_ca_certs=/ca&sentinel_password=q",
            "rediss+sentinel://h:26379/m/0",
            "m",
            {"db": 0, "ssl_ca_certs": "/ca", **TLS},
            {"password": "q", "ssl_ca_certs": "/ca", **TLS},
        ),
        (
            "redis+cluster://:p@h1,[::1]:7/0?db=0",
            "redis+cluster://h1:6379,[::1]:7",
            "",
            {"db": 0, "password": "p"},
            {},
        ),
        ("rediss+cluster://h/", "rediss+cluster://h:6379", "", {"db": 0, **TLS}, {}),
        (
            "redis+cluster://" + ",".join(f"h{n}" for n in range(64)),
            "redis+cluster://h0:6379,h1:6379,h2:6379,h3:6379,h4:6379,h5:6379,(58 more)",
            "",
            {"db": 0},
            {},
        ),
    ],
)
def test_sentinels_and_clusters_are_read_whole(
    url: str,
    shown: str,
    service: str,
    options: dict[str, object],
    sentinel_options: dict[str, object],
) -> None:
    """What is for the servers goes to them, what is for the sentinels to these, TLS to both."""
    address = read_address(url)

    assert address.kind == url.partition("+")[2].partition(":")[0]
    assert address.where == where(url) == shown
    assert address.service == service
    assert dict(address.options) == options
    assert dict(address.sentinel_options) == sentinel_options


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "it is a text"),
        ("h:6379", "begins with redis://"),
        ("http://h", "begins with redis://"),
        ("redis:h", "begins with redis://"),
        ("redis+other://h", "begins with redis://"),
        ("redis+unix:///run/redis.sock", "looks like redis+sentinel://h1:26379"),
        ("redis://", "the host is"),
        ("redis://h1,h2", "several stand in redis+sentinel://h1"),
        ("redis+sentinel://", "as in h:6379"),
        ("redis+sentinel:///mymaster", "as in h:6379"),
        ("redis+sentinel://h", "redis+sentinel://h1:26379,h2:26379,h3:26379/mymaster/0"),
        ("redis+sentinel://h/", "/mymaster/0"),
        ("redis+sentinel://h//0", "/mymaster/0"),
        ("redis+sentinel://h/a%20b/0", "/mymaster/0"),
        ("redis+sentinel://h/" + "m" * 201, "/mymaster/0"),
        ("redis+sentinel://h/m/x", "db: a whole number"),
        ("redis+sentinel://h/m/0/1", "db: a whole number"),
        ("redis+sentinel://h/m/1?db=0", "different databases"),
        ("redis+sentinel://h1,,h2/m", "the host is"),
        ("redis+sentinel://h1,h2,/m", "the host is"),
        ("redis+sentinel://h1;h2/m", "the host is"),
        ("redis+sentinel://h:x/m", "the port is"),
        ("redis+sentinel://[::1,::2]/m", "in brackets"),
        ("redis+sentinel://h/m?ssl_ca_certs=/ca", "ssl_ca_certs: only a rediss:// address"),
        ("redis+sentinel://h/m?service_name=m", "service_name is not known"),
        ("redis+cluster://h/1", "db: a cluster has the database 0 only, as in redis+cluster://h1"),
        ("redis+cluster://h?db=1", "db: a cluster has the database 0 only"),
        ("redis+cluster://h/mymaster", "db: a whole number"),
        ("redis+cluster://h?read_from_replicas=true", "read_from_replicas is not known"),
        ("redis+cluster://" + ",".join(["h"] * 65), "more than 64 hosts"),
        ("redis+cluster://h?sentinel_password=x", "sentinel_password: only sentinels have it"),
        ("redis://h?sentinel_username=x", "sentinel_username: only sentinels have it"),
        ("unix:///run/redis.sock?sentinel_username=x", "sentinel_username: only sentinels"),
        ("redis+cluster://u:p@h1,u:p@h2", "once, before the first host"),
        ("redis+cluster://h1,u:p@h2", "once, before the first host"),
        ("redis+sentinel://:p@q@h1,h2/m", "once, before the first host"),
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
        f"redis://{SECRET}:x@h:port",
        f"redis://h:port?password={SECRET}",
        f"redis://h?password={SECRET}&db=x",
        f"redis://h?password=a&{SECRET.replace('3', 'e')}=b",
        f"redis://:{SECRET}@h?password={SECRET}",
        f"{SECRET}://h",
        f"redis://{SECRET}@x@:1",
        *(
            f"{scheme}://{rest}"
            for scheme in ("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
            for rest in (
                f":{SECRET}@h1,h2:notaport/m",
                f":{SECRET}@h1,h2/m/x",
                f":{SECRET}@h1,h2/m/1?db=2",
                f":{SECRET}/x@h1,h2/m",
                f":x/{SECRET}@h1,h2/m",
                f"u:12345?{SECRET}@h1,h2/m",
                f"u:12345#{SECRET}@h1,h2/m",
                f":{SECRET},x@h1,h2/m",
                f":x,{SECRET}@h1,h2/m",
                f":{SECRET}@x@h1,h2/m",
                f"u:{SECRET}@h1,u:{SECRET}@h2/m",
                f"h1,u:{SECRET}@h2/m",
                f"h1,{SECRET}:x/m",
                f"{SECRET}^/m",
                f"h1,h2/{SECRET}%00",
                f"h1,h2/m/{SECRET}",
                f"h1,h2/m?db={SECRET}",
                f"h1,h2/m?sentinel_password={SECRET}&db=x",
                f"h1,h2/m?sentinel_password={SECRET}&sentinel_password={SECRET}",
                f"h1,h2/m?sentinel_password=a&{SECRET.replace('3', 'e')}=b",
                f"h1,h2/m?password=a&{SECRET.replace('3', 'e')}=b",
                f":{SECRET}@h1/m?password={SECRET}",
            )
        ),
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
    ("url", "shown"),
    [
        (f"redis://:{SECRET}@h/1", "h:6379/1"),
        (f"redis://h/1?password={SECRET}", "h:6379/1"),
        (f"redis://{SECRET}@h/1", "h:6379/1"),
        (f"unix://:{SECRET}@/run/s", "unix:///run/s?db=0"),
        (f"redis+sentinel://{SECRET}:{SECRET}@h/m", "redis+sentinel://h:26379/m/0"),
        (f"redis+sentinel://h/m?password={SECRET}", "redis+sentinel://h:26379/m/0"),
        (
            f"rediss+sentinel://h/m?sentinel_username={SECRET}&sentinel_password={SECRET}",
            "rediss+sentinel://h:26379/m/0",
        ),
        (f"redis+cluster://:{SECRET}@h", "redis+cluster://h:6379"),
        (f"rediss+cluster://h?password={SECRET}", "rediss+cluster://h:6379"),
    ],
)
def test_no_good_address_shows_its_secret(url: str, shown: str) -> None:
    """Neither where it is shown, nor in the repr of what was read; but it can be taken out."""
    address = read_address(url)

    assert SECRET not in f"{address.where} {address!r} {address} {address.nodes} {address.service}"
    assert address.where == shown
    assert set(address.passwords) <= {SECRET}


def test_passwords_of_servers_and_sentinels_can_be_kept_out_of_texts() -> None:
    """Whoever shows a server's words takes both out of them."""
    address = read_address(f"redis+sentinel://:{SECRET}@h/m?sentinel_password=other")

    assert address.passwords == (SECRET, "other")


_TYPED = st.sampled_from(
    [
        *("redis", "rediss", "unix", "+sentinel", "+cluster", "://", ":", "@", "/", "?", "&", "="),
        *(
            ",",
            "#",
            "%",
            "%40",
            "h",
            "h1:7",
            "[::1]",
            "m",
            "0",
            "db",
            "ssl_ca_certs",
            "client_name",
        ),
        *("password=", "username=", "sentinel_password=", "sentinel_username=", " ", "é", SECRET),
    ]
)


@given(
    st.sampled_from(
        ["", "redis://", "redis+sentinel://", "rediss+sentinel://", "redis+cluster://"]
    ),
    st.lists(_TYPED, max_size=14),
)
def test_whatever_is_typed_ends_as_an_address_or_as_one_sentence(
    scheme: str, pieces: list[str]
) -> None:
    """No other error; and none repeats a secret, nor does what is shown of one that was a value."""
    url = scheme + "".join(pieces)
    read = _read(url)

    if isinstance(read, InvalidAddress):
        assert SECRET not in f"{read} {read!r} {where(url)}"
        assert str(read).isprintable()
        assert len(str(read)) < 400
        assert read.__cause__ is None
        assert read.__suppress_context__ or read.__context__ is None
    else:
        assert bool(read.nodes) != bool(read.socket_path)
        assert (read.kind == "sentinel") == bool(read.service)
        assert "@" not in read.where
        assert SECRET not in read.where or SECRET in url.partition("?")[0].rpartition("@")[2]


def _read(url: str) -> Address | InvalidAddress:
    try:
        return read_address(url)
    except InvalidAddress as error:
        return error


@pytest.mark.parametrize("name", sorted(OVERRIDDEN))
def test_options_that_would_break_reading_are_overridden(name: str) -> None:
    """Both clients read bytes of RESP2, with their own time-outs, whatever the address asks for."""
    for kind in (redis, redis.asyncio):
        _, plain = how_to_connect(kind, read_address("redis://h"), "h", 6379, socket_timeout=7)
        for value in ("true", "3", "latin-1"):
            address = read_address(f"redis://h?{name}={value}")
            _, options = how_to_connect(kind, address, "h", 6379, socket_timeout=7)
            assert options == plain | {"retry": options["retry"]}
        assert (plain["socket_timeout"], plain["protocol"]) == (7, 2)


async def test_producers_are_told_of_a_wrong_address() -> None:
    """By an error of the contract, from both clients."""
    with pytest.raises(InvalidAddress):
        async with TurnClient.connect("redis://h?foo=1"):
            pass
    with pytest.raises(InvalidAddress), SyncTurnClient.connect("redis://h:x"):
        pass
