"""TensorBoard's event files, without TensorFlow or torch."""

from __future__ import annotations

import os
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import Summary

from orchestrator.trackers.curves import Figures


class TensorBoard:
    """One file a launch. Where the run goes back, TensorBoard forgets the later versions."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        # Names count whole seconds, and a file of the same name would be written over.
        self._writer = EventsWriter(str(directory / "events"), f".{os.getpid()}")

    def log(self, figures: Figures) -> None:
        if figures.is_return:
            event = Event(step=figures.version + 1)
            event.session_log.status = SessionLog.START
        else:
            event = Event(step=figures.version)
            event.summary.CopyFrom(_summary(figures))
        event.wall_time = figures.at_s
        self._writer.write_event(event)
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()


def _summary(figures: Figures) -> Summary:
    values = figures.values.items()
    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values])
