"""For all tests."""

import os

from hypothesis import settings

# As `orchestrator` sets it. Ray reads it once a process, whichever test comes first.
os.environ["RAY_AUTH_MODE"] = "token"

# How long an example takes says more of the machine than of the code.
settings.register_profile("slipstream", deadline=None)
settings.load_profile("slipstream")
