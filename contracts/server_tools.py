"""Tools that the provider runs itself, each with its options.

A contradiction between options is refused where the tool is made, so that no turn meets it first.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Annotated, cast

import msgspec
from msgspec import Meta

from turnline.contracts.errors import InvalidMessage

DOMAIN_PATTERN = r"^[^\s/:@?#\x00-\x1f\x7f]+$(?!\n)"
HANDLE_PATTERN = r"^[A-Za-z0-9_]+$(?!\n)"
HTTPS_PATTERN = r"^https://[^\s/?#@\x00-\x1f\x7f]+([/?#][^\s\x00-\x1f\x7f]*)?$(?!\n)"
"""No user and no password in it: what is secret has fields of its own."""
LABEL_PATTERN = r"^[A-Za-z0-9_-]+$(?!\n)"
HEADER_NAME_PATTERN = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$(?!\n)"
HEADER_VALUE_PATTERN = r"^[\x20-\x7e\xa1-\xff]*$(?!\n)"

Domain = Annotated[str, Meta(min_length=1, max_length=253, pattern=DOMAIN_PATTERN)]
Domains = Annotated[tuple[Domain, ...], Meta(max_length=5)]
Handle = Annotated[str, Meta(min_length=1, max_length=50, pattern=HANDLE_PATTERN)]
Handles = Annotated[tuple[Handle, ...], Meta(max_length=20)]
Word = Annotated[str, Meta(min_length=1, max_length=200)]
HeaderName = Annotated[str, Meta(min_length=1, max_length=200, pattern=HEADER_NAME_PATTERN)]
HeaderValue = Annotated[str, Meta(max_length=8_192, pattern=HEADER_VALUE_PATTERN)]
Token = Annotated[str, Meta(min_length=1, max_length=8_192, pattern=HEADER_VALUE_PATTERN)]

_SECRET = ("authorization", "headers")
_HIDDEN = "(not shown)"


class HostedTool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """Base of the tools that the provider runs; `type` tells them apart."""


class WebSearch(HostedTool, frozen=True, kw_only=True, tag="web_search"):
    """The provider searches the web and opens pages."""

    allowed_domains: Domains = ()
    """Look nowhere else; without `https://` and path."""
    excluded_domains: Domains = ()
    """Do not look there."""
    enable_image_understanding: bool = False

    def __post_init__(self) -> None:
        if self.allowed_domains and self.excluded_domains:
            raise InvalidMessage("excluded_domains", "nothing, since allowed_domains is given")


class XSearch(HostedTool, frozen=True, kw_only=True, tag="x_search"):
    """The provider searches posts, users and threads on X."""

    allowed_x_handles: Handles = ()
    """Posts of these alone; without `@`."""
    excluded_x_handles: Handles = ()
    """No posts of these."""
    from_date: dt.date | None = None
    """First day that is looked at."""
    to_date: dt.date | None = None
    """Last one."""
    enable_image_understanding: bool = False
    enable_video_understanding: bool = False

    def __post_init__(self) -> None:
        if self.allowed_x_handles and self.excluded_x_handles:
            raise InvalidMessage("excluded_x_handles", "nothing, since allowed_x_handles is given")
        if self.from_date and self.to_date and self.from_date > self.to_date:
            raise InvalidMessage("to_date", "a day that is not before from_date")


class CodeInterpreter(HostedTool, frozen=True, kw_only=True, tag="code_interpreter"):
    """The provider runs Python that the model writes."""


class FileSearch(HostedTool, frozen=True, kw_only=True, tag="file_search"):
    """The provider searches documents that were uploaded to it: its collections."""

    vector_store_ids: Annotated[tuple[Word, ...], Meta(min_length=1, max_length=10)]
    max_num_results: Annotated[int, Meta(ge=1, le=50)] | None = None


class Mcp(HostedTool, frozen=True, kw_only=True, tag="mcp"):
    """The provider calls the tools of an MCP server.

    `authorization` and `headers` are secrets. They are kept with the conversation's settings and
    sent to the provider, and nothing shows them.
    """

    server_label: Annotated[str, Meta(min_length=1, max_length=64, pattern=LABEL_PATTERN)]
    """Begins the names of its tools."""
    server_url: Annotated[str, Meta(max_length=2_048, pattern=HTTPS_PATTERN)]
    server_description: Annotated[str, Meta(max_length=2_048)] = ""
    allowed_tools: Annotated[tuple[Word, ...], Meta(max_length=128)] = ()
    """Names of the tools that may be called; empty: all of them."""
    authorization: Token | None = None
    """Value of the header `Authorization` of requests to the server."""
    headers: Annotated[dict[HeaderName, HeaderValue], Meta(max_length=32)] = {}
    """Further headers of these requests."""

    def __post_init__(self) -> None:
        if self.authorization is not None and "authorization" in map(str.lower, self.headers):
            raise InvalidMessage("headers", "no Authorization, since authorization is given")

    def __repr__(self) -> str:
        return f"Mcp(server_label={self.server_label!r}, server_url={self.server_url!r}, ...)"


ServerTool = WebSearch | XSearch | CodeInterpreter | FileSearch | Mcp
ServerTools = Annotated[tuple[ServerTool, ...], Meta(max_length=32)]


def tool_name(tool: ServerTool) -> str:
    """Return what a tool is called in lists: its type, or that and an MCP server's label."""
    kind = str(tool.__struct_config__.tag)
    return f"{kind} {tool.server_label}" if isinstance(tool, Mcp) else kind


def check_apart(tools: Sequence[object]) -> None:
    """Refuse tools that the model could not tell apart.

    Raises:
        InvalidMessage: Two of one type, or two MCP servers of one label.
    """
    made = [tool for tool in tools if isinstance(tool, HostedTool)]  # others are yet to be decoded
    names = [tool.server_label if isinstance(tool, Mcp) else type(tool) for tool in made]
    if len({*names}) < len(names):
        raise InvalidMessage("server_tools", "each type once, and each server_label of mcp once")


def without_secrets(settings: bytes) -> bytes:
    """Return settings as they may be shown: what an MCP server is told is left out.

    Args:
        settings: JSON that may have `server_tools` somewhere, whether valid or not.
    """
    if b"server_tools" not in settings:
        return settings
    try:
        return msgspec.json.encode(_shown(msgspec.json.decode(settings), in_tools=False))
    except (ValueError, RecursionError):  # where they are is not to be seen
        return _HIDDEN.encode()


def _shown(value: object, *, in_tools: bool) -> object:
    if isinstance(value, list):
        return [_shown(it, in_tools=in_tools) for it in cast("Sequence[object]", value)]
    if not isinstance(value, dict):
        return value
    return {
        name: _HIDDEN
        if in_tools and name in _SECRET
        else _shown(it, in_tools=in_tools or name == "server_tools")
        for name, it in cast("dict[str, object]", value).items()
    }
