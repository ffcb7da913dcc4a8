"""The actors of one job: constructed, run, drained, stopped.

Every call to an actor has a deadline, and a role's death becomes a RoleFailed that names
the role and quotes its reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from learner.actor import LearnerRank, WeightBoard
from orchestrator.placement import Placement, place
from orchestrator.plan import Plan
from replay.actor import ReplayActor, ReplayClient
from rollout_worker.actor import RolloutWorkerActor
from slipstream.config.job import JobConfig
from slipstream.errors import DeadlineExceeded, RoleFailed
from slipstream.records import Prompt

CALL_TIMEOUT_S = 60.0
