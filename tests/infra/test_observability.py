"""The dashboard, the alerts and the runbook speak of metrics that the pipeline exports, and of nothing else."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.metrics_export import METRICS
from tests.infra.files import INFRA, read_yaml

OF_PROMETHEUS = {"instance", "job"}
NAME = re.compile(r"\bmsrrn_\w+\b")


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads((INFRA / "grafana" / "msrrn.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def alerts() -> list[Any]:
    return [rule for group in read_yaml("prometheus/alerts.yaml")["groups"] for rule in group["rules"]]


def expressions(dashboard: Any, alerts: list[Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (annotation["expr"] for annotation in dashboard["annotations"]["list"])
    yield from (rule["expr"] for rule in alerts)


def test_expressions_use_metrics_and_labels_that_exist(dashboard: Any, alerts: list[Any]) -> None:
    labels = {name: metric.labels for name, metric in METRICS.items()}
    for expression in expressions(dashboard, alerts):
        used = set(NAME.findall(expression))
        assert used, expression
        assert used <= labels.keys(), expression
        known = OF_PROMETHEUS.union(*(labels[name] for name in used))
        matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
        grouped = re.findall(r"\w+", " ".join(re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)))
        assert {*matched, *grouped} <= known, expression
        for counter in (name for name in used if name.endswith("_total")):
            assert re.search(rf"increase\({counter}\b", expression), f"{expression}: a counter grows for ever"


def test_every_metric_is_on_the_dashboard(dashboard: Any) -> None:
    assert set(NAME.findall(json.dumps(dashboard["panels"]))) == METRICS.keys()


def test_the_dashboard_is_whole(dashboard: Any) -> None:
    assert dashboard["schemaVersion"] >= 36
    assert dashboard["uid"]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    asked = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard).replace("$__all", "")))
    assert asked == variables
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in {"stat", "timeseries"}
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_alert_has_its_row_in_the_runbook(alerts: list[Any]) -> None:
    runbook = (INFRA / "README.md").read_text("utf-8")
    assert set(re.findall(r"`(Msrrn\w+)`", runbook)) == {rule["alert"] for rule in alerts}
    for rule in alerts:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]
