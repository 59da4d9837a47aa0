"""What happened on a Prefect server and in the ledger of a registered model, and what is left to a person."""

import json
import re
from collections import Counter
from datetime import UTC, datetime
from typing import Any, Final

from pipelines.registry.ledger import Line
from pipelines.registry.succession import AWAITING, log
from pipelines.registry.turns import DECISION_TAG
from pipelines.registry.versions import champion, models
from tests.integration.prefect_server import get, post

_FLOWS: Final = ("retrain", "promote", "reconcile", "annotate", "monitor")
_OVER: Final = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_STARTED_BY: Final = {"SCHEDULE": "schedule", "AUTOMATION": "event", "DEPLOYMENT": "schedule"}

Json = dict[str, Any]


class Timeline:
    """Begins when it is made; `note` is for what the simulated world does."""

    def __init__(self, api: str) -> None:
        self._api = api
        self._began = datetime.now(UTC)
        self._notes: list[tuple[datetime, str]] = []

    def note(self, text: str) -> None:
        self._notes.append((datetime.now(UTC), text))

    def events(self, name: str) -> list[Json]:
        return _events(self._api, name)

    def text(self, model: str) -> str:
        """Markdown: seconds since the start, what fired, what it decided."""
        rows = [(when, "**world**", text, "") for when, text in self._notes]
        lines = log(model)
        for run in all_runs(self._api):
            rows += self._rows(run, lines)
        rows.sort(key=lambda row: row[0])
        table = ["| s | what | started by, or what happened | what it decided |", "|---|---|---|---|"]
        quiet: Counter[str] = Counter()
        for when, *cells in rows:
            said = re.sub(r" after \d+ s", "", " ".join(cells))
            quiet[said] += 1
            if quiet[said] == 1 or cells[0] == "**world**":
                table.append(f"| {(when - self._began).total_seconds():.0f} | {' | '.join(cells)} |")
        more = [f"{count - 1} × {said}" for said, count in quiet.items() if count > 1]
        return "\n".join(table) + "\n\nThe same again, left out above: " + ("; ".join(more) or "nothing")

    def _rows(self, run: Json, lines: list[Line]) -> list[tuple[datetime, str, str, str]]:
        """A row when the run began, or was refused; one for each time that it crashed or was begun again."""
        flow, began = run["flow"], run["start_time"] or run["created"]
        by = _STARTED_BY.get((run["created_by"] or {}).get("type", ""), "a person")
        states = states_of(self._api, run["id"])
        end = states[-1]
        if not run["run_count"]:
            return [(_time(end["timestamp"]), flow, by, f"*{end['name']}*: {end['message'] or ''}")]
        crashes = [state for state in states if state["type"] == "CRASHED"]
        again = [state for state in states if state["name"] in {"AwaitingRetry", "Retrying"}]
        rows = [(_time(state["timestamp"]), flow, "*Crashed*", state["message"] or "") for state in crashes]
        rows += [(_time(state["timestamp"]), flow, f"*{state['name']}*", "") for state in again]
        took = (_time(end["timestamp"]) - _time(began)).total_seconds()
        decided = self._decided(run, lines) if end["type"] == "COMPLETED" else end["message"] or ""
        return [*rows, (_time(began), flow, by, f"*{end['name']}* after {took:.0f} s: {decided}")]

    def _decided(self, run: Json, lines: list[Line]) -> str:
        """What a completed run came to, from what it left on the server and in the ledger."""
        artifacts = post(f"{self._api}/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
        found = {each["key"]: each for each in artifacts}
        if run["flow"] == "retrain":
            told = [each["payload"] for each in self.events("msrrn.model.registered") if _is_of(each, run)]
            return f"version {told[0]['version']} is registered, and to be judged" if told else "nothing new"
        if run["flow"] == "promote":
            version = int(run["parameters"]["model"].rpartition("/")[2])
            return "; ".join(_said(line) for line in lines if line.turn.version == version) or "nothing"
        if run["flow"] == "reconcile":
            rows = [] if "reconciled" not in found else _table(found["reconciled"])
            return "; ".join(f"{row['where']}: {row['what']}: {row['done']}" for row in rows) or "nothing to mend"
        if run["flow"] == "annotate":
            (row,) = _table(found["annotations"])
            return ", ".join(
                f"{row[key]} {key}" for key in ("images", "annotated", "no_face", "quarantined", "faces")
            )
        if "drift" not in found:
            return str(run["state"]["message"])
        drifted = [row["name"] for row in _table(found["drift"]) if row["verdict"] == "drifted"]
        return str(found["drift"]["description"]).partition(":")[0] + (f": {', '.join(drifted)}" if drifted else "")


def left_to_do(api: str, model: str) -> list[str]:
    """What only a person could do now; nothing, if all went by itself."""
    runs = all_runs(api)
    left = [f"{run['flow']} is {run['state']['name']}" for run in runs if _is_stuck(run)]
    for run in runs:
        if run["state"]["type"] in {"FAILED", "CRASHED"} and not any(_made_good(run, other) for other in runs):
            left.append(f"{run['flow']} {run['state']['name']}: {run['state']['message']}")
    best, versions = champion(model), models(model)
    if best is None:
        left.append("there is no champion")
    for version in versions:
        decision = version.tags.get(DECISION_TAG)
        if decision in (None, AWAITING):
            left.append(f"version {version.version} is not judged: {decision}")
    left += [f"turn {line.number} is not finished" for line in log(model) if line.end is None]
    return left


def all_runs(api: str) -> list[Json]:
    """Without those that wait for their schedule; each with the name of its flow."""
    names = {flow["id"]: flow["name"] for flow in post(f"{api}/flows/filter", {})}
    found: list[Json] = []
    while page := post(f"{api}/flow_runs/filter", {"offset": len(found), "sort": "ID_DESC"}):
        found += page
    runs = [run | {"flow": names[run["flow_id"]]} for run in found if not _is_planned(run)]
    assert {run["flow"] for run in runs} <= set(_FLOWS)
    return runs


def states_of(api: str, run: str) -> list[Json]:
    """The states of a run, oldest first."""
    history = get(f"{api}/flow_run_states/?flow_run_id={run}")
    return sorted(history, key=lambda state: str(state["timestamp"]))


def _is_planned(run: Json) -> bool:
    return bool(run["state"]["type"] == "SCHEDULED" and run["run_count"] == 0)


def _is_stuck(run: Json) -> bool:
    return run["state"]["type"] not in _OVER


def _made_good(run: Json, other: Json) -> bool:
    """A later run of the same flow, told the same, completed."""
    if (other["flow"], other["parameters"], other["state"]["type"]) != (run["flow"], run["parameters"], "COMPLETED"):
        return False
    return bool(other["end_time"] and other["end_time"] > run["state"]["timestamp"])


def _events(api: str, name: str) -> list[Json]:
    found: list[Json] = post(f"{api}/events/filter", {"filter": {"event": {"name": [name]}}})["events"]
    return sorted(found, key=lambda event: str(event["occurred"]))


def _is_of(event: Json, run: Json) -> bool:
    return any(each["prefect.resource.id"] == f"prefect.flow-run.{run['id']}" for each in event["related"])


def _said(line: Line) -> str:
    return f"version {line.turn.version} **{line.turn.what}**: {line.turn.reason}"


def _table(artifact: Json) -> list[Json]:
    rows: list[Json] = json.loads(artifact["data"]) if isinstance(artifact["data"], str) else artifact["data"]
    return rows


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
