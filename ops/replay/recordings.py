"""Recorded dialogues: reads a file of them, one JSON object a line."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from turnline.ops.cli.failures import Failure
from turnline.ops.simulator.model.dialogues import Dialogue

_decode = msgspec.json.Decoder(Dialogue).decode


def read_dialogues(path: Path, limit: int | None = None) -> list[Dialogue]:
    """Return the first `limit` dialogues of a file, all by default.

    Raises:
        Failure: The file cannot be read, a line of it is no dialogue, or two have the same id.
    """
    dialogues: list[Dialogue] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if limit is not None and len(dialogues) == limit:
                    break
                if line.strip():
                    dialogues.append(_decode_line(path, number, line))
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from None
    if not dialogues:
        raise Failure(f"{path} has no dialogues")
    ids = Counter(dialogue.dialogue_id for dialogue in dialogues)
    if repeated := [dialogue_id for dialogue_id, times in ids.items() if times > 1]:
        raise Failure(f"{path}: dialogue_id {repeated[0]} stands in several lines")
    return dialogues


def _decode_line(path: Path, number: int, line: bytes) -> Dialogue:
    try:
        dialogue = _decode(line)
    except msgspec.DecodeError as error:
        raise Failure(
            f"{path}, line {number}: {error}. A dialogue is a line such as "
            '{"dialogue_id": "d1", "turns": [{"speaker": "user", "text": "Hello"}, '
            '{"speaker": "system", "text": "Hello!"}]}'
        ) from None
    if "" in dialogue.user_texts:
        raise Failure(f"{path}, line {number}: a user turn without text, which nobody can send")
    return dialogue


def recorded_context(
    dialogue: Dialogue, results: Mapping[int, str] | None = None
) -> Iterator[tuple[str, str | None]]:
    """Yield (role, text) of the context that the dialogue leads to; None: any answer will do.

    An answer stands there as the assistant aggregator commits it: without the space around it, and
    not at all if nothing remains.

    Args:
        dialogue: As recorded.
        results: Of the service calls made, by the number of the user message before them.
    """
    for number, text in enumerate(dialogue.user_texts, 1):
        yield "user", text
        if results is not None and number in results:
            yield "assistant", " "  # nothing but the call
            yield "tool", results[number]
        answer = dialogue.answer(number)
        said = None if answer is None else answer.text.strip()
        if said != "":
            yield "assistant", said
