"""Log-probs of chosen tokens from hidden states, without ever holding all logits.

N tokens times V words of float32 logits do not fit for long batches (4,096 x 152,000 is
2.5 GB, several times over in autograd). Here a chunk of tokens at a time makes its logits,
keeps one number a token, and makes them again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20  # of one chunk's float32 logits


def linear_logprobs(
    hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(log-probs, entropies), each (N,) float32, of softmax(hidden @ weight.T / temperature)."""
    logprobs_N, entropies_N = _LinearLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, weight_VH, targets_N, temperature
    )
    return logprobs_N, entropies_N


def _chunks(num_tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    return [slice(start, start + size) for start in range(0, num_tokens, size)]


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden_NH.dtype, torch.float32)
        logprobs_N = torch.empty(len(targets_N), dtype=dtype, device=hidden_NH.device)
        entropies_N = torch.empty_like(logprobs_N)
        lse_N = torch.empty_like(logprobs_N)
        for part in _chunks(len(targets_N), len(weight_VH)):
            logits_NV = (hidden_NH[part] @ weight_VH.T).to(dtype).div_(temperature)
            lse_N[part] = logits_NV.logsumexp(-1)
            logprobs_N[part] = logits_NV.gather(-1, targets_N[part, None])[:, 0] - lse_N[part]
            logits_NV.sub_(lse_N[part, None])
            entropies_N[part] = -(logits_NV.exp().mul_(logits_NV)).sum(-1)
        ctx.save_for_backward(hidden_NH, weight_VH, targets_N, lse_N, entropies_N)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)  # no work for an output that the loss leaves out
        return logprobs_N, entropies_N

    @staticmethod
    def backward(
        ctx: Any, grad_N: Tensor | None, grad_entropies_N: Tensor | None
    ) -> tuple[Tensor, Tensor, None, None]:
        hidden_NH, weight_VH, targets_N, lse_N, entropies_N = ctx.saved_tensors
        grad_hidden_NH = torch.empty_like(hidden_NH)
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=lse_N.dtype)
        for part in _chunks(len(targets_N), len(weight_VH)):
            # With p the softmax and H its entropy, over the temperature:
            # d logprob / d logits = onehot(target) - p;  d H / d logits = -p (log p + H)
            logits_NV = (hidden_NH[part] @ weight_VH.T).to(lse_N.dtype).div_(ctx.temperature)
            logits_NV.sub_(lse_N[part, None])
            scale_NV = torch.zeros_like(lse_N[part, None])
            if grad_entropies_N is not None:
                scale_NV = grad_entropies_N[part, None] * (logits_NV + entropies_N[part, None])
            if grad_N is not None:
                scale_NV = scale_NV + grad_N[part, None]
            grad_NV = logits_NV.exp_().mul_(scale_NV).neg_()
            if grad_N is not None:
                grad_NV.scatter_add_(-1, targets_N[part, None], grad_N[part, None])
            grad_NV = grad_NV.div_(ctx.temperature).to(hidden_NH.dtype)
            grad_hidden_NH[part] = grad_NV @ weight_VH
            grad_weight_VH.addmm_(grad_NV.T.to(lse_N.dtype), hidden_NH[part].to(lse_N.dtype))
        return grad_hidden_NH, grad_weight_VH.to(weight_VH.dtype), None, None
