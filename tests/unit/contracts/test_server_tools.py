"""Tools that the provider runs: contradictions are refused by name, secrets are shown to nobody."""

import json
import re
import traceback
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from tests.unit.contracts.examples import RESPONSES, SERVER_TOOLS
from turnline.contracts import Configure, InvalidMessage
from turnline.contracts.conversation import ConversationSettings, SettingsChange
from turnline.contracts.messages import decode
from turnline.contracts.protocol import Requests, configure_message
from turnline.contracts.server_tools import Mcp, ServerTool, WebSearch

PAGE = (Path(__file__).parents[3] / "docs/responses.md").read_text()
WEB = {"type": "web_search"}
X = {"type": "x_search"}
MCP = {"type": "mcp", "server_label": "orders", "server_url": "https://mcp.example.com"}
FILES = {"type": "file_search", "vector_store_ids": ["a"]}
NO_CHAT = "nothing, since wire is chat"
ONE_LINE = "one line that a header can hold"
SECRETS = ("secret-1", "secret-2", "X-Tenant")


def configure(*tools: Any, **settings: Any) -> bytes:
    changed = {"server_tools": tools, **settings} if tools else settings
    message = {"type": "configure", "conversation_id": "c", "settings": changed}
    return json.dumps(message).encode()


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("tool", "field", "expected"),
    [
        (
            {**WEB, "allowed_domains": ["a.com"], "excluded_domains": ["b.com"]},
            "excluded_domains",
            "nothing, since allowed_domains is given",
        ),
        (
            {**WEB, "allowed_domains": [f"{n}.com" for n in range(6)]},
            "allowed_domains",
            "Expected `array` of length <= 5",
        ),
        (
            {**WEB, "allowed_domains": ["https://a.com/b"]},
            "allowed_domains[0]",
            "a domain without `https://`, port and path",
        ),
        (
            {**X, "allowed_x_handles": ["a"], "excluded_x_handles": ["b"]},
            "excluded_x_handles",
            "nothing, since allowed_x_handles is given",
        ),
        ({**X, "allowed_x_handles": ["@a"]}, "allowed_x_handles[0]", "a handle without `@`"),
        (
            {**X, "from_date": "2026-02-02", "to_date": "2026-02-01"},
            "to_date",
            "a day that is not before from_date",
        ),
        ({**X, "from_date": "2026-02-30"}, "from_date", "a day such as 2026-11-29"),
        ({**FILES, "vector_store_ids": []}, "vector_store_ids", "Expected `array` of length >= 1"),
        (
            {**FILES, "vector_store_ids": ["a"] * 11},
            "vector_store_ids",
            "Expected `array` of length <= 10",
        ),
        (
            {**MCP, "server_url": "http://mcp.example.com"},
            "server_url",
            "an https URL without user and password",
        ),
        (
            {**MCP, "server_url": "https://me:secret-1@mcp.example.com"},
            "server_url",
            "an https URL without user and password",
        ),
        ({**MCP, "server_label": "my orders"}, "server_label", "letters, digits, `_` and `-`"),
        ({**MCP, "authorization": "secret-1\r\nX: y"}, "authorization", ONE_LINE),
        ({**MCP, "headers": {"X-Tenant": "secret-1\n"}}, "headers[...]", ONE_LINE),
        ({**MCP, "headers": {"X Tenant": "secret-1"}}, "headers", "keys: a header's name"),
        (
            {**MCP, "authorization": "secret-1", "headers": {"AUTHORIZATION": "secret-2"}},
            "headers",
            "no Authorization, since authorization is given",
        ),
        ({"type": "mcp", "server_label": "orders"}, "server_url", "this field is required"),
        (
            {"type": "weather"},
            "type",
            "one of web_search, x_search, code_interpreter, file_search, mcp",
        ),
    ],
)
def test_a_server_tool_that_cannot_be_meant_is_refused(
    tool: dict[str, Any], field: str, expected: str
) -> None:
    """By the name of the option; no value is repeated, least of all a secret."""
    with pytest.raises(InvalidMessage) as caught:
        Requests().submission(configure(tool))

    assert caught.value.field == f"settings.server_tools[0].{field}"
    assert caught.value.expected == expected
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.promise("P9")
@pytest.mark.parametrize("tools", [(WEB, X, WEB), (MCP, {**MCP, "server_url": "https://b.com"})])
def test_two_tools_of_one_name_are_refused(tools: tuple[dict[str, Any], ...]) -> None:
    """The provider would refuse every turn."""
    with pytest.raises(InvalidMessage) as caught:
        Requests().submission(configure(*tools))

    assert caught.value.field == "settings.server_tools"
    assert caught.value.expected == "each type once, and each server_label of mcp once"


@pytest.mark.parametrize("tools", [[WEB, X, FILES], [MCP, {**MCP, "server_label": "shop"}]])
def test_tools_may_be_given_as_plain_values(tools: list[dict[str, Any]]) -> None:
    """As `configure` of a client takes them; they are read as the worker reads them."""
    message = configure_message("c", {"server_tools": tools})

    assert json.loads(msgspec.json.encode(message.settings.server_tools)) == tools


def test_contradictions_are_refused_where_a_tool_is_made() -> None:
    """In the producer's own code, before anything is sent."""
    with pytest.raises(InvalidMessage, match="excluded_domains"):
        WebSearch(allowed_domains=("a.com",), excluded_domains=("b.com",))
    with pytest.raises(InvalidMessage, match="server_tools"):
        SettingsChange(server_tools=(WebSearch(), WebSearch()))


@pytest.mark.parametrize(
    ("settings", "field", "expected"),
    [
        ({"wire": "socket"}, "wire", "one of responses, chat"),
        ({"max_output_tokens": 0}, "max_output_tokens", "Expected `int` >= 1"),
        ({"wire": "chat", "max_output_tokens": 9}, "max_output_tokens", NO_CHAT),
        ({"wire": "chat", "server_tools": [WEB]}, "server_tools", NO_CHAT),
        ({"wire": "chat", "reasoning_summary": True}, "reasoning_summary", NO_CHAT),
        ({"reasoning_summary": "auto"}, "reasoning_summary", "Expected `bool | null`, got `str`"),
    ],
)
@pytest.mark.promise("P9")
def test_other_settings_of_the_wire_are_checked(
    settings: dict[str, Any], field: str, expected: str
) -> None:
    """By name, as all settings are."""
    with pytest.raises(InvalidMessage) as caught:
        decode(configure(**settings))

    assert (caught.value.field, caught.value.expected) == (f"settings.{field}", expected)


@pytest.mark.parametrize(
    "shown",
    [
        SERVER_TOOLS,
        ConversationSettings(**RESPONSES),
        Configure(conversation_id="c", settings=SettingsChange(**RESPONSES)),
    ],
)
def test_what_is_shown_of_settings_has_no_secret(shown: object) -> None:
    """A repr ends up in logs, in tracebacks, in a debugger."""
    for text in (repr(shown), str(shown), f"{shown}"):
        assert "server_label='orders'" in text
        assert not any(secret in text for secret in SECRETS)


def test_secrets_reach_the_worker() -> None:
    """What nothing shows is stored and sent all the same."""
    settings = msgspec.json.decode(
        msgspec.json.encode(ConversationSettings(**RESPONSES)), type=ConversationSettings
    )

    assert settings.server_tools is not None
    (mcp,) = (tool for tool in settings.server_tools if isinstance(tool, Mcp))
    assert (mcp.authorization, mcp.headers) == ("Bearer secret-1", {"X-Tenant": "secret-2"})


@pytest.mark.parametrize("tool", get_args(ServerTool))
def test_the_page_has_every_option(tool: type[msgspec.Struct]) -> None:
    """Those who write JSON or TOML by hand find them there."""
    (row,) = re.findall(rf"^\| `{tool.__struct_config__.tag}` \| (.*) \|$", PAGE, re.MULTILINE)

    options = re.findall(r"`([a-z_]+)`", row)
    assert options == [*tool.__struct_fields__]
