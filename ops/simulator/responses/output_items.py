"""The items of one answer. Each has its place in the whole response and its events in a stream."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

from msgspec import UNSET, UnsetType

from turnline.ops.simulator.faults.response_plan import FrameKind
from turnline.ops.simulator.model import hosted_tools
from turnline.ops.simulator.model.answer import Call, HostedCall
from turnline.ops.simulator.responses import response_json as wire
from turnline.ops.simulator.responses.event_frames import EventWriter
from turnline.ops.simulator.responses.response_json import Json

_SPLIT_CHARACTERS: Final = 8
_MARKER: Final = re.compile(r"\[\[(\d+)\]\]\((\S+)\)")


class OutputItem(Protocol):
    """One item of an answer."""

    def done(self) -> Json:
        """Return the item as it is in the end."""
        ...

    def write(self, writer: EventWriter, index: int) -> None:
        """Write its events, from the item that begins to the item that is done."""
        ...


class ReasoningItem:
    """A thought: a summary for people and a blob for the server."""

    def __init__(
        self,
        id_: str,
        pieces: Sequence[str],
        blob: str | UnsetType | None,
        *,
        as_text: bool = False,
    ) -> None:
        self._id = id_
        self._pieces = pieces
        self._blob = blob
        self._as_text = as_text
        """Whether the thought itself is shown in place of a summary."""

    def done(self) -> Json:
        """Return the item as it is in the end."""
        text = "".join(self._pieces)
        if not self._as_text:
            return wire.reasoning_item(self._id, text, "completed", self._blob)
        item = wire.reasoning_item(self._id, "", "completed", self._blob)
        item["content"] = [{"type": "reasoning_text", "text": text}]
        return item

    def write(self, writer: EventWriter, index: int) -> None:
        """Write its events."""
        added = wire.reasoning_item(self._id, "", "in_progress", UNSET)
        writer.add("response.output_item.added", item=added, output_index=index)
        if self._pieces and self._as_text:
            self._write_text(writer, index)
        elif self._pieces:
            self._write_summary(writer, index)
        writer.add("response.output_item.done", item=self.done(), output_index=index)

    def _write_summary(self, writer: EventWriter, index: int) -> None:
        text = "".join(self._pieces)
        at: Json = {"item_id": self._id, "output_index": index}
        part = "response.reasoning_summary_part"
        writer.add(f"{part}.added", **at, part=wire.summary_part(""), summary_index=0)
        for piece in self._pieces:
            writer.add(
                "response.reasoning_summary_text.delta",
                FrameKind.REASONING,
                1,
                delta=piece,
                **at,
                summary_index=0,
            )
        writer.add("response.reasoning_summary_text.done", **at, summary_index=0, text=text)
        writer.add(f"{part}.done", **at, part=wire.summary_part(text), summary_index=0)

    def _write_text(self, writer: EventWriter, index: int) -> None:
        type_ = "response.reasoning_text"
        at: Json = {"item_id": self._id, "output_index": index}
        for piece in self._pieces:
            writer.add(f"{type_}.delta", FrameKind.REASONING, 1, content_index=0, delta=piece, **at)
        writer.add(f"{type_}.done", content_index=0, **at, text="".join(self._pieces))


class MessageItem:
    """What the user is told, or a refusal."""

    def __init__(
        self,
        id_: str,
        pieces: Sequence[str],
        *,
        refuses: bool = False,
        cited: Sequence[str] = (),
        status: str = "completed",
        repeats_last: bool = False,
    ) -> None:
        self._id = id_
        self._pieces = pieces
        self._refuses = refuses
        self._cited = cited
        self._status = status
        self._repeats_last = repeats_last

    def done(self) -> Json:
        """Return the item as it is in the end."""
        return wire.message_item(self._id, [self._part()], self._status)

    def write(self, writer: EventWriter, index: int) -> None:
        """Write its events."""
        added = wire.message_item(self._id, [], "in_progress")
        writer.add("response.output_item.added", item=added, output_index=index)
        at: Json = {"content_index": 0, "item_id": self._id, "output_index": index}
        empty = wire.refusal_part("") if self._refuses else wire.text_part("")
        writer.add("response.content_part.added", **at, part=empty)
        text = "".join(self._pieces)
        if self._refuses:
            for piece in self._pieces:
                writer.add("response.refusal.delta", FrameKind.CONTENT, 1, **at, delta=piece)
            writer.add("response.refusal.done", **at, refusal=text)
        else:
            self._write_text(writer, index)
            if self._repeats_last:
                writer.add_texts(self._pieces[-1:], self._id, index)
                writer.frames[-1].tokens = 0
            writer.add("response.output_text.done", **at, text=text, logprobs=[])
        writer.add("response.content_part.done", **at, part=self._part())
        writer.add("response.output_item.done", item=self.done(), output_index=index)

    def _part(self) -> Json:
        text = "".join(self._pieces)
        if self._refuses:
            return wire.refusal_part(text)
        return wire.text_part(text, [note for _, note in self._annotations()])

    def _annotations(self) -> Iterator[tuple[int, Json]]:
        """Yield the citations and the pieces that they are in."""
        start = 0
        for number, piece in enumerate(self._pieces if self._cited else ()):
            marker = _MARKER.fullmatch(piece)
            if marker is not None and marker[2] in self._cited:
                yield number, wire.citation(marker[2], int(marker[1]), start, piece)
            start += len(piece)

    def _write_text(self, writer: EventWriter, index: int) -> None:
        start = 0
        for number, (piece, note) in enumerate(self._annotations()):
            writer.add_texts(self._pieces[start : piece + 1], self._id, index)
            start = piece + 1
            writer.add(
                "response.output_text.annotation.added",
                annotation=note,
                annotation_index=number,
                content_index=0,
                item_id=self._id,
                output_index=index,
            )
        writer.add_texts(self._pieces[start:], self._id, index)


class CallItem:
    """A call of a function, whole in one delta unless it is split."""

    def __init__(
        self, id_: str, call: Call, *, has_call_id: bool = True, split: bool = False
    ) -> None:
        self._id = id_
        self._call = call
        self._call_id = call.id if has_call_id else None
        self._split = split

    def done(self) -> Json:
        """Return the item as it is in the end."""
        return self._item(self._call.arguments, "completed")

    def write(self, writer: EventWriter, index: int) -> None:
        """Write its events."""
        added = self._item("", "in_progress")
        writer.add("response.output_item.added", item=added, output_index=index)
        at: Json = {"item_id": self._id, "output_index": index}
        arguments, type_ = self._call.arguments, "response.function_call_arguments"
        size = _SPLIT_CHARACTERS if self._split else max(1, len(arguments))
        tokens = self._call.tokens
        for start in range(0, len(arguments), size):
            piece = arguments[start : start + size]
            writer.add(f"{type_}.delta", FrameKind.TOOL, tokens, delta=piece, **at)
            tokens = 0
        writer.add(f"{type_}.done", FrameKind.TOOL, tokens, arguments=arguments, **at)
        writer.add("response.output_item.done", item=self.done(), output_index=index)

    def _item(self, arguments: str, status: str) -> Json:
        return wire.call_item(self._id, self._call_id, self._call.name, arguments, status)


class HostedItem:
    """A call of a tool that the server runs."""

    def __init__(self, response_id: str, call_id: str, call: HostedCall) -> None:
        self._id = f"{_HOSTED[call.tool]}_{response_id}_{call_id}"
        self._call_id = call_id
        self._call = call

    def done(self) -> Json:
        """Return the item as it is in the end."""
        return self._item("failed" if self._call.failed else "completed", self._call.input)

    def write(self, writer: EventWriter, index: int) -> None:
        """Write its events."""
        added = self._item("in_progress", "")
        writer.add("response.output_item.added", item=added, output_index=index)
        at: Json = {"item_id": self._id, "output_index": index}
        given, last = self._call.input, "failed" if self._call.failed else "completed"
        match self._call.tool:
            case hosted_tools.X:
                type_ = "response.custom_tool_call_input"
                writer.add(f"{type_}.delta", FrameKind.TOOL, **at, delta=given)
                writer.add(f"{type_}.done", **at, input=given)
            case hosted_tools.CODE:
                type_ = "response.code_interpreter_call"
                writer.add(f"{type_}.in_progress", **at)
                writer.add(f"{type_}_code.delta", FrameKind.TOOL, **at, delta=given)
                writer.add(f"{type_}_code.done", **at, code=given)
                writer.add(f"{type_}.interpreting", **at)
                writer.add(f"{type_}.completed", **at)
            case hosted_tools.MCP:
                type_ = "response.mcp_call"
                writer.add(f"{type_}.in_progress", **at)
                writer.add(f"{type_}_arguments.delta", FrameKind.TOOL, **at, delta=given)
                writer.add(f"{type_}_arguments.done", **at, arguments=given)
                writer.add(f"{type_}.{last}", **at)
            case tool:
                type_ = f"response.{tool}_call"
                writer.add(f"{type_}.in_progress", **at)
                writer.add(f"{type_}.searching", FrameKind.TOOL, **at)
                writer.add(f"{type_}.completed", **at)
        writer.add("response.output_item.done", item=self.done(), output_index=index)

    def _item(self, status: str, given: str) -> Json:
        call, type_ = self._call, f"{self._call.tool}_call"
        match call.tool:
            case hosted_tools.WEB:
                sources = call.sources if given else ()
                found = [{"type": "url", "url": url} for url in sources]
                action = {"type": "search", "query": given, "sources": found}
                return {"id": self._id, "type": type_, "status": status, "action": action}
            case hosted_tools.X:
                keys: Json = {"call_id": self._call_id, "input": given, "name": call.name}
                type_ = "custom_tool_call"
            case hosted_tools.CODE:
                keys = {"code": given, "container_id": None, "outputs": None}
            case hosted_tools.MCP:
                error = "the server did not answer" if status == "failed" else None
                label = call.label
                keys = {"arguments": given, "name": call.name, "server_label": label}
                keys |= {"output": None, "error": error}
            case _:
                keys = {"queries": [given] if given else [], "results": None}
        return {**keys, "type": type_, "id": self._id, "status": status}


_HOSTED: Final[Mapping[str, str]] = {
    hosted_tools.WEB: "ws",
    hosted_tools.X: "ctc",
    hosted_tools.CODE: "ci",
    hosted_tools.FILES: "fs",
    hosted_tools.MCP: "mcp",
}
"""What the ids of the items of each tool begin with."""
