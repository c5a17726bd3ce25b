"""Turns an answer into the frames of a stream, or into one body, in the profile's dialect."""

import itertools
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import UNSET

from turnline.ops.simulator.config import Profile, ReasoningMode
from turnline.ops.simulator.faults.response_plan import Frame, FrameKind
from turnline.ops.simulator.model.answer import Answer, Call, CallShape
from turnline.ops.simulator.model.chunks import (
    Choice,
    ChunkWriter,
    Completion,
    Delta,
    Function,
    Message,
    ToolCall,
)
from turnline.ops.simulator.model.pacing import Tempo
from turnline.ops.simulator.model.tokens import count, split
from turnline.ops.simulator.model.usage import Usage

DONE: Final = b"data: [DONE]\n\n"
KEEPALIVE: Final = b": keepalive\n\n"
_CALL_OVERHEAD_TOKENS: Final = 12
_EMPTY_DELTAS_PER_S: Final = 4
_BLOCK_CHARACTERS: Final = 200
_SPLIT_CHARACTERS: Final = 8
_EMPTY: Final = Delta()
_with = msgspec.structs.replace


class Voice(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same in every chunk of one answer."""

    completion_id: str
    model: str
    fingerprint: str
    profile: Profile
    usage_in_every_chunk: bool = False

    @property
    def tier(self) -> str | None:
        """`service_tier`, which only Azure tells."""
        return "default" if self.profile is Profile.AZURE else None


class _Part(msgspec.Struct, kw_only=True, gc=False):
    """A chunk before it is encoded; without a delta, a keep-alive comment."""

    kind: FrameKind
    delta: Delta | None = None
    text: str | None = None
    """Set instead of a delta for plain content, which has a quick way."""
    tokens: int = 0
    delay_s: float = 0.0
    finish_reason: str | msgspec.UnsetType = UNSET
    citations: tuple[str, ...] | msgspec.UnsetType = UNSET


def call_tokens(call: Call) -> int:
    """Completion tokens that a tool call counts."""
    return count(call.name) + count(call.arguments) + _CALL_OVERHEAD_TOKENS


def pieces(answer: Answer) -> tuple[str, ...]:
    """Texts of the content chunks, or of the refusal's."""
    if answer.pieces is not None:
        return answer.pieces
    return tuple(split(answer.refusal or answer.text or ""))


def completion_tokens(answer: Answer) -> int:
    """Visible tokens: one per content chunk, and those of the calls."""
    return len(pieces(answer)) + sum(map(call_tokens, answer.calls))


def stream_frames(
    answer: Answer, usage: Usage, voice: Voice, tempo: Tempo, *, include_usage: bool
) -> tuple[bytes, list[Frame]]:
    """Put an answer into frames.

    Returns:
        The prefix of stamped frames and the frames, the closing `[DONE]` included.
    """
    model = answer.echo_model or voice.model
    writer = ChunkWriter(voice.completion_id, model, voice.fingerprint, voice.tier)
    is_legacy = voice.profile is Profile.LEGACY2024
    citations = answer.citations or UNSET
    parts = [*_reasoning(answer, tempo), *_visible(answer)]
    finish = _Part(
        kind=FrameKind.FINISH,
        delta=_EMPTY,
        finish_reason=answer.finish_reason,
        citations=citations,
    )
    if is_legacy and parts:
        parts[-1] = _with(
            _plain(parts[-1]), kind=FrameKind.FINISH, finish_reason=answer.finish_reason
        )
    else:
        parts.append(finish)
    _give_role(parts, everywhere=is_legacy)
    if is_legacy or voice.usage_in_every_chunk:
        frames = _frames_with_running_usage(parts, writer, usage)
        frames[-1].reports_usage = is_legacy
    else:
        frames = [_frame(part, writer) for part in parts]
    if include_usage and not is_legacy:
        tail = writer.tail(None, usage=usage, citations=citations)
        frames.append(Frame(kind=FrameKind.USAGE, data=tail, reports_usage=True))
    frames.append(Frame(kind=FrameKind.DONE, data=DONE, stamped=False))
    return writer.prefix, frames


def completion(answer: Answer, usage: Usage, voice: Voice, *, created: int) -> bytes:
    """The body of a response that is not streamed."""
    shows = answer.reasoning_mode in {
        ReasoningMode.STREAM,
        ReasoningMode.SUMMARY,
        ReasoningMode.BLOCK,
    }
    content = None if answer.text is None or answer.refusal else "".join(pieces(answer))
    message = Message(
        content=content,
        reasoning_content=answer.reasoning_text if shows and answer.reasoning_text else UNSET,
        tool_calls=tuple(_tool_call(call, answer, index=None) for call in answer.calls) or UNSET,
        refusal=answer.refusal,
    )
    return msgspec.json.encode(
        Completion(
            id=voice.completion_id,
            created=created,
            model=answer.echo_model or voice.model,
            choices=(Choice(message=message, finish_reason=answer.finish_reason),),
            usage=usage,
            system_fingerprint=voice.fingerprint,
            citations=answer.citations or UNSET,
            service_tier=voice.tier or UNSET,
        )
    )


def _reasoning(answer: Answer, tempo: Tempo) -> Iterator[_Part]:
    match answer.reasoning_mode:
        case ReasoningMode.STREAM | ReasoningMode.SUMMARY:
            for text in split(answer.reasoning_text):
                yield _reasoning_part(text)
        case ReasoningMode.BLOCK:
            for block in _blocks(answer.reasoning_text):
                yield _reasoning_part(block)
        case ReasoningMode.EMPTY if answer.reasoning_tokens:
            deltas = max(1, round(answer.reasoning_s * _EMPTY_DELTAS_PER_S))
            for _ in range(deltas):
                delay_s = tempo.scaled_s(1 / _EMPTY_DELTAS_PER_S)
                yield _Part(kind=FrameKind.OTHER, delta=_EMPTY, delay_s=delay_s)
        case ReasoningMode.SILENT:
            comments, every_s = tempo.keepalives(answer.reasoning_s)
            for _ in range(comments):
                yield _Part(kind=FrameKind.OTHER, delay_s=every_s)
        case _:
            pass


def _reasoning_part(text: str) -> _Part:
    return _Part(kind=FrameKind.REASONING, delta=Delta(reasoning_content=text), tokens=1)


def _blocks(text: str) -> Iterator[str]:
    for start in range(0, len(text), _BLOCK_CHARACTERS):
        yield text[start : start + _BLOCK_CHARACTERS] + "…"


def _visible(answer: Answer) -> Iterator[_Part]:
    if answer.text is None and not answer.refusal and not answer.calls:
        yield _Part(kind=FrameKind.CONTENT, delta=Delta(content=None))
    elif answer.refusal:
        for text in pieces(answer):
            yield _Part(kind=FrameKind.CONTENT, delta=Delta(refusal=text), tokens=1)
    else:
        texts = pieces(answer)
        for text in texts:
            yield _Part(kind=FrameKind.CONTENT, text=text, tokens=1)
        if answer.repeats_last and texts:
            yield _Part(kind=FrameKind.CONTENT, text=texts[-1])
    for calls, tokens in _call_deltas(answer):
        yield _Part(kind=FrameKind.TOOL, delta=Delta(tool_calls=calls), tokens=tokens)


def _call_deltas(answer: Answer) -> Iterator[tuple[tuple[ToolCall, ...], int]]:
    numbered = list(enumerate(answer.calls))
    if not numbered:
        return
    match answer.call_shape:
        case CallShape.WHOLE:
            for index, call in numbered:
                yield (_tool_call(call, answer, index),), call_tokens(call)
        case CallShape.ONE_CHUNK:
            calls = tuple(_tool_call(call, answer, index) for index, call in numbered)
            yield calls, sum(map(call_tokens, answer.calls))
        case CallShape.SPLIT:
            for index, call in numbered:
                opening = _with(call, arguments="")
                yield (_tool_call(opening, answer, index),), call_tokens(call)
            fragments = [
                [(index, text) for text in _fragments(call.arguments)] for index, call in numbered
            ]
            # Fragments of parallel calls alternate: only the index tells them apart.
            for row in itertools.zip_longest(*fragments):
                for fragment in row:
                    if fragment is not None:
                        index, text = fragment
                        yield (ToolCall(function=Function(arguments=text), index=index),), 0


def _fragments(arguments: str) -> Iterator[str]:
    for start in range(0, len(arguments), _SPLIT_CHARACTERS):
        yield arguments[start : start + _SPLIT_CHARACTERS]


def _tool_call(call: Call, answer: Answer, index: int | None) -> ToolCall:
    return ToolCall(
        id=call.id if answer.calls_have_id else UNSET,
        function=Function(name=call.name, arguments=call.arguments),
        index=UNSET if index is None or not answer.calls_have_index else index,
        type="function",
    )


def _give_role(parts: list[_Part], *, everywhere: bool) -> None:
    """The role is merged into the first payload, or, long ago, into every one."""
    for index, part in enumerate(parts):
        plain = _plain(part)
        if plain.delta is None:
            continue
        parts[index] = _with(plain, delta=_with(plain.delta, role="assistant"))
        if not everywhere:
            return


def _plain(part: _Part) -> _Part:
    """The same part without the quick way."""
    if part.text is None:
        return part
    return _with(part, delta=Delta(content=part.text), text=None)


def _frame(part: _Part, writer: ChunkWriter) -> Frame:
    if part.text is not None:
        return Frame(
            kind=part.kind,
            data=writer.content(part.text),
            tokens=part.tokens,
            delay_s=part.delay_s,
        )
    if part.delta is None:
        return Frame(kind=part.kind, data=KEEPALIVE, stamped=False, delay_s=part.delay_s)
    data = writer.tail(part.delta, finish_reason=part.finish_reason, citations=part.citations)
    return Frame(
        kind=part.kind,
        data=data,
        tokens=part.tokens,
        delay_s=part.delay_s,
        finishes=part.finish_reason is not UNSET,
    )


def _frames_with_running_usage(
    parts: list[_Part], writer: ChunkWriter, final: Usage
) -> list[Frame]:
    """Usage so far in each chunk; the last one has the final usage."""
    frames: list[Frame] = []
    visible = reasoning = 0
    for part in parts:
        frame = _frame(part, writer)
        if part.kind is FrameKind.REASONING:
            reasoning += part.tokens
        else:
            visible += part.tokens
        is_final = frame.finishes
        plain = _plain(part)
        if plain.delta is not None:
            frame.data = writer.tail(
                plain.delta,
                finish_reason=plain.finish_reason,
                citations=plain.citations,
                usage=final if is_final else _running(final, visible, reasoning),
            )
        frames.append(frame)
    return frames


def _running(final: Usage, visible: int, reasoning: int) -> Usage:
    details = _with(final.completion_tokens_details, reasoning_tokens=reasoning)
    return _with(
        final,
        completion_tokens=visible,
        total_tokens=final.prompt_tokens + visible + reasoning,
        completion_tokens_details=details,
    )
