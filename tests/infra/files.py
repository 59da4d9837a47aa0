"""What is in infra/, read as those who apply it read it."""

import re
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
INFRA: Final = ROOT / "infra"

_VARIABLE: Final = re.compile(r"\$\$|\$\{(?P<name>\w+)(?:(?P<op>:[-?])(?P<text>[^}]*))?\}")


class UnsetError(Exception):
    """A variable that compose requires has no value."""


def read_yaml(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text("utf-8"))


def required_variables(*files: str) -> set[str]:
    found = (_VARIABLE.finditer((INFRA / file).read_text("utf-8")) for file in files)
    return {match["name"] for matches in found for match in matches if match["op"] == ":?"}


def compose(environment: dict[str, str], *files: str) -> dict[str, Any]:
    """The services of compose files, one on top of the other, with variables filled in.

    Raises:
        UnsetError: with the name of one that is required.
    """
    services: dict[str, Any] = {}
    for file in files or ("compose.yaml",):
        services = _merged(services, read_yaml(file)["services"])
    return dict(_filled(services, environment))


def pins() -> dict[str, str]:
    """Versions by package, in lower case, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").split()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines)}


def dockerfile() -> list[list[tuple[str, str]]]:
    """Instructions and their arguments, a list for each stage; the one before the first FROM is left out."""
    text = re.sub(r"^\s*#.*\n", "", (INFRA / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    stages: list[list[tuple[str, str]]] = []
    for line in filter(None, text.replace("\\\n", " ").splitlines()):
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            stages.append([])
        stages[-1].append((instruction, " ".join(arguments.split())))
    return stages


def image_environment() -> dict[str, str]:
    """The variables that the image sets."""
    (text,) = [arguments for instruction, arguments in dockerfile()[-1] if instruction == "ENV"]
    return dict(pair.split("=", 1) for pair in text.split())


def _merged(below: Any, above: Any, key: str = "") -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {name: _merged(below.get(name), value, name) for name, value in above.items()}
    if isinstance(below, list) and isinstance(above, list) and key in {"volumes", "ports"}:
        return [*below, *above]
    return above


def _filled(value: Any, environment: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, environment) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, environment) for each in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        given = environment.get(match["name"], "")
        if not given and match["op"] == ":?":
            raise UnsetError(match["name"])
        return given or (match["text"] if match["op"] == ":-" else "")

    return _VARIABLE.sub(fill, value)
