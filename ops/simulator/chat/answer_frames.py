"""Puts an answer into the frames of a stream, or into one body, in the profile's dialect."""

import itertools
from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from turnline.ops.simulator.chat.chunks import (
    Choice,
    ChunkWriter,
    Completion,
    Delta,
    Function,
    Message,
    ToolCall,
)
from turnline.ops.simulator.config import Profile, ReasoningMode
from turnline.ops.simulator.faults.response_plan import DONE, KEEPALIVE, Frame, FrameKind
from turnline.ops.simulator.model.answer import Answer, Call, CallShape, split
from turnline.ops.simulator.model.pacing import Tempo
from turnline.ops.simulator.model.usage import Usage

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
    finish_reason: str | UnsetType = UNSET
    citations: tuple[str, ...] | UnsetType = UNSET

    def spell_out(self) -> None:
        """Leave the quick way."""
        if self.text is not None:
            self.delta, self.text = Delta(content=self.text), None


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
    if is_legacy and parts:
        last = parts[-1]
        last.spell_out()
        last.kind, last.finish_reason = FrameKind.FINISH, answer.finish_reason
    else:
        parts.append(
            _Part(
                kind=FrameKind.FINISH,
                delta=_EMPTY,
                finish_reason=answer.finish_reason,
                citations=citations,
            )
        )
    _give_role(parts, everywhere=is_legacy)
    if is_legacy or voice.usage_in_every_chunk:
        frames = list(_frames_with_running_usage(parts, writer, usage))
        frames[-1].reports_usage = is_legacy
    else:
        frames = [_frame(part, writer) for part in parts]
    if include_usage and not is_legacy:
        tail = writer.tail(None, usage=usage, citations=citations)
        frames.append(Frame(kind=FrameKind.USAGE, data=tail, reports_usage=True))
    frames.append(Frame(kind=FrameKind.DONE, data=DONE, stamped=False))
    return writer.prefix, frames


def completion(answer: Answer, usage: Usage, voice: Voice, *, created: int) -> bytes:
    """Return the body of a response that is not streamed."""
    is_text = answer.text is not None and not answer.refusal
    message = Message(
        content="".join(answer.chunk_texts) if is_text else None,
        reasoning_content=_shown_reasoning(answer) or UNSET,
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


def _shown_reasoning(answer: Answer) -> str:
    shown = {ReasoningMode.STREAM, ReasoningMode.SUMMARY, ReasoningMode.BLOCK}
    return answer.reasoning_text if answer.reasoning_mode in shown else ""


def _reasoning(answer: Answer, tempo: Tempo) -> Iterator[_Part]:
    match answer.reasoning_mode:
        case ReasoningMode.EMPTY if answer.reasoning_tokens:
            delay_s = tempo.scaled_s(1 / _EMPTY_DELTAS_PER_S)
            for _ in range(max(1, round(answer.reasoning_s * _EMPTY_DELTAS_PER_S))):
                yield _Part(kind=FrameKind.OTHER, delta=_EMPTY, delay_s=delay_s)
        case ReasoningMode.SILENT:
            comments, every_s = tempo.keepalives(answer.reasoning_s)
            for _ in range(comments):
                yield _Part(kind=FrameKind.OTHER, delay_s=every_s)
        case mode:
            text = _shown_reasoning(answer)
            is_block = mode is ReasoningMode.BLOCK
            for piece in _slices(text, _BLOCK_CHARACTERS, "…") if is_block else split(text):
                delta = Delta(reasoning_content=piece)
                yield _Part(kind=FrameKind.REASONING, delta=delta, tokens=1)


def _slices(text: str, characters: int, end: str = "") -> list[str]:
    starts = range(0, len(text), characters)
    return [text[start : start + characters] + end for start in starts]


def _visible(answer: Answer) -> Iterator[_Part]:
    texts = answer.chunk_texts
    if answer.text is None and not answer.refusal and not answer.calls:
        yield _Part(kind=FrameKind.CONTENT, delta=Delta(content=None))
    elif answer.refusal:
        for text in texts:
            yield _Part(kind=FrameKind.CONTENT, delta=Delta(refusal=text), tokens=1)
    else:
        for text in texts:
            yield _Part(kind=FrameKind.CONTENT, text=text, tokens=1)
        if answer.repeats_last and texts:
            yield _Part(kind=FrameKind.CONTENT, text=texts[-1])
    yield from _calls(answer)


def _calls(answer: Answer) -> Iterator[_Part]:
    calls = [_tool_call(call, answer, index) for index, call in enumerate(answer.calls)]
    tokens = [call.tokens for call in answer.calls]
    match answer.call_shape:
        case CallShape.WHOLE:
            for call, spent in zip(calls, tokens, strict=True):
                yield _call_part(spent, call)
        case CallShape.ONE_CHUNK:
            if calls:
                yield _call_part(sum(tokens), *calls)
        case CallShape.SPLIT:
            for call, spent in zip(calls, tokens, strict=True):
                yield _call_part(spent, _with(call, function=_with(call.function, arguments="")))
            fragments = [
                [(index, text) for text in _slices(call.arguments, _SPLIT_CHARACTERS)]
                for index, call in enumerate(answer.calls)
            ]
            # Fragments of parallel calls alternate: only the index tells them apart.
            for index, text in filter(None, itertools.chain(*itertools.zip_longest(*fragments))):
                yield _call_part(0, ToolCall(function=Function(arguments=text), index=index))


def _call_part(tokens: int, *calls: ToolCall) -> _Part:
    return _Part(kind=FrameKind.TOOL, delta=Delta(tool_calls=calls), tokens=tokens)


def _tool_call(call: Call, answer: Answer, index: int | None) -> ToolCall:
    return ToolCall(
        id=call.id if answer.calls_have_id else UNSET,
        function=Function(name=call.name, arguments=call.arguments),
        index=UNSET if index is None or not answer.calls_have_index else index,
        type="function",
    )


def _give_role(parts: list[_Part], *, everywhere: bool) -> None:
    """The role is merged into the first payload, or, long ago, into every one."""
    for part in parts:
        if part.delta is None and part.text is None:
            continue
        part.spell_out()
        part.delta = _with(part.delta or _EMPTY, role="assistant")
        if not everywhere:
            return


def _frame(part: _Part, writer: ChunkWriter, usage: Usage | UnsetType = UNSET) -> Frame:
    is_stamped = True
    if part.text is not None:
        data = writer.content(part.text)
    elif part.delta is None:
        data, is_stamped = KEEPALIVE, False
    else:
        data = writer.tail(
            part.delta, finish_reason=part.finish_reason, citations=part.citations, usage=usage
        )
    return Frame(
        kind=part.kind,
        data=data,
        stamped=is_stamped,
        tokens=part.tokens,
        delay_s=part.delay_s,
        finishes=part.finish_reason is not UNSET,
    )


def _frames_with_running_usage(
    parts: list[_Part], writer: ChunkWriter, final: Usage
) -> Iterator[Frame]:
    """Report the usage so far in each chunk; the last one has the final usage."""
    visible = reasoning = 0
    for part in parts:
        if part.kind is FrameKind.REASONING:
            reasoning += part.tokens
        else:
            visible += part.tokens
        part.spell_out()
        is_final = part.finish_reason is not UNSET
        yield _frame(part, writer, final if is_final else _running(final, visible, reasoning))


def _running(final: Usage, visible: int, reasoning: int) -> Usage:
    details = _with(final.completion_tokens_details, reasoning_tokens=reasoning)
    return _with(
        final,
        completion_tokens=visible,
        total_tokens=final.prompt_tokens + visible + reasoning,
        completion_tokens_details=details,
    )
