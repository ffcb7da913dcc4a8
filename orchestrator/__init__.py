"""From a job file to a running job: plan, place, start, watch, finish; the command line.

Only `fleet` knows the roles' actors; only `fleet`, `cluster` and `placement` import ray.
"""

import os

# Whoever reaches a Ray cluster can run code on it. Ray reads this when it is imported.
os.environ.setdefault("RAY_AUTH_MODE", "token")
