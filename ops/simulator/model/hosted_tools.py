"""Tools that the server runs itself: which one is used when, what it finds, what it costs."""

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from turnline.ops.simulator.faults.scenario import BadScenario, Scenario
from turnline.ops.simulator.model.answer import Answer, HostedCall
from turnline.ops.simulator.model.prompt import Asked, HostedTool

WEB: Final = "web_search"
X: Final = "x_search"
CODE: Final = "code_interpreter"
FILES: Final = "file_search"
MCP: Final = "mcp"
TICKS: Final[Mapping[str, int]] = {
    WEB: 50_000_000,
    X: 50_000_000,
    CODE: 50_000_000,
    FILES: 25_000_000,
    MCP: 0,
}
"""Price of one call that succeeds, by tool. Source: https://docs.x.ai/developers/pricing"""

_ASKED_FOR: Final[Mapping[str, re.Pattern[str]]] = {
    name: re.compile(rf"\b(?:{words})\b", re.IGNORECASE)
    for name, words in {
        X: r"on x|x\.com|tweets?|twitter|posts (?:by|about|on|from)",
        FILES: r"(?:my|the|our) (?:files?|documents?|collections?)|file search",
        CODE: r"compute|calculate|python|run (?:the|this|some) code",
        WEB: r"search|look (?:it |that )?up|web|online|internet|latest|news",
    }.items()
}
"""Words of a user that make the model use a tool. The first that is offered wins."""
_RESULT_TOKENS: Final = (930, 1140)
_SOURCES: Final = 3


def consulted(given: Answer, asked: Asked) -> Answer:
    """Let the answer use a tool of the server if the user's words ask for it."""
    last = asked.prompt.messages[-1].message if asked.prompt.messages else None
    if last is None or last.role != "user" or not asked.may_call or given.calls:
        return given
    for name, words in _ASKED_FOR.items():
        tool = next((it for it in asked.hosted if it.type == name), None)
        if tool is not None and words.search(last.text):
            return _using(given, asked, tool, calls=1)
    for tool in asked.hosted:
        if tool.label and tool.label.lower() in last.text.lower():
            return _using(given, asked, tool, calls=1)
    if asked.demands_any and asked.hosted and not asked.tools:
        return _using(given, asked, asked.hosted[0], calls=1)
    return given


def use(given: Answer, scenario: Scenario, asked: Asked) -> Answer:
    """Use a tool of the server because a scenario says so.

    Raises:
        BadScenario: The request offers none of that name.
    """
    name = scenario.text("tool", scenario.text("value"))
    offered = [it for it in asked.hosted if name in {"", it.type}]
    if not offered:
        raise BadScenario(f"{scenario.name}: the request offers no such tool of the server")
    plain = msgspec.structs.replace(given, hosted=(), citations=(), pieces=None)
    return _using(
        plain,
        asked,
        offered[0],
        calls=scenario.number("n", 1),
        query=scenario.text("query"),
        failed=scenario.number("fail", 0),
        cites=scenario.flag("cite", default=True),
    )


def _using(
    given: Answer,
    asked: Asked,
    tool: HostedTool,
    *,
    calls: int,
    query: str = "",
    failed: int = 0,
    cites: bool = True,
) -> Answer:
    words = query or " ".join(asked.prompt.last_user_text.split()[:8])
    made = tuple(
        _call(tool, words if number == 0 else f"{words} {number + 1}", failed=number < failed)
        for number in range(calls)
    )
    found = tuple(dict.fromkeys(source for call in made for source in call.sources))
    cited = found[:2] if cites and asked.cites_inline else ()
    return msgspec.structs.replace(given, hosted=made, citations=cited)


def _call(tool: HostedTool, query: str, *, failed: bool) -> HostedCall:
    number = zlib.crc32(f"{tool.type}/{query}".encode())
    name, arguments = _FORMS[tool.type](tool, query)
    fewest, most = _RESULT_TOKENS
    return HostedCall(
        tool=tool.type,
        name=name,
        input=arguments,
        label=tool.label,
        sources=() if failed else _sources(tool.type, number),
        result_tokens=0 if failed else fewest + number % (most - fewest),
        failed=failed,
    )


def _sources(tool: str, number: int) -> tuple[str, ...]:
    if tool == WEB:
        return tuple(f"https://example.com/{number:08x}/{n}" for n in range(_SOURCES))
    if tool == X:
        return tuple(f"https://x.com/i/status/{10**18 + number * 10 + n}" for n in range(_SOURCES))
    if tool == FILES:
        return (f"collections://collection/files/file_{number:08x}",)
    return ()


def _json(payload: object) -> str:
    return msgspec.json.encode(payload).decode()


_FORMS: Final[Mapping[str, Callable[[HostedTool, str], tuple[str, str]]]] = {
    WEB: lambda _, query: (WEB, query),
    X: lambda _, query: (
        "x_keyword_search",
        _json({"query": query, "limit": "10", "mode": "Latest"}),
    ),
    CODE: lambda _, query: (CODE, f"print({_json(query)})"),
    FILES: lambda _, query: (FILES, query),
    MCP: lambda tool, query: (tool.allowed[0] if tool.allowed else "search", _json({"q": query})),
}
"""By tool: the name of what is called, and what goes into it."""
