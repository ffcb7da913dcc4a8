"""Writes deploy/grafana/*.json: one dashboard of what is trained, one of the system that trains.

A panel is a title, a unit, what it shows and one or more queries. Figures of the run come with the
filter `run=~"$run"`; those of Ray and vLLM belong to a whole Ray session.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana"
WIDTH, HEIGHT = 8, 7  # of a panel; a row is 24 wide
RUN = 'SessionName=~"$SessionName",run=~"$run"'
SESSION = 'SessionName=~"$SessionName"'
ENGINE = 'SessionName=~"$SessionName",model_name=~"($run)/.*"'


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries`: (expression, legend). `unit` is one of Grafana's."""

    title: str
    unit: str
    description: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"


def of_run(name: str, legend: str = "{{run}}") -> tuple[str, str]:
    """One of our gauges as it is."""
    return f"ray_slipstream_{name}{{{RUN}}}", legend


def rate_of(name: str, legend: str) -> tuple[str, str]:
    """How quickly one of our totals grows; totals are gauges."""
    return f"clamp_min(deriv(ray_slipstream_{name}{{{RUN}}}[5m]), 0)", legend


def phases(role: str) -> tuple[tuple[str, str], ...]:
    selected = f'ray_slipstream_phase_share{{{RUN},role="{role}"}}'
    return ((f"avg by (run, phase) ({selected})", "{{run}} {{phase}}"),)


def latency(name: str, share: float) -> tuple[str, str]:
    """A quantile of one of vLLM's histograms."""
    buckets = f"sum by (le, model_name) (rate(ray_vllm_{name}_bucket{{{ENGINE}}}[5m]))"
    return f"histogram_quantile({share}, {buckets})", f"{{{{model_name}}}} p{share * 100:g}"


TRAINING = {
    "Progress": [
        Panel(
            "Reward",
            "none",
            "Mean reward of the answers of each step's batch.",
            (of_run("reward"),),
        ),
        Panel(
            "Held-out accuracy",
            "percentunit",
            "Greedy answers to held-out prompts that are right, and pass@k where it is asked for.",
            (
                of_run("greedy_accuracy", "{{run}} {{set}}"),
                of_run("pass_at", "{{run}} {{set}} pass@{{k}}"),
            ),
        ),
        Panel(
            "Held-out reward",
            "none",
            "Mean reward of greedy and of sampled answers to held-out prompts.",
            (
                of_run("greedy_reward", "{{run}} {{set}} greedy"),
                of_run("sampled_reward", "{{run}} {{set}} sampled"),
            ),
        ),
        Panel(
            "Version",
            "none",
            "Policy versions made, committed and evaluated, and the one with which the job ends.",
            (
                of_run("version", "{{run}} made"),
                of_run("commit_version", "{{run}} committed"),
                of_run("eval_version", "{{run}} evaluated on {{set}}"),
                of_run("goal_version", "{{run}} goal"),
            ),
        ),
        Panel(
            "Timeline",
            "none",
            "Goes up when the run goes back to a commit, or on with --resume.",
            (of_run("timeline"),),
        ),
        Panel(
            "Paused",
            "bool",
            "Whether the job is paused: nothing is leased or trained then.",
            (of_run("paused"),),
        ),
    ],
    "Step": [
        Panel("Loss", "none", "Loss of each step, mean over its updates.", (of_run("loss"),)),
        Panel(
            "Gradient norm",
            "none",
            "Before the gradient is clipped at learner.max_grad_norm.",
            (of_run("grad_norm"),),
        ),
        Panel(
            "Learning rate", "sci", "Of each step, after its schedule.", (of_run("learning_rate"),)
        ),
        Panel(
            "Entropy",
            "none",
            "Of the policy, in nats a token. One that falls to 0 explores no more.",
            (of_run("entropy"),),
        ),
        Panel(
            "KL",
            "none",
            "In nats a token: to the policy with which the step began, and to the reference model.",
            (of_run("kl_old", "{{run}} to pi_old"), of_run("kl_reference", "{{run}} to reference")),
        ),
        Panel(
            "Ratio and correction",
            "none",
            "Mean ratio of pi to pi_old, and mean weight that corrects for old or other samples.",
            (
                of_run("ratio", "{{run}} ratio"),
                of_run("correction_weight", "{{run}} correction"),
            ),
        ),
        Panel(
            "Clipped and padded",
            "percentunit",
            "Tokens whose ratio was clipped, and padding in the microbatches.",
            (of_run("clip_share", "{{run}} clipped"), of_run("padding_share", "{{run}} padding")),
        ),
        Panel(
            "Mismatch of sampler and learner",
            "none",
            "Mean |log pi_old - log mu| in nats a token. It grows with lag and with rounding.",
            (of_run("mu_mismatch"),),
        ),
        Panel(
            "Skipped updates",
            "none",
            "Updates of each step that were not made, as their gradient was not finite.",
            (of_run("skipped_updates"),),
        ),
    ],
    "Samples": [
        Panel(
            "Lag",
            "none",
            "Groups by the versions between their oldest token and the learner, a minute.",
            (
                (
                    f"sum by (le) (rate(ray_slipstream_lag_bucket{{{RUN}}}[5m])) * 60",
                    "{{le}}",
                ),
            ),
            kind="heatmap",
        ),
        Panel(
            "Mean lag",
            "none",
            "Of the groups that trained in the last five minutes.",
            (
                (
                    f"rate(ray_slipstream_lag_sum{{{RUN}}}[5m])"
                    f" / rate(ray_slipstream_lag_count{{{RUN}}}[5m])",
                    "{{run}}",
                ),
            ),
        ),
        Panel(
            "Bias of what trains",
            "none",
            "Length of trained by generated answers (1 is right), and difference of their rewards.",
            (
                of_run("length_ratio", "{{run}} length ratio"),
                of_run("reward_difference", "{{run}} reward difference"),
            ),
        ),
        Panel(
            "Prompts",
            "none",
            "Totals of the whole run, over restarts: issued, trained, dropped.",
            (
                of_run("issued_prompts", "{{run}} issued"),
                of_run("trained_prompts", "{{run}} trained"),
                (f"sum by (run) (ray_slipstream_dropped_prompts{{{RUN}}})", "{{run}} dropped"),
            ),
        ),
        Panel(
            "Drops by reason",
            "none",
            "Prompts that were dropped and never train, in all.",
            (of_run("dropped_prompts", "{{run}} {{reason}}"),),
        ),
        Panel(
            "Refusals and failures",
            "none",
            "Groups that replay refused, and answers that could not be had or scored, in all.",
            (
                of_run("refused_groups", "{{run}} {{reason}}"),
                of_run("failed_rollouts", "{{run}} answer: {{reason}}"),
            ),
        ),
    ],
}

SYSTEM = {
    "Speed": [
        Panel(
            "Tokens a second",
            "none",
            "Generated by all workers, and trained on by the learner, by their newest reports.",
            (
                (
                    f"sum by (run) (ray_slipstream_generated_tokens_per_second{{{RUN}}})",
                    "{{run}} generated",
                ),
                of_run("trained_tokens_per_second", "{{run}} trained"),
            ),
        ),
        Panel(
            "Tokens of the whole run, a second",
            "none",
            "Growth of the durable totals over five minutes, whatever was restarted meanwhile.",
            (
                rate_of("generated_tokens", "{{run}} accepted"),
                rate_of("trained_tokens", "{{run}} trained"),
            ),
        ),
        Panel(
            "Step time",
            "s",
            "From the end of one learner step to the end of the next.",
            (of_run("step_seconds"),),
        ),
        Panel(
            "Busy share",
            "percentunit",
            "Time in which a role did not wait. The one near 100% is what the job is slowed by.",
            (of_run("busy_share", "{{run}} {{role}}-{{index}}"),),
        ),
        Panel("Learner by phase", "percentunit", "What its time goes to.", phases("learner")),
        Panel(
            "Workers by phase", "percentunit", "What their time goes to, mean.", phases("rollout")
        ),
    ],
    "Replay": [
        Panel(
            "Queue",
            "none",
            "Groups that wait for the learner, and prompts that wait to be issued again.",
            (
                of_run("buffered_groups", "{{run}} buffered"),
                of_run("requeued_prompts", "{{run}} to be issued again"),
            ),
        ),
        Panel("Leases", "none", "Prompts that workers roll out now.", (of_run("running_leases"),)),
        Panel(
            "Oldest lease",
            "s",
            "Near replay.lease_timeout_s a worker is stuck or its answers are too long.",
            (of_run("oldest_lease_seconds"),),
        ),
    ],
    "Weight sync": [
        Panel(
            "Learner's side",
            "s",
            "To gather whole parameters from the ranks, and to pack and send them.",
            (
                of_run("sync_gather_seconds", "{{run}} gather"),
                of_run("sync_publish_seconds", "{{run}} publish"),
            ),
        ),
        Panel(
            "Workers' side",
            "s",
            "The slowest worker: the bytes on the wire, the load, the engine's whole pause, and "
            "the delay since publication.",
            (
                (
                    f"max by (run) (ray_slipstream_sync_wire_seconds{{{RUN}}})",
                    "{{run}} wire",
                ),
                (
                    f"max by (run) (ray_slipstream_sync_load_seconds{{{RUN}}})",
                    "{{run}} load",
                ),
                (
                    f"max by (run) (ray_slipstream_sync_pause_seconds{{{RUN}}})",
                    "{{run}} pause",
                ),
                (
                    f"max by (run) (ray_slipstream_sync_delay_seconds{{{RUN}}})",
                    "{{run}} delay",
                ),
            ),
        ),
        Panel("Size", "bytes", "Of one published version.", (of_run("sync_bytes"),)),
        Panel(
            "Probe error",
            "none",
            "Largest difference of engine and learner in log-probs. Above weights.max_probe_error "
            "the worker ends.",
            (of_run("probe_error", "{{run}} rollout-{{index}}"),),
        ),
        Panel(
            "Version held",
            "none",
            "Of the weights of every role. A worker that stays behind does not get them.",
            (of_run("role_version", "{{run}} {{role}}-{{index}}"),),
        ),
    ],
    "Roles and commits": [
        Panel(
            "Roles by state",
            "none",
            "Workers and ranks: starting, syncing, serving, suspect, draining or dead.",
            (
                (
                    f"sum by (run, role, state) (ray_slipstream_roles{{{RUN}}}) > 0",
                    "{{run}} {{role}} {{state}}",
                ),
            ),
        ),
        Panel(
            "Restarts",
            "none",
            "By role and cause, of this launch. silent: no answer; hangs: no progress; died: the "
            "process ended; failed: it raised.",
            (of_run("restarts", "{{run}} {{role}} {{cause}}"),),
        ),
        Panel(
            "Commits",
            "s",
            "To write a commit beside training, and how long training stood for it.",
            (
                of_run("commit_seconds", "{{run}} write"),
                of_run("commit_pause_seconds", "{{run}} pause"),
            ),
        ),
        Panel("Failed commits", "none", "Of this launch.", (of_run("failed_commits"),)),
    ],
    "vLLM engines": [
        Panel(
            "Requests",
            "none",
            "In each engine: decoded now, and waiting for a place.",
            (
                (f"ray_vllm_num_requests_running{{{ENGINE}}}", "{{model_name}} running"),
                (f"ray_vllm_num_requests_waiting{{{ENGINE}}}", "{{model_name}} waiting"),
            ),
        ),
        Panel(
            "KV cache",
            "percentunit",
            "Share of the cache in use. At 100% requests are preempted.",
            ((f"ray_vllm_kv_cache_usage_perc{{{ENGINE}}}", "{{model_name}}"),),
        ),
        Panel(
            "Tokens a second by engine",
            "none",
            "Prompt tokens taken in and answer tokens made, evaluations among them.",
            (
                (
                    f"rate(ray_vllm_prompt_tokens_total{{{ENGINE}}}[5m])",
                    "{{model_name}} prompt",
                ),
                (
                    f"rate(ray_vllm_generation_tokens_total{{{ENGINE}}}[5m])",
                    "{{model_name}} answer",
                ),
            ),
        ),
        Panel(
            "Time of an answer",
            "s",
            "From its submission to its end.",
            (
                latency("e2e_request_latency_seconds", 0.5),
                latency("e2e_request_latency_seconds", 0.99),
            ),
        ),
        Panel(
            "Length of an answer",
            "none",
            "In tokens.",
            (
                latency("request_generation_tokens", 0.5),
                latency("request_generation_tokens", 0.99),
            ),
        ),
    ],
    "Machines": [
        Panel(
            "CPU",
            "percent",
            "Of each node of the Ray session.",
            ((f"ray_node_cpu_utilization{{{SESSION}}}", "{{instance}}"),),
        ),
        Panel(
            "Memory",
            "bytes",
            "In use on each node, and what it has.",
            (
                (f"ray_node_mem_used_host{{{SESSION}}}", "{{instance}} used"),
                (f"ray_node_mem_total_host{{{SESSION}}}", "{{instance}} all"),
            ),
        ),
        Panel(
            "GPU",
            "percent",
            "Utilization of each GPU.",
            (
                (
                    f"ray_node_gpus_utilization{{{SESSION}}}",
                    "{{instance}} {{GpuIndex}} {{GpuDeviceName}}",
                ),
            ),
        ),
        Panel(
            "GPU memory",
            "decmbytes",
            "In use on each GPU.",
            ((f"ray_node_gram_used{{{SESSION}}}", "{{instance}} {{GpuIndex}}"),),
        ),
        Panel(
            "Object store",
            "bytes",
            "Ray's shared memory by node; weights pass through it with weights.transport: "
            "object_store.",
            (
                (
                    f"sum by (instance) (ray_object_store_memory{{{SESSION}}})",
                    "{{instance}}",
                ),
            ),
        ),
        Panel(
            "Disk",
            "bytes",
            "Free on each node. A full disk fails commits.",
            ((f"ray_node_disk_free{{{SESSION}}}", "{{instance}}"),),
        ),
    ],
}


def dashboard(uid: str, title: str, rows: dict[str, list[Panel]]) -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for name, members in rows.items():
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": name, "gridPos": place})
        for number, panel in enumerate(members):
            down, across = divmod(number, 24 // WIDTH)
            place = {"x": across * WIDTH, "y": top + 1 + down * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append({"id": len(panels) + 1, "gridPos": place, **as_json(panel)})
        top += 1 + -(-len(members) * WIDTH // 24) * HEIGHT
    return {
        "uid": uid,
        "title": title,
        "tags": ["slipstream"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "schemaVersion": 39,
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "version": 1,
        "templating": {"list": variables()},
        "panels": panels,
    }


def as_json(panel: Panel) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + number),
            "expr": expression,
            "legendFormat": legend,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            **({"format": "heatmap"} if panel.kind == "heatmap" else {}),
        }
        for number, (expression, legend) in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": options(panel.kind),
        "targets": targets,
    }


def options(kind: str) -> dict[str, Any]:
    if kind == "heatmap":
        return {"calculate": False, "cellGap": 1, "yAxis": {"unit": "none"}}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def variables() -> list[dict[str, Any]]:
    """`datasource` and `SessionName` are filled in by the Ray dashboard where it embeds this."""
    known = "ray_slipstream_version"
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "hide": 2},
        variable("SessionName", f"label_values({known}, SessionName)", "Ray session"),
        variable("run", f'label_values({known}{{SessionName=~"$SessionName"}}, run)', "Run"),
    ]


def variable(name: str, query: str, label: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "definition": query,
        "query": {"query": query, "refId": "Variable"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".+",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "sort": 2,
    }


def files() -> dict[str, str]:
    """File name -> contents."""
    dashboards = {
        "slipstream_training.json": dashboard(
            "slipstream-training", "Slipstream: training", TRAINING
        ),
        "slipstream_system.json": dashboard("slipstream-system", "Slipstream: system", SYSTEM),
    }
    return {name: json.dumps(found, indent=1) + "\n" for name, found in dashboards.items()}


def main() -> None:
    for name, text in files().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
