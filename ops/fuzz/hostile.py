"""Schemas made to hang, crash or fill whoever compiles them or checks a value against them."""

from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final, NamedTuple

import msgspec

Json = Any
_encode = msgspec.json.encode


class Hostile(NamedTuple):
    """A schema, and a value that is hard to check against it."""

    name: str
    schema: bytes
    value: bytes


def hostile_schemas(seed: int, count: int = 200) -> list[Hostile]:
    """Return so many cases, of every kind, with random sizes and names."""
    random = Random(seed)
    made: list[Hostile] = []
    while len(made) < count:
        for make in _KINDS:
            schema, value = make(random)
            name = f"{make.__name__.strip('_')}-{len(made)}"
            made.append(Hostile(name, _as_bytes(schema), _as_bytes(value)))
    return made[:count]


def _as_bytes(value: Json) -> bytes:
    return value if isinstance(value, bytes) else _encode(value)


def _chain(random: Random, depth: int, word: str, *, twice: bool) -> Json:
    """Definitions that each use the next one, once or twice."""

    def at(n: int) -> Json:
        use = {"$ref": f"#/$defs/d{n}"}
        if word == "properties":
            return {"properties": {"a": use, "b": use} if twice else {"a": use}}
        return {word: [use, use] if twice else [use]}

    defs = {f"d{n}": at(n + 1) for n in range(depth)}
    last = random.choice([{"type": "object"}, {"required": ["a"]}, True])
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{depth}": last}}


def _nested(opening: bytes, inner: bytes, closing: bytes, depth: int) -> bytes:
    return opening * depth + inner + closing * depth


def _long(random: Random, letters: str = "a") -> str:
    return letters * random.randrange(30_000 // len(letters), 100_000 // len(letters))


# Recursion


def _same_again(random: Random) -> tuple[Json, Json]:
    word = random.choice(["oneOf", "anyOf", "allOf"])
    return {"type": "object", word: [{"$ref": "#"}] * random.randrange(1, 5)}, {}


def _circle(random: Random) -> tuple[Json, Json]:
    size = random.randrange(1, 90)
    defs = {f"d{n}": {"not": {"$ref": f"#/$defs/d{(n + 1) % size}"}} for n in range(size)}
    return {"$ref": "#/$defs/d0", "$defs": defs}, {}


def _two_ways_down(random: Random) -> tuple[Json, Json]:
    word = random.choice(["anyOf", "oneOf", "allOf"])
    branch = {"properties": {"a": {"$ref": "#"}}}
    required = [{"required": [name]} for name in random.sample("bcdefgh", 2)]
    depth = random.randrange(20, 400)
    value = _nested(b'{"a":', b"{}", b"}", depth)
    return {word: [{**branch, **it} for it in required]}, value


def _two_ways_into_lists(random: Random) -> tuple[Json, Json]:
    part = {"items": {"$ref": "#"}, "minItems": 1}
    value = _nested(b"[", b"", b"]", random.randrange(20, 900))
    return {"anyOf": [part, {**part, "type": "array"}, {"type": "null"}]}, value


def _dynamic(random: Random) -> tuple[Json, Json]:
    part = {"properties": {"a": {"$dynamicRef": "#n"}}, "required": ["z"]}
    schema = {"$dynamicAnchor": "n", "anyOf": [part, {**part, "minProperties": 1}]}
    return schema, _nested(b'{"a":', b"{}", b"}", random.randrange(20, 300))


def _old_recursion(random: Random) -> tuple[Json, Json]:
    part = {"properties": {"a": {"$recursiveRef": "#"}}, "required": ["z"]}
    draft = "https://json-schema.org/draft/2019-09/schema"
    schema = {"$schema": draft, "$recursiveAnchor": True, "oneOf": [part, part]}
    return schema, _nested(b'{"a":', b"{}", b"}", random.randrange(20, 300))


def _leftovers(random: Random) -> tuple[Json, Json]:
    depth = random.randrange(20, 60)
    rest = random.choice(["unevaluatedProperties", "unevaluatedItems"])
    defs = {
        f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}, {"type": "object"}], rest: False}
        for n in range(depth)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{depth}": {"properties": {"a": True}}}}, {
        "b": 1
    }


# Growth


def _doubling(random: Random) -> tuple[Json, Json]:
    word = random.choice(["allOf", "anyOf", "oneOf", "properties"])
    return _chain(random, random.randrange(20, 48), word, twice=True), {"a": {"b": {}}}


def _long_chain(random: Random) -> tuple[Json, Json]:
    word = random.choice(["allOf", "anyOf", "properties"])
    depth = random.choice([99, 200, 5_000, 30_000])
    return _chain(random, depth, word, twice=False), _nested(b'{"a":', b"1", b"}", 900)


def _anchored_chain(random: Random) -> tuple[Json, Json]:
    size = random.choice([90, 1_000, 4_000])
    defs = {str(n): {"$anchor": f"a{n}", "$ref": f"#a{n + 1}"} for n in range(size)}
    return {"$ref": "#a0", "$defs": {**defs, "z": {"$anchor": f"a{size}"}}}, {}


def _wide(random: Random) -> tuple[Json, Json]:
    size = random.randrange(500, 4_000)
    word = random.choice(["allOf", "oneOf", "anyOf"])
    return {"items": {word: [{"minimum": -n} for n in range(size)]}}, [1] * 50_000


def _deep(random: Random) -> tuple[Json, Json]:
    depth = random.choice([90, 130, 500, 10_000])
    opening = random.choice([b'{"items":', b'{"not":', b'{"allOf":[', b'{"properties":{"a":'])
    closing = b"]}" if opening.endswith(b"[") else b"}"
    if opening.endswith(b'"a":'):
        closing = b"}}"
    return _nested(opening, b"{}", closing, depth), _nested(b"[", b"", b"]", 900)


def _many(random: Random) -> tuple[Json, Json]:
    size = random.choice([5_000, 8_000, 100_000])
    match random.randrange(4):
        case 0:
            return {"properties": {f"p{n}": {"type": "string"} for n in range(size)}}, {"p1": 1}
        case 1:
            return {"enum": [f"p{n}" for n in range(size)]}, "q"
        case 2:
            return {"required": [f"p{n}" for n in range(size)]}, {}
        case _:
            return {"allOf": [True] * size}, {}


def _megabyte(random: Random) -> tuple[Json, Json]:
    return {"description": "x" * random.randrange(900_000, 1_100_000), "type": "object"}, {}


# Regular expressions


def _backtracking(random: Random) -> tuple[Json, Json]:
    pattern = random.choice(
        ["^(a+)+$", "^(a|a)*$", "^(a|aa)+$", "(.*)(.*)(.*)(.*)(.*)x$", "^(([a-z])+.)+[A-Z]$"]
    )
    return {"pattern": pattern}, _long(random) + "!"


def _look_around(random: Random) -> tuple[Json, Json]:
    pattern = random.choice(["^(?=a)a", "(?<!b)a", r"(a)\1", r"(?<n>a)\k<n>", "(?!x)(a+)+$"])
    return {"properties": {"a": {"pattern": pattern}}}, {"a": _long(random)}


def _repetition(random: Random) -> tuple[Json, Json]:
    most = random.choice([1_000, 100_000, 4_000_000_000])
    pattern = random.choice(["a{1,%d}", "(a{1,%d}){1,%d}", r"[\p{L}]{0,%d}x", "((a{0,%d})*b)*"])
    return {"pattern": pattern.replace("%d", str(most))}, _long(random)


def _states(random: Random) -> tuple[Json, Json]:
    size = random.randrange(100, 3_000)
    return {"pattern": f"[ab]*a[ab]{{{size}}}c"}, _long(random, "ab")


def _many_patterns(random: Random) -> tuple[Json, Json]:
    size = random.choice([90, 3_000])
    tails = [random.randrange(50, 200) for _ in range(size)]
    patterns = [f"(?i)[a-z]{{0,{tail}}}x{n}" for n, tail in enumerate(tails)]
    if random.random() < 0.5:
        return {"patternProperties": dict.fromkeys(patterns, True)}, {_long(random): 1}
    return {"items": {"anyOf": [{"pattern": it} for it in patterns]}}, [_long(random)]


def _no_pattern(random: Random) -> tuple[Json, Json]:
    return {"pattern": random.choice(["(", "[", "a{2,1}", "\\", "(?P<", "*"])}, "a"


def _format_regex(random: Random) -> tuple[Json, Json]:
    value = random.choice(["(a{1,1000}){1,1000}", "(" * 40_000, "[" + _long(random)])
    return {"format": "regex"}, value * random.randrange(1, 3)


# Costly values


def _unique(random: Random) -> tuple[Json, Json]:
    size = random.randrange(5_000, 12_000)
    value = [[{"a": n}] for n in range(size)]
    return {"uniqueItems": True, "items": {"uniqueItems": True}}, value


def _numbers(random: Random) -> tuple[Json, Json]:
    of = random.choice([b"1e-300", b"0.1", b"1e-999999", b"7" * 4_000, b"3e300"])
    value = random.choice([b"9" * 4_000, b"1e308", b"123456789012345678901234567890.5"])
    rule = random.choice([b"multipleOf", b"maximum", b"const"])
    return b'{"items":{"%b":%b}}' % (rule, of), b"[" + b",".join([value] * 20) + b"]"


def _lengths(random: Random) -> tuple[Json, Json]:
    word = random.choice(["minLength", "maxLength", "minItems", "maxProperties", "minContains"])
    size = random.choice([b"1e30", b"18446744073709551616", b"1e400", b"-1", b"0.5"])
    return b'{"%b":%b}' % (word.encode(), size), "a"


def _big_choices(random: Random) -> tuple[Json, Json]:
    size = random.randrange(1_000, 3_000)
    return {"items": {"enum": [{"a": n} for n in range(size)]}}, [{"a": -1}] * 10_000


def _contains(random: Random) -> tuple[Json, Json]:
    depth = random.randrange(5, 40)
    return (
        _nested(b'{"contains":', b'{"type":"null"}', b"}", depth),
        _nested(b"[1,", b"2", b"]", depth),
    )


# What is no schema


def _wrong_types(random: Random) -> tuple[Json, Json]:
    words = "required properties items type enum anyOf minimum pattern $ref $defs format $id"
    more = "additionalProperties dependentRequired prefixItems"
    wrong: list[Json] = [5, "x", ["y"], {"a": 5}, None, -1, [[]], [{"type": 5}]]
    return {random.choice(f"{words} {more}".split()): random.choice(wrong)}, {"a": 1}


def _no_object(random: Random) -> tuple[Json, Json]:
    return random.choice([5, "x", [], None, 1.5]), {}


def _elsewhere(random: Random) -> tuple[Json, Json]:
    places = "http://127.0.0.1:9/a.json file:///etc/passwd urn:x //host/share a.json #/x #nowhere"
    known = "https://json-schema.org/draft/2020-12/schema #/% :::: #/$defs/a/b"
    place = random.choice(f"{places} {known}".split())
    return {random.choice(["$ref", "$dynamicRef", "$id", "$schema"]): place}, {}


def _names(random: Random) -> tuple[Json, Json]:
    same = random.choice(["$id", "$anchor", "$dynamicAnchor"])
    name = random.choice(["http://x/a", "a", "%%", ""])
    defs = {str(n): {same: name} for n in range(random.randrange(2, 200))}
    return {"$defs": defs, "properties": {"": {}, "a b": {}, "\u202e$": {"$ref": "#"}}}, {"": 1}


def _no_json(random: Random) -> tuple[Json, Json]:
    return random.choice(
        [b'{"minimum":NaN}', b'{"const":"\\ud800"}', b'{"a":1', b'{"maximum":Infinity}', b"\xff"]
    ), {}


def _wrappers(random: Random) -> tuple[Json, Json]:
    kind = random.choice(["json_schema", "json_object", "text"])
    inner: list[Json] = [None, 5, {}, {"name": ""}, {"name": "a", "schema": 5}, {"schema": {}}]
    return {"type": kind, "json_schema": random.choice(inner)}, {}


_KINDS: Final[tuple[Callable[[Random], tuple[Json, Json]], ...]] = (
    *(_same_again, _circle, _two_ways_down, _two_ways_into_lists, _dynamic, _old_recursion),
    *(_leftovers, _doubling, _long_chain, _anchored_chain, _wide, _deep, _many, _megabyte),
    *(_backtracking, _look_around, _repetition, _states, _many_patterns, _no_pattern),
    *(_format_regex, _unique, _numbers, _lengths, _big_choices, _contains, _wrong_types),
    *(_no_object, _elsewhere, _names, _no_json, _wrappers),
)


def seeds() -> Iterator[bytes]:
    """Yield small cases of every kind, as the fuzzer's targets read them."""
    for case in hostile_schemas(1, len(_KINDS)):
        if len(case.schema) + len(case.value) < 4_000 and _is_json(case.schema):
            yield b'{"schema":%b,"value":%b}' % (case.schema, case.value)


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True
