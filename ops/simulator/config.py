"""The simulator's settings: what is served, how fast, in which dialect, and what is kept."""

import enum
from pathlib import Path
from typing import Annotated

import msgspec


class Profile(enum.StrEnum):
    """Which period or host of the API is imitated."""

    MODERN = "modern"
    """api.x.ai from 2026 on; on `/v1/responses` as in August."""
    AUG2026 = MODERN
    OCT2026 = "oct2026"
    """api.x.ai in October 2026: on `/v1/responses` summaries of several paragraphs in blocks."""
    OCT2025 = "oct2025"
    """api.x.ai in October 2025: region in ids, empty deltas while reasoning, no cost."""
    LEGACY2024 = "legacy2024"
    """api.x.ai in November 2024: role and running usage in every chunk."""
    AZURE = "azure"
    """Grok hosted by Azure: a service tier in every chunk, no cost, odd cache counts."""

    @property
    def is_modern(self) -> bool:
        """Whether it is of 2026."""
        return self in {Profile.MODERN, Profile.OCT2026, Profile.AZURE}


class ErrorStyle(enum.StrEnum):
    """How the `code` of an error body is written."""

    KEBAB = "kebab"
    """`invalid-argument`, since 2026."""
    SENTENCE = "sentence"
    """`Client specified an invalid argument`, before."""
    NESTED = "nested"
    """OpenAI's nested error object."""


class ReasoningMode(enum.StrEnum):
    """What a client sees while the model reasons.

    On `/v1/responses` there is a reasoning item in any case. `stream`, `summary` and `block` give
    its summary in other pieces; with the others it has none.
    """

    HIDDEN = "hidden"
    """Nothing, only the count in the usage."""
    STREAM = "stream"
    """Every reasoning token as `reasoning_content`."""
    SUMMARY = "summary"
    """A few tokens of `reasoning_content` that summarise many."""
    BLOCK = "block"
    """A few long `reasoning_content` deltas that end in an ellipsis."""
    EMPTY = "empty"
    """A role-only delta, then empty deltas."""
    SILENT = "silent"
    """Keep-alive comments only."""


class Pacing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the first token comes and how far apart the others are."""

    speed: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Factor of real time: 1 is as measured, 10 is ten times as fast, 0 does not wait at all."""
    ttft_median_ms: Annotated[float, msgspec.Meta(gt=0)] = 311.0
    """Median of the lognormal time to the first token."""
    itl_median_ms: Annotated[float, msgspec.Meta(gt=0)] = 7.4
    """Median of the lognormal time between two tokens."""
    ttft_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Exact time to the first token. Not scaled by `speed`."""
    itl_ms: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """Exact time between two tokens. Not scaled by `speed`."""
    keepalive_s: Annotated[float, msgspec.Meta(gt=0)] = 15.0
    """Seconds between two keep-alive comments of a silent phase."""
    coalesce: tuple[int, int] | None = None
    """Fewest and most events per write. None: whatever is due is written at once."""


def read_coalesce(text: str) -> tuple[int, int]:
    """Read the fewest and the most events per write.

    Raises:
        ValueError: The text is neither a number nor a range.
    """
    fewest, _, most = text.partition("-")
    if not fewest.isdigit() or not (most or fewest).isdigit() or int(fewest) < 1:
        raise ValueError("takes a number or a range such as 1-7")
    return int(fewest), int(most or fewest)


class SimulatorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be chosen when a simulator starts. It listens on 127.0.0.1 only."""

    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    """TCP port; 0 takes a free one."""
    profile: Profile = Profile.MODERN
    """Dialect of the API."""
    error_style: ErrorStyle | None = None
    """Spelling of error codes. None: the profile's own."""
    pacing: Pacing = Pacing()
    """Speed of answers. The default does not wait."""
    reasoning: ReasoningMode | None = None
    """What is seen of reasoning. None: the model's own way."""
    usage_in_every_chunk: bool = False
    """Report the running usage in every chunk, as the documentation says and no recording shows."""
    dialogues: Path | None = None
    """JSON lines of recorded dialogues to answer from."""
    api_keys: tuple[str, ...] = ()
    """Keys that are let in. Empty: any."""
    extra_models: tuple[str, ...] = ()
    """More model names to serve; they behave like `grok-4.3`."""
    requests_per_second: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Rate limit per key and model. None: none."""
    tokens_per_minute: Annotated[int, msgspec.Meta(gt=0)] | None = None
    """Token limit per key and model. None: none."""
    published_limits: bool = False
    """Limit each model as xAI says that it does."""
    credits_usd: Annotated[float, msgspec.Meta(ge=0)] | None = None
    """What each key may spend, US dollars. None: any amount."""
    seed: int = 0
    """Seed of ids, pacing and reasoning counts."""
    ledger_entries: Annotated[int, msgspec.Meta(ge=0)] = 50_000
    """Requests kept in the ledger; older ones are dropped and counted. 0: unlimited."""
    ledger_bytes: Annotated[int, msgspec.Meta(ge=0)] = 256 * 1024 * 1024
    """Bytes of request bodies kept; the oldest go first and are counted. 0: unlimited."""
    ledger_body_bytes: Annotated[int, msgspec.Meta(ge=0)] = 4 * 1024 * 1024
    """Largest body kept. 0: unlimited."""
