"""One job under attack: launched as often as it takes, struck from outside, read afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psutil
from results import ROOT

How = Literal["kill", "stop", "starve"]
ROLES = {
    "learner": "ray::LearnerRank",
    "replay": "ray::ReplayActor",
    "weights": "ray::WeightBoard",
    "rollout": "ray::RolloutWorkerActor",
    "driver": "orchestrator.cli",
}
STOPPED_S, STARVED_S = 20.0, 3.0  # until SIGCONT; longer and shorter than a heartbeat may take
LEFT_S, WHOLE_S, STEP_S = 30.0, 1500.0, 300.0
MARK = "SLIPSTREAM_CHAOS"  # in the environment of every process of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """What was done to a role, and when."""

    role: str
    how: How
    pid: int
    at_s: float  # time.time()
    num_steps: int  # made until then


@dataclass(slots=True)
class Run:
    """One run over as many launches as it takes."""

    file: Path
    directory: Path
    settings: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    num_launches: int = 0
    strikes: list[Strike] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)  # of launches that were killed
    mark: str = field(default_factory=lambda: uuid4().hex)
    _stopped: list[tuple[float, psutil.Process]] = field(default_factory=list)
    _shared_memory: set[str] = field(
        default_factory=lambda: {path.name for path in Path("/dev/shm").iterdir()}
    )

    # --- its processes ----------------------------------------------------------------

    def launch(self) -> None:
        """For the first time, or again."""
        if not self.num_launches:
            shutil.rmtree(self.directory, ignore_errors=True)  # also its count of steps
        how = "--resume" if self.num_launches else "--overwrite"
        command = [sys.executable, "-m", "orchestrator.cli", "launch", str(self.file), how]
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        log = self.directory.with_suffix(".log").open("ab" if self.num_launches else "wb")
        where = f"checkpoint.dir={self.directory.parent}"
        self.process = subprocess.Popen(
            [*command, f"name={self.directory.name}", where, *self.settings],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts' / 'bench'}",
                MARK: self.mark,
            },
            stdout=log,
            stderr=log,
        )
        self.num_launches += 1

    @property
    def has_ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def finish(self) -> None:
        """To the end; where a launch fails, another one goes on."""
        assert self.process is not None
        while self.process.wait(timeout=WHOLE_S) != 0:
            assert self.num_launches < 50, f"see {self.directory.with_suffix('.log')}"
            self.launch()
        self.wake(everybody=True)

    def processes(self, role: str) -> list[psutil.Process]:
        """Of a role, the driver's own first."""
        found = []
        for process in psutil.process_iter():
            try:
                title = " ".join(process.cmdline())
                if ROLES[role] in title and process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return sorted(found, key=lambda process: process.pid)

    # --- what is done to it -----------------------------------------------------------

    def strike(self, role: str, how: How, index: int = 0) -> bool:
        """Kill, stop or starve a process of `role`; False where there is none now."""
        processes = self.processes(role)
        if not processes:
            return False
        process = processes[index % len(processes)]
        now_s, num_steps = time.time(), self.num_steps()
        match how:
            case "kill":
                process.kill()
            case "stop" | "starve":
                process.suspend()
                seconds = STOPPED_S if how == "stop" else STARVED_S
                self._stopped.append((time.monotonic() + seconds, process))
        self.strikes.append(
            Strike(role=role, how=how, pid=process.pid, at_s=now_s, num_steps=num_steps)
        )
        return True

    def wake(self, *, everybody: bool = False) -> None:
        """Let those go on that were stopped for long enough, if they are still there."""
        due = [entry for entry in self._stopped if everybody or entry[0] <= time.monotonic()]
        for entry in due:
            self._stopped.remove(entry)
            try:
                entry[1].send_signal(signal.SIGCONT)
            except psutil.Error:
                continue  # it was replaced, and killed

    def wait_for_steps(self, num_more: int) -> bool:
        """Whether so many more were made; False where the job ended before."""
        goal, deadline_s = self.num_steps() + num_more, time.monotonic() + STEP_S
        while self.num_steps() < goal:
            if self.has_ended:
                return False
            assert time.monotonic() < deadline_s, f"no step for {STEP_S:.0f} s"
            self.wake()
            time.sleep(0.1)
        return True

    # --- what is left of it -----------------------------------------------------------

    def num_steps(self) -> int:
        """Learner steps so far, also those that were undone."""
        file = self.directory / "metrics.jsonl"
        return file.read_text().count('"kind": "step"') if file.exists() else 0

    def events(self) -> list[dict[str, Any]]:
        """Of all launches, by time."""
        lines = (self.directory / "metrics.jsonl").read_text().splitlines()
        return sorted(map(json.loads, lines), key=lambda event: float(event["time_s"]))

    def ledger(self) -> dict[str, Any]:
        """What `slipstream ledger` says. Its exit code is the verdict."""
        command = [sys.executable, "-m", "orchestrator.cli", "ledger", str(self.directory)]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def left_behind(self) -> list[str]:
        """Processes that outlive the run by LEFT_S, which are killed then, and shared memory."""
        deadline_s = time.monotonic() + LEFT_S
        while (alive := list(self._alive())) and time.monotonic() < deadline_s:
            time.sleep(0.5)
        for process in alive:
            process.kill()
        segments = {path.name for path in Path("/dev/shm").iterdir()} - self._shared_memory
        return [*(" ".join(process.cmdline()) for process in alive), *sorted(segments)]

    def _alive(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(MARK) == self.mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    yield process
            except psutil.Error:
                continue
