"""A cluster as seen from outside, through the Jobs API of its Ray dashboard.

Each call has a deadline and carries the cluster's token; what fails is a ClusterError in words.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import requests
from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from orchestrator.submission import is_http
from slipstream.errors import SlipstreamError

T = TypeVar("T")
CALL_TIMEOUT_S = 30.0
LOOK_EVERY_S = 0.25
SILENT_AFTER_S = 30.0  # then a followed log is asked for anew: its connection may be dead
LOST_AFTER_S = 120.0  # without an answer, while a job is waited for or followed
TOKEN = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"


class ClusterError(SlipstreamError):
    """The cluster cannot be asked; `str()` says why and what to do."""


class Unreachable(ClusterError):
    """Nobody answers there, now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A job, as its cluster tells of it."""

    status: str  # PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED
    exit_code: int | None  # None where the command did not end by itself
    message: str

    @property
    def is_over(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


class Cluster:
    """The cluster whose dashboard answers at `address`."""

    def __init__(self, address: str) -> None:
        self.address = address
        # Ray takes these before what it is told.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        logging.disable(logging.INFO)  # of what Ray's client does
        with self._in_words():
            self._client = _Client(address)

    @classmethod
    def at(cls, address: str) -> Self:
        """Raises ClusterError."""
        if not is_http(address):
            raise ClusterError(
                f"--address {address}: expected the cluster's dashboard, as in http://HOST:8265"
            )
        return cls(address)

    def submit(
        self,
        entrypoint: str,
        submission_id: str,
        *,
        runtime_env: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        try:
            with self._in_words():
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    runtime_env=dict(runtime_env or {}),
                    metadata=dict(metadata or {}),
                )
        except Unreachable as error:
            if not self._knows(submission_id):  # else its answer alone was lost
                message = f"{error}\nIt may have taken {submission_id} all the same: ray job list"
                raise Unreachable(message) from None

    def _knows(self, submission_id: str) -> bool:
        with suppress(ClusterError):
            self.look(submission_id)
            return True
        return False

    def look(self, submission_id: str) -> Seen:
        with self._in_words():
            found = self._client.get_job_info(submission_id)
        return Seen(
            status=str(getattr(found.status, "value", found.status)),
            exit_code=found.driver_exit_code,
            message=found.message or "",
        )

    def stop(self, submission_id: str) -> None:
        """Ask for SIGTERM, and later for SIGKILL; does not wait."""
        with self._in_words():
            self._client.stop_job(submission_id)

    def log(self, submission_id: str) -> str:
        def ask() -> str:
            with self._in_words():
                return str(self._client.get_job_logs(submission_id))

        return _patiently(ask)

    def wait(self, submission_id: str, timeout_s: float) -> Seen:
        """The job once it is over. Raises ClusterError where it is not by then, Unreachable after
        LOST_AFTER_S without an answer."""
        deadline_s = time.monotonic() + timeout_s
        while not (seen := _patiently(lambda: self.look(submission_id))).is_over:
            if time.monotonic() > deadline_s:
                raise ClusterError(
                    f"the command did not end within {timeout_s:.0f} s on {self.address}; it is "
                    f"{seen.status}: {seen.message}"
                )
            time.sleep(LOOK_EVERY_S)
        return seen

    def follow(
        self, submission_id: str, write: Callable[[str], None], look: Callable[[], None]
    ) -> Seen:
        """Give the log to `write` as it grows, until the job is over. `look` is called often, and
        again where it raises Unreachable.

        A lost connection is taken up again. Raises Unreachable after LOST_AFTER_S without one.
        """
        return asyncio.run(self._follow(submission_id, write, look))

    async def _follow(
        self, submission_id: str, write: Callable[[str], None], look: Callable[[], None]
    ) -> Seen:
        num_written, answered_s = 0, time.monotonic()
        while True:
            num_read = 0
            async for text in _ticked(self._client.tail_job_logs(submission_id)):
                with suppress(Unreachable):
                    look()
                write(text[max(0, num_written - num_read) :])  # each tail begins at the start
                num_read += len(text)
                num_written = max(num_written, num_read)
            try:
                look()
                if (seen := self.look(submission_id)).is_over:
                    return seen
                answered_s = time.monotonic()
            except Unreachable:
                if time.monotonic() > answered_s + LOST_AFTER_S:
                    raise
            await asyncio.sleep(LOOK_EVERY_S)

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(_token_error(self.address, str(error))) from None
        except requests.Timeout:
            raise Unreachable(
                f"{self.address} did not answer within {CALL_TIMEOUT_S:.0f} s; is it the "
                "dashboard of a Ray cluster, and is the way to it open?"
            ) from None
        except ConnectionError:  # Ray's own word for the first call
            raise Unreachable(_nobody(self.address)) from None
        except requests.ConnectionError:
            raise Unreachable(_nobody(self.address)) from None
        except (requests.RequestException, RuntimeError, ValueError) as error:
            raise ClusterError(_refused(self.address, str(error))) from None


def _patiently(ask: Callable[[], T]) -> T:
    """What is answered, in the end; for questions alone. Raises Unreachable after LOST_AFTER_S."""
    deadline_s = time.monotonic() + LOST_AFTER_S
    while True:
        try:
            return ask()
        except Unreachable:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(LOOK_EVERY_S)


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, whose calls would wait for ever."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, timeout=CALL_TIMEOUT_S, **options)


async def _ticked(texts: Any) -> Any:
    """What `texts` yields, and "" whenever nothing comes for LOOK_EVERY_S; ends where it does, or
    after SILENT_AFTER_S."""
    following, heard_s = None, time.monotonic()
    try:
        while time.monotonic() < heard_s + SILENT_AFTER_S:
            following = following or asyncio.ensure_future(anext(texts))
            done, _ = await asyncio.wait({following}, timeout=LOOK_EVERY_S)
            if not done:
                yield ""
                continue
            text, following = following.result(), None
            heard_s = time.monotonic()
            yield text
    except (StopAsyncIteration, ClientError, RuntimeError, OSError):
        return  # the log is at its end, or the connection is lost
    finally:
        if following is not None:
            following.cancel()


def _nobody(address: str) -> str:
    return (
        f"no Ray cluster answers at {address}; give the address of its dashboard, as in "
        "http://HOST:8265 (`ray start --head` prints it), and forward its port if it is not open"
    )


def _token_error(address: str, said: str) -> str:
    if "failed" in said:
        return (
            f"{address} refuses this token (403); take the one of its head, from "
            f"`ray get-auth-token` there, in {TOKEN}"
        )
    return (
        f"{address}: there is no token here, and no cluster is spoken to without one (401); take "
        f"the one of its head, from `ray get-auth-token` there, in {TOKEN}"
    )


def _refused(address: str, said: str) -> str:
    if "No available agent" in said:
        return (
            f"the head at {address} can start no jobs: the port of its agent was taken; start it "
            "with `ray start --head --dashboard-agent-listen-port=0`"
        )
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return f"{address} refuses: {lines[-1] if lines else 'it does not say why'}"
