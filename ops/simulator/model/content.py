"""Decides what is answered: the recorded dialogue, a plain reply, or what a scenario asks for."""

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from turnline.ops.simulator.config import Profile, ReasoningMode
from turnline.ops.simulator.faults.scenario import BadScenario, Scenario
from turnline.ops.simulator.faults.scenario_entry import Effect
from turnline.ops.simulator.model import schema_values
from turnline.ops.simulator.model.answer import Answer, Call, CallShape
from turnline.ops.simulator.model.dialogues import Dialogues
from turnline.ops.simulator.model.prompt import Tool
from turnline.ops.simulator.model.stream_frames import completion_tokens, pieces
from turnline.ops.simulator.model.tokens import count
from turnline.ops.simulator.model.validation import Accepted

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


class _Named(msgspec.Struct, frozen=True):
    name: str


class _NamedChoice(msgspec.Struct, frozen=True):
    """`tool_choice` that demands one function."""

    function: _Named


class Asked(msgspec.Struct, frozen=True):
    """What the answer is made from."""

    accepted: Accepted
    rng: random.Random
    """Of this answer: the same seed gives the same ids and counts."""

    @property
    def text(self) -> str:
        """What the user said last."""
        return self.accepted.prompt.last_user_text

    @property
    def tools(self) -> Sequence[Tool]:
        """Tools that may be called."""
        return self.accepted.tools

    def call(self, name: str, arguments: str) -> Call:
        """Make a call with an id in xAI's form."""
        return Call(f"call_{self.rng.randrange(10**8):08d}", name, arguments)


def answer(
    asked: Asked,
    *,
    conversation_id: str | None,
    dialogues: Dialogues | None,
    profile: Profile,
    reasoning: ReasoningMode | None,
) -> Answer:
    """Compose the answer that is given when no scenario asks for another."""
    found = _recorded(asked, conversation_id, dialogues) or _unscripted(asked)
    tokens = _reasoning_tokens(asked)
    mode = reasoning or asked.accepted.model.shows
    if profile is Profile.LEGACY2024:
        tokens, mode = 0, ReasoningMode.HIDDEN
    return _reasoned(found, tokens, mode, seconds=tokens / 100)


def limit(answered: Answer, accepted: Accepted) -> Answer:
    """Cut an answer at the token limit and at stop words, as asked."""
    stops = accepted.request.stop
    text = answered.text
    if stops and text and answered.pieces is None:
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.partition(stop)[0] if stop else text
        answered = _with(answered, text=text)
    most = accepted.max_visible_tokens
    if most is None or answered.calls or completion_tokens(answered) <= most:
        return answered
    kept = pieces(answered)[: max(0, most)]
    return _with(answered, text="".join(kept), pieces=kept, finish_reason="length")


def _recorded(
    asked: Asked, conversation_id: str | None, dialogues: Dialogues | None
) -> Answer | None:
    if dialogues is None:
        return None
    tools = [tool.function.name for tool in asked.tools if tool.function is not None]
    if asked.accepted.request.tool_choice == "none":
        tools = []
    messages = [read.message for read in asked.accepted.prompt.messages]
    following = dialogues.next(conversation_id, messages, tools)
    if following is None:
        return None
    if following.call is None:
        return Answer(text=following.text)
    arguments = msgspec.json.encode(following.call.parameters).decode()
    return _calling([asked.call(following.call.method, arguments)])


def _unscripted(asked: Asked) -> Answer:
    request = asked.accepted.request
    form = request.response_format
    if form is not None and form.type in {"json_object", "json_schema"}:
        schema = form.json_schema.schema if form.json_schema is not None else None
        return Answer(text=_json(schema or {"type": "object"}))
    wanted = _wanted_tool(asked)
    if wanted is not None and not asked.accepted.prompt.ends_with_tool_result:
        return _calling([_plain_call(asked, wanted)])
    return Answer(text=_plain(asked))


def _wanted_tool(asked: Asked) -> Tool | None:
    """The tool that `tool_choice` demands; an unknown choice is taken as auto."""
    choice = asked.accepted.request.tool_choice
    if choice == "required":
        return asked.tools[0]
    try:
        name = msgspec.convert(choice, _NamedChoice).function.name
    except msgspec.ValidationError:
        return None
    for tool in asked.tools:
        if tool.function is not None and tool.function.name == name:
            return tool
    return None


def _plain(asked: Asked) -> str:
    """A few sentences that depend on nothing but the last message."""
    last = asked.accepted.prompt.messages[-1].message
    number = zlib.crc32(last.text.encode())
    chosen = [_SENTENCES[(number >> shift) % len(_SENTENCES)] for shift in (0, 5, 10)]
    words = " ".join(last.text.split()[:12])
    opening = f"The tool says “{words}”." if last.role == "tool" else f"You said “{words}”."
    return " ".join([opening, *dict.fromkeys(chosen[: 1 + number % 3])])


def _json(schema: Mapping[str, object]) -> str:
    return msgspec.json.encode(schema_values.instance(schema)).decode()


def _calling(calls: Sequence[Call]) -> Answer:
    return Answer(calls=tuple(calls), finish_reason="tool_calls")


def _plain_call(asked: Asked, tool: Tool) -> Call:
    assert tool.function is not None
    return asked.call(tool.function.name, _json(tool.function.parameters or {"type": "object"}))


def _reasoning_tokens(asked: Asked) -> int:
    if not asked.accepted.model.reasons:
        return 0
    fewest, most = _REASONING_SPAN.get(asked.accepted.effort, _REASONING_SPAN["medium"])
    number = zlib.crc32(asked.text.encode() + asked.accepted.effort.encode())
    return fewest + number % (most - fewest + 1)


def _reasoned(answered: Answer, tokens: int, mode: ReasoningMode, *, seconds: float) -> Answer:
    return _with(
        answered,
        reasoning_tokens=tokens,
        reasoning_mode=mode,
        reasoning_s=seconds,
        reasoning_text=_thoughts(tokens, mode),
    )


def _thoughts(tokens: int, mode: ReasoningMode) -> str:
    """Text of exactly so many tokens, or of fewer in a mode that shows less."""
    match mode:
        case ReasoningMode.STREAM:
            shown = tokens
        case ReasoningMode.SUMMARY:
            shown = min(tokens, _SUMMARY_TOKENS)
        case ReasoningMode.BLOCK:
            return (_THOUGHT * (1 + tokens // count(_THOUGHT)))[: 4 * tokens]
        case _:
            return ""
    return " thinking" * shown


# --- scenarios -----------------------------------------------------------------------------------

ContentRun = Callable[[Answer, Scenario, Asked], Answer]


def _text(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    return _speaking(given, scenario.text("say") or scenario.text("value"))


def _speaking(given: Answer, text: str | None, finish_reason: str = "stop") -> Answer:
    return _with(given, text=text, pieces=None, calls=(), finish_reason=finish_reason)


def _echo(given: Answer, _scenario: Scenario, asked: Asked) -> Answer:
    return _speaking(given, asked.text)


def _chunks(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    number = scenario.number("n", scenario.number("value", 20))
    piece = " word".ljust(scenario.number("bytes", 5), "s")
    texts = (piece.lstrip(), *[piece] * (number - 1)) if number > 0 else ()
    quiet = _reasoned(given, 0, ReasoningMode.HIDDEN, seconds=0)
    return _with(_speaking(quiet, "".join(texts)), pieces=texts)


def _tiny_chunks(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    texts = ("a",) * scenario.number("n", 100_000)
    return _with(_speaking(given, "".join(texts)), pieces=texts)


def _big_chunk(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    text = "x" * scenario.number("bytes", 8_000_000)
    return _with(_speaking(given, text), pieces=(text,))


def _json_object(given: Answer, _scenario: Scenario, asked: Asked) -> Answer:
    form = asked.accepted.request.response_format
    schema = form.json_schema.schema if form is not None and form.json_schema else None
    return _speaking(given, _json(schema or {"type": "object"}))


def _tools(given: Answer, scenario: Scenario, asked: Asked) -> Answer:
    """Call tools, unless one has just answered: a conversation has to come to an end."""
    if asked.accepted.prompt.ends_with_tool_result and not scenario.flag("loop", default=False):
        return given
    chosen = _chosen_tools(scenario, asked)
    shape = scenario.text("shape", CallShape.WHOLE).replace("-", "_")
    if shape not in set(CallShape):
        raise BadScenario(f"{scenario.name}: shape is one of {', '.join(CallShape)}")
    arguments = scenario.text("arguments")
    calls = [
        asked.call(tool.function.name, arguments) if arguments else _plain_call(asked, tool)
        for tool in chosen
        if tool.function is not None
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


def _chosen_tools(scenario: Scenario, asked: Asked) -> Sequence[Tool]:
    offered = [tool for tool in asked.tools if tool.function is not None]
    if not offered:
        raise BadScenario(f"{scenario.name}: the request offers no tools")
    name = scenario.text("name")
    if name:
        offered = [tool for tool in offered if tool.function and tool.function.name == name]
        if not offered:
            raise BadScenario(f"{scenario.name}: the request offers no tool of that name")
    number = scenario.number("n", 1)
    return [offered[index % len(offered)] for index in range(number)]


def _preset(**given: str) -> ContentRun:
    """Tool calls with some arguments fixed; those of the request go first."""

    def run(base: Answer, scenario: Scenario, asked: Asked) -> Answer:
        return _tools(base, Scenario(scenario.name, {**given, **scenario.args}), asked)

    return run


def _reasoning(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    mode = scenario.text("mode", ReasoningMode.STREAM)
    if mode not in set(ReasoningMode):
        raise BadScenario(f"reasoning: mode is one of {', '.join(ReasoningMode)}")
    tokens = scenario.number("tokens", given.reasoning_tokens or 50)
    return _reasoned(
        given, tokens, ReasoningMode(mode), seconds=scenario.real("seconds", tokens / 100)
    )


def _only_reasoning(given: Answer, _scenario: Scenario, _asked: Asked) -> Answer:
    text = given.text or ""
    return _with(
        _speaking(given, ""),
        reasoning_text=text,
        reasoning_tokens=count(text),
        reasoning_mode=ReasoningMode.STREAM,
    )


def _length_reasoning(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    tokens = scenario.number("tokens", 500)
    spent = _reasoned(given, tokens, ReasoningMode.HIDDEN, seconds=tokens / 100)
    return _speaking(spent, "", "length")


def _refusal(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    text = scenario.text("say", "I cannot help with that.")
    return _with(_speaking(given, ""), refusal=text)


def _cut(given: Answer, finish_reason: str) -> Answer:
    texts = pieces(given)
    half = texts[: (len(texts) + 1) // 2]
    return _with(_speaking(given, "".join(half), finish_reason), pieces=half)


def _content_filter(given: Answer, _scenario: Scenario, _asked: Asked) -> Answer:
    return _speaking(given, "", "content_filter")


def _safety_stop(given: Answer, _scenario: Scenario, _asked: Asked) -> Answer:
    return _cut(given, "content_filter")


def _length(given: Answer, _scenario: Scenario, _asked: Asked) -> Answer:
    return _cut(given, "length")


def _finish(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    return _with(given, finish_reason=scenario.text("reason", scenario.text("value")))


def _citations(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    number = scenario.number("n", 2)
    return _with(given, citations=tuple(f"https://example.com/{i}" for i in range(number)))


def _duplicate_last(given: Answer, _scenario: Scenario, _asked: Asked) -> Answer:
    return _with(given, repeats_last=True)


def _content_null(given: Answer, _scenario: Scenario, _asked: Asked) -> Answer:
    if given.calls:
        return _with(given, text=None)
    return _speaking(given, None)


def _empty(given: Answer, _scenario: Scenario, _asked: Asked) -> Answer:
    return _reasoned(_speaking(given, ""), 0, ReasoningMode.HIDDEN, seconds=0)


def _empty_reasoning(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    tokens = scenario.number("tokens", 100)
    return _reasoned(_speaking(given, ""), tokens, ReasoningMode.STREAM, seconds=tokens / 100)


def _model_redirect(given: Answer, scenario: Scenario, _asked: Asked) -> Answer:
    return _with(given, echo_model=scenario.text("to", "grok-4.3"))


_CALL_ARGS: Final = (
    "name", "n", "arguments", "shape", "index", "id", "finish", "say", "bad_json", "loop",
)  # fmt: skip

CONTENT: Final[Mapping[str, Effect[ContentRun]]] = {
    "text": Effect(_text, ("say", "value"), "answer with this text (percent-encoded)"),
    "echo": Effect(_echo, (), "answer with the last user message"),
    "chunks": Effect(_chunks, ("n", "value", "bytes"), "answer with exactly n chunks of content"),
    "tiny-chunks": Effect(_tiny_chunks, ("n",), "n chunks of one letter, 100,000 by default"),
    "big-chunk": Effect(_big_chunk, ("bytes",), "one chunk of 8 MB"),
    "json": Effect(_json_object, (), "an object valid for response_format's schema"),
    "tool": Effect(_tools, _CALL_ARGS, "call a tool, whole in one chunk"),
    "tools": Effect(_preset(n="2"), _CALL_ARGS, "two parallel calls in two chunks"),
    "tools-one-chunk": Effect(
        _preset(n="2", shape="one_chunk"), _CALL_ARGS, "two parallel calls in one chunk"
    ),
    "tool-split": Effect(
        _preset(shape="split"), _CALL_ARGS, "arguments in fragments, matched by index"
    ),
    "tool-no-index": Effect(_preset(index="0"), _CALL_ARGS, "a call without index"),
    "tool-no-id": Effect(_preset(id="0"), _CALL_ARGS, "a call without id"),
    "tool-bad-json": Effect(_preset(bad_json="1"), _CALL_ARGS, "arguments that are not JSON"),
    "tool-finish-stop": Effect(_preset(finish="stop"), _CALL_ARGS, "a call that ends with stop"),
    "tool-finish-empty": Effect(
        _preset(finish=""), _CALL_ARGS, "a call with an empty finish reason"
    ),
    "tool-with-content": Effect(
        _preset(say="Let me look that up."), _CALL_ARGS, "text, then a call"
    ),
    "reasoning": Effect(_reasoning, ("mode", "tokens", "seconds"), "how the reasoning phase looks"),
    "reasoning-only": Effect(_only_reasoning, (), "the reply comes as reasoning_content only"),
    "length-reasoning": Effect(
        _length_reasoning, ("tokens",), "finish length with nothing but reasoning"
    ),
    "length": Effect(_length, (), "half of the answer, finish length"),
    "refusal": Effect(_refusal, ("say",), "a refusal"),
    "content-filter": Effect(_content_filter, (), "nothing, finish content_filter"),
    "safety-stop": Effect(_safety_stop, (), "half of the answer, finish content_filter"),
    "finish": Effect(_finish, ("reason", "value"), "any finish reason, also empty"),
    "citations": Effect(_citations, ("n",), "citations in the last two chunks"),
    "duplicate-last": Effect(_duplicate_last, (), "the last content delta twice"),
    "content-null": Effect(_content_null, (), "content null"),
    "empty": Effect(_empty, (), "an empty answer"),
    "empty-reasoning": Effect(_empty_reasoning, ("tokens",), "reasoning, then an empty answer"),
    "model-redirect": Effect(_model_redirect, ("to",), "another model is named in the answer"),
}
