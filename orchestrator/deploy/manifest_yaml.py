"""Manifests as the YAML that kubectl reads, which is of version 1.1. Pure."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

PLAIN = re.compile(r"[A-Za-z/][\w./-]*")
# A reader of YAML 1.1 takes these for truth values, or null; ruamel writes 1.2.
WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def to_yaml(manifests: Iterable[Mapping[str, Any]]) -> str:
    """One document each; texts as blocks, whatever could be misread in quotes."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.explicit_start = True
    out = io.StringIO()
    yaml.dump_all([_quoted(manifest) for manifest in manifests], out)
    return out.getvalue()


def _quoted(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {_quoted(key): _quoted(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_quoted(one) for one in node]
    if not isinstance(node, str):
        return node
    if "\n" in node:
        return LiteralScalarString(node)
    if PLAIN.fullmatch(node) and node.lower() not in WORDS:
        return node
    return DoubleQuotedScalarString(node)
