"""A command's output on its way through a log that others write in, too. Pure.

Ray keeps one log of a job, with stdout, stderr and lines of its own. A command that runs on a
cluster for somebody elsewhere sends each line as a frame, and its exit code at the end:

    slipstream| {"to": "out", "text": "state  running\\n"}
    slipstream| {"exit": 0}
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Literal

MARK = "slipstream| "
NUM_OTHERS_KEPT = 20  # lines that are no frames

Stream = Literal["out", "err"]
Sink = Callable[[Stream, str], None]


def frame(to: Stream, text: str) -> str:
    return f"{MARK}{json.dumps({'to': to, 'text': text})}\n"


def end(exit_code: int) -> str:
    return f"{MARK}{json.dumps({'exit': exit_code})}\n"


class Unframed:
    """Takes the log in pieces of any size, and gives each frame's text to `sink`."""

    def __init__(self, sink: Sink) -> None:
        self.exit_code: int | None = None  # None before the end was heard
        self.others: deque[str] = deque(maxlen=NUM_OTHERS_KEPT)  # say why, where no end is heard
        self._sink = sink
        self._part = ""

    def feed(self, text: str) -> None:
        *lines, self._part = (self._part + text).split("\n")
        for line in lines:
            self._take(line)

    def _take(self, line: str) -> None:
        if not line.startswith(MARK):
            self.others.append(line)
            return
        found = json.loads(line.removeprefix(MARK))
        if "exit" in found:
            self.exit_code = found["exit"]
        else:
            self._sink(found["to"], found["text"])
