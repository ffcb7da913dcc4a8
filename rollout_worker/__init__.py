"""Leases prompts, generates with vLLM, scores, hands groups to replay; adopts new weights
between decode steps.

`worker` is the loop, `engine` the protocol of its engine, `vllm_engine` the real one and
the only module that imports vllm, `actor` the Ray shell. `pulse` and `preemption` are for whoever
watches it: whether its engine lives, and what SIGTERM means.
"""
