"""One place for the probes of several workers: asks each of them, and answers for all.

For whoever starts workers as its children: each child answers at a Unix socket of its own
(`TURNLINE_HTTP=unix:PATH`), and the parent shows what `Group.answers` returns.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from turnline.worker.http_places import Place
from turnline.worker.probes.answering import METRICS_KIND
from turnline.worker.probes.small_http import Answer, Answering, ask, verdict

ASK_S: Final = 2.0
"""Seconds that a worker has to answer."""
_META: Final = re.compile(rb"# (HELP|TYPE) (\S+)[^\n]*")
_SAMPLE: Final = re.compile(
    rb"([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?( [-+.0-9A-Za-z]+(?: -?[0-9]+)?)"
)
_OURS: Final = re.compile(rb'(?:(?<=^)|(?<=,))worker="')
_UP: Final = b"turnline_worker_up"


class _Family:
    """A metric with all its samples."""

    def __init__(self) -> None:
        self.about: dict[bytes, bytes] = {}
        """HELP and TYPE: of several, the first."""
        self.samples: list[bytes] = []


def merged(pages: Mapping[str, bytes | None]) -> bytes:
    """Return pages of metrics as one, with the label `worker` on each sample.

    A metric stands there once, with the samples of all. A label `worker` that a sample has already
    becomes `exported_worker`, as Prometheus has it.

    Args:
        pages: In Prometheus' text format, by the workers' names; None of one that did not answer.
    """
    families: dict[bytes, _Family] = {_UP: _Family()}
    families[_UP].about = {
        b"HELP": b"# HELP turnline_worker_up Whether the worker answers the one that started it.",
        b"TYPE": b"# TYPE turnline_worker_up gauge",
    }
    for name, page in pages.items():
        label = b'worker="' + _escaped(name) + b'"'
        families[_UP].samples.append(_UP + b"{" + label + (b"} 0" if page is None else b"} 1"))
        _add(families, page or b"", label)
    lines = [
        line for it in families.values() for line in (*it.about.values(), *it.samples) if it.samples
    ]
    return b"\n".join([*lines, b""])


def _add(families: dict[bytes, _Family], page: bytes, label: bytes) -> None:
    current: _Family | None = None
    for line in page.split(b"\n"):
        if about := _META.fullmatch(line):
            current = families.setdefault(about[2], _Family())
            current.about.setdefault(about[1], line)
        elif (sample := _SAMPLE.fullmatch(line)) and _is_number(sample[3].split()[0]):
            family = current if current is not None else families.setdefault(sample[1], _Family())
            own = _OURS.sub(b'exported_worker="', sample[2] or b"")
            labels = b",".join(filter(None, (label, own)))
            family.samples.append(sample[1] + b"{" + labels + b"}" + sample[3])


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _escaped(name: str) -> bytes:
    return name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").encode()


class Group:
    """Answers for the workers that one process has started."""

    def __init__(
        self,
        places: Callable[[], Mapping[str, Place]],
        *,
        enough: Callable[[], int],
        ask_s: float = ASK_S,
    ) -> None:
        """Ask nobody yet.

        Args:
            places: Where each worker answers now, by its name.
            enough: How many have to be ready for the whole to be.
            ask_s: How long a worker is waited for.
        """
        self._places = places
        self._enough = enough
        self._ask_s = ask_s

    @property
    def answers(self) -> Mapping[str, Answering]:
        """What a `SmallServer` answers."""
        return {"/livez": self.livez, "/readyz": self.readyz, "/metrics": self.metrics}

    async def livez(self) -> Answer:
        """Say that the one who asks the others lives: a worker that hangs is its own to end."""
        living = await self._of_all("/livez")
        return verdict([], workers={name: _is_good(it) for name, it in living.items()})

    async def readyz(self) -> Answer:
        """Tell whether enough workers are ready, and of the others why not."""
        found = await self._of_all("/readyz")
        ready = sum(map(_is_good, found.values()))
        faults: list[str] = []
        if ready < self._enough():
            faults.append(f"{ready} of {len(found)} workers are ready, {self._enough()} have to be")
            for name, answer in found.items():
                faults += [f"{name}: {fault}" for fault in _faults(answer)]
        return verdict(faults, ready=ready, workers={n: _is_good(it) for n, it in found.items()})

    async def metrics(self) -> Answer:
        """Return the metrics of all that answer, on one page."""
        found = await self._of_all("/metrics")
        pages = {name: it.body if _is_good(it) and it else None for name, it in found.items()}
        return Answer(200, merged(pages), METRICS_KIND)

    async def _of_all(self, path: str) -> dict[str, Answer | None]:
        """Ask all at once; None of one that does not answer."""
        places = self._places()
        found = await asyncio.gather(*(self._of(place, path) for place in places.values()))
        return dict(zip(places, found, strict=True))

    async def _of(self, place: Place, path: str) -> Answer | None:
        try:
            return await ask(place, path, limit_s=self._ask_s)
        except (OSError, TimeoutError):
            return None


def _is_good(answer: Answer | None) -> bool:
    return answer is not None and answer.status == 200


def _faults(answer: Answer | None) -> list[str]:
    if answer is None:
        return ["it does not answer"]
    try:
        found: dict[str, Any] = msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.DecodeError:
        return [f"it answers {answer.status}"]
    return [str(it) for it in found.get("faults", ())]
