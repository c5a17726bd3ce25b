"""Turns what the model says into one response object, and that into a stream of events."""

import re
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from turnline.ops.simulator.config import Profile, ReasoningMode
from turnline.ops.simulator.faults.response_plan import Frame, FrameKind
from turnline.ops.simulator.http import headers
from turnline.ops.simulator.model.answer import Answer, count, split
from turnline.ops.simulator.model.hosted_tools import TICKS
from turnline.ops.simulator.model.models import Model
from turnline.ops.simulator.model.pacing import Tempo
from turnline.ops.simulator.model.speaker import Turn
from turnline.ops.simulator.model.usage import Usage, usage
from turnline.ops.simulator.responses import reasoning_blobs as blobs
from turnline.ops.simulator.responses import response_json as wire
from turnline.ops.simulator.responses.asked_response import ENCRYPTED, Received
from turnline.ops.simulator.responses.event_frames import EventWriter, event_bytes
from turnline.ops.simulator.responses.output_items import (
    CallItem,
    HostedItem,
    MessageItem,
    OutputItem,
    ReasoningItem,
)
from turnline.ops.simulator.responses.reasoning_blobs import Kind, Sealed
from turnline.ops.simulator.responses.response_json import Echo, Json, Outcome

_BLOCK_WORDS: Final = 3
_SENTENCE_END: Final = re.compile(r"(?<=\.) ")
_ITEM_ABSENT: Final = 0.125
"""How often the item of a thought is absent beside calls, in the autumn of 2026."""
_ALWAYS_SEALED: Final = frozenset({"grok-4.7"})
"""Models whose reasoning comes sealed whether it was asked for or not."""
_INCOMPLETE: Final = {
    "length": "max_output_tokens",
    "max_output_tokens": "max_output_tokens",
    "max_prompt_tokens": "max_prompt_tokens",
    "max_time_limit": "max_time_limit",
    "content_filter": "content_filter",
}
"""Why a response is incomplete, by finish reason; with any other one it is complete."""
FAILURE: Final = {
    "code": "server_error",
    "message": "The model did not respond to this request.",
}
_COMPACTED_TOKENS: Final = 2_000
"""Longest summary that a compaction writes."""
_with: Final = msgspec.structs.replace


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """One answer, ready to be put on the wire."""

    echo: Echo
    model: Model
    answer: Answer
    items: Sequence[OutputItem]
    usage: Json
    counted: Usage

    def whole(self, completed_at: int | None) -> Json:
        """Return the response object as it is in the end."""
        output = [item.done() for item in self.items]
        return wire.response(
            self.echo,
            outcome(self.answer),
            output=output,
            usage=self.usage,
            completed_at=completed_at,
        )

    def frames(self, tempo: Tempo) -> list[Frame]:
        """Return the frames of a stream, the last one without its time."""
        writer = EventWriter()
        begun = wire.response(self.echo, Outcome(status="in_progress"))
        writer.add("response.created", response=begun)
        writer.add("response.in_progress", response=begun)
        if self.answer.reasoning_mode is ReasoningMode.SILENT:
            comments, every_s = tempo.keepalives(self.answer.reasoning_s)
            for _ in range(comments):
                writer.wait(every_s)
        for index, item in enumerate(self.items):
            item.write(writer, index)
        last = writer.add(self._last_type, FrameKind.USAGE)
        last.finishes, last.reports_usage = not self.failed, True
        return writer.frames

    def finish(self, frames: Sequence[Frame]) -> None:
        """Write the last event of a stream, now that it is known how long it takes."""
        completed_at = self.echo.created_at + round(sum(frame.delay_s for frame in frames))
        number = msgspec.json.decode(frames[-1].data.partition(b"data: ")[2])["sequence_number"]
        frames[-1].data = event_bytes(
            {
                "sequence_number": number,
                "type": self._last_type,
                "response": self.whole(completed_at),
            }
        )

    @property
    def failed(self) -> bool:
        """Whether the response is one that says that it failed."""
        return outcome(self.answer).status == "failed"

    @property
    def _last_type(self) -> str:
        return f"response.{outcome(self.answer).status}"


def outcome(answer: Answer) -> Outcome:
    """Return how a response ends, by the finish reason."""
    if answer.finish_reason == "failed":
        return Outcome(status="failed", error=FAILURE)
    reason = _INCOMPLETE.get(answer.finish_reason)
    return Outcome() if reason is None else Outcome(status="incomplete", reason=reason)


def limited(answer: Answer, received: Received) -> Answer:
    """Cut an answer at a limit that counts reasoning as well."""
    most, visible_most = received.body.max_output_tokens, received.asked.max_visible_tokens
    if most is None or visible_most is not None:
        return answer
    spare = most - answer.reasoning_tokens
    if spare >= answer.completion_tokens or (spare > 0 and answer.calls):
        return answer
    if spare <= 0:
        cut = _with(answer, text=None, pieces=(), calls=(), refusal=None)
        return _with(cut, reasoning_tokens=most, finish_reason="length")
    kept = answer.chunk_texts[:spare]
    return _with(answer, text="".join(kept), pieces=kept, finish_reason="length")


def cited(answer: Answer) -> Answer:
    """Put a marker for each source behind the text, each one piece of it."""
    if not answer.citations or answer.refusal or not answer.text:
        return answer
    markers = [f"[[{n}]]({url})" for n, url in enumerate(answer.citations, 1)]
    pieces = (*answer.chunk_texts, *markers)
    return _with(answer, text="".join(pieces), pieces=pieces)


def results_tokens(answer: Answer) -> int:
    """Return what the results of the server's tools count."""
    return sum(call.result_tokens for call in answer.hosted)


def with_rounds(counted: Usage, answer: Answer, received: Received) -> Usage:
    """Add the round in which the model has read what the server's tools found, and their price."""
    model = received.asked.model
    prompt = counted.prompt_tokens
    again = usage(
        model,
        prompt_tokens=prompt + results_tokens(answer),
        completion_tokens=0,
        cached_tokens=prompt - prompt % model.cache_step,
        priority=received.asked.priority,
    )
    details = counted.prompt_tokens_details
    ticks = counted.cost_in_usd_ticks
    if not isinstance(ticks, UnsetType) and not isinstance(again.cost_in_usd_ticks, UnsetType):
        ticks += again.cost_in_usd_ticks
        ticks += sum(TICKS[call.tool] for call in answer.hosted if not call.failed)
    return _with(
        counted,
        prompt_tokens=prompt + again.prompt_tokens,
        total_tokens=counted.total_tokens + again.prompt_tokens,
        prompt_tokens_details=_with(
            details,
            text_tokens=details.text_tokens + again.prompt_tokens,
            cached_tokens=details.cached_tokens + again.prompt_tokens_details.cached_tokens,
        ),
        cost_in_usd_ticks=ticks,
    )


# --- items ---------------------------------------------------------------------------------------


def items_of(turn: Turn, received: Received, answer: Answer, id_: str) -> list[OutputItem]:
    """Return the items of an answer, in order."""
    maker = _Maker(turn, received, answer, id_)
    return [*maker.thoughts(), *maker.words(), *maker.calls()]


class _Maker:
    """Makes the items of one answer."""

    def __init__(self, turn: Turn, received: Received, answer: Answer, id_: str) -> None:
        self._turn = turn
        self._received = received
        self._answer = answer
        self._id = id_
        self._bare_id = id_.partition("_")[0]

    def thoughts(self) -> list[OutputItem]:
        """Return reasoning, calls of the server's tools and what they answered."""
        answer = self._answer
        if not answer.hosted:
            return self._reasoning(answer.reasoning_tokens, _summary(answer), 0)
        first = answer.reasoning_tokens // 2
        number = headers.uuid_text(self._turn.rng)
        call_ids = [f"call-{number}-{index}" for index in range(len(answer.hosted))]
        return [
            *self._reasoning(first, _summary(answer), 0),
            *map(lambda id_, call: HostedItem(self._id, id_, call), call_ids, answer.hosted),
            *(self._result(index, call_id) for index, call_id in enumerate(call_ids)),
            *self._reasoning(answer.reasoning_tokens - first, (), 1),
        ]

    def words(self) -> list[OutputItem]:
        """Return the message, if anything is said or if there is nothing else to be said."""
        answer = self._answer
        is_cut = outcome(answer).status != "completed"
        if not answer.chunk_texts and (answer.text is None or answer.calls or is_cut):
            return []
        return [
            MessageItem(
                f"msg_{self._id}",
                answer.chunk_texts,
                refuses=bool(answer.refusal),
                cited=answer.citations,
                status="incomplete" if is_cut else "completed",
                repeats_last=answer.repeats_last,
            )
        ]

    def calls(self) -> list[OutputItem]:
        """Return the calls of the client's functions."""
        answer = self._answer
        return [
            CallItem(
                f"fc_{self._id}_{index}",
                call,
                has_call_id=answer.calls_have_id,
                split=answer.call_shape == "split",
            )
            for index, call in enumerate(answer.calls)
        ]

    def _reasoning(self, tokens: int, pieces: Sequence[str], index: int) -> list[OutputItem]:
        absent = self._turn.wish("control", "no-reasoning-item") or self._is_absent()
        if not tokens or absent:
            return []
        blob = blobs.seal(
            Sealed(Kind.REASONING, self._bare_id, tokens, index), self._received.owner
        )
        return [
            ReasoningItem(
                f"rs_{self._id}",
                pieces,
                self._sealed(blob),
                as_text=self._turn.wish("control", "reasoning-text") is not None,
            )
        ]

    def _result(self, index: int, call_id: str) -> OutputItem:
        item_id = f"{blobs.RESULT}{self._id}_{call_id}"
        tokens = self._answer.hosted[index].result_tokens
        sealed = Sealed(Kind.TOOL_OUTPUT, self._bare_id, tokens, index)
        blob = blobs.seal_result(sealed, self._received.owner, item_id)
        return ReasoningItem(item_id, (), self._sealed(blob))

    def _sealed(self, blob: str) -> str | UnsetType | None:
        """Return what stands as sealed content: nothing if it was not asked for."""
        model = self._received.asked.model.name
        if not self._received.includes(ENCRYPTED) and model not in _ALWAYS_SEALED:
            return UNSET
        wish = self._turn.wish("control", "encrypted")
        if wish is None:
            return blob
        shape = wish.choice("shape", "missing", ("missing", "null", "empty"))
        return {"missing": UNSET, "null": None, "empty": ""}[shape]

    def _is_absent(self) -> bool:
        is_autumn = self._received.profile is Profile.OCT2026
        return is_autumn and bool(self._answer.calls) and self._turn.rng.random() < _ITEM_ABSENT


def _summary(answer: Answer) -> Sequence[str]:
    """Return the pieces in which a summary comes."""
    text = answer.reasoning_text.strip()
    match answer.reasoning_mode:
        case ReasoningMode.STREAM:
            return split(answer.reasoning_text)
        case ReasoningMode.SUMMARY:
            return split(f"{text}\n") if text else ()
        case ReasoningMode.BLOCK:
            tokens = split(_SENTENCE_END.sub("\n\n", text) + "\n")
            starts = range(0, len(tokens), _BLOCK_WORDS)
            return ["".join(tokens[start : start + _BLOCK_WORDS]) for start in starts]
        case _:
            return ()


def compaction(received: Received, id_: str) -> tuple[Json, int]:
    """Return the one item that stands for an input, and what it counts."""
    system = sum(
        counts
        for item, counts in zip(received.items, received.tokens, strict=True)
        if item.message is not None and item.message.message.role == "system"
    )
    said = " ".join(item.message.message.text for item in received.items if item.message)
    written = min(_COMPACTED_TOKENS, 1 + count(said) // 4)
    blob = blobs.seal(Sealed(Kind.COMPACTION, id_, system + written), received.owner)
    return {"type": "compaction", "id": f"cmp_{id_}", "encrypted_content": blob}, written
