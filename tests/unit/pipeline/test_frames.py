"""Frames: users add their own, and what every frame has beside its fields costs nothing unasked."""

import dataclasses
from dataclasses import dataclass, field

import pytest

from turnline.worker.pipeline import frames
from turnline.worker.pipeline.frames import (
    ControlFrame,
    DataFrame,
    EndFrame,
    Frame,
    ImageRawFrame,
    LLMTextFrame,
    StartFrame,
    StartInterruptionFrame,
    SystemFrame,
    TextFrame,
    UserImageRawFrame,
)
from turnline.worker.pipeline.processor import DOWNSTREAM, FrameDirection, FrameProcessor, Pipeline


@dataclass
class Mood(DataFrame):
    """A frame of a user's own."""

    mood: str
    strength: float = 1.0
    words: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        super().__post_init__()
        self.strength *= 2


class Meter(FrameProcessor):
    """Answers a mood by another one, as users write processors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Frame] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.seen.append(frame)
        await self.push_frame(frame, direction)


async def test_users_frames_are_dataclasses_that_pass_through() -> None:
    """Required fields, defaults, factories and a post-init work; every processor passes them on."""
    meter = Meter()
    mood = Mood("calm", strength=2)

    await Pipeline([Meter(), meter]).queue_frame(mood)

    assert meter.seen == [mood]
    assert (mood.mood, mood.strength, mood.words) == ("calm", 4, [])
    assert dataclasses.replace(mood, mood="glad").mood == "glad"
    assert dataclasses.asdict(mood)["mood"] == "calm"


@dataclass
class Worded(TextFrame):
    language: str = "en"


@dataclass
class Pictured(SystemFrame, ImageRawFrame):
    title: str | None = None


def test_users_frames_extend_ours_and_mix_in() -> None:
    """Fields of the base come first, in its order."""
    assert (Worded("a").text, Worded("a", "fr").language) == ("a", "fr")
    assert Pictured(b"", (1, 1), "PNG", "t").title == "t"
    assert isinstance(Worded("a"), TextFrame)


def test_every_frame_has_id_name_metadata_and_times() -> None:
    """Ids differ, names count by class, metadata is the frame's own; all stay as they are."""
    one, other, end = LLMTextFrame("a"), LLMTextFrame("a"), EndFrame()

    assert len({one.id, other.id, end.id}) == 3
    assert one.id == one.id
    assert one.name.startswith("LLMTextFrame#")
    assert str(one) == one.name != other.name
    one.metadata["a"] = 1
    assert (one.metadata, other.metadata) == ({"a": 1}, {})
    assert (one.pts, one.transport_source, one.transport_destination) == (None, None, None)
    one.pts = 5
    assert (one.pts, other.pts) == (5, None)
    assert one == other


def test_nothing_is_made_before_somebody_asks() -> None:
    """A frame holds its fields and nothing else."""
    assert vars(LLMTextFrame("a")) == {"text": "a"}
    assert vars(EndFrame()) == {}


def test_a_frames_words_stand_not_in_its_name() -> None:
    """What is printed of a frame is safe to log."""
    assert "secret" not in str(LLMTextFrame("secret"))


ALL = [
    cls
    for cls in vars(frames).values()
    if isinstance(cls, type) and issubclass(cls, Frame) and cls is not Frame
]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_frame_is_of_one_kind(cls: type) -> None:
    """System, data or control; contexts are of none, as the original has it."""
    kinds = [kind for kind in (SystemFrame, DataFrame, ControlFrame) if issubclass(cls, kind)]

    assert len(kinds) == (0 if cls.__name__ == "OpenAILLMContextFrame" else 1)
    assert dataclasses.is_dataclass(cls)


def test_positional_arguments_mean_what_they_mean_in_the_original() -> None:
    """Two that are easily mixed up."""
    image = UserImageRawFrame(b"i", (1, 2), "PNG", "cat")

    assert (image.image, image.size, image.format, image.user_id) == (b"i", (1, 2), "PNG", "cat")
    assert StartFrame(8000).audio_in_sample_rate == 8000
    assert StartInterruptionFrame().heard is None


async def test_a_processor_takes_frames_by_itself() -> None:
    """`queue_frame` is the same as a neighbour's push, and then calls back."""
    meter = Meter()
    called: list[object] = []

    async def callback(*args: object) -> None:
        called.extend(args)

    await meter.queue_frame(frame := EndFrame(), callback=callback)

    assert meter.seen == [frame]
    assert called == [meter, frame, DOWNSTREAM]
