"""From a job file to a running job: plan, place, start, watch, finish; the command line.

`fleet` has the actors of a job; `rollouts` and `learners` make them, hear them, mend what breaks.
What decides is pure: `health`, `evaluations`, `autoscale`, `run_state`, `watchdog`, `plan`.
"""

import os

# Whoever reaches a Ray cluster can run code on it. Ray reads this when it is imported.
os.environ["RAY_AUTH_MODE"] = "token"
