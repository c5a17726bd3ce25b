"""Functions of every shape as tools: they work, or are refused when they are loaded, by reason."""

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import json
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pydantic
import pydantic.dataclasses
import pytest

from turnline.worker.schema_checking import Checker
from turnline.worker.tools import Tool, ToolContext, ToolFailed, tool
from turnline.worker.tools.declaration import ToolOptions, name_of
from turnline.worker.tools.description import describe
from turnline.worker.tools.loader import LoadedTool, LoadedTools
from turnline.worker.tools.runner import Toolbox
from turnline.worker.tools.types import BadTool
from turnline.worker.turn.plan import CallIds

IDS = CallIds("c", "t", 1, "call")


async def call(made: Tool[Any, Any], **arguments: Any) -> str:
    """Run a tool as a turn does, with arguments that went through JSON."""
    checker = Checker()
    box = Toolbox(LoadedTools((LoadedTool("m", made, describe(made)),), (), (), ()), checker)
    sent = msgspec.json.decode(msgspec.json.encode(arguments))
    try:
        return await box.call(made.options.name, sent, IDS)
    finally:
        await box.stop()
        await checker.close()


def properties(made: Tool[Any, Any]) -> dict[str, Any]:
    return describe(made).definition.parameters["properties"]


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Stand for a decorator that knows nothing of coroutines."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@plain
async def wrapped(number: int) -> str:
    """Do."""
    return f"did {number}"


async def two(number: int, factor: int) -> int:
    """Multiply."""
    return number * factor


class Counter:
    """Count."""

    async def __call__(self, number: int) -> int:
        return number + 1


class Holder:
    @staticmethod
    async def double(number: int) -> int:
        """Double."""
        return 2 * number

    @tool
    @staticmethod
    def half(number: int) -> float:
        """Halve."""
        return number / 2


def gives_coroutine(number: int) -> Awaitable[str]:
    """Do."""
    return wrapped(number)


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (wrapped, "did 4"),
        (functools.partial(two, factor=3), "12"),
        (functools.partial(functools.partial(two), factor=3), "12"),
        (Counter(), "5"),
        (Holder.double, "8"),
        (Holder().double, "8"),
        (gives_coroutine, "did 4"),
        (plain(plain(wrapped)), "did 4"),
    ],
)
async def test_callables_of_every_kind_run(function: Any, result: str) -> None:
    """Wrapped, partial, objects, static: what they return is awaited if it has to be."""
    made: Tool[Any, Any] = Tool(function, ToolOptions(name=name_of(function)))
    assert list(properties(made)) == ["number"]
    assert await call(made, number=4) == result


async def test_a_static_method_can_be_decorated() -> None:
    """In the order that Python allows."""
    assert await call(Holder.half, number=4) == "2.0"


def generator(number: int) -> Iterator[int]:
    """Do."""
    yield number


async def async_generator(number: int) -> AsyncIterator[int]:
    """Do."""
    yield number


def unwrapped_decorator(*args: Any, **kwargs: Any) -> None:
    """Do."""


def two_contexts(one: ToolContext[None], two: ToolContext[None]) -> None:
    """Do."""


def odd_metadata(number: Annotated[int, object()]) -> None:
    """Do."""


def unknown_forward(number: "Missing") -> None:  # type: ignore[name-defined]  # noqa: F821
    """Do."""


def looking_around(word: Annotated[str, msgspec.Meta(pattern="(?=a)b")]) -> None:
    """Do."""


@dataclasses.dataclass
class One:
    a: int


@dataclasses.dataclass
class Other:
    b: int


def undecodable(it: One | Other) -> None:
    """Do."""


class Mixed(enum.Enum):
    A = 1
    B = "b"


def mixed(it: Mixed) -> None:
    """Do."""


def field_default(it: int = pydantic.Field(default=3)) -> None:
    """Do."""


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (generator, "generator"),
        (async_generator, "generator"),
        (plain(generator), "generator"),
        (functools.partial(generator), "generator"),
        (unwrapped_decorator, "functools.wraps"),
        (two_contexts, "second ToolContext"),
        (odd_metadata, "not understood"),
        (unknown_forward, "Missing"),
        (looking_around, "linear time"),
        (undecodable, "more than one dataclass"),
        (mixed, "all str or all int"),
        (field_default, "plain default"),
        (One, "a class"),
        (len, "name it"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_loaded(function: Any, words: str) -> None:
    """Each by its reason."""
    with pytest.raises(BadTool, match=words):
        describe(Tool(function, ToolOptions(name="f")))


class Unit(enum.Enum):
    KG = "kg"
    LB = "lb"


class Parcel(TypedDict):
    """A parcel."""

    weight: Annotated[int, "In grams."]
    sent: dt.datetime


Odd = TypedDict("Odd", {"from": str, "x-y": int, "": int})


class Point(NamedTuple):
    x: int
    y: int


@tool
async def rich(
    when: Annotated[dt.datetime, "The moment."],
    day: dt.date,
    ident: uuid.UUID,
    amount: decimal.Decimal,
    unit: Unit,
    parcel: Parcel,
    odd: Odd,
    one: One,
    point: Point,
    several: list[dt.datetime],
    maybe: dt.datetime | None = None,
    level: Literal["low", "high"] = "low",
    marker: Any = object(),  # noqa: B008
    limit: float = float("inf"),
    context: ToolContext[None] | None = None,
) -> str:
    """Take all."""
    assert context is not None
    assert type(marker) is object
    kinds = [when, day, ident, amount, unit, one, several[0]]
    return " ".join(type(it).__name__ for it in kinds)


async def test_types_of_the_standard_library() -> None:
    """Formats and descriptions are shown, also inside; the function gets its types."""
    shown = properties(rich)
    assert shown["when"] == {
        "type": "string",
        "format": "date-time",
        "description": "The moment.",
    }
    assert shown["several"]["items"]["format"] == "date-time"
    assert "date-time" in json.dumps(shown["maybe"])
    assert shown["day"]["format"] == "date"
    assert "default" not in shown["marker"]
    assert "default" not in shown["limit"]
    assert "context" not in shown
    parts = describe(rich).definition.parameters["$defs"]
    assert parts["Parcel"]["properties"]["weight"]["description"] == "In grams."
    assert parts["Parcel"]["properties"]["sent"]["format"] == "date-time"
    told = await call(
        rich,
        when="2026-11-28T10:00:00Z",
        day="2026-11-28",
        ident=str(uuid.uuid4()),
        amount="1.5",
        unit="kg",
        parcel={"weight": 1.0, "sent": "2026-11-28T10:00:00Z"},
        odd={"from": "a", "x-y": 1, "": 2},
        one={"a": 1},
        point=[1, 2],
        several=["2026-11-28T10:00:00Z"],
    )
    assert told == "datetime date UUID Decimal Unit One datetime"


class Item(pydantic.BaseModel):
    name: str = pydantic.Field(alias="from", description="Where from.")
    children: "list[Item]" = []


@tool
def buy(
    item: Item, count: Annotated[int, pydantic.Field(ge=1)], more: list[Item] | None = None
) -> Item:
    """Buy."""
    assert isinstance(item, Item)
    assert more is None or all(isinstance(it, Item) for it in more)
    return item


async def test_models_of_pydantic() -> None:
    """As parameters, in lists, with aliases and fields; as results."""
    parameters = describe(buy).definition.parameters
    assert parameters["$defs"]["item.Item"]["properties"]["from"]["description"] == "Where from."
    assert parameters["properties"]["count"]["minimum"] == 1
    told = await call(buy, item={"from": "Oslo"}, count=1, more=[{"from": "Bergen"}])
    assert json.loads(told) == {"name": "Oslo", "children": []}
    with pytest.raises(ToolFailed, match=r"from: Field required .* `\$.item`"):
        await call(buy, item={"secret": "words"}, count=1)
    with pytest.raises(ToolFailed) as raised:
        await call(buy, item={"from": {"secret": "words"}}, count=1)
    assert "secret" not in str(raised.value)


@pydantic.dataclasses.dataclass
class Stop:
    place: str = pydantic.Field(max_length=9)


async def test_dataclasses_of_pydantic() -> None:
    """As models; a plain dataclass beside them is msgspec's."""

    @tool
    async def go(stop: Stop) -> list[Stop]:
        """Go."""
        return [stop]

    assert json.loads(await call(go, stop={"place": "Oslo"})) == [{"place": "Oslo"}]
    with pytest.raises(ToolFailed, match="at most 9"):
        await call(go, stop={"place": "Longyearbyen"})


@tool(names={"unit": "unit-of-measure", "empty": "", "money": "$"})
def odd_names(  # noqa: D417  one is enough
    from_: str, class_: int, unit: str, empty: str, money: int, last_: int = 1
) -> str:
    """Take names that Python does not have.

    Args:
        from_: Where from.
    """
    return f"{from_} {class_} {unit} {empty} {money} {last_}"


async def test_names_of_every_kind() -> None:
    """Words of Python by an underscore, all others by `names`."""
    shown = properties(odd_names)
    assert list(shown) == ["from", "class", "unit-of-measure", "", "$", "last_"]
    assert shown["from"]["description"] == "Where from."
    sent = {"from": "a", "class": 1.0, "unit-of-measure": "kg", "": "e", "$": 5}
    assert await call(odd_names, **sent) == "a 1 kg e 5 1"
    with pytest.raises(ToolFailed, match="from_"):
        await call(odd_names, **sent, from_="b")
    for names in ({"nope": "x"}, {"unit": "from"}):
        with pytest.raises(BadTool, match="names:"):
            describe(tool(names=names)(odd_names.function))


@tool
def whole(number: int, share: float, either: int | str, some: list[int]) -> str:
    """Take numbers."""
    return f"{number!r} {share!r} {either!r} {some!r}"


async def test_whole_numbers_are_integers() -> None:
    """1.0 is one, as JSON Schema has it, and arrives as one; 1.5 and "1" are none."""
    assert await call(whole, number=1.0, share=2, either=3.0, some=[1.0]) == "1 2.0 3 [1]"
    for number in (1.5, "1", True, None):
        with pytest.raises(ToolFailed, match="do not fit"):
            await call(whole, number=number, share=1, either="x", some=[])
    with pytest.raises(ToolFailed) as raised:
        await call(whole, number="x" * 10_000, share=1, either="x", some=[])
    assert len(str(raised.value)) <= 300


def nested(depth: int) -> Any:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)


class Share(pydantic.BaseModel):
    part: float


RESULTS: dict[str, Callable[[], Any]] = {
    "nan": lambda: float("nan"),
    "infinity inside": lambda: {"a": [1, float("-inf")]},
    "cycle": cycle,
    "deep": lambda: nested(100_000),
    "object": object,
    "object inside": lambda: [{"a": object()}],
    "huge number": lambda: 10**10_000,
    "generator": lambda: (it for it in [1]),
    "hostile": Hostile,
    "model with nan": lambda: type("M", (pydantic.BaseModel,), {"__annotations__": {"a": float}})(
        a="nan"
    ),
    "complex": lambda: 1j,
}


@pytest.mark.parametrize("name", RESULTS)
async def test_what_json_does_not_have_is_an_error_of_the_tool(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The model is told that, and the log says which tool."""

    @tool
    async def give() -> Any:
        """Give."""
        return RESULTS[name]()

    with pytest.raises(ToolFailed, match="The tool returned"):
        await call(give)
    assert "tool.failed" in [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({1}, "[1]"),
        (b"ab", '"YWI="'),
        (One(1), '{"a": 1}'),
        (Point(1, 2), "[1, 2]"),
        (dt.date(2026, 1, 2), '"2026-01-02"'),
        ({1: 2}, '{"1": 2}'),
        (2**80, str(2**80)),
        (None, "COMPLETED"),
        ("as it is", "as it is"),
    ],
)
async def test_results_become_text(result: Any, told: str) -> None:
    """Whatever has a JSON form."""

    @tool
    def give() -> Any:
        """Give."""
        return result

    assert await call(give) == told


Slow = Annotated[str, msgspec.Meta(pattern="^(a+)+$", max_length=99)]


@dataclasses.dataclass
class SlowField:
    word: Slow


@dataclasses.dataclass
class QuickField:
    word: Annotated[str, msgspec.Meta(pattern=r"^-?[a-z(|]{3}\d+$")]


class OwnEngine(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(regex_engine="python-re")
    word: str = pydantic.Field(pattern="^(a+)+$")


class Compiled(pydantic.BaseModel):
    word: str = pydantic.Field(pattern=re.compile("^(a+)+$"))  # type: ignore[arg-type]


class Linear(pydantic.BaseModel):
    word: str = pydantic.Field(pattern="^(a+)+$")


async def patterns_everywhere(
    one: Slow = "a",
    several: list[Slow] | None = None,
    named: dict[str, tuple[Slow, ...]] = {},  # noqa: B006  a tool copies it
    quick: QuickField | None = None,
    linear: Linear | None = None,
) -> str:
    """Match."""
    return "did"


@pytest.mark.parametrize(
    ("good", "evil"),
    [
        ({"one": "aa"}, {"one": "a" * 40 + "!"}),
        ({"several": ["aa"]}, {"several": ["a" * 40 + "!"]}),
        ({"named": {"k": ["aa"]}}, {"named": {"k": ["a" * 40 + "!"]}}),
        ({"quick": {"word": "-abc1"}}, {"quick": {"word": "abc"}}),
        ({"linear": {"word": "aa"}}, {"linear": {"word": "a" * 40 + "!"}}),
    ],
)
async def test_patterns_take_linear_time(good: dict[str, Any], evil: dict[str, Any]) -> None:
    """Wherever they stand in a parameter, whatever the model sends: `re` would never return."""
    made = tool(patterns_everywhere)
    assert await call(made, **good) == "did"
    with pytest.raises(ToolFailed, match="do not fit"):
        await call(made, **evil)


@pytest.mark.parametrize("kind", [SlowField, list[SlowField], OwnEngine, Compiled])
def test_patterns_that_only_re_could_run_are_refused(kind: Any) -> None:
    """In classes, unless they are plain; in pydantic's models that ask for `re`."""

    async def take(it: Any) -> None:
        """Take."""

    take.__annotations__["it"] = kind
    with pytest.raises(BadTool, match="linear time"):
        describe(tool(take))


async def test_keys_are_what_their_type_says() -> None:
    """JSON has only texts as names; a tool may ask for numbers, dates and the like."""

    @tool
    async def sums(amounts: dict[int, float], days: dict[dt.date, int]) -> str:
        """Sum."""
        return f"{amounts} {[*days]}"

    told = await call(sums, amounts={"7": 1}, days={"2026-01-02": 3})
    assert told == "{7: 1.0} [datetime.date(2026, 1, 2)]"
    with pytest.raises(ToolFailed, match="Expected `int`"):
        await call(sums, amounts={"x": 1}, days={})


async def test_the_model_cannot_make_up_a_context() -> None:
    """`ToolContext` is never an argument, however it is written; inside others it is refused."""

    @tool
    async def tell(context: Annotated[ToolContext[None], "of the call"]) -> str:
        """Tell."""
        return context.conversation_id

    async def many(contexts: list[ToolContext[None]]) -> None:
        """Take."""

    assert properties(tell) == {}
    assert await call(tell) == "c"
    with pytest.raises(BadTool, match="inside another"):
        describe(tool(many))


def test_a_reason_is_one_line() -> None:
    """Whatever the library said of the type."""

    async def take(it: complex) -> None:
        """Take."""

    with pytest.raises(BadTool) as raised:
        describe(tool(take))
    assert str(raised.value).isprintable()


async def test_a_text_is_what_it_holds() -> None:
    """Not what its class says of it."""
    kind = type("Odd", (str,), {"__str__": lambda _: 1 / 0, "encode": lambda *_: 1 / 0})

    @tool
    def give() -> Any:
        """Give."""
        return kind("text")

    told = await call(give)
    assert (told, type(told)) == ("text", str)
