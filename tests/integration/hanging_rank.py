"""One of two learner ranks, the second of which hangs in its second step.

    python hanging_rank.py MODEL ZERO_STAGE

Rank 0 must raise DeadlineExceeded. It prints how long it waited, in seconds.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

STEP_TIMEOUT_S, HANGS_S = 3.0, 60.0


def main() -> None:
    model, stage = sys.argv[1:]
    from learner.engine import LearnerEngine
    from learner.policy import load_policy
    from learner.ranks import collectives, join, limit_collectives
    from learner.step import LearnerStep
    from slipstream.errors import DeadlineExceeded
    from tests.helpers.jobs import make_batch, make_job

    learner = {"zero_stage": int(stage), "num_ranks": 2, "step_timeout_s": STEP_TIMEOUT_S}
    job = make_job(model, learner=learner)
    device = join(job)
    engine = LearnerEngine(load_policy(job.model), job, device)
    step = LearnerStep(job, engine, None)
    limit_collectives(job.learner.step_timeout_s)
    step.run(make_batch(0))
    if engine.rank == 1:
        hang_in(engine)
    start_s = time.monotonic()
    try:
        with collectives(job.learner.step_timeout_s):
            step.run(make_batch(1))
    except DeadlineExceeded as error:
        print(f"{time.monotonic() - start_s:.1f} {error}", flush=True)
        os._exit(0)  # the group's threads still wait for the other rank
    raise AssertionError("the other rank hung, and the step ended")


def hang_in(engine: Any) -> None:
    engine.backward = lambda _loss, *, last: time.sleep(HANGS_S)


if __name__ == "__main__":
    main()
