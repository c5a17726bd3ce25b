"""What a run of `turnline chaos` is to do."""

from pathlib import Path
from typing import Literal

import msgspec

from turnline.contracts.patience import PATIENCE_S

Wires = Literal["chat", "responses", "both"]
"""How workers talk to the model; both: every second one in either way."""


Deployment = Literal["server", "cluster", "sentinel"]
"""What the fleet's Redis is."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done."""

    seconds: float
    seed: int
    wire: Wires = "responses"
    deployment: Deployment = "server"
    shards: int = 1
    """How many the fleet has at first."""
    reshard: int | None = None
    """How many it is given all the time, before it gets the first number again; None: never."""
    client_patience_s: float = PATIENCE_S
    """After how long without a server producers and readers are told."""
    wait_replicas: int = 0
    """Replicas that producers wait for."""
    workers: int = 6
    conversations: int = 40
    think_s: float = 1.5
    forgotten: float = 0.08
    patience_s: float = 90.0
    itl_ms: float = 4.0
    """Time between two words of the model."""
    scale: float = 1.0
    """Multiplies how often everything happens."""
    limits: bool = False
    """Whether provider, tenants and turns are held to limits."""
    sabotage: str | None = None
    upgrade_from: str | None = None
    """A revision of this repository; half of the workers are of it."""
    keep: Path | None = None
    """Where Redis keeps its data; they stay there."""
    command: str = "turnline chaos"

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of shards that the fleet has at some time."""
        return (self.shards,) if self.reshard is None else (self.shards, self.reshard)
