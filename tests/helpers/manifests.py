"""Rendered manifests, and KubeRay's schemas made strict."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT.parent / "shared" / "kuberay"
# Kubernetes' own, which KubeRay's files leave to the API server.
METADATA = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
CONFIG_MAP = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "data"],
    "properties": {
        "apiVersion": {"const": "v1"},
        "kind": {"const": "ConfigMap"},
        "metadata": METADATA,
        "data": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


@cache
def ray_job_schema() -> dict[str, Any]:
    """Skips the test where the schemas are not beside the repository."""
    file = SCHEMAS / "ray.io_rayjobs.yaml.gz"
    if not file.is_file():
        pytest.skip("KubeRay's schemas are not in ../shared/kuberay beside the repository")
    with gzip.open(file, "rt", encoding="utf-8") as text:
        crd = yaml.load(text, Loader=yaml.CSafeLoader)
    (v1,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
    schema = v1["schema"]["openAPIV3Schema"]
    schema["properties"] |= {
        "metadata": METADATA,
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
    }
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def strict(schema: Any) -> Any:
    """No key but those that are named, unless any may be."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    has_names = isinstance(schema.get("properties"), dict) and "type" in schema
    if has_names and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@cache
def validators() -> dict[str, Validator]:
    """By kind."""
    schemas = {"RayJob": ray_job_schema(), "ConfigMap": CONFIG_MAP}
    return {kind: Draft202012Validator(strict(schema)) for kind, schema in schemas.items()}


def schema_errors(manifest: dict[str, Any]) -> list[str]:
    if (validator := validators().get(manifest.get("kind", ""))) is None:
        return ["$.kind: is missing, or of no kind that is rendered"]
    found = validator.iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in found]


def key_paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every key in a manifest, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from key_paths(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from key_paths(value, (*path, index))


def at(node: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        node = node[part]
    return node
