import errno
import math
import os
import shutil
import sqlite3
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partialmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from safetensors.torch import load_file, save_file
from sqlalchemy.exc import OperationalError

from msrrn.artifact import Card, load, save
from msrrn.config import ModelConfig
from msrrn.network import MSRRN
from msrrn.predictor import TorchPredictor
from pipelines.errors import UserError
from pipelines.opening import open_model
from pipelines.outages import OutageError
from pipelines.registry import tracking
from pipelines.registry import versions as registry
from pipelines.registry.artifacts import artifact_digest, fetch, lost, register
from pipelines.registry.reaching import reaching_mlflow
from pipelines.registry.store import store_exists, tracking_uri
from pipelines.registry.succession import settle
from pipelines.registry.tracking import RunRecord

TINY = ModelConfig(patch=12, patch_channels=(2, 2), initial_channels=(2, 2, 2), hidden=8)


@pytest.fixture(scope="module")
def make_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    def make(seed: int) -> Path:
        torch.manual_seed(seed)
        folder = tmp_path_factory.mktemp("artifact")
        save(folder, MSRRN(TINY), Card(version=str(seed), crop_margin=1.3, detector="dlib", config=TINY))
        return folder

    return make


@pytest.fixture(scope="module")
def run(mlflow_store: Path) -> RunRecord:
    return tracking.open_run("training", "k1", {"epochs": 3}, {"dataset": "d"})


@pytest.fixture(scope="module")
def three(run: RunRecord, make_artifact: Callable[[int], Path]) -> list[Path]:
    """The artifacts of the versions 1, 2 and 3 of the model `three`."""
    artifacts = [make_artifact(seed) for seed in range(3)]
    for artifact in artifacts:
        register(run, "three", artifact, {"dataset": "d"})
    return artifacts


def values(run: RunRecord, metric: str) -> list[tuple[int, float]]:
    history = tracking.client().get_metric_history(run.run_id, metric)
    return sorted((each.step, each.value) for each in history)


def test_store_is_in_the_current_directory(mlflow_store: Path, run: RunRecord) -> None:
    tracking.log_files(run, {"tables/report.csv": b"a,b\n", "note.txt": b"x"})
    assert (mlflow_store / "mlflow.db").is_file()
    stored = {path.name: path.read_bytes() for path in (mlflow_store / "mlartifacts" / run.run_id).rglob("*.*")}
    assert stored == {"report.csv": b"a,b\n", "note.txt": b"x"}
    assert not (mlflow_store / "mlruns").exists()


def test_pickles_and_telemetry_are_off() -> None:
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_run_is_found_again_by_its_key(run: RunRecord) -> None:
    tracking.finish_run(run, "FAILED")
    again = tracking.open_run("training", "k1", {"epochs": 4, "seed": 1}, {"dataset": "e"})
    assert again == run
    stored = tracking.client().get_run(run.run_id)
    assert stored.info.status == "RUNNING"
    assert stored.data.params == {"epochs": "3", "seed": "1"}
    assert stored.data.tags["dataset"] == "e"
    assert tracking.open_run("training", "k2", {}, {}) != run
    assert tracking.open_run("other", "k1", {}, {}) != run


def test_a_key_cannot_alter_the_search() -> None:
    with pytest.raises(ValueError, match="key"):
        tracking.open_run("training", "k' OR '1' = '1", {}, {})


def test_a_long_history_is_logged_once(mlflow_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracking.open_run("training", "history", {}, {})
    history = [{"epoch": epoch, "loss": 1 / epoch, "rate": 0.1} for epoch in range(1, 801)]
    write, sizes = MlflowClient.log_batch, []

    def sized(self: MlflowClient, run_id: str, metrics: Sequence[Any]) -> None:
        sizes.append(len(metrics))
        write(self, run_id, metrics)

    monkeypatch.setattr(MlflowClient, "log_batch", sized)
    tracking.log_history(run, history[:600])
    tracking.log_history(run, history)
    assert sizes == [1000, 200, 400]  # a server takes no more at once
    assert values(run, "loss") == [(epoch, 1 / epoch) for epoch in range(1, 801)]
    assert len(values(run, "rate")) == 800


def test_metrics_are_logged_once(run: RunRecord) -> None:
    for _ in range(2):
        tracking.log_metrics(run, {"nrmse_ip": 0.05, "undefined": math.nan})
    assert values(run, "nrmse_ip") == [(0, 0.05)]
    assert len(values(run, "undefined")) == 1
    tracking.log_metrics(run, {"nrmse_ip": 0.04})  # of other photos
    assert tracking.client().get_run(run.run_id).data.metrics["nrmse_ip"] == 0.04


def test_every_subset_has_figures_of_its_own_whatever_it_is_called(mlflow_store: Path) -> None:
    plain = ["all", "helen", "größe/klein 1.0-x_y"]
    odd = ["a+b", "a=b", "a_b", "c?", "d//e", "d/./e", "d/../e", "x" * 300, "x" * 301, "\n", "'"]
    called = tracking.metric_names([*plain, *odd])
    assert [called[name] for name in plain] == plain
    assert called["c?"] == "c_"
    assert len(set(called.values())) == len(plain) + len(odd)
    run = tracking.open_run("subsets", "odd", {}, {})
    tracking.log_metrics(run, {f"eval.{name}.nrmse_ip_detected": 0.5 for name in called.values()})
    assert len(tracking.client().get_run(run.run_id).data.metrics) == len(called)


@given(st.lists(st.text("aä/.\n") | st.text(), max_size=8, unique=True), st.sampled_from([0, 198, 199]))
@settings(max_examples=25, deadline=None)
@example(["https://host/set/", "web/.", "web/..", "/web", "../web", "..", ".", ""], 0)
@example(["/y"], 199)
def test_any_text_has_a_name_that_mlflow_takes(mlflow_store: Path, texts: list[str], before: int) -> None:
    called = tracking.metric_names("x" * before + text for text in texts)
    run = tracking.open_run("subsets", "any", {}, {})
    metrics = dict.fromkeys(called.values(), 0.5) | {f"eval.{name}.auc": 0.5 for name in called.values()}
    assert len(metrics) == 2 * len(texts)
    tracking.log_metrics(run, metrics)
    assert metrics.keys() <= tracking.client().get_run(run.run_id).data.metrics.keys()


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", ""])
def test_files_stay_inside_the_run(run: RunRecord, name: str) -> None:
    with pytest.raises(ValueError, match="relative"):
        tracking.log_files(run, {name: b""})


@pytest.mark.filterwarnings("error", "ignore:codecs.open:DeprecationWarning")  # MLflow's own, from Python 3.14 on
def test_an_artifact_is_registered_once(run: RunRecord, make_artifact: Callable[[int], Path]) -> None:
    artifact = make_artifact(7)
    first = register(run, "once", artifact, {"dataset": "d"})
    copy = make_artifact(7)
    assert register(run, "once", copy, {}) == first
    assert registry.models("once") == [first]
    assert (first.version, first.run_id, first.tags["dataset"]) == (1, run.run_id, "d")
    assert register(run, "another", artifact, {}).name == "another"
    assert {each.name for each in registry.models(None)} >= {"once", "another"}
    client = tracking.client()
    logged = [client.get_logged_model(each.model_id) for each in client.get_run(run.run_id).outputs.model_outputs]
    assert {(each.name, each.status) for each in logged} >= {("once", "READY"), ("another", "READY")}


def test_a_name_that_no_model_has_is_told_where_there_are_others(three: list[Path]) -> None:
    with pytest.raises(UserError, match=r"No model 'there' is registered at .*three"):
        registry.models("there")
    with pytest.raises(UserError, match=r"No model 'there' is registered at .*three"):
        registry.names("there")
    assert registry.names("three") == ["three"]
    assert "three" in registry.names(None)


def test_a_registry_of_many_pages_is_read_to_its_end(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    client = tracking.client()
    client.create_registered_model("ten")
    for _ in range(10):
        client.create_model_version("ten", "s3://nowhere/model", tags={registry.DIGEST_TAG: "0" * 64})
    by_one = partialmethod(MlflowClient.search_model_versions, max_results=1)
    monkeypatch.setattr(MlflowClient, "search_model_versions", by_one)
    assert [each.version for each in registry.models("ten")] == list(range(10, 0, -1))
    assert {"three", "ten"} <= set(registry.names(None))


def test_a_registry_in_trouble_is_not_taken_for_an_empty_one(
    three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a champion, whatever comes next would be the first model."""

    def in_trouble(*_: object) -> None:
        raise MlflowException("try again", error_code=TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(MlflowClient, "get_registered_model", in_trouble)
    with pytest.raises(UserError, match="try again"):
        registry.champion("three")


def test_a_deleted_experiment_is_told_with_the_way_back(mlflow_store: Path) -> None:
    run = tracking.open_run("deleted", "k1", {}, {})
    number = tracking.client().get_run(run.run_id).info.experiment_id
    tracking.client().delete_experiment(number)
    with pytest.raises(UserError, match=f"mlflow experiments restore -x {number}"):
        tracking.open_run("deleted", "k1", {}, {})


def test_a_model_without_versions_is_one(mlflow_store: Path) -> None:
    tracking.client().create_registered_model("bare")
    assert registry.models("bare") == []
    with pytest.raises(UserError, match="Model 'bare' has no version 1; it has none"):
        registry.resolve("models:/bare/1")


def test_the_digest_sees_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    alike = [{"a": b"1", "b": b"2"}, {"a": b"2", "b": b"1"}, {"a": b"12", "b": b""}, {"a": b"1b\x002"}]
    for index, files in enumerate(alike):
        folder = tmp_path / str(index)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        digests.add(artifact_digest(folder))
    assert len(digests) == len(alike)


def test_fetches_versions_and_aliases(three: list[Path], tmp_path: Path) -> None:
    settle("three", "kept", 2, None, "worse", "me")
    fetched = fetch("models:/three@challenger", tmp_path)
    assert fetched == fetch("models:/three/2", tmp_path)
    for name in ("weights.safetensors", "card.json"):
        assert (fetched / name).read_bytes() == (three[1] / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [fetched.name]


def test_an_old_folder_of_runs_is_not_the_store(
    make_artifact: Callable[[int], Path], empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("experiment_id: '0'\nname: Default\n")
    shutil.copy(empty_store, tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert mlflow.get_tracking_uri().endswith("mlruns")  # what MLflow takes by itself
    run = tracking.open_run("training", "k1", {}, {})
    register(run, "beside", make_artifact(50), {})
    assert (fetch("models:/beside/1", tmp_path / "cache") / "card.json").is_file()


def test_a_damaged_cache_is_mended(three: list[Path], tmp_path: Path) -> None:
    fetched = fetch("models:/three/1", tmp_path)
    (fetched / "weights.safetensors").write_bytes(b"half")
    again = fetch("models:/three/1", tmp_path)
    assert (again / "weights.safetensors").read_bytes() == (three[0] / "weights.safetensors").read_bytes()


def test_of_two_that_fetch_at_once_both_have_it(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = mlflow.artifacts.download_artifacts

    def slow(**where: str) -> str:
        monkeypatch.setattr(mlflow.artifacts, "download_artifacts", download)
        fetch("models:/three/1", tmp_path)  # another process
        return str(download(**where))

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", slow)
    fetched = fetch("models:/three/1", tmp_path)
    assert (fetched / "card.json").read_bytes() == (three[0] / "card.json").read_bytes()
    assert list(tmp_path.iterdir()) == [fetched]


@pytest.mark.parametrize("digest", ["", "../elsewhere"])
def test_what_was_registered_by_others_is_not_fetched(three: list[Path], tmp_path: Path, digest: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    client, name = tracking.client(), f"others{len(digest)}"
    client.create_registered_model(name)
    client.create_model_version(name, "s3://nowhere/model", tags={registry.DIGEST_TAG: digest} if digest else {})
    with pytest.raises(UserError, match=f"models:/{name}/1 has no tag .*: it was not registered by msrrn"):
        fetch(f"models:/{name}/1", tmp_path / "cache")
    assert (tmp_path / "elsewhere").is_dir()  # a damaged cache would be removed


def test_files_that_are_gone_are_told_with_what_is_left_to_do(
    run: RunRecord, mlflow_store: Path, make_artifact: Callable[[int], Path], tmp_path: Path
) -> None:
    register(run, "lost", make_artifact(41), {})
    newest = max(
        (mlflow_store / "mlartifacts").rglob("weights.safetensors"), key=lambda path: path.stat().st_mtime_ns
    )
    version = registry.version_of("lost", 1)
    assert lost(version) == ""
    shutil.rmtree(newest.parents[2])
    assert lost(version) == "models:/lost/1: its files are gone from where MLflow keeps artifacts"
    with pytest.raises(UserError, match=r"^models:/lost/1: its files are gone .* put them back, .*msrrn rollback"):
        fetch("models:/lost/1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_store_is_noticed(
    run: RunRecord, mlflow_store: Path, make_artifact: Callable[[int], Path], tmp_path: Path
) -> None:
    register(run, "changed", make_artifact(40), {})
    newest = max(
        (mlflow_store / "mlartifacts").rglob("weights.safetensors"), key=lambda path: path.stat().st_mtime_ns
    )
    newest.write_bytes(b"other weights")
    with pytest.raises(UserError, match="not those that were registered"):
        fetch("models:/changed/1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_other_code_made_is_told_with_what_is_left_to_do(
    run: RunRecord, make_artifact: Callable[[int], Path]
) -> None:
    artifact = make_artifact(42)
    tensors = load_file(artifact / "weights.safetensors") | {"of_then": torch.zeros(1)}
    save_file(tensors, artifact / "weights.safetensors")
    register(run, "then", artifact, {})
    with pytest.raises(UserError, match=r"^models:/then/1 was made by another version of msrrn, .*\(msrrn rollback"):
        open_model("models:/then/1")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere", "nowhere: write models:/NAME@ALIAS"),
        ("models:/none/1", "No model 'none'.*three"),
        ("models:/it's/1", "quotes"),
        ("models:/three@latest", r"no alias 'latest'; it has .*challenger"),
        ("models:/three/9", "no version 9; it has 3, 2, 1"),
        ("models:/three", "NAME@ALIAS"),
    ],
)
def test_says_what_cannot_be_fetched(three: list[Path], model: str, message: str) -> None:
    settle("three", "kept", 2, None, "worse", "me")
    with pytest.raises(UserError, match=message):
        fetch(model)


def test_what_else_is_no_value_is_not_told_as_a_wrong_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ValueError("of something else")

    monkeypatch.setattr(tracking, "MlflowClient", refuse)
    with pytest.raises(ValueError, match="of something else"):
        tracking.client()


def test_says_what_is_no_artifact(tmp_path: Path, three: list[Path], run: RunRecord) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(three[0], bare)
    (bare / "card.json").unlink()
    with pytest.raises(UserError, match=r"bare.*card\.json"):
        register(run, "bare", bare, {})


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "No MLflow server answers at http://127.0.0.1:9"),
        ("http://user:secret@127.0.0.1:9", "MLFLOW_TRACKING_PASSWORD, not into MLFLOW_TRACKING_URI"),
        ("postgresql://user:secret@db:$PORT/mlflow", r"MLFLOW_TRACKING_URI=postgresql://db:\$PORT/mlflow is no"),
        ("postgresql://user:secret@127.0.0.1:9/mlflow", "No MLflow server answers at postgresql://127.0.0.1:9/"),
        ("postgresql://user:a@secret@db/mlflow", "=postgresql://db/mlflow: the password holds an @: write %40"),
        ("postgresql+psycopg2://user:a@b/secret@db/mlflow", "=postgresql.*://db/mlflow: the password holds an @"),
        ("sqlite:///{}/junk.db", "not a database"),
        ("sqlite:///{}/half.db", r"store .*/half\.db: .* stopped half-way\. .* delete it, and run again"),
        ("sqlite:///{}", "unable to open"),
        ("sqlite:////dev/null/mlflow.db", "/dev/null"),
        ("file:///{}/runs", "filesystem"),
        ("nothing://x", "nothing://x"),
    ],
)
def test_says_when_the_store_cannot_be_used(
    uri: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "junk.db").write_bytes(b"no database at all " * 100)
    with closing(sqlite3.connect(tmp_path / "half.db")) as half:  # as of an MLflow that was killed
        half.execute("CREATE TABLE _alembic_tmp_experiments (name TEXT)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delattr("mlflow.store.db.utils.time")  # with which it waits for a database, 100 seconds in all
    with pytest.raises(UserError, match=message) as caught:
        fetch("models:/three/1")
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert isinstance(caught.value, OutageError) == ("No MLflow server" in message)


def test_a_server_that_fails_is_not_said_to_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does whose disk is full."""

    class Failing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        try:
            with pytest.raises(OutageError, match=r"^The MLflow server at .* answers 500 again and again"):
                fetch("models:/three/1")
        finally:
            server.shutdown()
            thread.join()


def test_a_store_whose_disk_is_full_is_told_as_that() -> None:
    said = "(raised as a result of Query-invoked autoflush)\n(sqlite3.OperationalError) database or disk is full"
    with pytest.raises(UserError, match="disk full, there or where temporary"), reaching_mlflow():
        raise OperationalError("", {}, Exception(said))


def test_a_proxy_that_does_not_lead_there_is_not_put_down_to_the_server() -> None:
    said = "Max retries exceeded (Caused by ProxyError('Unable to connect to proxy', ... Connection refused))"
    with (
        pytest.raises(OutageError, match=r"^The proxy that HTTP_PROXY .* server's host in NO_PROXY$"),
        reaching_mlflow(),
    ):
        raise MlflowException(said)


def test_a_database_that_is_only_starting_is_asked_again() -> None:
    """By the tasks of flows, as one that is away: `OutageError`."""
    said = 'connection to server at "db", port 5432 failed: FATAL:  the database system is starting up'
    told = r"^The database at .* starts or stops: run again soon$"
    with pytest.raises(OutageError, match=told), reaching_mlflow():
        raise OperationalError("", {}, Exception(said))


def test_a_cache_that_cannot_be_written_is_not_put_down_to_mlflow(
    three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MSRRN_CACHE", str(tmp_path / "file" / "cache"))
    message = r"^.*/file/cache/\w+ cannot be written \(Not a directory\): set MSRRN_CACHE"
    with pytest.raises(UserError, match=message):
        fetch("models:/three/3")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=message), reaching_mlflow(), tracking.store_lock():
        pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        MlflowException("The following failures occurred:\n##### [Errno 28] No space left on device"),
    ],
)
def test_a_full_disk_is_told_with_tmpdir(error: Exception) -> None:
    with pytest.raises(UserError, match=r"disk full, .* \(TMPDIR\)"), reaching_mlflow():
        raise error


def test_a_served_model_answers_as_the_predictor(three: list[Path], mlflow_store: Path) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (3, 200, 200), dtype=np.uint8)
    served = mlflow.pyfunc.load_model("models:/three/3")
    answer = served.predict({"image_200": crops})
    expected = TorchPredictor(load(three[2])[0]).predict(crops).shapes.reshape(3, 136)
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, expected)
    files = {path.name for path in (mlflow_store / "mlartifacts" / "models").rglob("*") if path.is_file()}
    assert {"served_model.py", "predictor.py", "weights.safetensors"} <= files
    for record in (mlflow_store / "mlartifacts" / "models").rglob("MLmodel"):
        assert str(Path(registry.__file__).parent) not in record.read_text()
        assert str(mlflow_store.parent) not in record.read_text()
    requirements = next((mlflow_store / "mlartifacts").rglob("requirements.txt")).read_text().splitlines()
    assert [line for line in requirements if "+" in line or "==" not in line] == []
    assert not {name for name in files if name.endswith((".pkl", ".pt", ".pth", ".pyc"))}


def test_a_new_store_that_was_interrupted_between_two_tables_is_made_anew(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")

    def dies(tracking_uri: str) -> None:
        with closing(sqlite3.connect(tracking_uri.removeprefix("sqlite:///"))) as half:
            half.execute("CREATE TABLE _alembic_tmp_experiments (id)")
        raise KeyboardInterrupt

    def quick(tracking_uri: str) -> MlflowClient:
        path = Path(tracking_uri.removeprefix("sqlite:///"))
        return MlflowClient(tracking_uri=f"sqlite:///{path if path.exists() else shutil.copy(empty_store, path)}")

    monkeypatch.setattr(tracking, "MlflowClient", dies)
    with pytest.raises(KeyboardInterrupt):
        tracking.client()
    monkeypatch.setattr(tracking, "MlflowClient", quick)
    assert [each.name for each in tracking.client().search_experiments()] == ["Default"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    class Pickled(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input

    mlflow.pyfunc.save_model(tmp_path / "model", python_model=Pickled(), pip_requirements=[])
    with pytest.raises(mlflow.MlflowException, match="pickle is disallowed"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
def test_looking_makes_no_store(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}:///mlflow.db")
    assert registry.models(None) == registry.models("msrrn") == []
    assert registry.names(None) == registry.names("msrrn") == []
    with pytest.raises(UserError, match=r"there is no MLflow store at .*mlflow\.db"):
        registry.resolve("models:/msrrn@champion")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_no_address_of_sqlite_can_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos?").mkdir()
    monkeypatch.chdir(tmp_path / "photos?")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert not store_exists()
    with pytest.raises(UserError, match="in the name of a folder: call elsewhere, or set MLFLOW_TRACKING_URI"):
        tracking_uri()
