"""Requests to the driver of a running job, by files in the run's directory.

    client   <run>/control/<time>-<id>.json          `ask`: whom it is for, and what it asks
    driver   <run>/control/<time>-<id>.answer.json   `Control.answer`, after `Control.poll`

The client waits for the answer and removes it. A request that was meant for an earlier driver, or
that nobody understands, is refused. Files do on one machine, over a shared file system, and inside
a cluster; who may write in the run's directory may ask.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from orchestrator.run_files import write_whole
from orchestrator.run_lease import holder
from slipstream.config.section import PositiveInt, Section
from slipstream.errors import SlipstreamError

DIRECTORY = "control"
ANSWER = ".answer.json"
LOOK_EVERY_S = 0.1
LOOK_FOR_DRIVER_EVERY_S = 2.0


class NoDriver(SlipstreamError):
    """The run has no driver at work, so nobody would answer."""


class BadRequest(SlipstreamError):
    """What was asked for is no request."""


# --- requests ---------------------------------------------------------------------


class Scale(Section):
    """Run so many rollout workers, or so many learner ranks, from now on."""

    kind: Literal["scale"] = "scale"
    rollout: PositiveInt | None = None
    learner: PositiveInt | None = None

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        if self.rollout is None and self.learner is None:
            raise ValueError("names neither rollout nor learner")
        return self


class Pause(Section):
    """Train no further step until `Resume`."""

    kind: Literal["pause"] = "pause"


class Resume(Section):
    kind: Literal["resume"] = "resume"


class Stop(Section):
    """End after the step under way, with a commit."""

    kind: Literal["stop"] = "stop"
    reason: str


Request = Annotated[Scale | Pause | Resume | Stop, Field(discriminator="kind")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the driver says to a request."""

    ok: bool
    message: str


class _Letter(Section):
    driver: str  # the id of the one it is for
    request: Request


_ANSWER = TypeAdapter(Answer)


def scale_of(counts: Sequence[str]) -> Scale:
    """The request of `rollout=6 learner=4`. Raises BadRequest."""
    pairs = [count.partition("=")[::2] for count in counts]
    try:
        if len(dict(pairs)) < len(pairs):
            raise BadRequest(f"{' '.join(counts)}: a role is named twice")
        return Scale.model_validate(dict(pairs))
    except ValidationError as error:
        raise BadRequest(
            f"{' '.join(counts)}: {_said(error)}; expected rollout=N, learner=N, or both"
        ) from None


# --- the client's end -------------------------------------------------------------


def ask(run_dir: Path, request: Request, timeout_s: float) -> Answer:
    """Ask the driver of `run_dir`, and wait for its answer. Raises NoDriver.

    No answer in time, or none before the job ends, is a refusal that says so.
    """
    driver = holder(run_dir)
    if driver is None:
        raise NoDriver(f"{run_dir} has no driver at work: the job is not running, or it has died")
    path = run_dir / DIRECTORY / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.json"
    try:
        path.parent.mkdir(exist_ok=True)
        write_whole(path, _Letter(driver=driver.id, request=request).model_dump())
    except OSError as error:
        raise BadRequest(f"{path} cannot be written: {error}") from None
    try:
        return _answer(run_dir, path, timeout_s)
    finally:
        path.unlink(missing_ok=True)  # nobody waits for it any more


def _answer(run_dir: Path, path: Path, timeout_s: float) -> Answer:
    answer_path = _answer_path(path)
    deadline_s = time.monotonic() + timeout_s
    look_for_driver_s = time.monotonic() + LOOK_FOR_DRIVER_EVERY_S
    while time.monotonic() < deadline_s:
        with suppress(OSError):  # it is not there yet
            answer = _ANSWER.validate_json(answer_path.read_bytes())
            answer_path.unlink(missing_ok=True)
            return answer
        if time.monotonic() > look_for_driver_s:
            if holder(run_dir) is None:
                return Answer(ok=False, message="the job ended before it answered")
            look_for_driver_s = time.monotonic() + LOOK_FOR_DRIVER_EVERY_S
        time.sleep(LOOK_EVERY_S)
    message = f"no answer within {timeout_s:g} s; the job may still have heard it, see its status"
    return Answer(ok=False, message=message)


def _answer_path(path: Path) -> Path:
    return path.with_name(path.stem + ANSWER)


# --- the driver's end -------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that waits for its answer."""

    path: Path
    request: Request


class Control:
    """What is asked of the driver `driver_id`, which holds `run_dir`. No file's state or content
    makes it raise."""

    def __init__(self, run_dir: Path, driver_id: str) -> None:
        self._directory = run_dir / DIRECTORY
        self._driver_id = driver_id
        self._seen: set[str] = set()

    def poll(self) -> list[Asked]:
        """What is newly asked, oldest first; each is to be answered."""
        try:
            found = sorted(path for path in self._directory.iterdir() if self._is_new(path))
        except OSError:
            return []  # nobody has asked yet
        self._seen.update(path.name for path in found)
        return [asked for path in found if (asked := self._read(path))]

    def answer(self, asked: Asked, *, ok: bool, message: str) -> None:
        """Say what becomes of a request; unless the client has given it up."""
        self._answer(asked.path, Answer(ok=ok, message=message))

    def _is_new(self, path: Path) -> bool:
        is_request = path.suffix == ".json" and not path.name.endswith(ANSWER)
        return is_request and path.name not in self._seen

    def _read(self, path: Path) -> Asked | None:
        try:
            letter = _Letter.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            said = _said(error) if isinstance(error, ValidationError) else str(error)
            self._answer(path, Answer(ok=False, message=f"this is no request: {said}"))
        else:
            if letter.driver == self._driver_id:
                return Asked(path=path, request=letter.request)
            self._answer(path, Answer(ok=False, message="the job had ended"))
        return None

    def _answer(self, path: Path, answer: Answer) -> None:
        # On a full disk the client waits in vain, and the job goes on.
        with suppress(OSError):
            if path.exists():
                write_whole(_answer_path(path), _ANSWER.dump_python(answer))
                path.unlink()


def _said(error: ValidationError) -> str:
    """All that is wrong, in one line."""
    return "; ".join(
        ": ".join([*map(str, detail["loc"][-1:]), detail["msg"]])
        for detail in error.errors(include_url=False)
    )
