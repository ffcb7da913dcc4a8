"""Typed failures. Each says what went wrong, where, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass


class SlipstreamError(Exception):
    """Base of every error that is meant for people."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a job file."""

    where: str  # "file:line:column" or "command line: key"
    key: str  # dotted key, may be empty
    message: str  # what is wrong, what was expected, and the remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.key + ': ' if self.key else ''}{self.message}"


class JobFileError(SlipstreamError):
    """The job cannot start as written. Holds every problem, not just the first."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=_line_and_column)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def _line_and_column(problem: Problem) -> tuple[int, ...]:
    """The order of a file; what stands in none comes first."""
    match = re.search(r":(\d+):(\d+)$", problem.where)
    return tuple(map(int, match.groups())) if match else ()


class Restartable(SlipstreamError):
    """A role failed in a way that another start from the last commit may cure."""


class DeadlineExceeded(Restartable):
    """A remote call, or a collective of the ranks, did not end in time."""


class NotFinite(Restartable):
    """What the learner computes is not finite any more; its weights must not be published."""


class ProbeMismatch(SlipstreamError):
    """An engine's log-probs differ from the learner's after a weight update."""


class UpdateLost(SlipstreamError):
    """The weights of an announced version are gone, with the learner that published them."""


class UpdateStalled(UpdateLost):
    """The weights of an announced version did not come in time; they may when asked for again."""


class CommitFailed(Restartable):
    """The commit with which the learner was to end could not be written."""


class UpdateTorn(Restartable):
    """An engine failed while it loaded new weights, and holds half of them."""


class RoleFailed(SlipstreamError):
    """A role of the running job died or hung; `str()` names it and the reason."""


class LearnerFailed(RoleFailed):
    """A learner rank died or failed in a way that another start from the last commit may cure."""
