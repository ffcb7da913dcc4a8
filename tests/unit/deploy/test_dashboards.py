"""The files of deploy/ are whole, and name only metrics that exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from grafana import files
from metrics_doc import PAGE, page
from ruamel.yaml import YAML

from orchestrator.metrics.catalog import METRICS

DEPLOY = Path(__file__).parents[3] / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
OURS = {series for metric in METRICS for series in metric.series}
NAME = re.compile(r"ray_\w+")


def source_of(package: str, place: str) -> str:
    """The text of an installed package's files, which is not imported for it."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    files = sorted(Path(found.origin).parent.glob(place))
    assert files
    return "\n".join(file.read_text() for file in files)


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Our metrics, those of Ray's own dashboard, and vLLM's as Ray names them."""
    rays = set(NAME.findall(source_of("ray", "dashboard/modules/metrics/dashboards/*.py")))
    vllms = set()
    for name in re.findall(r'"vllm:(\w+)"', source_of("vllm", "v1/metrics/loggers.py")):
        vllms |= {f"ray_vllm_{name}{ending}" for ending in ("", "_total", "_bucket")}
    return OURS | rays | vllms


def dashboard(path: Path) -> Any:
    return json.loads(path.read_text())


def panels(path: Path) -> list[Any]:
    return [panel for panel in dashboard(path)["panels"] if panel["type"] != "row"]


def expressions(path: Path) -> list[str]:
    queries = [target["expr"] for panel in panels(path) for target in panel["targets"]]
    return queries + [v["definition"] for v in dashboard(path)["templating"]["list"][1:]]


def test_the_dashboards_are_those_of_the_script() -> None:
    assert {path.name: path.read_text() for path in DASHBOARDS} == files(), (
        "run: python scripts/grafana.py"
    )


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_says_what_it_shows(path: Path) -> None:
    seen = panels(path)
    assert len(seen) > 15
    for panel in seen:
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
    assert len({panel["id"] for panel in dashboard(path)["panels"]}) == len(
        dashboard(path)["panels"]
    )


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_no_two_panels_lie_on_each_other(path: Path) -> None:
    taken = set()
    for panel in dashboard(path)["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, panel["title"]
                assert x < 24
                taken.add((x, y))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_name_only_metrics_that_exist(path: Path, known: set[str]) -> None:
    for expression in expressions(path):
        names = NAME.findall(expression)
        assert names, expression
        assert set(names) <= known, expression


def test_alerts_name_only_our_metrics_and_say_what_to_do() -> None:
    groups = YAML(typ="safe").load(ALERTS.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 5
    for rule in rules:
        assert set(NAME.findall(rule["expr"])) <= OURS, rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_every_metric_of_ours_is_on_a_dashboard() -> None:
    shown = {
        name for path in DASHBOARDS for text in expressions(path) for name in NAME.findall(text)
    }
    missing = [metric.name for metric in METRICS if shown.isdisjoint(metric.series)]
    assert missing == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's prometheus is not installed")
def test_prometheus_accepts_rules_and_expressions(tmp_path: Path) -> None:
    found = {f"panel_{n}": text for n, text in enumerate(_queries())}
    rules = [{"record": name, "expr": text} for name, text in found.items()]
    of_panels = tmp_path / "panels.yml"
    of_panels.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    for what in (["rules", str(of_panels)], ["config", str(ALERTS.parent / "prometheus.yml")]):
        done = subprocess.run(["promtool", "check", *what], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def _queries() -> list[str]:
    every = [panel for path in DASHBOARDS for panel in panels(path)]
    return [target["expr"] for panel in every for target in panel["targets"]]


def test_the_page_lists_every_metric() -> None:
    assert PAGE.read_text() == page(PAGE.read_text()), "run: python scripts/metrics_doc.py"
