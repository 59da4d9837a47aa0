"""Pictures in a bucket are on their way while others are looked at."""

import errno
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from pipelines.archives import Input, list_inputs, read_inputs
from pipelines.archives import files as files_module
from pipelines.archives import inputs as inputs_module
from pipelines.outages import OutageError
from pipelines.storage import Store
from tests.faulty import FaultyEndpoint
from tests.pipelines.containers import packed, place, publish, read

MANY = {f"{number:02d}.jpg": b"%d" % number * (number % 3) for number in range(30)}
ASKED = 8
"""Requests that ask what a source is."""


def test_files_of_a_bucket_are_asked_for_together(s3: str, faulty: FaultyEndpoint) -> None:
    publish(f"{s3}/in", dict.fromkeys(MANY, b"x") | {"list.txt": "\n".join(MANY).encode()})
    for url in (f"{s3}/in", f"{s3}/in/list.txt"):
        items = list(list_inputs(url))
        faulty.seconds, faulty.requests, faulty.most_at_once = 0.05, 0, 0
        assert read(url, items) == [(name, b"x") for name in MANY]
        assert faulty.requests <= len(MANY) + ASKED
        assert faulty.most_at_once > files_module.AHEAD / 2
        faulty.seconds = 0


def test_no_more_are_read_than_a_few_ahead(s3: str, faulty: FaultyEndpoint) -> None:
    publish(f"{s3}/in", dict.fromkeys(MANY, b"x"))
    items = list(list_inputs(f"{s3}/in"))
    faulty.requests = 0
    found = read_inputs(f"{s3}/in", items)
    assert [item.uri for item, _ in islice(found, 2)] == ["00.jpg", "01.jpg"]
    assert faulty.requests <= 2 + files_module.AHEAD + ASKED


@pytest.mark.parametrize("where", ["local", "s3"])
def test_whatever_became_of_a_file_meanwhile(
    where: str, tmp_path: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "LARGEST", 100)
    url = publish(
        place(where, tmp_path, s3), MANY | {"grown.jpg": b"x" * 60, "large.jpg": b"y" * 500, "gone.jpg": b"x"}
    )
    items = list(list_inputs(url))
    publish(url, {"grown.jpg": b"z" * 300, "03.jpg": b"no longer empty", "04.jpg": b""})
    Store(url).delete("gone.jpg")
    expected = MANY | {"03.jpg": b"no longer empty", "04.jpg": b"", "gone.jpg": "unreadable"}
    expected |= {"grown.jpg": b"z" * 300, "large.jpg": b"y" * 500}
    assert read(url, items) == sorted(expected.items())
    expected |= {"grown.jpg": "too_large", "large.jpg": "too_large"}
    assert read(url, items, max_bytes=200) == sorted(expected.items())


def test_files_of_unknown_size(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "LARGEST", 100)
    contents = {"a.jpg": b"x" * 99, "b.jpg": b"x" * 100, "c.jpg": b"x" * 101, "d.jpg": b"x" * 1000, "e.jpg": b""}
    publish(f"{s3}/in", contents)
    for limit, first_too_large in ((5000, 5), (500, 3), (99, 1)):
        rows = read(f"{s3}/in", [Input(name, "", 0, 0, 0, "") for name in contents], limit)
        kept = [(name, data) for name, data in contents.items() if len(data) <= limit]
        assert [row for row in rows if row[1] != "too_large"] == kept
        assert len(kept) in {first_too_large, first_too_large + 1}


def test_trouble_is_that_of_its_own_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = publish(str(tmp_path), MANY)
    items = list(list_inputs(url))
    whole = Store.reading

    def flaky(store: Store, key: str, most: int) -> Callable[[], bytes]:
        def fail() -> bytes:
            raise OSError(errno.ESTALE, "Stale file handle")

        return fail if key == "05.jpg" else whole(store, key, most)

    monkeypatch.setattr(Store, "reading", flaky)
    found = read_inputs(url, items)
    assert [item.uri for item, _ in islice(found, 5)] == ["00.jpg", "01.jpg", "02.jpg", "03.jpg", "04.jpg"]
    with pytest.raises(OSError, match="Stale"):
        next(found)


def test_an_outage_is_that_of_its_own_input(s3: str, faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    publish(f"{s3}/in", dict.fromkeys(MANY, b"x"))
    items = list(list_inputs(f"{s3}/in"))
    found = read_inputs(f"{s3}/in", items)
    assert next(found)[1] == b"x"
    faulty.share, faulty.kinds = 1, ["500"]
    with pytest.raises(OutageError, match=r"in/\d\d.jpg: S3 failed"):
        list(found)
    faulty.share = 0
    assert read(f"{s3}/in", items) == [(name, b"x") for name in MANY]


@pytest.mark.parametrize("kind", ["in.tar", "in.tar.gz", "in.zip"])
def test_archives_of_a_bucket_come_in_blocks(
    kind: str, s3: str, faulty: FaultyEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs_module, "PIECE", 20_000)
    monkeypatch.setattr("pipelines.archives.containers.PIECE", 20_000)
    files = {f"{number:02d}.jpg": bytes((number + 7 * k) % 251 for k in range(3000)) for number in range(40)}
    files["20.jpg"] = bytes(k % 241 for k in range(90_000))
    data = packed(kind, files)
    Store(s3).publish(kind, data)
    items = list(list_inputs(f"{s3}/{kind}"))
    faulty.requests, faulty.seconds = 0, 0.01
    assert read(f"{s3}/{kind}", items) == sorted(files.items())
    assert faulty.requests <= len(data) / 20_000 + ASKED  # each block once
