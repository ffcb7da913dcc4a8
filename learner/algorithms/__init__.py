"""Advantages, losses, divergences and corrections: pure functions on torch tensors.

Suffixes name dimensions: B rollouts, T tokens. `mask_BT` is 1 on trained tokens, 0
elsewhere; masked entries never influence others. Inputs are never changed.
"""
