"""The simulator as a process: dialogues from a file, readiness, signals, the parent's death."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import msgspec
from click.testing import CliRunner
from openai import OpenAI

from tests.support.recordings import REPOSITORY
from tests.support.wait import wait_until_sync
from turnline.ops.simulator.command import sim

DIALOGUE = {
    "dialogue_id": "d1",
    "services": ["Tables"],
    "turns": [
        {"speaker": "user", "text": "A table for two."},
        {
            "speaker": "system",
            "text": "It is booked.",
            "call": {"service": "Tables", "method": "Book", "parameters": {"seats": "2"}},
            "results": [],
        },
        {"speaker": "user", "text": "Thanks."},
        {"speaker": "system", "text": "Have a nice day."},
    ],
}


@contextmanager
def running(*options: str, **given) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "turnline.ops.simulator", *options]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **given
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    watchdog = threading.Timer(20, process.kill)
    watchdog.start()
    line = process.stdout.readline().strip()
    watchdog.cancel()
    assert line
    return line


def test_a_dialogue_is_replayed_with_its_call(tmp_path: Path) -> None:
    """Call, recorded words, the next turn, and a plain answer behind the end."""
    file = tmp_path / "dialogues.jsonl"
    file.write_bytes(msgspec.json.encode(DIALOGUE) + b"\n")
    tools = [{"type": "function", "function": {"name": "Book", "parameters": {"type": "object"}}}]
    messages: list = [{"role": "user", "content": "A table for two."}]
    with running("--dialogues", str(file), "--speed", "0") as process:
        with OpenAI(base_url=first_line(process), api_key="k", max_retries=0) as client:

            def ask():
                message = (
                    client.chat.completions.create(
                        model="grok-4.3",
                        messages=messages,
                        tools=tools,
                        extra_headers={"x-grok-conv-id": "replay-7/d1"},
                    )
                    .choices[0]
                    .message
                )
                messages.append(message.model_dump(exclude_none=True))
                return message

            called = ask()
            call = called.tool_calls[0]
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "[]"})
            booked = ask()
            messages.append({"role": "user", "content": "Thanks."})
            thanked = ask()
            messages.append({"role": "user", "content": "And now?"})
            beyond = ask()
        process.send_signal(signal.SIGTERM)
        code = process.wait(10)
        rest = process.stderr.read()

    assert (call.function.name, call.function.arguments) == ("Book", '{"seats":"2"}')
    assert called.content == ""
    assert (booked.content, thanked.content) == ("It is booked.", "Have a nice day.")
    assert beyond.content.startswith("You said “And now?”.")
    assert (code, rest) == (0, "")


def test_readiness_is_told_on_a_descriptor() -> None:
    """The URL comes over the pipe, nothing on stdout; SIGTERM ends it though a stream is open."""
    reading, writing = os.pipe()
    with running("--ready-fd", str(writing), "--no-print-url", pass_fds=[writing]) as process:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            url = pipe.readline().strip()
        body = {
            "model": "grok-4.3@stall;at=after_headers",
            "stream": True,
            "messages": [{"role": "user", "content": "x"}],
        }
        with (
            httpx2.Client(headers={"authorization": "Bearer k"}) as http,
            http.stream("POST", f"{url}/chat/completions", json=body) as reply,
        ):
            status = reply.status_code
            process.send_signal(signal.SIGTERM)
            code = process.wait(10)
        said = process.stdout.read()

    assert (status, code, said) == (200, 0, "")


def test_it_dies_with_its_parent() -> None:
    """A killed parent leaves no simulator behind."""
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', "
        "'turnline.ops.simulator', '--die-with-parent'],"
        " stdout=subprocess.PIPE, text=True)\n"
        "print(child.pid, child.stdout.readline(), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    try:
        pid, url = first_line(parent).split()
        alive = httpx2.get(url.replace("/v1", "/sim/health")).status_code
    finally:
        parent.kill()
        parent.communicate()

    assert alive == 200
    wait_until_sync(lambda: is_gone(int(pid)), "the simulator to end")


def is_gone(pid: int) -> bool:
    """Whether a process has ended, even if nobody has asked for its status yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_help_teaches_and_mistakes_are_explained(tmp_path: Path) -> None:
    """Examples in the help, the list of scenarios, and errors without a traceback."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"dialogue_id": 7}\n')
    runner = CliRunner()
    shown = runner.invoke(sim, ["--help"])
    listed = runner.invoke(sim, ["--list-scenarios"])
    failed = runner.invoke(sim, ["--dialogues", str(bad)])
    odd = runner.invoke(sim, ["--coalesce", "some"])

    assert "turnline sim --ttft-ms 200 --itl-ms 15" in shown.output
    assert "error-frame" in listed.output
    assert (failed.exit_code, odd.exit_code) == (1, 2)
    assert failed.output.startswith("Error: cannot read the dialogues:")
    assert "takes a number or a range" in odd.output
