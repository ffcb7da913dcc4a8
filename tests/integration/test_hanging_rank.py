"""A rank that hangs in a step does not hold up the others for longer than a step may take."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.jobs import make_model
from tests.helpers.ranks import TIMEOUT_S, ranks

PROGRAM = Path(__file__).with_name("hanging_rank.py")
STEP_TIMEOUT_S = 3.0  # as in the program


def test_a_collective_ends_with_the_time_of_a_step_and_in_words(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    # ZeRO 2 waits in a group of DeepSpeed's own.
    with ranks(PROGRAM, 2, tmp_path, str(model), "2") as [(first, log), _]:
        assert first.wait(TIMEOUT_S) == 0, log.read_text()[-3000:]
    waited_s, words = log.read_text().splitlines()[-1].split(" ", 1)
    assert STEP_TIMEOUT_S - 0.5 < float(waited_s) < STEP_TIMEOUT_S + 5
    assert words.startswith("a collective did not end within 3 s: another rank hangs or died")
