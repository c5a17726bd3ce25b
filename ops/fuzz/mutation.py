"""Makes new inputs out of old ones: bytes, JSON by its structure, event streams by their lines."""

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, TypeAlias, cast

import msgspec

Mutate: TypeAlias = Callable[[bytes, Sequence[bytes], Random], bytes]
"""(an input, all inputs kept, randomness) -> another input."""

INPUT_MAX_BYTES: Final = 2 * 1024 * 1024
MARK: Final = "mark5eCret"
"""A user's word that no error may repeat."""
_RARE: Final = 1 / 50
"""Share of the rarer changes that make an input very long."""
_DEPTHS: Final = (3, 60, 151, 300, 993, 2_000, 20_001)
_LENGTHS: Final = (60_000, 66_000, 263_000, 1_100_000)
_BYTES: Final = (
    *(b"\x00", b"\n", b"\r", b"\r\n", b"\n\n", b" ", b'"', b"\\", b"{", b"}", b"[", b"]", b","),
    *(b":", b"\xff", b"\xc3", b"\xe2\x80", b"\xed\xa0\x80", b"\xf0\x9f\x91\x8b", b"\xef\xbb\xbf"),
    *(b"null", b"true", b"-0", b"1e999", b"-1", b"0.1", b"NaN", b"\\ud800", b"\\u0000", b"/**/"),
    *(b"data: ", b"data:", b"event: error\n", b"[DONE]", b": keepalive\n\n", MARK.encode()),
)
_VALUES: Final = (
    *(b"null", b"true", b"false", b"0", b"1", b"-1", b"3.0", b"0.5", b"-1e-9", b"[]", b"{}"),
    *(b'""', b'" "', b'"x"', b"[null]", b"[[]]", b'{"":null}', b'"[DONE]"', b'"a\\u0000b"'),
    *(b'"\\u202e"', b'"\\ud83d\\udc4b"', b'"\\u007f"', b'{"code":1,"error":"x"}', b"[1,[2],{}]"),
    *(b'"%b"' % MARK.encode(), b'{"%b":"%b"}' % (MARK.encode(), MARK.encode())),
    *(b"%d" % number for number in (2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30)),
    *([b'"\\u0002raw\\u0002"'] * 8),
)
"""JSON values. The last is a placeholder for bytes that are not valid JSON."""
_RAWS: Final = (
    *(b"1e999", b"-0.0", b"1.0", b"1E400", b"9" * 400, b"9" * 5_000, b"0" * 9, b"NaN", b"["),
    *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud83d\\udc4b"', b'"\xff"', b'{"\xff":1}'),
    *(b'{"a":1,"a":2}', b"\n1\n"),
)
_CHARACTERS: Final = (MARK, " ", "\n", "{", "é", "👋", "\x00", "\u202e")
_WRAPS: Final[Sequence[Callable[[object], object]]] = (
    lambda value: [value],
    lambda value: {"": value},
    lambda value: [value, value],
)
_LINES: Final = (
    *(b"", b":", b": keepalive", b"data", b"data:", b"data: ", b"data: [DONE]", b"data:[DONE] "),
    *(b"event: error", b"event: message", b"event", b"id: 1", b"retry: 10", b"garbage", b"<html>"),
    *(b" data: {}", b"data: {}", b"data: null", b'data: "x"', b"data: [", b"\xff\xfe"),
    *(b'data: {"error":"x","code":"y"}', b'data: {"error":{"message":"x"}}', b'{"error":1}'),
)
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def mutate_bytes(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Change a few bytes, or take some from another input."""
    if not data:
        return random.choice(_BYTES)
    at = random.randrange(len(data) + 1)
    end = min(len(data), at + 1 + int(random.expovariate(0.1)))
    which = random.randrange(7)
    if which == 0:
        other = random.choice(others)
        return data[:at] + other[random.randrange(len(other) + 1) :]
    if which == 1:
        return data[:at]
    part = data[at:end]
    new = (
        *(b"", random.choice(_BYTES), random.choice(_BYTES) + part, part * random.randrange(2, 5)),
        bytes([random.randrange(256)]) + part[1:],
    )[which - 2]
    return data[:at] + new + data[end:]


class JsonMutator:
    """Changes values, keys and shape of a JSON text; sometimes, and in broken texts, its bytes."""

    def __init__(self, words: Sequence[str]) -> None:
        """Use `words` as keys and values: field names, tags, enumerated values."""
        self._words = words

    def __call__(self, data: bytes, others: Sequence[bytes], random: Random) -> bytes:
        """Return another text."""
        if random.random() < 0.2:
            return mutate_bytes(data, others, random)
        try:
            holder: list[Any] = [_decode(data)]
            while True:
                self._change(holder, others, random)
                if random.random() < 0.6:
                    break
            made = _encode(holder[0])
            if random.random() < 0.03 and made.startswith(b"{") and len(made) > 2:
                made = b"{" + self._pair(random) + b"," + made[1:]  # a key that may come twice
        except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
            return mutate_bytes(data, others, random)
        return made.replace(_VALUES[-1], _raw(random), 1)

    def _change(self, holder: list[Any], others: Sequence[bytes], random: Random) -> None:
        node: Any = holder
        key: Any = 0
        while (inner := _items(node[key])) and random.random() < 0.8:
            node, key = node[key], random.choice(inner)[0]
        value = node[key]
        match random.randrange(8):
            case 0 | 1:
                node[key] = _decode(random.choice(_VALUES))
            case 2:
                node[key] = random.choice(self._words)
            case 3 if node is not holder:
                del node[key]
            case 4:
                self._add(node, value, random)
            case 5:
                self._add(value, _decode(random.choice(_VALUES)), random)
            case 6:
                node[key] = _changed(value, random)
            case _:
                node[key] = _part_of(random.choice(others), random)

    def _add(self, to: Any, value: object, random: Random) -> None:
        """Put a value into an object or array; nothing if it is neither."""
        if isinstance(to, dict):
            to[random.choice(self._words)] = value
        elif isinstance(to, list):
            array = cast("list[object]", to)
            array.insert(random.randrange(len(array) + 1), value)

    def _pair(self, random: Random) -> bytes:
        return _encode(random.choice(self._words)) + b":" + random.choice(_VALUES)


def _raw(random: Random) -> bytes:
    if random.random() < _RARE:
        return _very_long(random)
    if random.random() < 0.1:
        depth = random.choice(_DEPTHS)
        return (
            (b'{"a":' * depth + b"1" + b"}" * depth) if depth % 20 else b"[" * depth + b"]" * depth
        )
    return random.choice(_RAWS)


def _very_long(random: Random) -> bytes:
    if random.random() < 0.3:
        return b"[" * 100_000
    unit = random.choice((b"x", "é".encode(), "👋".encode(), b"\\n", MARK.encode()))
    return b'"' + unit * (random.choice(_LENGTHS) // len(unit)) + b'"'


def _items(value: object) -> list[tuple[Any, Any]]:
    """Return the keys, or indices, and values of an object or array; none of anything else."""
    if isinstance(value, dict):
        return list(cast("dict[str, object]", value).items())
    if isinstance(value, list):
        return list(enumerate(cast("list[object]", value)))
    return []


def _changed(value: object, random: Random) -> object:
    """Return something like this value, or this value within another."""
    match value:
        case str():
            at = random.randrange(len(value) + 1)
            inserted = value[:at] + random.choice(_CHARACTERS) + value[at:]
            return random.choice((inserted, value[:at], value[::-1], value * 2, value * 70))
        case int() | float():
            return value * random.choice((-1, 2, 0.5, 1_000, 10**9))
        case _:
            return random.choice(_WRAPS)(value)


def _part_of(data: bytes, random: Random) -> object:
    """Return a part of another JSON text."""
    try:
        node: object = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return MARK
    while (inner := _items(node)) and random.random() < 0.6:
        node = random.choice(inner)[1]
    return node


class StreamMutator:
    """Changes a server-sent event stream line by line, or the JSON within its lines."""

    def __init__(self, words: Sequence[str]) -> None:
        """Use `words` as keys and values in JSON."""
        self._json = JsonMutator(words)

    def __call__(self, data: bytes, others: Sequence[bytes], random: Random) -> bytes:
        """Return another stream."""
        if random.random() < 0.15:
            return mutate_bytes(data, others, random)
        if random.random() < 0.1:
            return _with_other_line_ends(data, random)
        lines = data.split(b"\n")
        while True:
            self._change(lines, others, random)
            if random.random() < 0.6:
                break
        return b"\n".join(lines)

    def _change(self, lines: list[bytes], others: Sequence[bytes], random: Random) -> None:
        if not lines:
            lines.append(b"")
        at = random.randrange(len(lines))
        line = lines[at]
        other = random.choice(others).split(b"\n")
        match random.randrange(10):
            case 0:
                del lines[at]
            case 1:
                lines.insert(at, random.choice(_LINES))
            case 2:
                lines[at:at] = [line] * random.randrange(1, 4)
            case 3:
                to = random.randrange(len(lines))
                lines[at], lines[to] = lines[to], line
            case 4:
                cut = random.randrange(len(line) + 1)
                lines[at : at + 1] = [line[:cut], b"data: " + line[cut:]]
            case 5:
                start = random.randrange(len(other))
                lines[at:at] = other[start : start + random.randrange(1, 6)]
            case 6 if random.random() < 0.1:
                lines[at : at + 1] = _numbered(line, random.choice((20, 300, 3_000)))
            case _:
                if not line.startswith(b"data: "):
                    filled = [n for n, it in enumerate(lines) if it.startswith(b"data: ")]
                    at = random.choice(filled) if filled else at
                payload = lines[at][6:]
                near = [it[6:] for it in other if it.startswith(b"data: ")] or [payload]
                lines[at] = b"data: " + self._json(payload, near, random)


def _numbered(line: bytes, times: int) -> list[bytes]:
    """Return many events like this one, each with a number of its own."""
    digits = re.search(rb"\d+", line)
    if digits is None:
        return [line, b""] * times
    before, after = line[: digits.start()], line[digits.end() :]
    return [part for n in range(times) for part in (before + b"%d" % n + after, b"")]


def _with_other_line_ends(data: bytes, random: Random) -> bytes:
    match random.randrange(5):
        case 0:
            return data.replace(b"\n", b"\r\n")
        case 1:
            return data.replace(b"\n", b"\r")
        case 2:
            pieces = data.split(b"\n")
            return b"".join(it + random.choice((b"\n", b"\r", b"\r\n", b"\n\n")) for it in pieces)
        case 3:
            return random.choice((b"\xef\xbb\xbf", b"\n", b"\r\n\r", b" ", b"\xef\xbb")) + data
        case _:
            return data.replace(b"data: ", random.choice((b"data:", b"data:  ", b"Data: ")))


class AnswerMutator:
    """Changes the status of an answer, in its first line, or the JSON below it."""

    def __init__(self, words: Sequence[str]) -> None:
        """Use `words` as keys and values in JSON."""
        self._json = JsonMutator(words)

    def __call__(self, data: bytes, others: Sequence[bytes], random: Random) -> bytes:
        """Return another answer."""
        first, _, body = data.partition(b"\n")
        near = [other.partition(b"\n")[2] for other in others]
        if random.random() < 0.2:
            return b"%d" % random.randrange(200, 600) + first[3:] + b"\n" + body
        if random.random() < 0.1:
            return first + random.choice(_BYTES) + b"\n" + body
        return first + b"\n" + self._json(body, near, random)


_CURSORS: Final = (
    *(b"a=", b"a=0-0", b"a=99999999999999999999-1", b"a=x", b"d=", b"d=zz", b"on=1-0", b"on=2-0"),
    *(b"on=", b"act=interrupt", b"act=rollback", b"act=x", b"=", b"m", b"x=1"),
)
"""What the fields that only scripts write may hold: cursors, fingerprints, acts."""
FIELD: Final = b"\x1f"
"""Stands between the fields of a stored entry, `name=value`."""
ENTRY: Final = b"\x1e"
"""Stands between stored entries."""


class EntriesMutator:
    """Changes stored entries: their number, order and fields, and the JSON of the message."""

    def __init__(self, words: Sequence[str]) -> None:
        """Use `words` as keys and values in JSON."""
        self._json = JsonMutator(words)

    def __call__(self, data: bytes, others: Sequence[bytes], random: Random) -> bytes:
        """Return other entries."""
        entries = data.split(ENTRY)
        at = random.randrange(len(entries))
        other = random.choice(others).split(ENTRY)
        match random.randrange(8):
            case 0:
                del entries[at]
            case 1:
                entries.insert(at, random.choice(other))
            case 2:
                to = random.randrange(len(entries))
                entries[at], entries[to] = entries[to], entries[at]
            case _:
                fields = entries[at].split(FIELD)
                which = random.randrange(len(fields))
                name, sign, value = fields[which].partition(b"=")
                if name == b"m":
                    near = [it[2:] for it in b"".join(other).split(FIELD) if it[:2] == b"m="]
                    fields[which] = name + sign + self._json(value, near or [value], random)
                elif random.random() < 0.2:
                    del fields[which]
                elif name == b"t" or random.random() < 0.5:
                    fields[which] = name + sign + mutate_bytes(value, [value], random)
                else:
                    fields[which] = random.choice(_CURSORS)
                entries[at] = FIELD.join(fields)
        return ENTRY.join(entries)
