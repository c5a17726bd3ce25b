"""Decides what is answered: the recorded dialogue, a plain reply, or what a scenario asks for."""

import zlib
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from turnline.ops.simulator.config import Profile, ReasoningMode
from turnline.ops.simulator.faults.scenario import BadScenario, Effect, Scenario
from turnline.ops.simulator.model import hosted_tools, schema_values
from turnline.ops.simulator.model.answer import Answer, Call, CallShape, count
from turnline.ops.simulator.model.dialogues import Dialogues
from turnline.ops.simulator.model.prompt import Asked, ToolFunction

_with = msgspec.structs.replace

_REASONING_SPAN: Final[Mapping[str, tuple[int, int]]] = {
    "none": (0, 0),
    "low": (16, 80),
    "medium": (64, 256),
    "high": (128, 640),
    "xhigh": (256, 1280),
}
_SUMMARY_TOKENS: Final = 12
_SENTENCES: Final = (
    "That is a good question.",
    "The short answer is yes.",
    "It depends on what you need.",
    "Most people start with the first step.",
    "There are three things to know.",
    "I would look at it from the other side.",
)
_THOUGHT: Final = " First, the user asked for something, and I should answer it plainly."
_ANY_OBJECT: Final = {"type": "object"}


def compose(
    asked: Asked,
    *,
    conversation_id: str | None,
    dialogues: Dialogues | None,
    profile: Profile,
    reasoning: ReasoningMode | None,
) -> Answer:
    """Return the answer that is given when no scenario asks for another."""
    found = _recorded(asked, conversation_id, dialogues) or _unscripted(asked)
    found = hosted_tools.consulted(found, asked)
    if profile is Profile.LEGACY2024:
        return _reasoned(found, 0, ReasoningMode.HIDDEN)
    return _reasoned(found, _reasoning_tokens(asked), reasoning or asked.model.shows)


def limit(answered: Answer, asked: Asked) -> Answer:
    """Cut an answer at the token limit and at stop words, as asked."""
    if answered.text and answered.pieces is None:
        text = answered.text
        for stop in filter(None, asked.stops):
            text = text.partition(stop)[0]
        answered = _with(answered, text=text)
    most = asked.max_visible_tokens
    if most is None or answered.calls or answered.completion_tokens <= most:
        return answered
    kept = answered.chunk_texts[: max(0, most)]
    return _with(answered, text="".join(kept), pieces=kept, finish_reason="length")


def _recorded(
    asked: Asked, conversation_id: str | None, dialogues: Dialogues | None
) -> Answer | None:
    if dialogues is None:
        return None
    tools = [tool.name for tool in asked.tools] if asked.may_call else []
    messages = [read.message for read in asked.prompt.messages]
    following = dialogues.next(conversation_id, messages, tools)
    if following is None:
        return None
    if following.call is None:
        return Answer(text=following.text)
    arguments = msgspec.json.encode(following.call.parameters).decode()
    return _calling(asked.call(following.call.method, arguments))


def _unscripted(asked: Asked) -> Answer:
    if asked.schema is not None:
        return Answer(text=_json(asked.schema))
    if asked.demanded is not None and not asked.prompt.ends_with_tool_result:
        return _calling(_plain_call(asked, asked.demanded))
    return Answer(text=_plain(asked))


def _plain(asked: Asked) -> str:
    """Return a few sentences that depend on nothing but the last message."""
    last = asked.prompt.messages[-1].message
    number = zlib.crc32(last.text.encode())
    chosen = [_SENTENCES[(number >> shift) % len(_SENTENCES)] for shift in (0, 5, 10)]
    words = " ".join(last.text.split()[:12])
    opening = f"The tool says “{words}”." if last.role == "tool" else f"You said “{words}”."
    return " ".join([opening, *dict.fromkeys(chosen[: 1 + number % 3])])


def _json(schema: Mapping[str, object]) -> str:
    return msgspec.json.encode(schema_values.instance(schema)).decode()


def _calling(*calls: Call) -> Answer:
    return Answer(calls=calls, finish_reason="tool_calls")


def _plain_call(asked: Asked, tool: ToolFunction) -> Call:
    return asked.call(tool.name, _json(tool.parameters or _ANY_OBJECT))


def _reasoning_tokens(asked: Asked) -> int:
    if not asked.model.reasons:
        return 0
    fewest, most = _REASONING_SPAN.get(asked.effort, _REASONING_SPAN["medium"])
    number = zlib.crc32(asked.prompt.last_user_text.encode() + asked.effort.encode())
    return fewest + number % (most - fewest + 1)


def _reasoned(
    answered: Answer, tokens: int, mode: ReasoningMode, seconds: float | None = None
) -> Answer:
    return _with(
        answered,
        reasoning_tokens=tokens,
        reasoning_mode=mode,
        reasoning_s=tokens / 100 if seconds is None else seconds,
        reasoning_text=_thoughts(tokens, mode),
    )


def _thoughts(tokens: int, mode: ReasoningMode) -> str:
    """Return a text of exactly so many tokens, or of fewer in a mode that shows less."""
    match mode:
        case ReasoningMode.STREAM:
            return " thinking" * tokens
        case ReasoningMode.SUMMARY:
            return " thinking" * min(tokens, _SUMMARY_TOKENS)
        case ReasoningMode.BLOCK:
            return (_THOUGHT * (1 + tokens // count(_THOUGHT)))[: 4 * tokens]
        case _:
            return ""


# --- scenarios -----------------------------------------------------------------------------------

ContentRun = Callable[[Answer, Scenario, Asked], Answer]


def _speaking(given: Answer, text: str | None, finish_reason: str = "stop") -> Answer:
    return _with(given, text=text, pieces=None, calls=(), finish_reason=finish_reason)


def _in_pieces(given: Answer, *texts: str, finish_reason: str = "stop") -> Answer:
    return _with(_speaking(given, "".join(texts), finish_reason), pieces=texts)


def _half(given: Answer, finish_reason: str) -> Answer:
    texts = given.chunk_texts
    return _in_pieces(given, *texts[: (len(texts) + 1) // 2], finish_reason=finish_reason)


def _chunks(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    number = scenario.number("n", scenario.number("value", 20))
    piece = " word".ljust(scenario.number("bytes", 5), "s")
    texts = (piece.lstrip(), *[piece] * (number - 1)) if number > 0 else ()
    return _in_pieces(_reasoned(given, 0, ReasoningMode.HIDDEN), *texts)


def _tools(given: Answer, scenario: Scenario, asked: Asked) -> Answer:
    """Call tools, unless they have just answered as often as they should: turns have to end."""
    prompt, rounds = asked.prompt, scenario.number("rounds", 1)
    has_called = prompt.ends_with_tool_result and prompt.tool_rounds >= rounds
    if has_called and not scenario.flag("loop", default=False):
        return given
    chosen = _chosen_tools(scenario, asked)
    shape = scenario.text("shape", CallShape.WHOLE).replace("-", "_")
    if shape not in set(CallShape):
        raise BadScenario(f"{scenario.name}: shape is one of {', '.join(CallShape)}")
    arguments = scenario.text("arguments")
    calls = [
        asked.call(tool.name, arguments) if arguments else _plain_call(asked, tool)
        for tool in chosen
    ]
    if scenario.flag("bad_json", default=False):
        calls = [_with(call, arguments=call.arguments[:-1] + ",") for call in calls]
    return _with(
        given,
        text=scenario.text("say"),
        pieces=None,
        calls=tuple(calls),
        call_shape=CallShape(shape),
        calls_have_index=scenario.flag("index", default=True),
        calls_have_id=scenario.flag("id", default=True),
        finish_reason=scenario.text("finish", "tool_calls"),
    )


def _chosen_tools(scenario: Scenario, asked: Asked) -> list[ToolFunction]:
    if not asked.tools:
        raise BadScenario(f"{scenario.name}: the request offers no tools")
    name = scenario.text("name")
    offered = [tool for tool in asked.tools if name in {"", tool.name}]
    if not offered:
        raise BadScenario(f"{scenario.name}: the request offers no tool of that name")
    return [offered[index % len(offered)] for index in range(scenario.number("n", 1))]


_CALL_ARGS: Final = (
    "name", "n", "arguments", "shape", "index", "id", "finish", "say", "bad_json", "loop", "rounds",
)  # fmt: skip


def _calls(help_: str, **preset: str) -> Effect[ContentRun]:
    """Tool calls with some arguments preset; those of the request go first."""
    return Effect(
        lambda given, scenario, asked: _tools(
            given, Scenario(scenario.name, {**preset, **scenario.args}), asked
        ),
        _CALL_ARGS,
        help_,
    )


def _reasoning(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    mode = ReasoningMode(scenario.choice("mode", ReasoningMode.STREAM, ReasoningMode))
    tokens = scenario.number("tokens", given.reasoning_tokens or 50)
    return _reasoned(given, tokens, mode, scenario.real("seconds", tokens / 100))


def _reasoning_only(given: Answer, _scenario: Scenario, _asked: Asked) -> Answer:
    text = given.text or ""
    return _with(
        _speaking(given, ""),
        reasoning_text=text,
        reasoning_tokens=count(text),
        reasoning_mode=ReasoningMode.STREAM,
    )


def _length_reasoning(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    spent = _reasoned(given, scenario.number("tokens", 500), ReasoningMode.HIDDEN)
    return _speaking(spent, "", "length")


def _empty_reasoning(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    tokens = scenario.number("tokens", 100)
    return _reasoned(_speaking(given, ""), tokens, ReasoningMode.STREAM)


def _citations(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    number = scenario.number("n", 2)
    return _with(given, citations=tuple(f"https://example.com/{i}" for i in range(number)))


CONTENT: Final[Mapping[str, Effect[ContentRun]]] = {
    "text": Effect(
        lambda given, it, _: _speaking(given, it.text("say") or it.text("value")),
        ("say", "value"),
        "answer with this text (percent-encoded)",
    ),
    "echo": Effect(
        lambda given, _, asked: _speaking(given, asked.prompt.last_user_text),
        (),
        "answer with the last user message",
    ),
    "chunks": Effect(_chunks, ("n", "value", "bytes"), "answer with exactly n chunks of content"),
    "tiny-chunks": Effect(
        lambda given, it, _: _in_pieces(given, *["a"] * it.number("n", 100_000)),
        ("n",),
        "n chunks of one letter, 100,000 by default",
    ),
    "big-chunk": Effect(
        lambda given, it, _: _in_pieces(given, "x" * it.number("bytes", 8_000_000)),
        ("bytes",),
        "one chunk of 8 MB",
    ),
    "json": Effect(
        lambda given, _, asked: _speaking(given, _json(asked.schema or _ANY_OBJECT)),
        (),
        "an object valid for response_format's schema",
    ),
    "tool": _calls("call a tool, whole in one chunk"),
    "tools": _calls("two parallel calls in two chunks", n="2"),
    "tools-one-chunk": _calls("two parallel calls in one chunk", n="2", shape="one_chunk"),
    "tool-split": _calls("arguments in fragments, matched by index", shape="split"),
    "tool-no-index": _calls("a call without index", index="0"),
    "tool-no-id": _calls("a call without id", id="0"),
    "tool-bad-json": _calls("arguments that are not JSON", bad_json="1"),
    "tool-finish-stop": _calls("a call that ends with stop", finish="stop"),
    "tool-finish-empty": _calls("a call with an empty finish reason", finish=""),
    "tool-with-content": _calls("text, then a call", say="Let me look that up."),
    "reasoning": Effect(_reasoning, ("mode", "tokens", "seconds"), "how the reasoning phase looks"),
    "reasoning-only": Effect(_reasoning_only, (), "the reply comes as reasoning_content only"),
    "length-reasoning": Effect(
        _length_reasoning, ("tokens",), "finish length with nothing but reasoning"
    ),
    "length": Effect(
        lambda given, _, __: _half(given, "length"), (), "half of the answer, finish length"
    ),
    "refusal": Effect(
        lambda given, it, _: _with(
            _speaking(given, ""), refusal=it.text("say", "I cannot help with that.")
        ),
        ("say",),
        "a refusal",
    ),
    "content-filter": Effect(
        lambda given, _, __: _speaking(given, "", "content_filter"),
        (),
        "nothing, finish content_filter",
    ),
    "safety-stop": Effect(
        lambda given, _, __: _half(given, "content_filter"),
        (),
        "half of the answer, finish content_filter",
    ),
    "finish": Effect(
        lambda given, it, _: _with(given, finish_reason=it.text("reason", it.text("value"))),
        ("reason", "value"),
        "any finish reason, also empty",
    ),
    "citations": Effect(_citations, ("n",), "citations in the last two chunks"),
    "server-tool": Effect(
        hosted_tools.use,
        ("tool", "value", "n", "query", "fail", "cite"),
        "use a tool of the server that the request offers n times; the first `fail` of them fail",
    ),
    "duplicate-last": Effect(
        lambda given, _, __: _with(given, repeats_last=True), (), "the last content delta twice"
    ),
    "content-null": Effect(
        lambda given, _, __: _with(given, text=None) if given.calls else _speaking(given, None),
        (),
        "content null",
    ),
    "empty": Effect(
        lambda given, _, __: _reasoned(_speaking(given, ""), 0, ReasoningMode.HIDDEN),
        (),
        "an empty answer",
    ),
    "empty-reasoning": Effect(_empty_reasoning, ("tokens",), "reasoning, then an empty answer"),
    "model-redirect": Effect(
        lambda given, it, _: _with(given, echo_model=it.text("to", "grok-4.3")),
        ("to",),
        "another model is named in the answer",
    ),
}
