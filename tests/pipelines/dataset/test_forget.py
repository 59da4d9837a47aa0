import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.cli import main
from msrrn.provenance import Training
from pipelines.annotation import forget, unit
from pipelines.annotation.forget import forget_in_run, keep_out
from pipelines.annotation.records import UnitRecord
from pipelines.annotation.run import annotate
from pipelines.annotation.summary import Summary
from pipelines.annotation.tables import RUN, SUMMARY, TABLES, Annotations
from pipelines.annotation.work import Again
from pipelines.dataset.faces import FEATURES
from pipelines.dataset.forget import forget_in_datasets
from pipelines.dataset.inventory import datasets
from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import MANIFEST, Manifest, read_manifest
from pipelines.dataset.page import PAGE
from pipelines.dataset.prepare import prepare
from pipelines.dataset.verify import verify
from pipelines.errors import UserError
from pipelines.forgotten import FORGOTTEN, forgotten_of_run, read_forgotten, remember, remember_found
from pipelines.lease import LEASE, hold
from pipelines.models import Model
from pipelines.monitoring.drift import training_dataset
from pipelines.outages import DeniedError
from pipelines.s3 import s3_files
from pipelines.settings import AnnotateSettings
from pipelines.sources.pts import format_pts, parse_pts
from pipelines.storage import Store
from tests.factories import SETTINGS, times, tree
from tests.pipelines.test_page import Document

RUN_SETTINGS = AnnotateSettings(images_per_unit=3)


def quiet(done: int, total: int, what: str) -> None:
    pass


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def place(dataset: tuple[Store, Manifest], tmp_path: Path) -> Path:
    """A copy of the place where the dataset of the tests is."""
    local = dataset[0].parent.local_path()
    assert local is not None
    return Path(shutil.copytree(local, tmp_path / "datasets"))


def crops_of(place: Path, digest: str) -> set[bytes]:
    """What shows a photo in any shard: every picture of each of its rows."""
    found: set[bytes] = set()
    for shard in (place / "shards").glob("*.parquet"):
        for row in pq.read_table(shard).to_pylist():
            if row["photo_sha256"] == digest:
                found |= {row[f"image_{size}"] for size in (200, 100, 50)}
    return found


def files_with(folder: Path, needle: bytes) -> list[str]:
    return [name for name, data in tree(folder).items() if needle in data]


def decoded_rows(folder: Path) -> Counter[str]:
    """Rows by photo in every Parquet file, whatever its compression hides from a search of bytes."""
    found: Counter[str] = Counter()
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        for name in {"photo_sha256", "sha256"} & set(table.schema.names):
            found.update(table[name].to_pylist())
    return found


def test_nothing_of_a_photo_is_left_and_the_rest_is_as_it_was(
    dataset: tuple[Store, Manifest], annotated: Path, place: Path
) -> None:
    name, before = dataset[1].name, dataset[1]
    digest = sha256(annotated / "lfpw/trainset/0.jpg")
    crops = crops_of(place, digest)
    rows = decoded_rows(place)
    assert len(crops) == 3 * (SETTINGS.augmentation.copies + 1)
    assert files_with(place, digest.encode())
    forgot = forget_in_datasets(str(place), [digest], 1, quiet)

    new = forgot.datasets[name]
    assert new is not None
    assert [(picture.sha256, picture.files, picture.rows) for picture in forgot.pictures] == [
        (digest, 1, rows[digest])
    ]
    assert files_with(place, digest.encode()) == [FORGOTTEN]
    for crop in crops:
        assert files_with(place, crop) == []
    left = decoded_rows(place)
    assert digest not in left
    assert {key: count for key, count in rows.items() if key != digest} == left
    assert not [path for path in (place / name).rglob("*") if path.is_file()]
    with pytest.raises(UserError, match=f"{name}: pictures of it were forgotten, and it is {new} without them"):
        read_manifest(Store(str(place / name)))
    assert verify(str(place / new)).problems == []
    after = read_manifest(Store(str(place / new)))
    assert after.counts["faces_in"] == before.counts["faces_in"]
    assert after.counts["train"] == before.counts["train"] - 1
    (item,) = set(after.left_out) - set(before.left_out)
    assert (item.uri, item.reason) == ("lfpw/trainset/0.pts", "forgotten")
    assert set(before.left_out) < set(after.left_out)
    found = datasets(str(place))
    assert [(info.name, info.state) for info in found.datasets] == [(new, "finished")]
    assert found.unlisted_units == 0


def test_the_same_prepare_finds_it_forgotten(dataset: tuple[Store, Manifest], annotated: Path, place: Path) -> None:
    """Also a photo of two faces, which source files show twice."""
    digests = [sha256(annotated / "helen/trainset/0.jpg"), sha256(annotated / "afw/0_1.jpg")]
    new = forget_in_datasets(str(place), digests, 1, quiet).datasets[dataset[1].name]
    stamps = times(place)
    store, manifest = prepare([str(annotated)], str(place), SETTINGS, workers=1)
    assert manifest.name == new
    assert times(place) == stamps
    assert sorted(item.uri for item in manifest.left_out if item.reason == "forgotten") == [
        "afw/0_1.pts",
        "afw/0_2.pts",
        "helen/trainset/0.pts",
    ]
    # With other settings nothing is there yet, and from nothing the same comes out.
    other = SETTINGS.model_copy(update={"photos_per_shard": 3})
    _, made = prepare([str(annotated)], str(place), other, workers=1)
    assert {item.reason for item in made.left_out} >= {"forgotten"}
    assert not decoded_rows(place).keys() & set(digests)
    shutil.rmtree(place / "shards")
    shutil.rmtree(place / "records")
    shutil.rmtree(store.local_path() or place)
    assert prepare([str(annotated)], str(place), SETTINGS, workers=1)[1].units == manifest.units


def test_the_same_photos_from_another_source_stay_out_when_appended(
    dataset: tuple[Store, Manifest], annotated: Path, place: Path, tmp_path: Path
) -> None:
    digest = sha256(annotated / "lfpw/trainset/0.jpg")
    new = forget_in_datasets(str(place), [digest], 1, quiet).datasets[dataset[1].name]
    assert new is not None
    again = tmp_path / "again" / "lfpw" / "trainset"
    again.mkdir(parents=True)
    for suffix in ("jpg", "pts"):
        shutil.copy(annotated / f"lfpw/trainset/0.{suffix}", again / f"0.{suffix}")
    _, manifest = prepare([str(tmp_path / "again")], str(place), SETTINGS, 1, append_to=new)
    assert manifest.name == new
    assert digest not in decoded_rows(place)


def test_a_call_that_was_killed_is_finished_by_the_next(
    dataset: tuple[Store, Manifest], annotated: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it was: each call here deletes one file more."""
    digest = sha256(annotated / "lfpw/trainset/1.jpg")
    clean = Path(shutil.copytree(place, place.parent / "clean"))
    forget_in_datasets(str(clean), [digest], 1, quiet)
    left = 0
    delete = Store.delete

    def dies(store: Store, key: str) -> None:
        nonlocal left
        left -= key != LEASE
        if left < 0 and key != LEASE:
            raise KeyboardInterrupt
        delete(store, key)

    monkeypatch.setattr(Store, "delete", dies)
    kills = 0
    for more in (0, *[1] * 100):
        left = more
        try:
            told = forget_in_datasets(str(place), [digest], 1, quiet)
            break
        except KeyboardInterrupt:
            kills += 1
            (place / "shards" / ".tmp-0").write_bytes(b"of a killed writer")
    assert kills > 4
    assert told.datasets.keys() == {dataset[1].name}
    assert tree(place) == tree(clean)


def test_a_dataset_of_which_nothing_is_left_goes(
    dataset: tuple[Store, Manifest], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgot = forget_in_datasets(str(place), list(decoded_rows(place)), 1, quiet)
    assert forgot.datasets == {dataset[1].name: None}
    assert decoded_rows(place) == {}
    assert datasets(str(place)).datasets == []
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match="nothing was left of it to train on"):
        read_manifest(Store(dataset[1].name))


def test_shards_that_no_dataset_lists_are_looked_through(annotated: Path, place: Path) -> None:
    digest = sha256(annotated / "lfpw/trainset/2.jpg")
    (manifest,) = place.glob(f"*/{MANIFEST}")
    manifest.unlink()
    (held,) = (path for path in (place / "shards").iterdir() if digest in decoded_rows_of(path))
    (record,) = (place / "records").rglob(f"{held.stem}.json")
    shutil.copy(held, held.with_name("train-of-no-record.parquet"))
    forget_in_datasets(str(place), [digest], 1, quiet)
    assert not held.exists()
    assert not record.exists()
    assert digest not in decoded_rows(place)
    assert len(list((place / "shards").iterdir())) > 1


def decoded_rows_of(shard: Path) -> set[str]:
    return set(pq.read_table(shard, columns=["photo_sha256"])["photo_sha256"].to_pylist())


def test_a_page_that_may_show_a_rejected_photo_is_drawn_anew(annotated: Path, tmp_path: Path) -> None:
    """No shard has the photo, as its annotation was mirrored; the page shows it to say so."""
    source = Path(shutil.copytree(annotated, tmp_path / "source"))
    photo = source / "lfpw" / "trainset" / "2.jpg"
    shape = parse_pts(photo.with_suffix(".pts").read_bytes())
    photo.with_suffix(".pts").write_bytes(format_pts(np.array([400, 0]) + np.array([-1, 1]) * shape))
    store, _ = prepare([str(source)], str(tmp_path / "out"), SETTINGS, workers=1)
    assert "eyes_swapped: lfpw/trainset/2.pts" in store.read_bytes("index.html").decode()
    forgot = forget_in_datasets(str(tmp_path / "out"), [sha256(photo)], 1, quiet)
    assert forgot.datasets == {}
    assert "eyes_swapped: lfpw/trainset/2.pts" not in store.read_bytes("index.html").decode()
    # Made anew from its sources, it does not show the photo either.
    store.delete(MANIFEST)
    remade, _ = prepare([str(source)], str(tmp_path / "out"), SETTINGS, workers=1)
    page = remade.read_bytes("index.html").decode()
    assert "eyes_swapped" in page
    assert "eyes_swapped: lfpw/trainset/2.pts" not in page


@pytest.mark.parametrize(
    ("before", "number"), [(".parquet", 1), (".parquet", 4), (FEATURES, 1), (PAGE, 1), (MANIFEST, 1)]
)
def test_what_was_forgotten_while_a_dataset_was_made_is_not_in_it(
    annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, number: int
) -> None:
    digest = sha256(annotated / "lfpw/trainset/0.jpg")
    out = tmp_path / "out"
    out.mkdir()
    publish = Store.publish
    left = number

    def forgets(store: Store, key: str, data: bytes) -> None:
        nonlocal left
        left -= key.endswith(before)
        if not left:
            monkeypatch.setattr(Store, "publish", publish)
            forget_in_datasets(str(out), [digest], 1, quiet)
        publish(store, key, data)

    monkeypatch.setattr(Store, "publish", forgets)
    with pytest.raises(UserError, match="was forgotten while its dataset was made"):
        prepare([str(annotated)], str(out), SETTINGS, 1)
    assert digest not in decoded_rows(out)
    assert files_with(out, digest.encode()) == [FORGOTTEN]
    assert not list(out.rglob(MANIFEST))
    assert not list(out.rglob(PAGE))
    assert not list(out.rglob(FEATURES))
    _, manifest = prepare([str(annotated)], str(out), SETTINGS, 1)
    assert digest not in decoded_rows(out)
    assert manifest.counts["train"] > 0


def test_who_reads_a_dataset_while_pictures_of_it_are_forgotten_is_told_its_name(
    dataset: tuple[Store, Manifest], annotated: Path, place: Path
) -> None:
    name = dataset[1].name
    training = Loader(Store(str(place / name)), dataset[1], "train")
    forgot = forget_in_datasets(str(place), [sha256(annotated / "lfpw/trainset/0.jpg")], 1, quiet)
    with pytest.raises(UserError, match=f"pictures of it were forgotten, and it is {forgot.datasets[name]} without"):
        training.photos()


def test_a_dataset_that_is_finished_while_pictures_are_forgotten_is_seen_to(
    dataset: tuple[Store, Manifest], annotated: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is finished: just before the list of what is forgotten is written, each time that it is."""
    other, digest = SETTINGS.model_copy(update={"seed": 5}), sha256(annotated / "lfpw/trainset/0.jpg")
    publish = Store.publish

    def finishes(store: Store, key: str, data: bytes) -> None:
        if key == FORGOTTEN:
            monkeypatch.setattr(Store, "publish", publish)
            prepare([str(annotated)], str(place), other, 1)
        publish(store, key, data)

    monkeypatch.setattr(Store, "publish", finishes)
    forgot = forget_in_datasets(str(place), [digest], 1, quiet)
    assert len(forgot.datasets) == 2
    assert digest not in decoded_rows(place)


def test_a_dataset_that_cannot_be_remade_is_said_and_the_others_are(
    dataset: tuple[Store, Manifest], annotated: Path, place: Path
) -> None:
    other, _ = prepare([str(annotated)], str(place), SETTINGS.model_copy(update={"seed": 5}), workers=1)
    digest = sha256(annotated / "lfpw/trainset/0.jpg")
    unit = next(unit for unit in dataset[1].units if digest not in decoded_rows_of(place / unit.shard))
    (record,) = (place / "records").rglob(f"{unit.key}.json")
    record.write_bytes(b"{}")
    with pytest.raises(UserError, match=f"{dataset[1].name} still holds a picture: .* is damaged"):
        forget_in_datasets(str(place), [digest], 1, quiet)
    assert verify(str(place / dataset[1].name)).problems[0].code == "forgotten"
    assert not other.exists(MANIFEST)
    shutil.rmtree(place / dataset[1].name)
    forget_in_datasets(str(place), [digest], 1, quiet)
    assert digest not in decoded_rows(place)


def test_a_dataset_of_another_version_is_said_to_hold_a_picture_still(
    dataset: tuple[Store, Manifest], annotated: Path, place: Path
) -> None:
    manifest = place / dataset[1].name / MANIFEST
    said = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps(said | {"settings": said["settings"] | {"older": 1}}))
    reason = r"/manifest.json: field `settings.older`: .* made by another version of msrrn"
    with pytest.raises(UserError, match=f"{dataset[1].name} still holds a picture: .*{reason}"):
        forget_in_datasets(str(place), [sha256(annotated / "lfpw/trainset/0.jpg")], 1, quiet)


def test_a_damaged_list_is_never_taken_for_an_empty_one(annotated: Path, place: Path) -> None:
    (place / FORGOTTEN).write_bytes(b"{")
    for work in (
        lambda: forget_in_datasets(str(place), ["0" * 64], 1, quiet),
        lambda: prepare([str(annotated)], str(place), SETTINGS, 1),
    ):
        with pytest.raises(UserError, match="restore it from a backup"):
            work()


def test_a_second_call_waits_and_takes_nothing_off_the_list_of_the_first(tmp_path: Path) -> None:
    """Of two that read the list before either wrote it, one would lose what the other was told."""

    def waits(done: int, total: int, what: str) -> None:
        raise InterruptedError(what)

    with hold(Store(str(tmp_path)), lambda note: None):
        remember(Store(str(tmp_path)), ["0" * 64])
        with pytest.raises(InterruptedError, match="another call is forgetting there: waiting"):
            forget_in_datasets(str(tmp_path), ["1" * 64], 1, waits)
    forget_in_datasets(str(tmp_path), ["1" * 64], 1, quiet)
    assert read_forgotten(Store(str(tmp_path))).digests == {"0" * 64, "1" * 64}


@pytest.mark.parametrize(
    ("field", "written"),
    [
        ("people", {"people": ["jane"]}),
        (r"pictures\.0\.print", {"pictures": [{"sha256": "0" * 64, "files": 0, "rows": 0, "print": "f0"}]}),
    ],
)
def test_what_a_newer_version_wrote_down_is_not_lost(field: str, written: dict[str, Any], tmp_path: Path) -> None:
    """Writing the list back would leave out what is not known; going on without it would bring pictures back."""
    (tmp_path / FORGOTTEN).write_text(json.dumps(written))
    for work in (
        lambda: remember(Store(str(tmp_path)), ["1" * 64]),
        lambda: forgotten_of_run(Store(f"{tmp_path}/run")),
    ):
        with pytest.raises(
            UserError, match=f"{FORGOTTEN} has the field `{field}`, so another version of msrrn wrote"
        ):
            work()
    assert json.loads((tmp_path / FORGOTTEN).read_bytes()) == written


def test_photos_that_show_nearly_the_same_are_named(annotated: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(annotated, tmp_path / "source")) / "lfpw" / "trainset"
    Image.open(source / "0.jpg").save(source / "9.jpg", quality=60)
    shutil.copy(source / "0.pts", source / "9.pts")
    prepare([str(tmp_path / "source")], str(tmp_path / "out"), SETTINGS, 1)
    forgot = forget_in_datasets(str(tmp_path / "out"), [sha256(source / "0.jpg")], 1, quiet)
    assert forgot.alike == [sha256(source / "9.jpg")]
    assert forget_in_datasets(str(tmp_path / "out"), ["0" * 64], 1, quiet).alike == []


def test_the_champions_dataset_is_found_under_its_new_name(
    dataset: tuple[Store, Manifest], annotated: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Champion:
        label = "champion"

        class card:  # noqa: N801
            training = Training(dataset=dataset[1].name)

    monkeypatch.setattr("pipelines.opening.open_model", lambda model: Champion)
    new: str | None = dataset[1].name
    for stem in ("lfpw/trainset/0", "lfpw/trainset/1"):
        assert new is not None
        new = forget_in_datasets(str(place), [sha256(annotated / f"{stem}.jpg")], 1, quiet).datasets[new]
    assert training_dataset(str(place)).url == f"{place}/{new}"


def test_datasets_on_s3(dataset: tuple[Store, Manifest], annotated: Path, place: Path, s3: str) -> None:
    digest = sha256(annotated / "lfpw/trainset/0.jpg")
    for key, data in tree(place).items():
        Store(s3).publish(key, data)
    remote = forget_in_datasets(s3, [digest], 1, quiet)
    local = forget_in_datasets(str(place), [digest], 1, quiet)
    assert remote.model_dump(exclude={"place"}) == local.model_dump(exclude={"place"})
    assert {key: Store(s3).read_bytes(key) for key in Store(s3).keys()} == tree(place)  # noqa: SIM118


@pytest.fixture(scope="module")
def made(annotated: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "run"
    annotate(str(annotated), str(out), model, RUN_SETTINGS, workers=1)
    return out


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "runs" / "one"))


def test_a_run_keeps_the_name_alone(run: Path, annotated: Path, model: Model) -> None:
    path = annotated / "afw/0_1.jpg"  # its bytes are there twice
    digest = sha256(path)
    before = Summary.model_validate_json((run / SUMMARY).read_bytes())
    assert decoded_rows(run)[digest] > 2
    forgot = forget_in_run(Store(str(run)), [digest], quiet)
    assert [(picture.sha256, picture.rows) for picture in forgot.pictures] == [(digest, 2)]
    assert digest not in decoded_rows(run)
    assert files_with(run, digest.encode()) == [FORGOTTEN]
    annotations = Annotations(Store(str(run)))
    images = [row for unit in annotations.units() for row in annotations.images(unit).to_pylist()]
    assert [row for row in images if row["uri"] == "afw/0_1.jpg"] == [
        dict.fromkeys(TABLES["images"].names)
        | {"uri": "afw/0_1.jpg", "status": "quarantined", "reason": "forgotten", "faces": 0, "bytes": 0}
        | {"message": "the picture was forgotten: see `msrrn forget`"}
    ]
    summary = Summary.model_validate_json((run / SUMMARY).read_bytes())
    assert (summary.images, summary.ignored) == (before.images, before.ignored)
    assert summary.reasons["forgotten"] == 2
    assert summary.digest != before.digest
    assert summary.faces == sum(row["faces"] for row in images) < before.faces
    page = Document((run / "index.html").read_text())
    assert not [image for image in page.named("img") if "afw/0_" in image["alt"]]
    assert page.words.count("forgotten") == 2
    # Gone on with, it is finished; tried again, the picture is not looked at.
    stamps = times(run / "images")
    assert annotate(str(annotated), str(run), model, RUN_SETTINGS, 1) == summary
    assert times(run / "images") == stamps
    again = annotate(str(annotated), str(run), model, RUN_SETTINGS, 1, again=Again("quarantined"))
    assert again.model_copy(update={"throughput": None}) == summary.model_copy(update={"throughput": None})
    assert digest not in decoded_rows(run)


def test_a_run_that_was_frozen_does_not_bring_back_what_was_forgotten(
    annotated: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was silent for longer than its lease, while it had seen the picture and not yet written its rows."""
    digest, other = (sha256(annotated / f"lfpw/trainset/{number}.jpg") for number in (0, 1))
    run = tmp_path / "run"
    write = unit.write_unit

    def frozen(*arguments: Any, **named: Any) -> UnitRecord:
        if any(row["sha256"] == digest for row in arguments[3]["images"]):
            monkeypatch.setattr(unit, "write_unit", write)
            (run / LEASE).unlink()
            forget_in_run(Store(str(run)), [digest], quiet)
            keep_out(Store(str(tmp_path)), [other], quiet)
        return write(*arguments, **named)

    monkeypatch.setattr(unit, "write_unit", frozen)
    summary = annotate(str(annotated), str(run), model, RUN_SETTINGS, 1)
    assert decoded_rows(run).keys().isdisjoint((digest, other))
    assert summary.reasons["forgotten"] == 2
    assert summary == Summary.model_validate_json((run / SUMMARY).read_bytes())


def test_credentials_may_be_good_for_the_place_of_a_run_alone(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 then answers 403 to whoever asks for what lies beside it."""
    run = Store(f"{s3}/run")
    remember(run, ["0" * 64])
    info = s3_files().info

    def denied(path: str) -> Any:
        if "/run/" not in path:
            raise PermissionError("Forbidden")
        return info(path)

    monkeypatch.setattr(s3_files(), "info", denied)
    with pytest.raises(DeniedError, match="Forbidden; check the S3 credentials and the rights there"):
        run.parent.exists(FORGOTTEN)
    assert forgotten_of_run(run) == {"0" * 64}


def test_what_lies_beside_the_files_of_a_run_is_not_touched(run: Path, annotated: Path, model: Model) -> None:
    own = [run / folder / name for folder in ("images", "faces", "records", "staged") for name in ("a.jpg", "b.json")]
    for file in own:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    forget_in_run(Store(str(run)), [sha256(annotated / "lfpw/trainset/0.jpg")], quiet)
    annotate(str(annotated), str(run), model, RUN_SETTINGS, 1)
    assert [file.read_text() for file in own] == ["mine"] * len(own)


def test_a_run_from_the_beginning_gives_what_forgetting_left(
    run: Path, annotated: Path, model: Model, tmp_path: Path
) -> None:
    forget_in_run(Store(str(run)), [sha256(annotated / "lfpw/trainset/0.jpg")], quiet)
    fresh = tmp_path / "fresh"
    shutil.copy(run / FORGOTTEN, tmp_path / FORGOTTEN)
    annotate(str(annotated), str(fresh), model, RUN_SETTINGS, 1)
    for folder in ("images", "plan"):
        assert tree(fresh / folder) == tree(run / folder)
    for part in sorted((fresh / "faces").iterdir()):
        made, left = pq.read_table(part), pq.read_table(run / "faces" / part.name)
        others = [name for name in made.schema.names if name not in {"landmarks", "confidence", "face_roll"}]
        assert made.select(others).equals(left.select(others))
        # Faces that are asked about together round a little otherwise.
        ours, theirs = (table["landmarks"].combine_chunks().flatten().to_numpy() for table in (made, left))
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_a_run_whose_summary_is_damaged_loses_it_and_its_page(run: Path, annotated: Path, model: Model) -> None:
    digest = sha256(annotated / "afw/0_1.jpg")
    (run / SUMMARY).write_text("{}")
    forget_in_run(Store(str(run)), [digest], quiet)
    assert digest not in decoded_rows(run)
    assert not (run / SUMMARY).exists()
    assert not (run / "index.html").exists(), "it may show the picture"
    assert annotate(str(annotated), str(run), model, RUN_SETTINGS, 1).reasons["forgotten"] == 2


def test_a_run_that_lacks_a_part_is_not_said_to_be_finished(run: Path, annotated: Path, model: Model) -> None:
    digest = sha256(annotated / "lfpw/trainset/0.jpg")
    before = Summary.model_validate_json((run / SUMMARY).read_bytes())
    parts = sorted((run / "images").iterdir())
    lost = next(path for path in parts if digest not in pq.read_table(path)["sha256"].to_pylist())
    lost.unlink()
    forget_in_run(Store(str(run)), [digest], quiet)
    assert not (run / SUMMARY).exists()
    assert not (run / "index.html").exists()
    after = annotate(str(annotated), str(run), model, RUN_SETTINGS, 1)
    assert (after.images, after.reasons["forgotten"]) == (before.images, 1)


def test_what_no_record_stands_for_is_removed_from_a_run(run: Path, annotated: Path, model: Model) -> None:
    """Parts of a unit that was killed, staged ones, and what a killed writer left."""
    digest = sha256(annotated / "lfpw/trainset/0.jpg")
    summary = Summary.model_validate_json((run / SUMMARY).read_bytes())
    (run / SUMMARY).unlink()
    held = next(
        path for path in sorted((run / "images").iterdir()) if digest in pq.read_table(path)["sha256"].to_pylist()
    )
    unit = held.stem.removeprefix("part-")
    (run / "records" / f"{unit}.json").unlink()
    (run / "staged").mkdir(exist_ok=True)
    shutil.copy(held, run / "staged" / f"images-{unit}.parquet")
    forget_in_run(Store(str(run)), [digest], quiet)
    assert digest not in decoded_rows(run)
    assert not held.exists()
    assert not (run / "index.html").exists()
    after = annotate(str(annotated), str(run), model, RUN_SETTINGS, 1)
    assert (after.images, after.reasons["forgotten"]) == (summary.images, 1)
    assert digest not in decoded_rows(run)


def test_the_command(
    dataset: tuple[Store, Manifest], annotated: Path, place: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = sha256(annotated / "lfpw/trainset/0.jpg")
    where = ["--datasets", str(place), "--annotations", str(run.parent), "--workers", "1"]
    assert main(["forget", digest.upper(), *where]) == 0
    printed = capsys.readouterr().out
    new = read_forgotten(Store(str(place))).renamed[dataset[1].name]
    assert f"{place}: {digest}: {SETTINGS.augmentation.copies + 1} rows of 1 file removed" in printed
    assert f"{run}: {digest}: 1 row of 1 file removed" in printed
    assert f"dataset {dataset[1].name} is now {new}" in printed
    assert main(["forget", digest, "0" * 64, *where, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [picture["rows"] for picture in found[0]["pictures"]] == [SETTINGS.augmentation.copies + 1, 0]
    for each in (place, run.parent):  # the latter for runs that begin there later
        assert read_forgotten(Store(str(each))).digests == {digest, "0" * 64}
    assert [each["earlier"] for each in found] == [[digest], [digest]]
    assert main(["forget", digest, *where]) == 0
    printed = capsys.readouterr().out
    assert f"{place}: {digest}: already forgotten: {SETTINGS.augmentation.copies + 1} rows of 1 file\n" in printed
    assert f"{run}: {digest}: already forgotten: 1 row of 1 file\n" in printed
    assert "removed" not in printed
    twice = [
        "--datasets",
        str(place),
        f"{place}/",
        "--annotations",
        str(run),
        str(run.parent),
        f"{run}/../{run.name}",
    ]
    assert main(["forget", digest, *twice, "--workers", "1"]) == 0
    assert capsys.readouterr().out == printed
    assert main(["forget", digest]) == 2
    with pytest.raises(SystemExit):
        main(["forget", "jane.jpg", *where])


def test_a_run_that_began_before_its_folder_knew_of_it_is_seen_to(
    annotated: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sha256(annotated / "lfpw/trainset/0.jpg")

    def begins(place: Store, *arguments: Any) -> None:
        shutil.copytree(run, run.parent / "later")
        keep_out(place, *arguments)

    monkeypatch.setattr(forget, "keep_out", begins)
    assert main(["forget", digest, "--annotations", str(run.parent)]) == 0
    assert digest not in decoded_rows(run.parent)


@pytest.mark.parametrize("slip", ["datasets", "annotations", "a run of another version"])
def test_the_command_changes_nothing_where_one_of_the_places_is_none(
    annotated: Path, place: Path, run: Path, tmp_path: Path, slip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = sha256(annotated / "lfpw/trainset/0.jpg")
    before = tree(place), tree(run)
    where = {"datasets": [str(place)], "annotations": [str(run)]}
    if slip not in where:
        (tmp_path / "typo").mkdir()
        (tmp_path / "typo" / RUN).write_text(json.dumps(json.loads((run / RUN).read_bytes()) | {"schema": "1"}))
    where[slip if slip in where else "annotations"].append(str(tmp_path / "typo"))
    assert main(["forget", digest, "--datasets", *where["datasets"], "--annotations", *where["annotations"]]) == 1
    assert "typo" in capsys.readouterr().err
    assert (tree(place), tree(run)) == before


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_the_command_tells_what_is_done_though_the_next_place_fails(
    dataset: tuple[Store, Manifest],
    annotated: Path,
    place: Path,
    run: Path,
    json_too: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    digest = sha256(annotated / "lfpw/trainset/0.jpg")
    (run / FORGOTTEN).write_bytes(b"{")
    where = ["--datasets", str(place), "--annotations", str(run), "--workers", "1"]
    assert main(["forget", digest, *where, *json_too]) == 1
    captured = capsys.readouterr()
    assert "restore it from a backup" in captured.err
    new = read_forgotten(Store(str(place))).renamed[dataset[1].name]
    if json_too:
        (told,) = json.loads(captured.out)
        assert told["datasets"] == {dataset[1].name: new}
    else:
        assert f"dataset {dataset[1].name} is now {new}" in captured.out


def test_what_a_killed_call_left_is_removed_and_told_as_that(annotated: Path, place: Path) -> None:
    digest = sha256(annotated / "lfpw/trainset/0.jpg")
    remember(Store(str(place)), [digest])
    remember_found(Store(str(place)), {digest: [SETTINGS.augmentation.copies + 1]})
    assert forget_in_datasets(str(place), [digest], 1, quiet).earlier == []
    assert forget_in_datasets(str(place), [digest], 1, quiet).earlier == [digest]
