"""The learner's loop, one per rank. Knows no Ray.

    consumes   replay.take(version): the same batch on every rank
    waits for  replay, while a batch is not complete
    makes      version + 1: published to the board, then reported to replay, then committed
               or nothing, where no gradient of the batch is finite: replay discards it

The order is the promise: replay hears of a version only once every worker could fetch it,
and a commit's replay snapshot is of the same step boundary as its weights.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

import numpy as np

from learner.commit_writer import CommitWriter
from learner.step import LearnerStep
from learner.weights import Prober
from slipstream.config.job import JobConfig
from slipstream.errors import DeadlineExceeded, NotFinite
from slipstream.faults import fault_point
from slipstream.protocols import ReplayForLearners, WeightPublisher
from slipstream.records import Batch, Stop, Wait
from slipstream.telemetry import Beat, Busy, EventLog

T = TypeVar("T")


class LearnerLoop:
    """Drives one rank from `version` to the end of the job."""

    def __init__(
        self,
        job: JobConfig,
        *,
        rank: int,
        timeline: int,
        version: int,
        is_new: bool,
        step: LearnerStep,
        replay: ReplayForLearners,
        publisher: WeightPublisher,
        prober: Prober | None,
        barrier: Callable[[], None],
        commits: CommitWriter,
        events: EventLog,
    ) -> None:
        self.version = version
        self._timeline = timeline
        self._is_new = is_new  # there is no commit yet
        self._job = job
        self._rank = rank
        self._step = step
        self._replay = replay
        self._publisher = publisher
        self._prober = prober
        self._barrier = barrier
        self._commits = commits
        self._events = events
        self._busy = Busy(keeps_spans=job.telemetry.enabled)
        self._committed_version = version
        self._num_bad_steps = 0  # in a row
        self._publish_s: Mapping[str, float] = {}

    def run(self) -> int:
        """Train until replay says stop; returns the last version."""
        try:
            with self._busy.phase("publish"):
                self._publish()
            if self._is_new:  # from its first step on there is a way back
                self._commit()
            while not isinstance(batch := self._next_batch(), Stop):
                if self._train(batch):
                    self._make_version()
                    self._report(batch)
                else:
                    self._discard(batch)
            if self.version > self._committed_version:
                self._commit()
        finally:
            with self._busy.phase("write"):
                self._commits.join()  # where training fails, that under way is good all the same
        self._commits.wait()
        return self.version

    def beat(self) -> Beat:
        """What this rank does now; any thread may ask."""
        phase, phase_s = self._busy.now()
        return Beat(
            timeline=self._timeline,
            version=self.version,
            phase=phase,
            phase_s=phase_s,
        )

    def _next_batch(self) -> Batch | Stop:
        """Replay holds the call until there is a batch, or answers Wait after a while."""
        with self._busy.phase("wait"):
            while isinstance(
                reply := self._answer(self._replay.take(self.version, self._timeline), "take"), Wait
            ):
                self._publisher.remind()  # workers may be what the batch waits for
        return reply

    def _train(self, batch: Batch) -> bool:
        """Whether the step counts: not where each of its updates was skipped."""
        with self._busy.phase("train"):
            fault_point(f"step.learner-{self._rank}")
            self._metrics = self._step.run(batch)
        return not (self._metrics["updates_skipped"] and not self._metrics["num_updates"])

    def _discard(self, batch: Batch) -> None:
        """No weight has changed, and this batch would change none a second time either."""
        with self._busy.phase("discard"):
            if self._rank == 0:
                discarded = self._replay.discard(self.version, self._timeline, batch.number)
                self._answer(discarded, "discard")
            # No other rank may get the same batch again.
            self._barrier()
        self._num_bad_steps += 1
        loss, num_updates = self._metrics["loss"], self._metrics["updates_skipped"]
        detail = f"loss {loss:g}, and no finite gradient in {num_updates:g} updates"
        if self._rank == 0:
            self._events.emit(
                "skipped", version=self.version, num_groups=len(batch.groups), detail=detail
            )
        if self._num_bad_steps > self._job.learner.max_bad_steps:
            raise NotFinite(
                f"{self._num_bad_steps} batches in a row gave version {self.version} no finite "
                f"gradient (the last one: {detail}); look at learner.learning_rate, the rewards "
                "and the log-probs of the answers"
            )

    def _make_version(self) -> None:
        self._num_bad_steps = 0
        self.version += 1
        with self._busy.phase("publish"):
            self._publish()
            if self._rank == 0:
                self._answer(self._replay.trained(self.version, self._timeline), "trained")
            # No other rank may ask for the next batch before replay knows of the version.
            self._barrier()
        if self._commits.due(self.version):
            self._commit()

    def _publish(self) -> None:
        probe = self._prober.measure() if self._prober is not None else None
        if probe is not None and not np.isfinite(probe.logprobs).all():
            raise NotFinite(
                f"log-probs of version {self.version} are not finite, so that it is not published; "
                "lower learner.learning_rate?"
            )
        self._publish_s = self._publisher.publish(self._timeline, self.version, probe)

    def _commit(self) -> None:
        """The files are written while training goes on."""
        with self._busy.phase("write"):  # of the commit before
            self._commits.join()
        with self._busy.phase("commit"):
            snapshot = None
            if self._rank == 0:
                snapshot = self._answer(self._replay.snapshot(self._timeline), "snapshot")
                assert snapshot.state["version"] == self.version, "another step boundary"
            self._commits.start(self.version, snapshot)
            self._committed_version = self.version

    def _answer(self, future: Future[T], call: str) -> T:
        timeout_s = self._job.replay.call_timeout_s
        try:
            return future.result(timeout=timeout_s)
        except FutureTimeoutError:
            raise DeadlineExceeded(
                f"replay did not answer {call} of version {self.version} in {timeout_s} s"
            ) from None

    def _report(self, batch: Batch) -> None:
        if self._rank != 0:
            return
        rewards = [r.reward for entry in batch.groups for r in entry.group.rollouts]
        self._events.emit(
            "step",
            version=self.version,
            loss=self._metrics["loss"],
            reward=sum(rewards) / len(rewards),
            lags=dict(Counter(entry.lag for entry in batch.groups)),
            num_groups=len(batch.groups),
            num_rollouts=batch.num_rollouts,
            num_answer_tokens=batch.num_answer_tokens,
            tokens_sha256=_digest(batch),
            seconds=self._busy.drain(),
            spans=self._busy.drain_spans(),
            metrics={**self._metrics, **self._publish_s},
        )


def _digest(batch: Batch) -> str:
    """Of the batch's ordinals and token ids, to compare runs step by step."""
    digest = hashlib.sha256()
    for entry in batch.groups:
        digest.update(str(entry.group.ordinal).encode())
        for rollout in entry.group.rollouts:
            digest.update(rollout.token_ids.tobytes())
    return digest.hexdigest()
