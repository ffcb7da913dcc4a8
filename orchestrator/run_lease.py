"""One driver a run: the lease on a run's directory keeps a second driver from writing there.

    <run>/driver.json             who holds the run; touched every few seconds, removed at the end
    <run>/driver.json.after-<id>  who takes it over from the holder <id>, which is gone

Both appear by a hard link to a file already written, which one taker alone can make, on a file
server too. The taker renames `after-<id>` to `driver.json`. Should it die before, it is followed in
the same way by `after-<its id>`: the last of this chain is who holds the run or takes it.

A holder is gone when its process is, as far as this machine can tell, or when the file was not
touched for 30 s by the clock of its file system. A driver that was only suspended finds another's
file when it wakes, and stops.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from pydantic import TypeAdapter

from orchestrator.driver import Driver, this_driver
from orchestrator.run_files import now_s
from slipstream.errors import JobFileError, Problem, RoleFailed

FILE_NAME = "driver.json"
RENEW_EVERY_S = 5.0
GONE_AFTER_S = 30.0


_DRIVER = TypeAdapter(Driver)


@contextmanager
def held(run_dir: Path) -> Iterator[RunLease]:
    """Hold `run_dir`, which is made if it is not there. Raises JobFileError where another does."""
    lease = RunLease(run_dir, this_driver())
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        _claim(run_dir / FILE_NAME, lease.mine)
    except OSError as error:
        message = f"cannot be claimed: {error}"
        raise JobFileError([Problem(str(run_dir / FILE_NAME), "", message)]) from None
    with lease.renewed():
        yield lease


def holder(run_dir: Path) -> Driver | None:
    """The driver at work on `run_dir`, or None. Changes nothing."""
    found = _look(run_dir / FILE_NAME)
    return None if found is None or _is_gone(*found) else found[0]


def refusal(run_dir: Path) -> str | None:
    """Why `run_dir` cannot be written by another process now, or None. Changes nothing."""
    found = _look(run_dir / FILE_NAME)
    if found is None or _is_gone(*found) or found[0].is_this_process:
        return None
    return _refusal(*found)


class RunLease:
    """The right to write in a run's directory, until `lost`."""

    def __init__(self, run_dir: Path, mine: Driver) -> None:
        self.mine = mine
        self.lost: Driver | None = None  # to this one
        self._path = run_dir / FILE_NAME
        self._ended = threading.Event()

    def check(self) -> None:
        """Raises RoleFailed once another driver has taken the run over."""
        self._renew()
        if self.lost is not None:
            raise RoleFailed(f"{self._path.parent} was taken over by {self.lost}; this one stops")

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew it beside what is done inside, then give it up."""
        thread = threading.Thread(target=self._keep_renewing, name="run-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join(timeout=RENEW_EVERY_S)
            with suppress(OSError):
                if _is(_read(self._path), self.mine):
                    self._path.unlink()

    def _keep_renewing(self) -> None:
        while not self._ended.wait(RENEW_EVERY_S):
            self._renew()

    def _renew(self) -> None:
        # Who cannot reach the directory cannot harm it, and sees later whether it was taken.
        with suppress(OSError):
            found = _read(self._path)
            if found is None and self.lost is None:  # removed by hand
                _write_new(self._path, self._path, self.mine)
            elif _is(found, self.mine):
                os.utime(self._path)
            elif self.lost is None:
                self.lost = found


# --- the files --------------------------------------------------------------------


def _claim(path: Path, mine: Driver) -> None:
    """Make `mine` the holder. Raises JobFileError where another is, or is about to be."""
    while True:
        chain = _chain(path)
        place = path
        if chain:
            found = _look(chain[-1])
            if found is None:
                continue  # it has just been renamed, or given up
            if not _is_gone(*found):
                raise JobFileError([Problem(str(path.parent), "", _refusal(*found))])
            place = _after(
                path, found[0]
            )  # the one that was judged: the file may be another by now
        if not _write_new(path, place, mine):
            continue
        # The chain may have become another one before that: then `place` hangs in the air.
        if (now := _chain(path)) and _is(_read(now[-1]), mine):
            break
        place.unlink(missing_ok=True)
    if chain:
        place.replace(path)
    for dead in chain[1:]:
        dead.unlink(missing_ok=True)


def _chain(path: Path) -> list[Path]:
    """The files of the holder and of those that take over from it, one after another."""
    chain, following = [], path
    while (driver := _read(following)) is not None:
        chain.append(following)
        following = _after(path, driver)
    return chain


def _after(path: Path, driver: Driver) -> Path:
    return path.with_name(f"{path.name}.after-{driver.id}")


def _write_new(path: Path, place: Path, mine: Driver) -> bool:
    """Write `place` whole, unless it exists; whether it is `mine` then."""
    aside = path.with_name(f"{path.name}.{mine.id}-{threading.get_ident()}")
    aside.write_text(json.dumps(asdict(mine), indent=2) + "\n", encoding="utf-8")
    try:
        os.link(aside, place)
    except FileExistsError:  # a file server may say so of a request that it carried out
        return _is(_read(place), mine)
    finally:
        aside.unlink(missing_ok=True)
    return True


def _read(path: Path) -> Driver | None:
    """Who wrote the file at `path`; None where there is none."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _DRIVER.validate_json(content)
    except ValueError:  # an id all the same, so that it can be followed once it is old
        unknown = sha256(content).hexdigest()
        return Driver(id=unknown, host="unknown", machine="", pid=0, started=0, since_s=0.0)


def _look(path: Path) -> tuple[Driver, float] | None:
    """Who wrote the file at `path`, and its age in seconds."""
    driver = _read(path)
    try:
        return None if driver is None else (driver, now_s(path.parent) - path.stat().st_mtime)
    except FileNotFoundError:
        return None


def _is(driver: Driver | None, other: Driver) -> bool:
    return driver is not None and driver.id == other.id


def _is_gone(driver: Driver, age_s: float) -> bool:
    # From the future: the clock was set back, and nobody renews it.
    return driver.has_ended or abs(age_s) > GONE_AFTER_S


def _refusal(driver: Driver, age_s: float) -> str:
    if driver.is_on_this_machine:
        remedy = f"end it with Ctrl-C or `kill {driver.pid}`"
    else:
        wait_s = math.ceil(GONE_AFTER_S - age_s)
        remedy = f"end it there, or wait {wait_s} s if it is dead"
    return f"{driver} is at work on this run; {remedy}, or choose another name"
