"""The contract that every role speaks: records, job file, protocols, telemetry.

Imports no torch, ray, vllm or deepspeed, so that it loads in milliseconds anywhere.
"""

__version__ = "0.1.0"
