from __future__ import annotations

import pytest

from orchestrator import plan as module
from orchestrator.checks import fits
from orchestrator.plan import make_plan
from tests.helpers.jobs import make_job


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})


def test_engines_and_ranks_get_cores_of_their_own() -> None:
    plan = make_plan(make_job(rollout={"num_workers": 2}, learner={"num_ranks": 2}))
    assert plan.worker_cores == ((3,), (2,))
    assert plan.rank_cores == ((1,), (0,))
    assert plan.totals() == {"CPU": 4, "GPU": 0}


def test_shared_devices_are_the_same_cores() -> None:
    plan = make_plan(
        make_job(rollout={"colocate": True, "cpus": 2}, learner={"cpus_per_rank": 2}, mode="sync")
    )
    assert plan.worker_cores == plan.rank_cores == ((2, 3),)
    assert plan.totals() == {"CPU": 2, "GPU": 0}


def test_shared_bundles_hold_one_of_each_role() -> None:
    """As placement reserves them: as many as the larger role has actors, each for the larger."""
    rollout, learner = {"colocate": True, "num_workers": 4}, {"cpus_per_rank": 4}
    assert make_plan(make_job(rollout=rollout, learner=learner)).totals() == {"CPU": 16, "GPU": 0}


def test_more_than_there_are_wrap_around() -> None:
    plan = make_plan(make_job(rollout={"num_workers": 5}))
    assert plan.worker_cores[4] == plan.worker_cores[0]


def test_roles_on_gpus_are_not_bound() -> None:
    plan = make_plan(make_job(rollout={"gpus": 1}, learner={"gpus_per_rank": 1, "num_ranks": 2}))
    assert plan.worker_cores == ((),)
    assert plan.rank_cores == ((), ())
    assert plan.totals()["GPU"] == 3


def test_what_the_cluster_lacks_is_said() -> None:
    plan = make_plan(make_job(learner={"gpus_per_rank": 1, "num_ranks": 2}))
    (problem,) = fits(plan, {"CPU": 64.0}, "job.yaml")
    assert "2 GPU" in str(problem)
    assert "has 0" in str(problem)
    assert fits(plan, {"CPU": 64.0, "GPU": 2.0}, "job.yaml") == []
