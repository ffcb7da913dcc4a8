"""KubeRay's own rules: each has a manifest that breaks it alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from orchestrator.deploy.rules import label_of, violations

POD = {"template": {"spec": {"containers": [{"name": "ray", "image": "x"}]}}}
SOUND = {
    "metadata": {"name": "sound"},
    "spec": {
        "submissionMode": "HTTPMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 10,
        "backoffLimit": 1,
        "rayClusterSpec": {
            "rayVersion": "2.60.0",
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"version": "v2"},
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, **POD},
            "workerGroupSpecs": [
                {"groupName": "a", "minReplicas": 0, "maxReplicas": 2, **POD},
                {"groupName": "b", "minReplicas": 1, "maxReplicas": 1, "priority": 2, **POD},
            ],
        },
    },
}
CLUSTER = ("spec", "rayClusterSpec")
HEAD = (*CLUSTER, "headGroupSpec")
GROUP = (*CLUSTER, "workerGroupSpecs", 0)
NONE = object()
BREAKS: list[tuple[dict[tuple[Any, ...], Any], str]] = [
    ({("metadata", "name"): "a" * 48}, "at most 47 characters"),
    ({("metadata", "name"): "Run_1"}, "no DNS label"),
    ({("metadata", "name"): "1st"}, "starts with a letter"),
    ({("metadata", "labels"): {"a b": "c"}}, "takes no label a b=c"),
    ({("spec", "submissionMode"): "HttpMode"}, "'HttpMode' is none of"),
    ({("spec", "shutdownAfterJobFinishes"): False}, "ttlSecondsAfterFinished needs"),
    (
        {
            ("spec", "suspend"): True,
            ("spec", "shutdownAfterJobFinishes"): False,
            ("spec", "ttlSecondsAfterFinished"): 0,
        },
        "suspend needs shutdownAfterJobFinishes",
    ),
    ({("spec", "submissionMode"): "InteractiveMode"}, "backoffLimit cannot be used with"),
    ({("spec", "clusterSelector"): {"ray.io/cluster": "x"}}, "backoffLimit cannot be used with"),
    (
        {
            ("spec", "clusterSelector"): {"ray.io/cluster": "x"},
            ("spec", "backoffLimit"): 0,
            ("spec", "suspend"): True,
        },
        "suspend cannot be used with clusterSelector",
    ),
    ({CLUSTER: NONE}, "one of rayClusterSpec and clusterSelector"),
    ({("spec", "ttlSecondsAfterFinished"): -1}, "ttlSecondsAfterFinished must not be negative"),
    ({("spec", "backoffLimit"): -1}, "backoffLimit must not be negative"),
    ({("spec", "activeDeadlineSeconds"): 0}, "activeDeadlineSeconds must be positive"),
    ({("spec", "preRunningDeadlineSeconds"): 0}, "preRunningDeadlineSeconds must be positive"),
    (
        {("spec", "submissionMode"): "SidecarMode", ("spec", "submitterPodTemplate"): {}},
        "submitterPodTemplate cannot be used with SidecarMode",
    ),
    ({(*CLUSTER, "rayVersion"): "2.51.1"}, "token needs rayVersion >= 2.52"),
    ({(*CLUSTER, "rayVersion"): NONE}, "token needs rayVersion >= 2.52"),
    ({(*CLUSTER, "rayVersion"): "2.55.0"}, "priority needs rayVersion >= 2.56"),
    ({(*CLUSTER, "authOptions", "enableK8sTokenAuth"): True}, "enableK8sTokenAuth cannot be"),
    ({(*HEAD, "template", "spec", "restartPolicy"): "Always"}, "head: autoscaler v2 needs"),
    ({(*GROUP, "template", "spec", "restartPolicy"): "OnFailure"}, "a: autoscaler v2 needs"),
    ({(*GROUP, "suspend"): True}, "a: suspend cannot be used with the autoscaler"),
    ({(*CLUSTER, "autoscalerOptions", "version"): "v1"}, "b: priority needs autoscaler v2"),
    ({(*CLUSTER, "autoscalerOptions", "idleTimeoutSeconds"): -1}, "must not be negative"),
    (
        {(*HEAD, "template", "spec", "containers", 0, "env"): [
            {"name": "RAY_enable_autoscaler_v2", "value": "1"}]},
        "say the same",
    ),
    ({(*HEAD, "rayStartParams"): {"num-cpu": "0"}}, "unknown num-cpu"),
    ({(*HEAD, "resources"): {"CPU": "0"}}, "resources stand in rayStartParams and in resources"),
    ({(*GROUP, "rayStartParams"): {"labels": "a=b"}}, "labels belong in the group's labels"),
    ({(*GROUP, "labels"): {"role": "not valid"}}, "takes no label role=not valid"),
    ({(*GROUP, "template", "spec", "containers"): []}, "a: it has no container"),
    ({(*GROUP, "minReplicas"): 3}, "minReplicas 3 is above maxReplicas 2"),
    ({(*GROUP, "minReplicas"): -1}, "a: minReplicas and maxReplicas must not be negative"),
    ({(*GROUP, "groupName"): "b"}, "the same groupName"),
    (
        {(*GROUP, "template", "spec", "containers", 0, "resources"): {"limits": {"cpus": "1"}}},
        "unknown pod resource cpus",
    ),
]  # fmt: skip


def with_changes(changes: dict[tuple[Any, ...], Any]) -> dict[str, Any]:
    made = copy.deepcopy(SOUND)
    for path, value in changes.items():
        section: Any = made
        for part in path[:-1]:
            section = section[part]
        if value is NONE:
            del section[path[-1]]
        else:
            section[path[-1]] = value
    return made


def test_the_sound_one_breaks_none() -> None:
    assert violations(SOUND) == []


@pytest.mark.parametrize(("changes", "part"), BREAKS, ids=[part for _, part in BREAKS])
def test_a_manifest_that_breaks_a_rule_is_caught(
    changes: dict[tuple[Any, ...], Any], part: str
) -> None:
    found = violations(with_changes(changes))
    assert any(part in problem for problem in found), found


def test_without_the_autoscaler_both_ends_of_the_range_are_needed() -> None:
    changes = {
        (*CLUSTER, "enableInTreeAutoscaling"): False,
        (*GROUP, "minReplicas"): NONE,
        (*CLUSTER, "workerGroupSpecs", 1, "priority"): 0,
    }
    (problem,) = violations(with_changes(changes))
    assert problem == "group a: minReplicas and maxReplicas are needed without the autoscaler"


@pytest.mark.parametrize("name", ["arithmetic-sync", "a", "x" * 47])
def test_a_name_that_kubernetes_takes_stays(name: str) -> None:
    assert label_of(name) == name


@pytest.mark.parametrize("name", ["Run_1.5", "1st", "run-", "x" * 64, "9", "A", "a.-b"])
def test_any_other_name_becomes_one_that_it_takes(name: str) -> None:
    found = label_of(name)
    assert violations({**SOUND, "metadata": {"name": found}}) == []
    assert found != name


def test_different_names_stay_different() -> None:
    names = ["run.a", "run_a", "run-a", "Run-a", "x" * 63, "x" * 64]
    assert len({label_of(name) for name in names}) == len(names)
    assert label_of("Run_1.5") == "run-1-5-5dab06"
