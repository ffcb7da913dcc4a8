"""Where a run's figures go beside its own files.

event ─▶ `Curves` ─▶ figures of a version ─▶ `Feed`, a thread each ─▶ TensorBoard, W&B, ...
"""
