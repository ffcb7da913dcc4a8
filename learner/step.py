"""One learner step: a batch in, changed weights and metrics out. Knows no Ray.

    advantages of the whole batch (every rank computes the same)
    per epoch, per minibatch:
        per microbatch: forward, loss over the global denominator, backward
        one optimizer step

Three policies, never mixed up: mu sampled the tokens, pi_old is the learner when the step
begins, pi is what is being changed.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.algorithms import advantages as advantage_functions
from learner.algorithms.corrections import truncated_weights
from learner.algorithms.kl import kl_estimate
from learner.algorithms.losses import aggregate, denominator_of, ppo_clip
from learner.batching import microbatches, minibatches
from learner.engine import LearnerEngine, learning_rate_at
from learner.policy import Policy, sharing_width
from learner.tensors import Row, Sample, SampleTensors, rows_of, samples_of, to_tensors
from slipstream.config.job import AdvantageConfig, AlgorithmConfig, JobConfig
from slipstream.errors import SlipstreamError
from slipstream.records import Batch


class NotFinite(SlipstreamError):
    """The gradient of a step is not finite; its weights must not be published."""


@dataclass(slots=True)
class _Microbatch:
    """Of this rank, and pi_old's log-probs where they were computed ahead."""

    tensors: SampleTensors
    num_input_tokens: int  # without padding
    old_logprobs_BT: Tensor | None = None


@dataclass(slots=True)
class _Minibatch:
    """What one optimizer step trains on; the counts are of all ranks together."""

    microbatches: list[_Microbatch]
    num_tokens: int  # of the answers
    num_rollouts: int


class LearnerStep:
    """Applies the job's algorithm. `reference` is the frozen model of the KL term, if any."""

    def __init__(self, job: JobConfig, engine: LearnerEngine, reference: Policy | None) -> None:
        self._job = job
        self._engine = engine
        self._reference = reference
        self._width = sharing_width(engine.policy)

    def run(self, batch: Batch) -> dict[str, float]:
        """Train on `batch`; returns metrics that are the same on every rank."""
        algorithm = self._job.algorithm
        samples = samples_of(batch)
        advantages = _advantages(samples, algorithm.advantage)
        parts = [
            self._prepare(samples, advantages, groups)
            for groups in minibatches(len(batch.groups), algorithm.minibatches)
        ]
        if algorithm.epochs * algorithm.minibatches > 1 and algorithm.old_logprobs == "learner":
            self._compute_old_logprobs([entry for part in parts for entry in part.microbatches])
        totals: Counter[str] = Counter()
        rate = learning_rate_at(batch.version, self._job.learner)
        for _ in range(algorithm.epochs):
            for part in parts:
                totals.update(self._optimizer_step(part, rate))
        return _summary(totals, algorithm, rate)

    def _prepare(self, samples: list[Sample], advantages: list[float], groups: range) -> _Minibatch:
        """The minibatch made of `groups`, with this rank's microbatches."""
        chosen = [index for index, sample in enumerate(samples) if sample.group in groups]
        first, last = chosen[0], chosen[-1] + 1
        samples, advantages = samples[first:last], advantages[first:last]
        rows = rows_of(samples, self._width)
        cut = microbatches(
            [row.num_tokens for row in rows],
            max_tokens=self._job.learner.max_tokens_per_microbatch,
            num_ranks=self._engine.num_ranks,
        )
        return _Minibatch(
            [
                self._microbatch([rows[place] for place in part], samples, advantages)
                for part in cut[self._engine.rank]
            ],
            num_tokens=sum(sample.rollout.num_tokens for sample in samples),
            num_rollouts=len(samples),
        )

    def _microbatch(
        self, rows: list[Row], samples: list[Sample], advantages: list[float]
    ) -> _Microbatch:
        tensors = to_tensors(rows, samples, advantages, self._engine.device)
        return _Microbatch(tensors, num_input_tokens=sum(row.num_tokens for row in rows))

    def _forward(self, tensors: SampleTensors) -> tuple[Tensor, Tensor]:
        return self._engine.forward(
            tensors.rows, tensors.targets_BT, tensors.mask_BT, self._job.rollout.temperature
        )

    @torch.no_grad()
    def _compute_old_logprobs(self, entries: list[_Microbatch]) -> None:
        for entry in entries:
            entry.old_logprobs_BT, _ = self._forward(entry.tensors)

    def _optimizer_step(self, part: _Minibatch, rate: float) -> Counter[str]:
        denominator = denominator_of(
            self._job.algorithm.aggregate,
            num_tokens=part.num_tokens,
            num_rollouts=part.num_rollouts,
            max_tokens=self._job.rollout.max_new_tokens,
        )
        sums: dict[str, Tensor] = {}
        for place, entry in enumerate(part.microbatches, start=1):
            loss, metrics = self._loss(entry, denominator)
            self._engine.backward(loss, last=place == len(part.microbatches))
            for name, value in metrics.items():
                sums[name] = sums.get(name, torch.zeros((), device=loss.device)) + value
        norm = self._engine.step(rate)
        if not math.isfinite(norm):
            raise NotFinite(f"the gradient norm is {norm}; lower learner.learning_rate?")
        names = sorted(sums)
        totals = self._engine.all_sum(torch.stack([sums[name] for name in names])).tolist()
        return Counter({**dict(zip(names, totals, strict=True)), "grad_norm": norm})

    def _loss(self, entry: _Microbatch, denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The microbatch's share of the loss, and metrics as sums over its tokens."""
        algorithm, tensors = self._job.algorithm, entry.tensors
        mask_BT, mu_BT = tensors.mask_BT, tensors.behaviour_logprobs_BT
        logprobs_BT, entropies_BT = self._forward(tensors)
        old_BT = mu_BT if algorithm.old_logprobs == "behaviour" else entry.old_logprobs_BT
        if old_BT is None:
            old_BT = logprobs_BT.detach()
        loss_BT, metrics = ppo_clip(
            logprobs_BT,
            old_BT,
            tensors.advantages_BT,
            mask_BT,
            clip_low=algorithm.loss.clip_low,
            clip_high=algorithm.loss.clip_high,
            dual_clip=algorithm.loss.dual_clip,
        )
        mismatch_BT = (old_BT - mu_BT).detach() * mask_BT
        if algorithm.correction.kind == "truncated":
            weights_BT = truncated_weights(
                mismatch_BT, mask_BT, level=algorithm.correction.level, cap=algorithm.correction.cap
            )
            loss_BT = loss_BT * weights_BT
            metrics["correction_weight"] = (weights_BT * mask_BT).sum()
        if self._reference is not None:
            kl_BT = self._kl(tensors, logprobs_BT) * mask_BT
            loss_BT = loss_BT + algorithm.kl.coefficient * kl_BT
            metrics["kl_reference"] = kl_BT.detach().sum()
        loss = aggregate(loss_BT, mask_BT, algorithm.aggregate, denominator=denominator)
        metrics |= {
            "loss": loss.detach(),
            "num_tokens": mask_BT.sum(),
            "entropy": entropies_BT.sum(),
            "mu_mismatch": mismatch_BT.abs().sum(),
            "input_tokens": torch.tensor(float(entry.num_input_tokens), device=mask_BT.device),
            "padded_tokens": torch.tensor(
                float(tensors.rows.inputs_RS.numel()), device=mask_BT.device
            ),
        }
        return loss, metrics

    def _kl(self, tensors: SampleTensors, logprobs_BT: Tensor) -> Tensor:
        assert self._reference is not None
        with torch.no_grad():
            reference_BT, _ = self._reference(
                tensors.rows, tensors.targets_BT, tensors.mask_BT, self._job.rollout.temperature
            )
        return kl_estimate(logprobs_BT, reference_BT, self._job.algorithm.kl.estimator)


def _advantages(samples: list[Sample], config: AdvantageConfig) -> list[float]:
    """One number a sample, from the rewards of the whole batch."""
    scores_B = torch.tensor([sample.rollout.reward for sample in samples], dtype=torch.float32)
    group_B = torch.tensor([sample.group for sample in samples])
    match config.kind:
        case "grpo":
            advantages_B = advantage_functions.grpo(
                scores_B, group_B, scale=config.scale, unbiased=config.unbiased, eps=config.eps
            )
        case "reinforce":
            advantages_B = advantage_functions.reinforce(scores_B, baseline=config.baseline)
    return [float(value) for value in advantages_B]


def _summary(totals: Counter[str], algorithm: AlgorithmConfig, rate: float) -> dict[str, float]:
    """Means per token, and per update where a figure belongs to one."""
    values = dict(totals)
    num_updates = algorithm.epochs * algorithm.minibatches
    num_tokens = max(1.0, values.pop("num_tokens"))
    inputs, padded = values.pop("input_tokens"), values.pop("padded_tokens")
    return {
        "loss": values.pop("loss") / num_updates,
        "grad_norm": values.pop("grad_norm") / num_updates,
        "learning_rate": rate,
        "padding_share": 1.0 - inputs / padded,
        **{name: value / num_tokens for name, value in values.items()},
    }
