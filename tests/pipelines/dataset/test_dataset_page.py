import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.checks import CHECKS
from pipelines.dataset.card import dataset_card
from pipelines.dataset.faces import MEASURES, SHOWN, copies, survey, tiles
from pipelines.dataset.manifest import CheckResult, LeftOut, Manifest
from pipelines.dataset.page import REJECTED, REJECTED_TRIES, dataset_page
from pipelines.dataset.shards import SCHEMA
from pipelines.showable import counted
from pipelines.storage import Store
from tests.factories import SETTINGS, picture
from tests.pipelines.test_page import HOSTILE, Document

Dataset = tuple[Store, Manifest]

PICTURE = picture(np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))


def left_out(count: int, reason: str = "outside") -> list[LeftOut]:
    return [LeftOut(uri=f"{reason}/{n}.jpg", reason=reason, message=f"message of {reason}") for n in range(count)]


def rejecting(dataset: Dataset, items: list[LeftOut], **changes: Any) -> Manifest:
    counts = dataset[1].counts | {"left_out": len(items)}
    return dataset[1].model_copy(update={"left_out": items, "counts": counts, **changes})


def page_of(
    dataset: Store, manifest: Manifest, rejected_bytes: Callable[[LeftOut], bytes | None] = lambda item: None
) -> str:
    return dataset_page(dataset, manifest, survey(dataset.parent, manifest), rejected_bytes)


def asked(answer: Callable[[LeftOut], bytes | None]) -> tuple[list[LeftOut], Callable[[LeftOut], bytes | None]]:
    calls: list[LeftOut] = []

    def read(item: LeftOut) -> bytes | None:
        calls.append(item)
        return answer(item)

    return calls, read


def test_the_page_tells_the_counts_and_shows_the_faces(dataset: Dataset) -> None:
    manifest = dataset[1]
    html = page_of(*dataset)
    document = Document(html)
    counts = manifest.counts
    assert f"{counts['train']} faces to train on and {counts['val']} to validate" in document.text
    assert all(source in document.words for source in manifest.faces_by_source)
    for measure in MEASURES.values():
        assert measure.label in document.text
    alts = [image["alt"] for image in document.named("img")]
    assert {"Some training faces", "Some validation faces"} <= set(alts)
    assert sum(alt.startswith("0: as it is") for alt in alts) == 1
    assert sum(re.match(r"[123]: roll [+-]", alt) is not None for alt in alts) == SETTINGS.augmentation.copies
    assert any(re.match(r"box of \d+ px: ", alt) for alt in alts)
    assert any(alt.startswith("sharpness ") for alt in alts)
    assert not document.named("script")
    assert "://" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)


def test_the_same_dataset_gives_the_same_bytes_anywhere(dataset: Dataset, tmp_path: Path) -> None:
    out = dataset[0].parent.local_path()
    assert out is not None
    moved = Store(str(shutil.copytree(out, tmp_path / "elsewhere"))).child(dataset[1].name)
    html = page_of(*dataset)
    assert page_of(moved, dataset[1]) == html
    assert str(out) not in html


def test_the_survey_counts_every_face_and_chooses_the_hardest(dataset: Dataset) -> None:
    store, manifest = dataset
    found = survey(store.parent, manifest)
    for counts in found.counts.values():
        assert {split: int(count.sum()) for split, count in counts.items()} == {
            "train": manifest.counts["train"],
            "val": manifest.counts["val"],
        }
    chosen = found.chosen
    assert all(len(faces) <= SHOWN for faces in chosen.values())
    assert {face.unit.split for face in chosen["train"]} == {"train"}
    assert {face.unit.split for face in chosen["val"]} == {"val"}
    assert len(chosen["missed"]) == manifest.missed
    for kind, value in (("small", "side"), ("blurred", "sharpness"), ("padding", "padding")):
        values = [float({**face.row, "side": face.side}[value]) for face in chosen[kind]]
        assert values == sorted(values, reverse=kind == "padding")
    assert [face.row["face_id"] for face in chosen["train"]] != sorted(f.row["face_id"] for f in chosen["train"])


def test_tiles_show_the_face_that_was_asked_for(dataset: Dataset) -> None:
    store, manifest = dataset
    face = survey(store.parent, manifest).chosen["train"][-1]
    (tile,) = tiles(store.parent, [face]).values()
    made = copies(store.parent, face)
    assert len(made) == SETTINGS.augmentation.copies + 1
    assert tile.shape == (200, 200, 3)
    assert np.array_equal(made[0][0], tile)
    assert made[0][1]["scale"] == 1.0
    assert all(copy["scale"] != 1.0 for _, copy in made[1:])
    assert len(copies(store.parent, face, most=2)) == 2


def test_checks_are_told_with_their_remedy_errors_first(dataset: Dataset) -> None:
    checks = [
        CheckResult(code="face_twice", severity="warning", count=2, examples=left_out(2)),
        CheckResult(code="of_a_later_version", severity="info", count=9, examples=[]),
        CheckResult(code="outside", severity="error", count=31, examples=left_out(5)),
    ]
    words = Document(page_of(dataset[0], rejecting(dataset, [], checks=checks))).words
    for code in ("face_twice", "outside"):
        assert f"{CHECKS[code].title} ({code})" in words
        assert CHECKS[code].remedy in words
    assert "of_a_later_version" in words
    assert words.index("error") < words.index("warning") < words.index("info")
    assert "outside/0.jpg, outside/1.jpg, outside/2.jpg" in words


def test_rejected_pictures_are_shown_some_of_each_reason(dataset: Dataset) -> None:
    items = left_out(100) + left_out(2, "flat") + left_out(3, "test_split")
    calls, read = asked(lambda item: PICTURE)
    html = page_of(dataset[0], rejecting(dataset, items), read)
    alts = [image["alt"] for image in Document(html).named("img")]
    shown = [alt for alt in alts if alt.startswith(("outside: ", "flat: ", "test_split: "))]
    assert len(shown) == len(calls) == REJECTED
    assert sorted(alt for alt in shown if alt.startswith("flat")) == ["flat: flat/0.jpg", "flat: flat/1.jpg"]
    assert not [alt for alt in shown if alt.startswith("test_split")]
    assert "100" in Document(html).words


@pytest.mark.parametrize("answer", [None, b"", b"junk", PICTURE[:200]])
def test_a_rejected_picture_that_cannot_be_shown_is_still_counted(dataset: Dataset, answer: bytes | None) -> None:
    calls, read = asked(lambda item: answer)
    document = Document(page_of(dataset[0], rejecting(dataset, left_out(100)), read))
    assert "message of outside" in document.words
    assert len(calls) == REJECTED_TRIES
    assert not [image for image in document.named("img") if image["alt"].startswith("outside")]


def test_names_are_escaped(dataset: Dataset) -> None:
    items = [LeftOut(uri=HOSTILE, reason=HOSTILE, message=HOSTILE)]
    checks = [CheckResult(code=HOSTILE, severity="error", count=1, examples=items)]
    sources = {HOSTILE: {"train": 8, "val": 2}}
    manifest = rejecting(dataset, items, checks=checks, faces_by_source=sources)
    document = Document(page_of(dataset[0], manifest, lambda item: PICTURE))
    assert not document.named("script")
    assert document.text.count(HOSTILE) >= 7


def test_a_dataset_without_validation_faces_has_a_page(dataset: Dataset) -> None:
    units = [unit for unit in dataset[1].units if unit.split == "train"]
    html = page_of(dataset[0], rejecting(dataset, [], units=units))
    assert "Every input is in the dataset." in html
    assert "Some validation faces" not in html


def test_the_card_tells_what_the_manifest_says(dataset: Dataset) -> None:
    manifest = dataset[1]
    card = dataset_card(manifest)
    assert card == dataset_card(manifest)
    assert card.startswith("---\npretty_name: ")
    assert f"# Dataset {manifest.name}\n" in card
    for source, faces in manifest.faces_by_source.items():
        assert f"| {source} | {faces.get('train', 0)} | {faces.get('val', 0)} |" in card
    for line in ("| seed | 0 |", "| augmentation.copies | 3 |", r"| test\_split | 2 |"):
        assert line in card
    assert "No check found anything." in dataset_card(rejecting(dataset, [], checks=[]))
    assert f"It missed {counted(manifest.missed, 'face')}" in card


def test_no_detector_missed_a_face_where_boxes_are_those_of_the_data(dataset: Dataset) -> None:
    settings = dataset[1].settings | {"detector": "annotated"}
    manifest = rejecting(dataset, [], settings=settings, missed=1)
    assert "Boxes are those that came with the data. 1 face came without one;" in dataset_card(manifest)
    page = Document(page_of(dataset[0], manifest)).text
    assert "of the data; none, and boxed from the annotation: 1" in page
    assert "detector" not in page


def test_one_face_is_no_faces(dataset: Dataset) -> None:
    counts = dict.fromkeys(dataset[1].counts, 1) | {"rows": 2}
    manifest = rejecting(dataset, [LeftOut(uri="a", reason="syntax", message="m")], counts=counts, missed=1)
    for text in (Document(page_of(dataset[0], manifest)).text, dataset_card(manifest)):
        assert "1 face to train on and 1 to validate, from 1 photograph" in text
        assert not re.search(r"\b1 (training |validation )?(faces|photographs|samples|inputs)\b", text)


def test_names_in_the_card_stay_text(dataset: Dataset) -> None:
    hostile = "x | y\n# <script>alert(1)</script> [a](javascript:b) `c`\x00"
    checks = [CheckResult(code="outside", severity="error", count=31, examples=[])]
    items = [LeftOut(uri="a", reason=hostile, message="m")]
    card = dataset_card(rejecting(dataset, items, checks=checks, faces_by_source={hostile: {"train": 8}}))
    assert not re.search(r"(?<!\\)[<`\[](script|a\]|c)", card)
    assert card.count(r"x \| y \# \<script\>") == 2
    assert f"| error | outside | {CHECKS['outside'].title} | 31 |" in card


def test_the_code_of_the_card_loads_the_faces(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    store, manifest = dataset
    local = store.local_path()
    assert local is not None
    (code,) = re.findall(r"```python\n(.*?)```", dataset_card(manifest), re.DOTALL)
    monkeypatch.chdir(local)
    names: dict[str, Any] = {}
    exec(code.replace("    shapes =", "    total = globals().get('total', 0) + len(faces)\n    shapes ="), names)
    assert names["total"] == sum(unit.rows for unit in manifest.shards("train"))
    assert names["faces"].shape[1:] == (200, 200)
    assert names["shapes"].shape == (len(names["faces"]), 68, 2)
    assert "image_200" in SCHEMA.names
    assert json.loads((local / "manifest.json").read_bytes())["name"] == manifest.name
