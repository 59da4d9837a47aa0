"""The command line as people and machines meet it: help, exit codes, one-line errors, JSON."""

import errno
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock
from urllib.request import proxy_bypass

import pyarrow.parquet as pq
import pytest
import yaml

from flows.cli import main, parser
from flows.options import add_settings, add_train_options, given, train_settings
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.prepare import prepare
from pipelines.errors import UserError
from pipelines.models import Model
from pipelines.registry import tracking
from pipelines.settings import AnnotateSettings, TrainSettings
from pipelines.storage import Store
from pipelines.training.train import run_name, train_model
from tests.factories import ANY_SHAPE, SETTINGS, start_msrrn, tiny_model, tree, write_model
from tests.pipelines.listings import a_face
from tests.pipelines.runs import run_of


@pytest.fixture
def artifact(model: Model, tmp_path: Path) -> str:
    return write_model(tmp_path / "artifact", model)


def fails(capsys: pytest.CaptureFixture[str], *call: str, code: int = 1) -> str:
    """Runs a call that fails with `code` and returns its words: at most two lines, no traceback."""
    assert main(list(call)) == code
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if line.startswith("msrrn: ")]
    assert len(said) == 1
    assert "Traceback" not in captured.err
    assert not captured.out
    return captured.err[captured.err.index("msrrn: ") :]


def test_commands_outlive_a_prefect_server_that_is_away_as_deployments_do(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "PREFECT_CLIENT_MAX_RETRIES"
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    main(["datasets", "nowhere"])
    pool = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text("utf-8"))["definitions"]["pool"]
    assert os.environ[name] == pool["job_variables"]["env"][name]


def test_libraries_do_not_tell_a_full_disk_in_their_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "PREFECT_SERVER_LOGGING_LEVEL"
    monkeypatch.setenv(name, "")
    monkeypatch.delenv(name)
    main(["datasets", "nowhere"])
    assert os.environ[name] == "CRITICAL"
    for each in ("mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
        assert not logging.getLogger(each).isEnabledFor(logging.ERROR)


def test_without_a_command_it_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr()
    assert "start here:" in said.err
    assert not said.out


def test_of_thousands_of_arguments_too_many_some_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["annotate", "--out", "there", *(f"{number:04d}.jpg" for number in range(5000))])
    said = capsys.readouterr().err.splitlines()[-1]
    names = "0001.jpg 0002.jpg 0003.jpg 0004.jpg 0005.jpg"
    words = f"msrrn annotate: error: unrecognized arguments: {names} and 4994 more; SRC is one place: give the folder"
    assert said.startswith(words)


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"msrrn {version('msrrn')}\n"


def test_help_states_the_defaults_that_are_used() -> None:
    call = parser().parse_args(["train", "--dataset", "d", "--out", "o"])
    assert (call.epochs, call.batch, call.preset) == (None, None, None)
    assert TrainSettings().preset == "paper"


def test_an_option_is_the_setting_of_its_name() -> None:
    options = ArgumentParser()
    add_train_options(options)
    options.add_argument("--momentum", type=float)
    call = options.parse_args(["--momentum", "0.5", "--epochs", "3", "--init", "box"])
    assert train_settings(call) == TrainSettings(momentum=0.5, epochs=3)


def test_a_field_of_any_kind_has_its_option_and_its_text() -> None:
    options = ArgumentParser(formatter_class=RawTextHelpFormatter)
    add_settings(options, AnnotateSettings)
    text = options.format_help()
    for name, field in AnnotateSettings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert str(field.description) in text
    call = ["--max-faces", "3", "--min-face", "40", "--any-rotation", "--engine", "native"]
    said = given(options.parse_args(call), AnnotateSettings)
    assert said == {"max_faces": 3, "min_face": 40.0, "any_rotation": True, "engine": "native"}
    assert given(options.parse_args([]), AnnotateSettings) == {}


def test_the_list_of_commands_says_a_whole_sentence_of_each() -> None:
    assert "Runs the deployments of prefect.yaml on this machine\n" in parser().format_help()


@pytest.mark.parametrize(("command", "takes"), [("evaluate", True), ("annotate", True), ("promote", False)])
def test_help_says_of_an_exported_model_who_takes_it(
    command: str, takes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert ("exported .onnx" in capsys.readouterr().out) == takes


def test_sources_may_follow_one_option_or_several() -> None:
    call = parser().parse_args(["prepare", "--data", "a", "b", "--data", "c", "--out", "o"])
    assert call.data == ["a", "b", "c"]


@pytest.mark.parametrize(
    "call",
    [
        ["fly"],
        ["prepare", "--out", "o"],
        ["annotate", "--out", "o"],
        ["export-model", "--out", "face.pt"],
        ["synth", "o", "--photos", "0"],
        ["annotate", "photos", "--out", "o", "--limit", str(10**20)],  # more than Python lists
        ["annotate", "photos", "--out", "o", "--dry"],  # what it is short for may change
        ["export", "annotations", "--out", "o"],
        ["export", "annotations", "--out", "o", "--format", "csv", "--min-confidence", "2"],
        ["rollback", "--reason", " "],
        ["rollback", "--reason", "misses profiles", "--name", " "],
        ["models", "--name", "team/faces"],
        ["reconcile", "--name", ""],
        ["reconcile", "--minutes", "nan"],
        ["review", "annotations", "--out", "o", "--worst", "0"],
        ["review", "annotations", "--out", "o", "--format", "csv"],
        ["evaluate", "--model", "m", "--data", "d", "--split", "some"],
        ["train", "--dataset", "d", "--out", "o", "--preset", "best-ever"],
    ],
)
def test_a_wrong_call_exits_with_2(call: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(call)
    assert ended.value.code == 2
    assert "usage: msrrn" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "by"), [({}, []), ({"NO_PROXY": "mlflow,.lan"}, ["mlflow", "s3.lan"])])
def test_no_proxy_stands_before_servers_of_this_machine(
    asked: dict[str, str], by: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in {"http_proxy": "http://proxy:3128", **asked}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["--help"])
    hosts = ["127.0.0.1:4200", "localhost", "mlflow", "s3.lan", "elsewhere"]
    assert [host for host in hosts if proxy_bypass(host)] == [*hosts[:2], *by]
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert proxy_bypass("elsewhere")


def test_an_unknown_option_is_answered_with_those_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["annotate", "photos", "--out", "o", "--minface", "3"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "msrrn annotate: error: unrecognized arguments: --minface 3" in said
    assert "--min-face" in said


def test_a_setting_out_of_its_bounds_names_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, "prepare", "--data", "d", "--out", "o", "--copies", "-1", code=2)
    assert "--copies -1" in said
    said = fails(capsys, "train", "--dataset", "d", "--out", "o", "--seed", "-1", code=2)
    assert "--seed -1" in said


@pytest.mark.parametrize(
    ("call", "option"),
    [
        (["monitor", "--runs", "r", "--out", "o", "--psi-alarm", "inf"], "--psi-alarm inf"),
        (["promote", "--model", "m", "--gate-slower", "inf"], "--gate-slower inf"),
        (["train", "--dataset", "d", "--out", "o", "--learning-rate", "inf"], "--learning-rate inf"),
        (["annotate", "photos", "--out", "o", "--min-face", "nan"], "--min-face nan"),
        (["annotate", "photos", "--out", "o", "--min-score=-inf"], "--min-score -inf"),
    ],
)
def test_a_number_without_end_is_no_setting(call: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{option}: Input should be a finite number" in fails(capsys, *call, code=2)


def test_a_dry_run_does_not_ignore_what_it_cannot_tell(capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, "annotate", "photos", "--out", "o", "--dry-run", "--retry", "no_face", code=2)
    assert "--dry-run looks at the whole archive" in said


@pytest.mark.parametrize(
    "call",
    [
        ("retrain", "--data", "photos", "s3://key:Ve7ry5ecret@bucket/more", "--out", "work"),
        ("annotate", "photos", "--out", "s3://key:Ve7ry5ecret@bucket"),
        ("train", "--dataset", "https://Ve7ry5ecret@host/x", "--out", "work"),
    ],
)
def test_a_password_in_an_address_goes_no_further(call: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, *call, code=2)
    assert "AWS_SECRET_ACCESS_KEY" in said
    assert "Ve7ry5ecret" not in said


@pytest.mark.parametrize(
    "call",
    [
        ("s3://key:Ve7ry5ecret@bucket",),
        ("annotate", "photos", "s3://key:Ve7ry5ecret@bucket", "--out", "work"),
        ("annotate", "photos", "--out", "work", "--workers", "s3://key:Ve7ry5ecret@bucket"),
    ],
)
def test_a_wrong_call_is_told_without_the_password_in_it(
    call: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(call)
    said = capsys.readouterr().err
    assert "s3://bucket" in said
    assert "Ve7ry5ecret" not in said


def test_a_missing_folder_is_named_with_a_remedy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert str(missing) in fails(capsys, "prepare", "--data", str(missing), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_name_is_no_order_to_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = tmp_path / "\x1b[2Jred\x07"
    assert r"\x1b[2Jred\x07 does not exist" in fails(capsys, "prepare", "--data", str(place), "--out", str(tmp_path))

    with pytest.raises(SystemExit):  # as a shell gives the names of a folder
        main(["annotate", "a.jpg", "\x1b[2Jred\x07.jpg", "--out", str(tmp_path)])
    assert r"unrecognized arguments: \x1b[2Jred\x07.jpg" in capsys.readouterr().err


def test_an_error_is_told_without_what_pages_need() -> None:
    code = "import sys; from flows.cli import main; main(['verify', 'nowhere']); sys.exit('jinja2' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "nowhere" in ended.stderr
    assert ended.returncode == 0


def test_datasets_are_listed_without_what_trains_and_registers(dataset: tuple[Store, Manifest]) -> None:
    heavy = "sys.exit(bool({'matplotlib', 'mlflow', 'torch'} & sys.modules.keys()))"
    code = f"import sys; from flows.cli import main; main(['datasets', {dataset[0].parent.url!r}]); {heavy}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert dataset[1].name in ended.stdout
    assert ended.returncode == 0


def test_what_a_model_says_of_itself_is_no_order_to_the_terminal(
    artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.models.export_model", lambda model: b"")  # it takes long
    card = Path(artifact, "card.json")
    card.write_text(json.dumps(json.loads(card.read_text()) | {"licence": "\x1b[2Jnone"}))
    assert main(["export-model", "--model", artifact, "--out", str(tmp_path / "m.onnx")]) == 0
    assert r"Licence: \x1b[2Jnone" in capsys.readouterr().out


def test_a_directory_that_is_no_artifact_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = fails(capsys, "annotate", str(tmp_path), "--out", str(tmp_path / "out"), "--model", str(tmp_path))
    assert "card.json" in said


def test_a_database_without_its_driver_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql+pymysql://who:secret@127.0.0.1/mlflow")
    said = fails(capsys, "models")
    assert said == "msrrn: what the call asks for needs the Python package pymysql, which is not installed\n"


def test_what_a_flow_refuses_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.retrain import retrain

    def asked(data: object, out: object, *_: object, **__: object) -> None:
        retrain.validate_parameters({"data": data, "out": out})  # as Prefect does before a run

    monkeypatch.setattr("flows.retrain.retrain", asked)
    said = fails(capsys, "retrain", "--data", "", "--out", "work")  # as of a variable that is not set
    assert said == "msrrn: the call gives what cannot be used: data.0: String should have at least 1 character\n"


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("can't start new thread"), RuntimeError("could not create a primitive")],  # torch's
)
def test_too_little_memory_is_told(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipelines.dataset.inventory.datasets", full)
    assert re.search(r"not enough memory( \(.*\))?: free some", fails(capsys, "datasets", "d"))


def test_tracebacks_only_with_debug(tmp_path: Path) -> None:
    call = ["prepare", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path), "--debug"]
    program = [sys.executable, "-c", "import sys; from flows.cli import main; sys.exit(main())", *call]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False)
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_a_place_whose_name_is_no_utf_8_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "run", {"a.jpg": [a_face()]})
    place = tmp_path / os.fsdecode(b"caf\xe9")
    assert main(["export", run.store.url, "--format", "csv", "--out", str(place)]) == 0
    assert f"{tmp_path}/caf\\udce9/faces.csv: 1 face in 1 picture" in capsys.readouterr().out
    assert (place / "faces.csv").is_file()


def test_a_folder_that_was_deleted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "was deleted: go to another one" in fails(
        capsys, "annotate", str(tmp_path), "--out", str(tmp_path / "out")
    )


def test_a_user_without_a_home_has_that_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", Mock(side_effect=KeyError("uid not found")))
    assert main(["datasets", "/proc/none"]) == 1
    assert os.environ["HOME"] == "/"


def test_names_are_utf_8_where_the_locale_is_ascii(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from flows.cli import entry; entry()", "datasets", str(tmp_path / "café")]
    ascii_alone = os.environ | {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run(program, capture_output=True, timeout=120, env=ascii_alone, check=False)
    assert f"{tmp_path}/café" in (ended.stdout + ended.stderr).decode()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_error(dataset: tuple[Store, Manifest], unbuffered: str) -> None:
    program = [sys.executable, "-c", "import sys; from flows.cli import main; sys.exit(main())"]
    reader, writer = os.pipe()
    os.close(reader)
    told = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    call = [*program, "datasets", dataset[0].parent.url]
    ended = subprocess.run(call, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, env=told, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "<&- >&- 2>&-"])
def test_work_ends_well_where_nobody_can_be_told(redirection: str, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from flows.cli import entry; entry()", "synth", str(tmp_path)]
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh"]
    ended = subprocess.run([*shell, *program, "--photos", "1", "--workers", "1"], timeout=120, check=False)
    assert ended.returncode == 0
    assert (tmp_path / "synthetic.json").is_file()


def test_a_terminal_that_was_closed_ends_no_work(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    program = [sys.executable, "-c", "from flows.cli import entry; entry()", "synth", str(tmp_path), "--photos", "1"]
    with subprocess.Popen([*program, "--workers", "1"], stderr=theirs) as process:
        os.close(theirs)
        assert os.read(ours, 1)  # its bar is there
        os.close(ours)
    assert process.returncode == 0


def test_a_broken_connection_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("pipelines.registry.versions.models", broken)
    assert main(["models"]) == 1
    assert "BrokenPipeError" in capfd.readouterr().err


def test_prepare_prints_json_for_machines(
    annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["prepare", "--data", str(annotated), "--out", str(tmp_path), "--copies", "1", "--workers", "1", "--json"]
    assert main([*call, "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert not Path(planned["dataset"]).exists()
    assert main([*call[:-1], "--dry-run"]) == 0
    assert "\nreasons    2 test_split\n" in capsys.readouterr().out
    assert main(call) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["dataset"] == planned["dataset"]
    assert made["faces_in"] == made["train"] + made["val"] + made["left_out"]
    assert (Path(made["dataset"]) / "manifest.json").is_file()


@pytest.mark.parametrize(("detector", "told"), [("auto", True), ("hog", False)])
def test_annotate_tells_of_a_faster_detector_whoever_asked_for_none(
    annotated: Path,
    artifact: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    detector: str,
    told: bool,
) -> None:
    monkeypatch.setenv("MSRRN_CACHE", str(tmp_path / "cache"))  # nobody fetched a model file
    call = ["annotate", str(annotated), "--out", str(tmp_path / "out"), "--model", artifact, "--workers", "1"]
    for more in (["--dry-run"], []):
        assert main([*call, "--detector", detector, "--limit", "2", *more]) == 0
        assert ("msrrn fetch-detector blazeface" in capsys.readouterr().err) == told


def test_evaluate_writes_the_figures_and_prints_a_table(
    annotated: Path, artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    call = ["evaluate", "--model", artifact, "--data", str(annotated), "--workers", "1"]
    assert main([*call, "--json", str(figures)]) == 0
    text = capsys.readouterr().out
    table = json.loads(figures.read_text())
    assert set(table) == {"helen", "ibug", "lfpw", "all"}
    assert table["all"]["faces"] == sum(row["faces"] for name, row in table.items() if name != "all")
    assert "stage_3" in text
    assert main([*call, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == table


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(
    artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    below, nothing = str(tmp_path / "file" / "below.onnx"), str(tmp_path / "nothing here")
    measured = ["--model", artifact, "--data", nothing]
    assert below in fails(capsys, "evaluate", *measured, "--json", below)
    assert str(tmp_path) in fails(capsys, "evaluate", *measured, "--json", str(tmp_path))
    assert below in fails(capsys, "benchmark", *measured, "--out", below)
    assert below in fails(capsys, "export-model", "--model", nothing, "--out", below)


def test_annotate_accounts_for_every_picture(
    annotated: Path,
    artifact: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MSRRN_METRICS_DIR", str(tmp_path))
    out = tmp_path / "annotations"
    call = ["annotate", str(annotated), "--out", str(out), "--model", artifact, "--workers", "1", "--json"]
    assert main(call) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["images"] == summary["annotated"] + summary["no_face"] + summary["quarantined"]
    assert summary["faces"] == sum(pq.read_metadata(part).num_rows for part in (out / "faces").iterdir()) > 0
    metrics = (tmp_path / "msrrn.prom").read_text().splitlines()
    assert f'msrrn_pictures_total{{status="annotated"}} {summary["annotated"]:.1f}' in metrics


def test_annotations_leave_for_other_tools_and_come_back(
    annotated: Path, artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, review = tmp_path / "annotations", tmp_path / "review"
    assert main(["annotate", str(annotated), "--out", str(out), "--model", artifact, "--workers", "1", "--json"]) == 0
    faces = json.loads(capsys.readouterr().out)["faces"]
    for made, place in (("webdataset", tmp_path / "shards"), ("pts", tmp_path / "files")):
        call = ["export", str(out), "--format", made, "--out", str(place)]
        assert main([*call, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["faces"], said["finished"], said["unreadable"]) == (faces, True, {})
        assert main([*call, "--min-confidence", "100%"]) == 0
        assert f"left out, confidence below 1: {faces} faces" in capsys.readouterr().out
    assert main(["review", str(out), "--worst", "2", "--out", str(review), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["doubtful"] == 2
    assert "give another --out" in fails(capsys, "review", str(out), "--out", str(review))
    assert main(["prepare", "--data", str(review), "--out", str(tmp_path / "datasets"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["faces_in"] == said["faces"]


def test_an_exported_model_is_used_like_any(
    exported: Path,
    annotated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    artifact, file = str(tmp_path / "artifact"), str(tmp_path / "face.onnx")
    tiny_model(Path(artifact), ANY_SHAPE)
    monkeypatch.setattr("pipelines.models.to_onnx", lambda *_: exported.read_bytes())  # of this one: it takes long
    assert main(["export-model", "--model", artifact, "--out", file, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == file
    assert said["bytes"] == Path(file).stat().st_size
    rows = []
    for model in (artifact, file):
        assert main(["evaluate", "--model", model, "--data", str(annotated), "--json", "-", "--workers", "1"]) == 0
        rows.append(json.loads(capsys.readouterr().out)["all"])
    assert rows[0]["nrmse_ip"] == pytest.approx(rows[1]["nrmse_ip"], rel=1e-4)
    assert "is an export" in fails(capsys, "promote", "--model", file, "--data", str(annotated))


def test_commands_that_ask_a_model_take_one_look_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(model: str, one_look: bool) -> Model:
        raise UserError(f"asked for {model}, {one_look}")

    monkeypatch.setattr("pipelines.opening.open_model", opened)
    out = ["--out", str(tmp_path / "out.onnx")]
    for command in (["evaluate", "--data", "x"], ["benchmark", "--data", "x", *out], ["annotate", "x", *out]):
        assert "asked for box, False" in fails(capsys, *command, "--model", "box")
        assert "asked for box, True" in fails(capsys, *command, "--model", "box", "--one-look")
    assert "asked for box, True" in fails(capsys, "export-model", "--model", "box", "--one-look", *out)


def test_models_of_an_empty_registry_and_rollback_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert "champion" in fails(capsys, "rollback", "--reason", "to try it")


def test_a_dataset_that_is_not_finished_is_refused(
    annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    dataset, _ = prepare([str(annotated)], str(tmp_path / "datasets"), SETTINGS, workers=1)
    (Path(dataset.url) / "manifest.json").unlink()
    said = fails(capsys, "train", "--dataset", dataset.url, "--out", str(tmp_path / "work"))
    assert "manifest.json" in said


def test_only_one_unfinished_run_is_resumed_and_with_its_own_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["train", "--resume", "--out", str(tmp_path)]
    assert "no unfinished run to go on with" in fails(capsys, *call)
    for other in (["--epochs", "3"], ["--seed", "0"], ["--preset", "best"], ["--precision", "bfloat16"]):
        assert "leave the others out" in fails(capsys, *call, *other, code=2)


@pytest.mark.parametrize("ending", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.line)])
def test_whoever_stops_a_training_stops_it_at_a_checkpoint_and_resume_finishes_it(
    ending: signal.Signals,
    dataset: tuple[Store, Manifest],
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    url, out, settings = dataset[0].url, tmp_path / "work", TrainSettings(epochs=3, batch=8)
    call = ["train", "--dataset", url, "--out", str(out), "--epochs", "3", "--batch", "8", "--workers", "0"]
    process = start_msrrn(*call)
    while not list(out.glob("runs/*/state.pt")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(ending)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    name = run_name(dataset[1], settings)
    told, remedy = errors.splitlines()[-2:]
    assert told == "msrrn: training stopped; the same command goes on from its last checkpoint, and so does"
    assert remedy == f"  msrrn train --resume {name} --out {out}"
    assert "Traceback" not in errors

    def status() -> str:
        client = tracking.client()
        (experiment,) = client.search_experiments(filter_string="name = 'msrrn'")
        (run,) = client.search_runs([experiment.experiment_id])
        assert any(metric.startswith("system/") for metric in run.data.metrics)
        return str(run.info.status)

    assert status() == "KILLED"
    assert main([*shlex.split(remedy)[1:], "--workers", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["epoch"], said["reused"]) == (3, False)
    assert status() == "FINISHED"
    whole = train_model(url, str(tmp_path / "whole"), settings, 0)
    assert tree(Path(said["model"])) == tree(tmp_path / "whole" / "models" / whole.name)
    assert list((out / "runs").iterdir()) == []


def test_sigterm_stops_what_a_script_runs_in_the_background(tmp_path: Path) -> None:
    here = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for what runs there
    try:
        process = start_msrrn("synth", str(tmp_path / "photos"), "--photos", "100000")
    finally:
        signal.signal(signal.SIGINT, here)
    while not (tmp_path / "photos").exists() and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=600)
    assert (process.returncode, errors.splitlines()[-1][:18]) == (130, "msrrn: interrupted")


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_interrupted_while_it_is_loaded_ends(ending: signal.Signals, tmp_path: Path) -> None:
    """There an exception may be lost, or become another one, as in C that is called back."""
    losing = f"import signal\ntry:\n    signal.raise_signal({ending:d})\nexcept BaseException:\n    pass"
    (tmp_path / "pydantic.py").write_text(losing, "utf-8")
    program = f"import sys; from flows.cli import entry; sys.path.insert(0, {str(tmp_path)!r}); entry()"
    done = subprocess.run([sys.executable, "-c", program, "models"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "msrrn: interrupted; the same command goes on where this one stopped\n"


@pytest.mark.parametrize("late", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_after_all_is_told_ends_a_command_without_another_word(late: signal.Signals) -> None:
    """Ray takes a second to end, and crashed when it was interrupted."""
    kill = f"atexit.register(os.kill, os.getpid(), {late:d})"
    program = f"import atexit, os; from flows.cli import entry; {kill}; entry()"
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-late, "")
    assert "usage: msrrn" in done.stdout


def test_datasets_are_listed_and_verified(
    annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, manifest = prepare([str(annotated)], str(tmp_path), SETTINGS, workers=1)
    assert main(["datasets", str(tmp_path)]) == 0
    assert manifest.name in capsys.readouterr().out
    assert main(["datasets", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["datasets"][0]["counts"] == manifest.counts
    call = ["verify", dataset.url, "--workers", "1"]
    assert main(call) == 0
    assert "no problems" in capsys.readouterr().out
    shard = tmp_path / manifest.shards()[0].shard
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert main(call) == 1
    assert shard.name in capsys.readouterr().out
    assert main([*call, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"]
    told = Path(dataset.url, "manifest.json")
    whole = told.read_text("utf-8")
    told.write_text(json.dumps(json.loads(whole) | {"scheme": "\x1b[2Jred"}), "utf-8")
    assert main(call) == 1
    assert r"field `scheme` is \x1b[2Jred" in capsys.readouterr().out
    told.write_text(whole, "utf-8")
    assert "give that, too" in fails(capsys, "datasets", str(tmp_path), "--dry-run", code=2)
    for dry_run in (["--dry-run"], []):
        assert main(["datasets", str(tmp_path), "--delete", manifest.name, *dry_run]) == 0
        assert (
            f"delete{'' if dry_run else 'd'} {manifest.name}, {len(manifest.units)} units" in capsys.readouterr().out
        )
        assert Path(shard).exists() is bool(dry_run)


def test_appending_takes_the_settings_of_the_dataset(
    annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, manifest = prepare([str(annotated)], str(tmp_path), SETTINGS, workers=1)
    call = ["prepare", "--data", str(annotated), "--out", str(tmp_path), "--append-to", manifest.name, "--json"]
    assert main([*call, "--workers", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["dataset"].endswith(manifest.name)
    assert "made with augmentation" in fails(capsys, *call, "--copies", "7")


def test_a_share_may_be_said_in_percent(annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jpg").write_bytes(b"")
    (tmp_path / "in" / "x.pts").write_bytes((annotated / "lfpw/trainset/0.pts").read_bytes())
    call = [
        "prepare",
        "--data",
        str(tmp_path / "in"),
        str(annotated),
        "--out",
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    assert "5.00% are allowed" in fails(capsys, *call, "--max-bad", "5%")


def test_a_detector_without_its_file_says_how_to_get_it(
    annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MSRRN_CACHE", str(tmp_path / "cache"))
    call = ["prepare", "--data", str(annotated), "--out", str(tmp_path / "out"), "--detector", "yunet"]
    assert "msrrn fetch-detector yunet" in fails(capsys, *call)
    (tmp_path / "wrong").write_bytes(b"no model")
    assert "SHA-256" in fails(capsys, "fetch-detector", "yunet", "--from", str(tmp_path / "wrong"))


def test_what_cannot_be_appended_to_is_said(
    dataset: tuple[Store, Manifest], annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = dataset[0].parent.local_path()
    assert place is not None
    shutil.copytree(place, tmp_path / "out")
    call = ("prepare", "--data", str(annotated), "--out", str(tmp_path / "out"), "--append-to")
    assert "give the name of a dataset in --out" in fails(capsys, *call, "../out/x", code=2)
    manifest = tmp_path / "out" / dataset[1].name / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"settings": content["settings"] | {"sharpness": 3}}))
    assert "field `settings.sharpness`: Extra inputs" in fails(capsys, *call, dataset[1].name)
    manifest.write_text("{")
    assert "delete the file and run the same `msrrn prepare` again" in fails(capsys, *call, dataset[1].name)
