"""`slipstream status`: how a job goes, as its driver last wrote it.

driver ── every tick ──▶ <run>/status.json ──┬─▶ table, or JSON
<run>/driver.json: is there still a driver? ─┘
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.driver import Driver
from orchestrator.run_files import now_s, write_whole
from orchestrator.run_lease import holder
from slipstream.errors import SlipstreamError
from slipstream.secrets import redact

FILE_NAME = "status.json"
LATE_AFTER_S = 30.0  # the driver writes about every second

State = Literal["starting", "running", "paused", "stopping", "ended", "failed"]
OVER = ("ended", "failed")


class NoStatus(SlipstreamError):
    """There is no status to be read; `str()` says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleStatus:
    """One role, as the driver sees it."""

    name: str  # rollout-0
    state: str  # starting, running, leaving, dead, ...
    version: int | None  # of its weights; None before the first
    incarnation: int  # of a worker; a rank's is its timeline
    num_restarts: int
    node: str
    since_s: float  # when this state began, by the driver's clock
    detail: str = ""  # what it does now, or what it died of


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """One job. Times are seconds since the epoch, by the driver's clock."""

    job: str
    state: State
    version: int
    num_steps: int  # the version with which the job ends
    timeline: int
    launched_at_s: float
    at_s: float  # when this was written
    message: str = ""  # what is waited for, or why it ended
    roles: tuple[RoleStatus, ...] = ()
    replay: Mapping[str, Any] = field(default_factory=dict)  # its statistics

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


_STATUS = TypeAdapter(Status)


def write_status(run_dir: Path, status: Mapping[str, Any]) -> None:
    """Replace the run's status by `status`, a `Status.as_json()`, without secrets."""
    # On a full disk the status grows old, and the job goes on.
    with suppress(OSError):
        write_whole(run_dir / FILE_NAME, redact(status))


def read_status(run_dir: Path) -> StatusReport:
    """The run's status, and whether its driver lives. Raises NoStatus."""
    path = run_dir / FILE_NAME
    try:
        status = _STATUS.validate_json(path.read_bytes())
        age_s = max(0.0, now_s(run_dir) - path.stat().st_mtime)
    except FileNotFoundError:
        raise NoStatus(f"{path} does not exist: no job has begun there") from None
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise NoStatus(f"{path} cannot be read: {reason}") from None
    return StatusReport(status=status, age_s=age_s, driver=holder(run_dir))


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """What the command prints, in either form."""

    status: Status
    age_s: float  # of the file, by its file system's clock
    driver: Driver | None  # at work now

    @property
    def state(self) -> str:
        """As written; `gone` where the driver died before it could write that it ended."""
        if self.driver is None and self.status.state not in OVER:
            return "gone"
        if self.driver is not None and self.status.at_s < self.driver.since_s:
            return "starting"  # and what is written is of the launch before
        return self.status.state

    def as_json(self) -> dict[str, Any]:
        return {
            **self.status.as_json(),
            "state": self.state,
            "age_s": self.age_s,
            "driver": None if self.driver is None else asdict(self.driver),
        }

    def as_text(self) -> RenderableType:
        job = Table(show_header=False, title=f"Status of {self.status.job}", title_justify="left")
        job.add_column(style="bold")
        job.add_column(overflow="fold")
        for name, value in self._figures():
            job.add_row(name, value)
        return Group(job, self._roles(), *map(Text, self._warnings()))

    def _figures(self) -> list[tuple[str, str]]:
        status = self.status
        return [
            ("state", self.state),
            ("version", f"{status.version} of {status.num_steps}, timeline {status.timeline}"),
            ("launched", f"{duration(self._now_s - status.launched_at_s)} ago"),
            ("written", f"{duration(self.age_s)} ago"),
            ("driver", "none" if self.driver is None else str(self.driver)),
            ("replay", _replay(status.replay)),
            *([("message", status.message)] if status.message else []),
        ]

    def _roles(self) -> Table:
        table = Table()
        for heading in ("role", "state", "for", "version", "incarnation", "restarts", "node", ""):
            table.add_column(heading, overflow="fold")
        for role in self.status.roles:
            table.add_row(
                role.name,
                role.state,
                duration(self._now_s - role.since_s),
                "-" if role.version is None else str(role.version),
                str(role.incarnation),
                str(role.num_restarts),
                role.node,
                role.detail,
            )
        return table

    def _warnings(self) -> list[str]:
        if self.state == "gone":
            last = f"it was {self.status.state} {duration(self.age_s)} ago"
            return [f"The driver is gone without a word: {last}. Go on with --resume."]
        if self.driver is not None and self.age_s > LATE_AFTER_S:
            return [f"The driver lives, and has written nothing for {duration(self.age_s)}."]
        return []

    @property
    def _now_s(self) -> float:
        """By the driver's clock; of a dead driver, when it last wrote."""
        return self.status.at_s if self.driver is None else self.status.at_s + self.age_s


def _replay(stats: Mapping[str, Any]) -> str:
    """Its figures in words."""
    names = {
        "num_buffered": "buffered",
        "num_running": "running",
        "num_requeued": "to be issued again",
        "num_trained": "trained",
    }
    counts = [f"{stats[key]:,} {name}" for key, name in names.items() if key in stats]
    reasons = {"waiting_for": "the learner waits for", "held_back": "workers are held back by"}
    waits = [f"{text} {stats[key]}" for key, text in reasons.items() if stats.get(key)]
    return "; ".join([", ".join(counts), *waits]) if counts else "nothing is known yet"


def duration(seconds: float) -> str:
    hours, rest = divmod(round(max(0.0, seconds)), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
