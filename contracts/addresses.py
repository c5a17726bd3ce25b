"""Addresses of servers: read strictly, shown without secrets.

An address may hold a password anywhere, also by mistake: an unescaped `/`, `#` or `?` in it moves
the rest of it to where host, port or path are looked for. So no error here repeats any part of an
address; `Address.where` is put together from parts that were understood.
"""

import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from turnline.contracts.errors import InvalidAddress

_T = TypeVar("_T")
MOST_CHARACTERS: Final = 8_192
_MOST_DATABASES: Final = 1_000_000
_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?", re.ASCII)
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,32})?", re.ASCII)
_OPTION: Final = re.compile(r"[a-z_]{1,40}", re.ASCII)
_SERVICE: Final = re.compile(r"[A-Za-z0-9._-]{1,200}", re.ASCII)
_URL: Final = re.compile(r"([A-Za-z+]+)://([^/?]*)([^?]*)(?:\?(.*))?", re.ASCII)

Kind = Literal["server", "sentinel", "cluster"]
_KINDS: Final[Mapping[str, Kind]] = {
    "redis": "server",
    "rediss": "server",
    "unix": "server",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
}
MOST_NODES: Final = 64
_MOST_SHOWN: Final = 6
_SENTINEL_EXAMPLE: Final = "redis+sentinel://h1:26379,h2:26379,h3:26379/mymaster/0"
_CLUSTER_EXAMPLE: Final = "redis+cluster://h1:6379,h2:6379,h3:6379"
_BEGINNINGS: Final = (
    f"it begins with redis://, rediss:// or unix://, as in redis://127.0.0.1:6379/0, or looks like "
    f"{_SENTINEL_EXAMPLE} or {_CLUSTER_EXAMPLE} (rediss+ with TLS)"
)

OVERRIDDEN: Final = frozenset(
    {
        "auto_close_connection_pool",
        "decode_responses",
        "encoding",
        "encoding_errors",
        "protocol",
        "retry_on_error",
        "retry_on_timeout",
        "single_connection_client",
        "socket_keepalive",
        "socket_read_size",
        "socket_timeout",
    }
)
"""Options of redis-py that Turnline decides itself: an address may have them for other programs.

Replies are read as bytes of RESP2, blocking reads have time-outs of their own, and what is sent
again is decided command by command; with `protocol=3` or `decode_responses=true` turns were lost.
"""


class Address(NamedTuple):
    """Where a Redis is, and how to come in."""

    kind: Kind
    """How the server that holds the data is found: it is named itself (a `server`, also a unix
    socket), sentinels are asked for the primary (`sentinel`), or any node of a cluster for the
    primary of a slot (`cluster`)."""
    nodes: tuple[tuple[str, int], ...]
    """Hosts and ports: of the server, the sentinels, or some nodes of the cluster, each once; none
    for a unix socket. IPv6 without brackets."""
    socket_path: str
    """Of a unix socket, absolute; "" for all else."""
    is_tls: bool
    service: str
    """The sentinels' name for the primary and its replicas; "" for the other kinds."""
    options: Mapping[str, Any]
    """For connections of redis-py to servers that hold data: user, password, database, TLS and what
    else the URL says. Holds secrets."""
    sentinel_options: Mapping[str, Any]
    """The same for connections to the sentinels: user, password, TLS and the time to connect; empty
    for the other kinds. Holds secrets."""
    where: str
    """For people: host, port and database; the path of the socket; or the URL of sentinels or of
    a cluster. No secrets."""

    @property
    def passwords(self) -> tuple[str, ...]:
        """What must not appear in any text."""
        found = (it.get("password") for it in (self.options, self.sentinel_options))
        return tuple(str(it) for it in found if it)

    def __repr__(self) -> str:
        return f"Address({self.where})"


def _matching(
    pattern: str, convert: Callable[[str], _T], is_good: Callable[[_T], bool], expected: str
) -> Callable[[str], _T]:
    def read(value: str) -> _T:
        if not re.fullmatch(pattern, value, re.ASCII) or not is_good(converted := convert(value)):
            raise InvalidAddress(expected)
        return converted

    return read


def _whole(least: int, most: int) -> Callable[[str], int]:
    expected = f"a whole number from {least} to {most}"
    return _matching(r"[0-9]{1,9}", int, lambda it: least <= it <= most, expected)


def _one_of(known: Mapping[str, _T]) -> Callable[[str], _T]:
    def read(value: str) -> _T:
        if value not in known:
            raise InvalidAddress("one of " + ", ".join(known))
        return known[value]

    return read


def _truth(value: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    return _one_of(known)(value.lower())


_seconds = _matching(
    r"[0-9]{1,4}(\.[0-9]{1,6})?",
    float,
    lambda it: 0 < it <= 60,
    "a number of seconds above 0, up to 60",
)
_word = _matching(r"[!-~]{1,200}", str, bool, "1 to 200 visible ASCII characters without spaces")
_ESCAPED: Final = "in a user name or password, write / ? # @ : % as %2F %3F %23 %40 %3A %25"
_port = _matching(
    r"[0-9]{1,5}",
    int,
    lambda it: 1 <= it <= 65_535,
    f"the port is a number from 1 to 65535; {_ESCAPED}",
)
_TLS: Final[Mapping[str, Callable[[str], Any]]] = {
    "ssl_ca_certs": str,
    "ssl_ca_data": str,
    "ssl_cert_reqs": _one_of({it: it for it in ("none", "optional", "required")}),
    "ssl_certfile": str,
    "ssl_check_hostname": _truth,
    "ssl_ciphers": str,
    "ssl_keyfile": str,
    "ssl_min_version": _one_of(
        {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
    ),
}
_KNOWN: Final[Mapping[str, Callable[[str], Any]]] = {
    "client_name": _word,
    "db": _whole(0, _MOST_DATABASES),
    "health_check_interval": _whole(0, 86_400),
    "max_connections": _whole(16, 1_000_000),
    "password": str,
    "sentinel_password": str,
    "sentinel_username": str,
    "socket_connect_timeout": _seconds,
    "username": str,
    **_TLS,
}


_OF_SENTINELS: Final = {"sentinel_username": "username", "sentinel_password": "password"}
_SECRET: Final = frozenset({"password", "sentinel_password"})


def read_address(url: str) -> Address:
    """Read the address of a server, of a primary that sentinels watch, or of a cluster.

    Args:
        url: `redis://USER:PASSWORD@HOST:PORT/DB?OPTION=VALUE` as redis-py writes it, `rediss://`
            for TLS, `unix:///PATH?db=N`; `redis+sentinel://USER:PASSWORD@HOST:PORT,.../NAME/DB`
            with the sentinels as hosts (26379 unless said otherwise), the data servers' user, and
            the sentinels' own as `sentinel_username` and `sentinel_password`; or
            `redis+cluster://USER:PASSWORD@HOST:PORT,...` with some nodes of the cluster. TLS of
            `rediss+sentinel://` is for sentinels and servers, that of `rediss+cluster://` for all
            nodes.

    Raises:
        InvalidAddress: Says which part is wrong and what belongs there; repeats nothing of it.
    """
    scheme, netloc, path, query = _split(url)
    kind = _KINDS[scheme]
    user, _, hosts = netloc.rpartition("@")
    options = _options(scheme, user, query)
    if scheme == "unix":
        return _socket(hosts, path, options)
    nodes = _nodes(kind, user, hosts)
    service = ""
    if kind == "sentinel":
        service, _, path = path.removeprefix("/").partition("/")
        if not _SERVICE.fullmatch(service):
            raise InvalidAddress(
                "behind the sentinels stand their name for the primary, of ASCII letters, digits "
                f"and . _ -, and a database: {_SENTINEL_EXAMPLE}"
            )
    database = _set_database(options, path.removeprefix("/"))
    if kind == "cluster" and database != 0:
        raise InvalidAddress(f"db: a cluster has the database 0 only, as in {_CLUSTER_EXAMPLE}")
    to_sentinels = {
        **{short: options.pop(name) for name, short in _OF_SENTINELS.items() if name in options},
        **{it: options[it] for it in options if it in _TLS or it == "socket_connect_timeout"},
    }
    return Address(
        kind=kind,
        nodes=nodes,
        socket_path="",
        is_tls=scheme.startswith("rediss"),
        service=service,
        options=_chosen(options),
        sentinel_options=_chosen(to_sentinels) if kind == "sentinel" else {},
        where=_where(scheme, nodes, service, database),
    )


def where(url: str) -> str:
    """Return what may be shown of an address: never a secret, also where it cannot be read."""
    try:
        return read_address(url).where
    except InvalidAddress:
        return "the address given"


def host_and_port(text: str, default_port: int) -> tuple[str, int]:
    """Read `HOST` or `HOST:PORT`; IPv6 stands in brackets, and is returned without them.

    Raises:
        InvalidAddress: One of them is missing or malformed.
    """
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text, re.DOTALL)
    if bracketed is not None:
        host, port = bracketed[1], bracketed[2]
        is_good = _IPV6.fullmatch(host) is not None and ":" in host
        host = host.replace("%25", "%")  # in a URL, what introduces a zone is escaped
    else:
        host, colon, port = text.partition(":")
        port = port if colon else None
        is_good = len(host) <= 253 and _NAME.fullmatch(host) is not None
    if not is_good:
        raise InvalidAddress(
            "the host is a name of ASCII letters, digits, hyphens and dots, an IPv4 address, or an "
            f"IPv6 address in brackets, as in h:6379 or [::1]:6379; {_ESCAPED}"
        )
    return host, _port(port) if port else default_port


def _split(url: object) -> tuple[str, str, str, str]:
    """Return scheme, what stands between `//` and the path, path, and query."""
    if not isinstance(url, str) or not url:
        raise InvalidAddress("it is a text such as redis://127.0.0.1:6379/0")
    if len(url) > MOST_CHARACTERS:
        raise InvalidAddress(
            f"it has more than {MOST_CHARACTERS:,} characters; one is as long as "
            "redis://127.0.0.1:6379/0"
        )
    if not re.fullmatch(r"[!-~]+", url, re.ASCII) or "\\" in url:
        raise InvalidAddress(
            "it holds a space, a backslash, or a character that is not visible ASCII; write it as "
            "%20 and the like"
        )
    if "#" in url:
        raise InvalidAddress("a # stands for itself only as %23")
    parts = _URL.fullmatch(url)
    if parts is None or parts[1].lower() not in _KINDS:
        raise InvalidAddress(_BEGINNINGS)
    scheme, netloc, path, query = parts[1].lower(), parts[2], parts[3], parts[4] or ""
    if "@" in path or "@" in query:
        raise InvalidAddress(
            "an @ that is not before the host is written %40, a / in front of it %2F"
        )
    return scheme, netloc, path, query


def _options(scheme: str, user: str, query: str) -> dict[str, Any]:
    """Return what stands before the host and in the query, each option checked by itself."""
    name, _, password = user.partition(":")
    before = {"username": unquote(name), "password": unquote(password)}
    before = {option: value for option, value in before.items() if value}
    given = _query(query)
    if before.keys() & given.keys():
        raise InvalidAddress(
            "user and password stand before the host or in the query, not in both: "
            "redis://USER:PASSWORD@h:6379/0"
        )
    options = {name: _option(name, value) for name, value in {**before, **given}.items()}
    if not scheme.startswith("rediss") and (
        wrong := next((it for it in options if it in _TLS), "")
    ):
        raise InvalidAddress(
            f"{wrong}: only a rediss:// address has TLS (or rediss+sentinel://, rediss+cluster://)"
        )
    wrong = next((it for it in options if it in _OF_SENTINELS), "")
    if wrong and _KINDS[scheme] != "sentinel":
        raise InvalidAddress(f"{wrong}: only sentinels have it, as in {_SENTINEL_EXAMPLE}")
    if scheme.startswith("rediss"):  # redis-py 5 asks for a certificate, but not for whose it is
        options.setdefault("ssl_check_hostname", options.get("ssl_cert_reqs") != "none")
    return options


def _socket(host: str, path: str, options: dict[str, Any]) -> Address:
    if host or not path.startswith("/"):
        raise InvalidAddress("the path of a socket is absolute: unix:///run/redis.sock?db=0")
    socket_path = unquote(path)
    if not socket_path.isprintable():
        raise InvalidAddress(
            "the path of a socket has visible characters only: unix:///run/redis.sock?db=0"
        )
    shown = f"unix://{quote(socket_path)}?db={_set_database(options, '')}"
    return Address("server", (), socket_path, False, "", _chosen(options), {}, shown)


def _nodes(kind: Kind, user: str, hosts: str) -> tuple[tuple[str, int], ...]:
    """Return hosts and ports, each once, in the order given."""
    if kind == "server":
        if "," in hosts:
            raise InvalidAddress(
                f"the host is one; several stand in {_SENTINEL_EXAMPLE} or {_CLUSTER_EXAMPLE}"
            )
        return (host_and_port(hosts, 6379),)
    if "@" in user or "," in user:
        raise InvalidAddress(
            "user and password stand once, before the first host, with @ and , in them as %40 and "
            "%2C: redis+cluster://USER:PASSWORD@h1:6379,h2:6379"
        )
    default_port = 26379 if kind == "sentinel" else 6379
    named = hosts.split(",", MOST_NODES)
    if len(named) > MOST_NODES:
        raise InvalidAddress(
            f"it names more than {MOST_NODES} hosts; some that answer suffice, as in "
            f"{_SENTINEL_EXAMPLE if kind == 'sentinel' else _CLUSTER_EXAMPLE}"
        )
    nodes: dict[tuple[str, int], tuple[str, int]] = {}
    for host, port in (host_and_port(it, default_port) for it in named):
        nodes.setdefault((host.lower(), port), (host, port))
    return tuple(nodes.values())


def _where(scheme: str, nodes: tuple[tuple[str, int], ...], service: str, database: int) -> str:
    shown = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in nodes]
    if _KINDS[scheme] == "server":
        return f"{shown[0]}/{database}"
    more = len(shown) - _MOST_SHOWN
    hosts = ",".join(shown[:_MOST_SHOWN]) + (f",({more} more)" if more > 0 else "")
    return f"{scheme}://{hosts}" + (f"/{service}/{database}" if service else "")


def _query(query: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        name, sign, value = pair.partition("=")
        if not sign or not _OPTION.fullmatch(name):
            raise InvalidAddress(
                "options are written NAME=VALUE behind a ?, with & between them: "
                "redis://h:6379?db=0&client_name=me"
            )
        if name in OVERRIDDEN:
            continue
        if name not in _KNOWN:
            called = "an option" if _SECRET & given.keys() else name  # may be a piece of one
            raise InvalidAddress(f"{called} is not known; there are {', '.join(sorted(_KNOWN))}")
        if name in given:
            raise InvalidAddress(f"{name}: it is given twice; one {name}=VALUE suffices")
        given[name] = unquote(value)
    return given


def _option(name: str, value: str) -> Any:
    try:
        return _KNOWN[name](value)
    except InvalidAddress as error:
        raise InvalidAddress(f"{name}: {error.expected}") from None


def _set_database(options: dict[str, Any], path: str) -> int:
    """Return the database that the path (without its first `/`) or the query names, and set it."""
    if path:
        database = _option("db", path)
        if options.setdefault("db", database) != database:
            raise InvalidAddress(
                "db: the path and the query name different databases; one says it, as in "
                "redis://h:6379/1"
            )
    return int(options.setdefault("db", 0))


def _chosen(options: dict[str, Any]) -> dict[str, Any]:
    """Return options without empty ones: an empty password is none."""
    return {name: value for name, value in options.items() if value != ""}
