"""From a job file to a running job: plan, place, start, watch, finish; the command line.

Only `launch` knows the roles' actors; only `launch`, `cluster` and `placement` import ray.
"""
