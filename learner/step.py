"""One learner step: a batch in, changed weights and metrics out. Knows no Ray.

    scores of the whole batch (every rank has all of them)
    what the step needs of its first policy: pi_old's and the reference's log-probs
    advantages
    per epoch, per minibatch:
        per microbatch: forward, loss over the global denominator, backward
        the ranks agree whether every loss and gradient is finite
        one optimizer step of the policy and its critic, or none

Three policies, never mixed up: mu sampled the tokens, pi_old is the learner when the step
begins, pi is what is being changed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from learner.algorithms.kl import kl_estimate
from learner.algorithms.losses import LossAndMetrics, denominator_of
from learner.credit import assign_advantages, scores_of
from learner.engine import LearnerEngine, learning_rate_at
from learner.minibatch import Microbatch, Minibatch, cut
from learner.objective import critic_loss_of, loss_of
from learner.policy import Outputs, Policy, Rows, sharing_width
from learner.state import AlgorithmState
from learner.tensors import samples_of
from slipstream.config.job import JobConfig
from slipstream.errors import NotFinite
from slipstream.records import Batch

Forward = Callable[[Rows, Tensor, Tensor, float, Tensor], Outputs]
LossOf = Callable[[Microbatch], LossAndMetrics]


class LearnerStep:
    """Applies the job's algorithm. `reference` is the frozen model of the KL term, if any, and
    `critic` the engine of the model that values answers, if the advantage needs one."""

    def __init__(
        self,
        job: JobConfig,
        engine: LearnerEngine,
        reference: Policy | None,
        critic: LearnerEngine | None = None,
    ) -> None:
        self.state = AlgorithmState.of(job.algorithm)
        self._job = job
        self._algorithm = job.algorithm
        self._engine = engine
        self._reference = reference
        self._critic = critic
        models = [engine.model] if critic is None else [engine.model, critic.model]
        self._width = min(sharing_width(model) for model in models)

    def run(self, batch: Batch) -> dict[str, float]:
        """Train on `batch`; returns metrics that are the same on every rank.

        An update whose loss or gradient is not finite is not made (`updates_skipped`). With
        `num_updates` of 0 nothing has changed.
        """
        algorithm, engine = self._algorithm, self._engine
        samples = samples_of(batch)
        scores = scores_of(self._job, samples)
        parts = cut(
            self._job,
            samples,
            width=self._width,
            rank=engine.rank,
            num_ranks=engine.num_ranks,
            device=engine.device,
        )
        if not parts:  # every answer was cut by length, and filtered
            return {"num_updates": 0, "updates_skipped": 0, "loss": 0.0}
        entries = [entry for part in parts for entry in part.microbatches]
        self._compute_ahead(entries)
        scores_B = assign_advantages(algorithm, self.state, scores, entries, engine.all_sum)
        rate, critic_rate = self._rates(batch)
        tried = list(self._updates(parts, rate, critic_rate))
        updates = [totals for totals in tried if "grad_norm" in totals]
        num_skipped = len(tried) - len(updates)
        if not updates:
            loss = tried[-1]["loss"]
            return {"num_updates": 0, "updates_skipped": num_skipped, "loss": loss}
        last, summary = updates[-1], _summary(updates)
        self.state.update(
            algorithm,
            scores_B=scores_B,
            kl_reference=summary.get("kl_reference"),
            kl_old=last["kl_old"] / last["num_tokens"],
            entropy=summary["entropy"],
        )
        if self._reference is not None and algorithm.reference_moves:
            engine.move(self._reference, algorithm.kl.reference_step)
        return {"learning_rate": rate, "updates_skipped": num_skipped, **summary}

    def _rate_factor(self, batch: Batch) -> float:
        """What the learning rate is multiplied by."""
        config = self._algorithm.rate
        if config is not None and config.kind == "lag":
            lags = [entry.lag for entry in batch.groups]
            return float((1.0 + sum(lags) / len(lags)) ** -config.power)
        return self.state.rate_factor

    @torch.no_grad()
    def _compute_ahead(self, entries: Iterable[Microbatch]) -> None:
        """pi_old's log-probs where pi moves away from it or where rewards depend on them, the
        reference's, and the critic's values."""
        algorithm = self._algorithm
        needs_old = (
            algorithm.pi_leaves_pi_old
            or algorithm.kl_in_reward
            or algorithm.trust_region is not None
        )
        for entry in entries:
            if algorithm.old_logprobs == "behaviour":
                entry.old_logprobs_BT = entry.tensors.behaviour_logprobs_BT
            elif needs_old:
                entry.old_logprobs_BT = self._forward(entry).logprobs_BT
            if self._reference is not None:
                entry.reference_logprobs_BT = self._forward(entry, self._reference).logprobs_BT
            if self._critic is not None:
                entry.old_values_BU = self._values(self._critic, entry)
            elif algorithm.has_value_head:
                entry.old_values_BU = self._forward(entry).values_BU

    def _forward(self, entry: Microbatch, model: Forward | None = None) -> Outputs:
        """Of the policy, or of another model."""
        tensors = entry.tensors
        return (model or self._engine.forward)(
            tensors.rows,
            tensors.targets_BT,
            tensors.mask_BT,
            self._job.rollout.temperature,
            tensors.mask_BU,
        )

    def _values(self, critic: LearnerEngine, entry: Microbatch) -> Tensor:
        values_BU: Tensor = critic.forward(entry.tensors.rows, entry.tensors.mask_BU)
        return values_BU

    def _rates(self, batch: Batch) -> tuple[float, float]:
        """The policy's learning rate, 0 while only the critic learns, and the critic's."""
        rate = learning_rate_at(batch.version, self._job.learner) * self._rate_factor(batch)
        if self._critic is None:
            return rate, 0.0
        config = self._algorithm.critic
        critic_rate = rate * config.learning_rate / self._job.learner.learning_rate
        return (rate if batch.version >= config.warmup_steps else 0.0), critic_rate

    def _updates(
        self, parts: list[Minibatch], rate: float, critic_rate: float
    ) -> Iterator[Counter[str]]:
        """The sums of every update, until KL to pi_old is above `max_kl`."""
        max_kl = self._algorithm.max_kl
        for _ in range(self._algorithm.epochs):
            for part in parts:
                totals = self._update(part, rate, critic_rate)
                yield totals
                if max_kl is not None and totals["kl_old"] > max_kl * totals["num_tokens"]:
                    return

    def _update(self, part: Minibatch, rate: float, critic_rate: float) -> Counter[str]:
        """One optimizer step, of the critic too. The metrics' sums over all ranks, and the
        gradients' norms: without these, a loss or gradient was not finite and no step was made."""
        critic, sums = self._critic, dict[str, Tensor]()
        _descend(self._engine, part, self._policy_loss(part), sums)
        if critic is not None:
            _descend(critic, part, self._critic_loss(critic, part), sums)
        names = sorted(sums)
        values = self._engine.all_sum(torch.stack([sums[name] for name in names])).tolist()
        totals = dict(zip(names, values, strict=True))
        if not math.isfinite(totals.pop("checked")):
            self._engine.drop()
            if critic is not None:
                critic.drop()
            return Counter(totals)
        totals |= self._step_within_region(part, rate)
        if critic is not None:
            totals["value_grad_norm"] = _stepped(critic, critic_rate)
        return Counter(totals)

    def _step_within_region(self, part: Minibatch, rate: float) -> dict[str, float]:
        """An optimizer step, of which so much is taken back that KL to pi_old stays in the bound:
        its norm, and how often half of it was."""
        region = self._algorithm.trust_region
        if region is None:
            return {"grad_norm": _stepped(self._engine, rate)}
        before = self._engine.snapshot()
        totals = {"grad_norm": _stepped(self._engine, rate), "halvings": 0.0}
        for halving in range(region.max_halvings + 1):
            if self._kl_old(part) <= region.max_kl:
                break
            last = halving == region.max_halvings
            self._engine.return_to(before, 1.0 if last else 0.5)
            totals["halvings"] += 1
        return totals

    @torch.no_grad()
    def _kl_old(self, part: Minibatch) -> float:
        """Mean per token of all ranks, now."""
        sums = torch.zeros(2, device=self._engine.device)
        for entry in part.microbatches:
            assert entry.old_logprobs_BT is not None
            logprobs_BT = self._forward(entry).logprobs_BT
            kl_BT = kl_estimate(entry.old_logprobs_BT, logprobs_BT, "k3")
            sums += torch.stack([kl_BT.sum(), entry.tensors.mask_BT.sum()])
        total, num_tokens = self._engine.all_sum(sums)
        return float(total / num_tokens.clamp(min=1.0))

    def _policy_loss(self, part: Minibatch) -> LossOf:
        config = self._algorithm.critic
        denominator = denominator_of(
            self._algorithm.aggregate,
            num_tokens=part.num_tokens,
            num_rollouts=part.num_rollouts,
            max_tokens=self._job.rollout.max_new_tokens,
        )

        def loss(entry: Microbatch) -> LossAndMetrics:
            outputs = self._forward(entry)
            policy_loss, metrics = loss_of(
                self._algorithm,
                self.state,
                entry,
                outputs.logprobs_BT,
                outputs.entropies_BT,
                denominator=denominator,
            )
            if outputs.values_BU is None:
                return policy_loss, metrics
            value_loss, more = critic_loss_of(
                config.clip, entry, outputs.values_BU, num_tokens=part.num_tokens
            )
            return policy_loss + config.coefficient * value_loss, metrics | more

        return loss

    def _critic_loss(self, critic: LearnerEngine, part: Minibatch) -> LossOf:
        def loss(entry: Microbatch) -> LossAndMetrics:
            values_BU = self._values(critic, entry)
            clip = self._algorithm.critic.clip
            return critic_loss_of(clip, entry, values_BU, num_tokens=part.num_tokens)

        return loss


def _descend(
    engine: LearnerEngine, part: Minibatch, loss_of_entry: LossOf, sums: dict[str, Tensor]
) -> None:
    """The gradient of one update. Adds this rank's metrics to `sums`, and `checked`, which is not
    finite where a loss or the gradient is not."""
    for place, entry in enumerate(part.microbatches, start=1):
        loss, metrics = loss_of_entry(entry)
        engine.backward(loss, last=place == len(part.microbatches))
        for name, value in {**metrics, "checked": 0.0 * loss.detach()}.items():
            sums[name] = sums.get(name, torch.zeros((), device=loss.device)) + value
    sums["checked"] = sums["checked"] + engine.gradient_square()


def _stepped(engine: LearnerEngine, rate: float) -> float:
    """The gradient's norm, of an optimizer step."""
    norm = engine.step(rate)
    if not math.isfinite(norm):  # though the ranks agreed on it: it may have changed weights
        raise NotFinite(f"the gradient norm is {norm}; lower learner.learning_rate?")
    return norm


def _summary(updates: list[Counter[str]]) -> dict[str, float]:
    """Means per token, and per update where a figure belongs to one."""
    values: Counter[str] = Counter()
    for update in updates:
        values.update(update)
    num_updates = len(updates)
    num_tokens = max(1.0, values.pop("num_tokens"))
    inputs, padded = values.pop("input_tokens"), values.pop("padded_tokens")
    return {
        "num_updates": num_updates,
        "loss": values.pop("loss") / num_updates,
        **{
            name: values.pop(name) / num_updates
            for name in ("grad_norm", "value_grad_norm", "halvings")
            if name in values
        },
        "padding_share": 1.0 - inputs / padded,
        **{name: value / num_tokens for name, value in values.items()},
    }
