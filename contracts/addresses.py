"""Addresses of servers: read strictly, shown without secrets.

An address may hold a password anywhere, also by mistake: an unescaped `/`, `#` or `?` in it moves
the rest of it to where host, port or path are looked for. So no error here repeats any part of an
address; `Address.where` is put together from parts that were understood.
"""

import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

from turnline.contracts.errors import InvalidAddress

_T = TypeVar("_T")
MOST_CHARACTERS: Final = 8_192
_MOST_DATABASES: Final = 1_000_000
_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?", re.ASCII)
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,32})?", re.ASCII)
_OPTION: Final = re.compile(r"[a-z_]{1,40}", re.ASCII)

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

    plain: str
    """The URL without user, password and options."""
    where: str
    """For people: host, port and database, or the path of the socket. No secrets."""
    options: Mapping[str, Any]
    """For redis-py: user, password and what else the URL says. Holds secrets."""

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
    "socket_connect_timeout": _seconds,
    "username": str,
    **_TLS,
}


def read_address(url: str) -> Address:
    """Read a `redis://`, `rediss://` or `unix://` address.

    Args:
        url: As redis-py writes it: `redis://USER:PASSWORD@HOST:PORT/DB?OPTION=VALUE`.

    Raises:
        InvalidAddress: Says which part is wrong and what belongs there; repeats nothing of it.
    """
    scheme, netloc, path, query = _split(url)
    if scheme not in {"redis", "rediss", "unix"}:
        raise InvalidAddress("it begins with redis://, rediss:// or unix://")
    info, _, host = netloc.rpartition("@")
    name, _, password = info.partition(":")
    user = {"username": unquote(name), "password": unquote(password)}
    user = {option: value for option, value in user.items() if value}
    given = _query(query)
    if user.keys() & given.keys():
        raise InvalidAddress("user and password stand before the host or in the query, not in both")
    options = {name: _option(name, value) for name, value in {**user, **given}.items()}
    if scheme != "rediss" and (wrong := next((it for it in options if it in _TLS), None)):
        raise InvalidAddress(f"{wrong}: only a rediss:// address has TLS")
    if scheme == "unix":
        if host or not path.startswith("/"):
            raise InvalidAddress("the path of a socket is absolute: unix:///run/redis.sock?db=0")
        socket_path = unquote(path)
        if not socket_path.isprintable():
            raise InvalidAddress("the path of a socket has visible characters only")
        plain = f"unix://{quote(socket_path)}"
        database = options.setdefault("db", 0)
        return Address(plain, f"{plain}?db={database}", _chosen(options))
    place = host_and_port(host, 6379)
    if path not in {"", "/"}:
        database = _option("db", path[1:])
        if options.setdefault("db", database) != database:
            raise InvalidAddress("db: the path and the query name different databases")
    database = options.setdefault("db", 0)
    if scheme == "rediss":  # redis-py 5 asks for a certificate, but not for whose it is
        options.setdefault("ssl_check_hostname", options.get("ssl_cert_reqs") != "none")
    return Address(f"{scheme}://{place}", f"{place}/{database}", _chosen(options))


def where(url: str) -> str:
    """Return what may be shown of an address: never a secret, also where it cannot be read."""
    try:
        return read_address(url).where
    except InvalidAddress:
        return "the address given"


def host_and_port(text: str, default_port: int) -> str:
    """Check `HOST` or `HOST:PORT` (IPv6 in brackets) and return it with a port.

    Raises:
        InvalidAddress: One of them is missing or malformed.
    """
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text, re.DOTALL)
    if bracketed is not None:
        host, port = bracketed[1], bracketed[2]
        is_good = _IPV6.fullmatch(host) is not None and ":" in host
    else:
        host, colon, port = text.partition(":")
        port = port if colon else None
        is_good = len(host) <= 253 and _NAME.fullmatch(host) is not None
    if not is_good:
        raise InvalidAddress(
            "the host is a name of ASCII letters, digits, hyphens and dots, an IPv4 address, or an "
            f"IPv6 address in brackets; {_ESCAPED}"
        )
    number = _port(port) if port else default_port
    return f"[{host}]:{number}" if bracketed is not None else f"{host}:{number}"


def _split(url: object) -> tuple[str, str, str, str]:
    """Return scheme, what stands between `//` and the path, path, and query."""
    if not isinstance(url, str) or not url:
        raise InvalidAddress("it is a text such as redis://127.0.0.1:6379/0")
    if len(url) > MOST_CHARACTERS:
        raise InvalidAddress(f"it has more than {MOST_CHARACTERS:,} characters")
    if not re.fullmatch(r"[!-~]+", url, re.ASCII) or "\\" in url:
        raise InvalidAddress(
            "it holds a space, a backslash, or a character that is not visible ASCII; write it as "
            "%20 and the like"
        )
    if "#" in url:
        raise InvalidAddress("a # stands for itself only as %23")
    try:
        parts = urlsplit(url)
    except ValueError:  # it would be repeated
        raise InvalidAddress("brackets stand only around an IPv6 address") from None
    if "//" not in url or not url.lower().startswith(f"{parts.scheme}://"):
        raise InvalidAddress("it begins with redis://, rediss:// or unix://")
    if "@" in parts.path or "@" in parts.query:
        raise InvalidAddress(
            "an @ that is not before the host is written %40, a / in front of it %2F"
        )
    return parts.scheme, parts.netloc, parts.path, parts.query


def _query(query: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        name, sign, value = pair.partition("=")
        if not sign or not _OPTION.fullmatch(name):
            raise InvalidAddress("options are written NAME=VALUE behind a ?, with & between them")
        if name in OVERRIDDEN:
            continue
        if name not in _KNOWN:
            called = "an option" if "password" in given else name  # may be a piece of the password
            raise InvalidAddress(f"{called} is not known; there are {', '.join(sorted(_KNOWN))}")
        if name in given:
            raise InvalidAddress(f"{name}: it is given twice")
        given[name] = unquote(value)
    return given


def _option(name: str, value: str) -> Any:
    try:
        return _KNOWN[name](value)
    except InvalidAddress as error:
        raise InvalidAddress(f"{name}: {error.expected}") from None


def _chosen(options: dict[str, Any]) -> dict[str, Any]:
    """Return options without empty ones: an empty password is none."""
    return {name: value for name, value in options.items() if value != ""}
