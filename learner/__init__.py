"""Takes batches, applies the algorithm with DeepSpeed, publishes weights, commits.

`step` is the learner step, `algorithms` the pure functions it applies, `engine` the only
module that imports deepspeed, `actor` the Ray shell.
"""
