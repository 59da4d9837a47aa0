"""What the README says in tables and lists is what there is."""

import re
from argparse import _SubParsersAction
from collections.abc import Collection
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from flows.cli import main, parser
from msrrn.metrics import nrmse_ip
from pipelines.annotation.tables import FACES, IMAGES, REASONS
from pipelines.settings import BoxesBy, ExportFormat, SourceFormat
from pipelines.sources.pts import parse_pts

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
COMMANDS = sorted(set(re.findall(r"`msrrn (\S+?)[ `]", "\n".join(re.findall(r"^\| `msrrn .*", README, re.M)))))


def test_its_commands_are_those_that_there_are() -> None:
    (there,) = (action for action in parser()._actions if isinstance(action, _SubParsersAction))
    assert sorted(there.choices) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"  msrrn {command}" in text.partition("examples:")[2]
    assert all(len(line) <= 130 for line in text.splitlines())


def test_its_columns_are_those_of_the_tables() -> None:
    for table, schema in (("images", IMAGES), ("faces", FACES)):
        (columns,) = re.findall(rf"`OUT/{table}/\*\.parquet` \([^`]*`([^`]*)`", README)
        assert re.split(r",\s+", columns) == schema.names


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("--format", get_args(SourceFormat)),
        ("F", get_args(ExportFormat)),
        ("--detector", get_args(BoxesBy)),
        ("reason", REASONS),
    ],
)
def test_its_names_are_those_that_there_are(title: str, names: Collection[str]) -> None:
    table = README.partition(f"| `{title}` |")[2].partition("\n\n")[0].splitlines()[2:]
    assert {name for row in table for name in re.findall(r"`([^`]+)`", row.split("|")[1])} == {*names}


def test_its_code_finds_a_face(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "300w/lfpw/trainset/image_0001"
    (tmp_path / "photo.jpg").symlink_to(data_root / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "open_model" in code)
    said: dict[str, Any] = {}
    exec(code, said)
    (shape,) = said["shapes"]
    truth = parse_pts((data_root / f"{name}.pts").read_bytes())
    assert nrmse_ip(np.array([shape]), truth[None])[0] < 0.1
