"""The contract of storage, kept by a real server of S3."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.loader import Loader
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.prepare import prepare
from pipelines.dataset.verify import verify
from pipelines.errors import UserError
from pipelines.lease import hold
from pipelines.storage import Store
from tests.factories import SETTINGS
from tests.pipelines.containers import packed, publish, read


def test_storage_and_leases_on_seaweedfs(seaweedfs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Store(seaweedfs).exists()
    store = Store(f"{seaweedfs}/deep/place")
    assert store.keys() == []
    assert not store.exists("units")
    store.publish("units/0001 _01.parquet", b"first, longer")
    store.publish("units/0001 _01.parquet", bytes(range(256)) * 1000)
    with store.open("units/0001 _01.parquet", readahead=1000) as file:
        file.seek(-254, 2)
        assert file.read(3) == b"\x02\x03\x04"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: store.create("done/1", b"%d" % n), range(8)))
    assert won.count(True) == 1
    assert store.read_bytes("done/1") == b"%d" % won.index(True)
    assert store.files() == {"done/1": 1, "units/0001 _01.parquet": 256_000}
    assert store.parent.keys("place/done") == ["place/done/1"]

    with hold(store, lambda note: pytest.fail("nobody else holds it"), beat=0.05):
        assert store.exists("lease.json")
    store.publish("lease.json", b"of one who is gone")
    waited: list[str] = []
    with hold(store, waited.append, beat=0.05, patience=0.3):
        assert waited
    assert not store.exists("lease.json")

    store.delete("done/1")
    store.delete("done/1")
    assert store.keys() == ["units/0001 _01.parquet"]
    with pytest.raises(UserError, match="done/1 does not exist"):
        store.read_bytes("done/1")


def test_a_dataset_on_seaweedfs_is_that_of_a_folder(
    dataset: tuple[Store, Manifest], annotated: Path, seaweedfs: str
) -> None:
    made, manifest = prepare([str(annotated)], f"{seaweedfs}/datasets", SETTINGS, 1)
    assert manifest == dataset[1]
    here, there = dataset[0].parent, made.parent
    assert {key: there.read_bytes(key) for key in there.files()} == {
        key: here.read_bytes(key) for key in here.files()
    }
    assert not verify(made.url).problems
    assert Loader(made, manifest, "train").mean_shape().shape == (68, 2)


def test_pictures_on_seaweedfs_are_those_of_a_folder(seaweedfs: str, tmp_path: Path) -> None:
    files = {f"{n}/{m}.jpg": b"%d" % n for n in range(3) for m in range(2)} | {"0.jpg": b"x", "Ä b/c.jpg": b"c"}
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [b"\xff\xd8\xff%d" % n for n in range(9)]}), sink, row_group_size=2)
    archives = {f"1/x{kind}": packed(kind, files) for kind in (".zip", ".tar", ".tar.gz")}
    found = []
    for url in (seaweedfs, str(tmp_path)):
        publish(url, files | archives | {"t.parquet": sink.getvalue()})
        publish(url, {"list.txt": b"0.jpg\n1/0.jpg\ngone.jpg\n"})
        found.append([read(url), read(f"{url}/list.txt"), *(read(f"{url}/{name}") for name in archives)])
    assert sorted(found[0][0]) == sorted(found[1][0])
    assert found[0][1:] == found[1][1:]
