"""What KubeRay's operator refuses although its schema allows it. Pure.

The operator checks these when it sees the manifest, long after `kubectl apply` has said yes; so
`slipstream render` checks them first. They follow `validation.go` of KubeRay 1.7, for the fields
that a rendered manifest may have.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MAX_NAME = 47  # characters of a RayJob's name: its cluster's name adds six, pods' names more
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")  # a DNS label that starts with a letter
LABEL_KEY = re.compile(
    r"(?=.{1,317}$)([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?"
)
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?)?")
MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
V2_SWITCH = "RAY_enable_autoscaler_v2"
# Of `ray start`, as far as a rendered manifest sets them: a misspelt one would keep the head
# from starting.
START_PARAMS = ("num-cpus", "num-gpus", "memory", "resources", "labels", "dashboard-host")
# That Kubernetes schedules by; a misspelt one would leave the pod pending for ever.
POD_RESOURCES = ("cpu", "memory", "ephemeral-storage", "nvidia.com/gpu")


def label_of(name: str) -> str:
    """A name that Kubernetes takes: `name` itself where it does, else one that no other job gets.

    >>> label_of("arithmetic-sync"), label_of("Run_1.5")
    ('arithmetic-sync', 'run-1-5-5dab06')
    """
    if _is_name(name):
        return name
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not words[:1].isalpha():
        words = f"job-{words}".rstrip("-")
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{words[: MAX_NAME - 7].rstrip('-')}-{digest}"


def violations(ray_job: Mapping[str, Any]) -> list[str]:
    """Every rule of the operator that a RayJob manifest breaks, in words; none is good."""
    return [*_metadata(ray_job["metadata"]), *_job(ray_job["spec"])]


def _is_name(name: str) -> bool:
    return len(name) <= MAX_NAME and LABEL.fullmatch(name) is not None


def _metadata(metadata: Mapping[str, Any]) -> Iterator[str]:
    name = metadata.get("name", "")
    if not _is_name(name):
        yield (
            f"metadata.name: {name!r} is no DNS label of at most {MAX_NAME} characters that "
            "starts with a letter"
        )
    yield from _labels("metadata.labels", metadata.get("labels", {}))


def _job(spec: Mapping[str, Any]) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    cluster, selector = spec.get("rayClusterSpec"), spec.get("clusterSelector")
    shuts_down = spec.get("shutdownAfterJobFinishes", False)
    if mode not in MODES:
        yield f"submissionMode: {mode!r} is none of {', '.join(MODES)}"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"
    if spec.get("suspend") and not shuts_down:
        yield "suspend needs shutdownAfterJobFinishes: true"
    if spec.get("suspend") and selector:
        yield "suspend cannot be used with clusterSelector"
    if spec.get("backoffLimit", 0) > 0 and (selector or mode == "InteractiveMode"):
        yield "backoffLimit cannot be used with clusterSelector or InteractiveMode"
    if not cluster and not selector:
        yield "one of rayClusterSpec and clusterSelector must be set"
    yield from _numbers(spec)
    if mode == "SidecarMode":
        yield from _sidecar(spec)
    if cluster:
        yield from _cluster(cluster)


def _numbers(spec: Mapping[str, Any]) -> Iterator[str]:
    for key in ("ttlSecondsAfterFinished", "backoffLimit"):
        if spec.get(key, 0) < 0:
            yield f"{key} must not be negative"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"{key} must be positive"


def _sidecar(spec: Mapping[str, Any]) -> Iterator[str]:
    for key in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
        if key in spec:
            yield f"{key} cannot be used with SidecarMode"
    if "rayClusterSpec" in spec:
        head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        if head.get("restartPolicy", "Never") != "Never":
            yield "SidecarMode needs the head's restartPolicy: Never"


def _cluster(spec: Mapping[str, Any]) -> Iterator[str]:
    yield from _authentication(spec)
    yield from _autoscaler(spec)
    yield from _group("head", spec["headGroupSpec"])
    names = [group["groupName"] for group in spec.get("workerGroupSpecs", ())]
    if len(set(names)) < len(names):
        yield "workerGroupSpecs: two groups have the same groupName"
    for group in spec.get("workerGroupSpecs", ()):
        yield from _group(group["groupName"], group)
        yield from _replicas(group, is_scaled=spec.get("enableInTreeAutoscaling", False))
        if group.get("priority") and _version(spec) < (2, 56):
            yield f"group {group['groupName']}: priority needs rayVersion >= 2.56"


def _authentication(spec: Mapping[str, Any]) -> Iterator[str]:
    options = spec.get("authOptions", {})
    if options.get("mode") == "token" and _version(spec) < (2, 52):
        yield "authOptions.mode: token needs rayVersion >= 2.52"
    if options.get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth cannot be used in a RayJob"


def _autoscaler(spec: Mapping[str, Any]) -> Iterator[str]:
    is_scaled = spec.get("enableInTreeAutoscaling", False)
    is_v2 = is_scaled and spec.get("autoscalerOptions", {}).get("version") == "v2"
    groups = {"head": spec["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in spec.get("workerGroupSpecs", ())}
    for name, group in groups.items():
        policy = group["template"]["spec"].get("restartPolicy", "Never")
        if is_v2 and policy != "Never":
            yield f"group {name}: autoscaler v2 needs restartPolicy: Never, not {policy}"
        if is_scaled and group.get("suspend"):
            yield f"group {name}: suspend cannot be used with the autoscaler"
        for key in ("idleTimeoutSeconds", "priority"):
            if group.get(key) and not is_v2:
                yield f"group {name}: {key} needs autoscaler v2"
    heads = _containers(spec["headGroupSpec"])
    env = [one["name"] for head in heads for one in head.get("env", ())]
    if V2_SWITCH in env and not is_scaled:
        yield f"{V2_SWITCH} needs enableInTreeAutoscaling: true"
    if V2_SWITCH in env and "version" in spec.get("autoscalerOptions", {}):
        yield f"{V2_SWITCH} and autoscalerOptions.version say the same; set the latter alone"
    if spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds", 0) < 0:
        yield "autoscalerOptions.idleTimeoutSeconds must not be negative"
    yield from _amounts("autoscalerOptions", spec.get("autoscalerOptions", {}))


def _group(name: str, group: Mapping[str, Any]) -> Iterator[str]:
    params = group.get("rayStartParams", {})
    if unknown := sorted(set(params) - set(START_PARAMS)):
        yield f"group {name}: rayStartParams: unknown {', '.join(unknown)}"
    if group.get("resources") and set(params) & {"num-cpus", "num-gpus", "memory", "resources"}:
        yield f"group {name}: resources stand in rayStartParams and in resources; use one"
    if "labels" in params:
        yield f"group {name}: labels belong in the group's labels, not in rayStartParams"
    yield from _labels(f"group {name}: labels", group.get("labels", {}))
    if not _containers(group):
        yield f"group {name}: it has no container"
    for container in _containers(group):
        yield from _amounts(f"group {name}", container)


def _amounts(where: str, container: Mapping[str, Any]) -> Iterator[str]:
    for amounts in container.get("resources", {}).values():
        if unknown := sorted(set(amounts) - set(POD_RESOURCES)):
            yield f"{where}: unknown pod resource {', '.join(unknown)}"


def _replicas(group: Mapping[str, Any], *, is_scaled: bool) -> Iterator[str]:
    name, low, high = group["groupName"], group.get("minReplicas"), group.get("maxReplicas")
    if not is_scaled and (low is None or high is None):
        yield f"group {name}: minReplicas and maxReplicas are needed without the autoscaler"
    if (low or 0) < 0 or (high or 0) < 0:
        yield f"group {name}: minReplicas and maxReplicas must not be negative"
    if low is not None and high is not None and low > high:
        yield f"group {name}: minReplicas {low} is above maxReplicas {high}"
    if group.get("idleTimeoutSeconds", 0) < 0:
        yield f"group {name}: idleTimeoutSeconds must not be negative"


def _labels(where: str, labels: Mapping[str, str]) -> Iterator[str]:
    for key, value in labels.items():
        if not (LABEL_KEY.fullmatch(key) and LABEL_VALUE.fullmatch(value)):
            yield f"{where}: Kubernetes takes no label {key}={value}"


def _containers(group: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    containers: Sequence[Mapping[str, Any]] = group["template"]["spec"].get("containers", ())
    return containers


def _version(spec: Mapping[str, Any]) -> tuple[int, ...]:
    """Of Ray; (0,) where none is given."""
    found = re.match(r"(\d+)\.(\d+)", spec.get("rayVersion", ""))
    return tuple(map(int, found.groups())) if found else (0,)
