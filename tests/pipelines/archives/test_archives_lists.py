import os
from pathlib import Path

import pytest

from pipelines.archives import list_inputs, read_inputs
from pipelines.decoding import Undecodable
from pipelines.errors import UserError
from pipelines.storage import Store
from tests.pipelines.containers import growth, packed, publish, read


@pytest.mark.parametrize("place", ["local", "s3"])
@pytest.mark.parametrize("name", ["todo.txt", "todo.LST", "todo.csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_a_list_is_read_as_it_is_written(
    place: str, name: str, encoding: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if place == "local" else request.getfixturevalue("s3")
    publish(url, {"lists/b.jpg": b"b", "photos/a 1.jpg": b"a", "photos/顔.jpg": b"face"})
    entries = ["../photos/a 1.jpg", "b.jpg", "./../photos/顔.jpg", "b.jpg", "gone.jpg"]
    lines = ["\ufeff# what to do", "", *entries, "   ", "# b.jpg"]
    publish(url, {f"lists/{name}": "\r\n".join(lines).encode(encoding)})
    listing = list_inputs(f"{url}/lists/{name}")
    items = list(listing)
    assert [item.uri for item in items] == entries
    assert {(item.container, item.offset) for item in items} == {("", 0)}
    assert listing.ignored == 0
    rows = [*zip(entries, [b"a", b"b", b"face", b"b", "unreadable"], strict=True)]
    assert read(f"{url}/lists/{name}", items) == rows
    assert read(f"{url}/lists/{name}", items[3:]) == rows[3:]


def test_a_table_names_pictures_in_its_first_column(tmp_path: Path) -> None:
    publish(str(tmp_path), {"a,b.jpg": b"comma", 'q".jpg': b"quote", "path": b"no"})
    rows = 'path,label\n"a,b.jpg",1\n"q"".jpg",2\n,3\npath,4\n"open,5\n'
    (tmp_path / "x.csv").write_text(rows)
    found = [("a,b.jpg", b"comma"), ('q".jpg', b"quote"), ("path", b"no"), ("open,5", "unreadable")]
    assert read(str(tmp_path / "x.csv")) == found


@pytest.mark.parametrize("heading", ["path", "image_path", "File Name", "IMG"])
def test_the_heading_of_a_table_is_no_picture(heading: str, tmp_path: Path) -> None:
    publish(str(tmp_path), {"a.jpg": b"a"})
    (tmp_path / "x.csv").write_text(f"{heading},label\na.jpg,1\n")
    assert read(str(tmp_path / "x.csv")) == [("a.jpg", b"a")]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_a_table_says_of_its_separator_is_no_picture(separator: str, tmp_path: Path) -> None:
    publish(str(tmp_path), {"a.jpg": b"a"})
    (tmp_path / "x.csv").write_text(f"sep={separator}\r\npath{separator}label\r\na.jpg{separator}1\r\n")
    assert read(str(tmp_path / "x.csv")) == [("a.jpg", b"a")]


@pytest.mark.parametrize("separator", [",", ";"])
def test_the_numbers_that_pandas_writes_before_a_table_are_no_pictures(separator: str, tmp_path: Path) -> None:
    publish(str(tmp_path), {"a.jpg": b"a", "0": b"no"})
    (tmp_path / "x.csv").write_text(",path,label\n0,a.jpg,1\n1,,2\n".replace(",", separator))
    assert read(str(tmp_path / "x.csv")) == [("a.jpg", b"a")]


def test_a_cell_of_a_table_may_hold_line_ends(tmp_path: Path) -> None:
    publish(str(tmp_path), {"a.jpg": b"a", "b.jpg": b"b", "c\nd.jpg": b"cd"})
    rows = 'file,caption\r\na.jpg,"two\r\n\r\n# lines, ""said"""\r\n"c\nd.jpg",\n"open,1\nb.jpg,5" tall\n'
    for separator in ",;\t":
        (tmp_path / "x.csv").write_bytes(rows.replace(",", separator).encode())
        found = [("a.jpg", b"a"), ("c\nd.jpg", b"cd"), (f"open{separator}1".strip(), "unreadable"), ("b.jpg", b"b")]
        assert read(str(tmp_path / "x.csv")) == found
    (tmp_path / "x.csv").write_text('"c\nd.jpg",1\na.jpg;1\n')
    assert read(str(tmp_path / "x.csv")) == [("c\nd.jpg", b"cd"), ("a.jpg;1", "unreadable")]


def test_a_local_list_leads_anywhere(tmp_path: Path, s3: str) -> None:
    publish(s3, {"deep/a #1.jpg": b"remote"})
    publish(str(tmp_path / "else where"), {"b.jpg": b"local"})
    entries = [
        f"{s3}/deep/a #1.jpg",
        str(tmp_path / "else where" / "b.jpg"),
        (tmp_path / "else where" / "b.jpg").as_uri(),
        (tmp_path / "else where" / "b.jpg").as_uri().replace("///", "/"),
        f"{s3}/gone.jpg",
        f"{s3}/deep",
    ]
    publish(str(tmp_path), {"list.txt": "\n".join(entries).encode()})
    publish(s3, {"list.txt": "\n".join(entries).encode()})
    outcomes = [b"remote", b"local", b"local", b"local", "unreadable", "unreadable"]
    for url in (f"{tmp_path}/list.txt", f"{s3}/list.txt"):
        assert read(url) == list(zip(entries, outcomes, strict=True))


def test_an_object_whose_name_begins_with_a_slash_is_another_one(s3: str) -> None:
    names = ["photos/a.jpg", "photos//a.jpg", "photos/x//a.jpg", "/a.jpg", "a.jpg"]
    publish(s3, {name: name.encode() for name in names})
    publish(s3, {"list.txt": "\n".join([f"{s3}/{name}" for name in names] + [f"{s3}/x//a.jpg"]).encode()})
    *found, (_, gone) = read(f"{s3}/list.txt")
    assert found == [(f"{s3}/{name}", name.encode()) for name in names]
    assert gone == "unreadable"
    assert dict(read(s3)) == {name: name.encode() for name in names}
    assert dict(read(f"{s3}/photos")) == {
        "/a.jpg": names[1].encode(),
        "a.jpg": b"photos/a.jpg",
        "x//a.jpg": names[2].encode(),
    }


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_path_that_is_seen_from_another_folder_is_told_from_which(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if place == "local" else request.getfixturevalue("s3")
    publish(url, {"photos/a.jpg": b"a", "lists/todo.txt": b"photos/a.jpg\n"})
    ((_, content),) = read_inputs(f"{url}/lists/todo.txt", list(list_inputs(f"{url}/lists/todo.txt")))
    assert isinstance(content, Undecodable)
    assert "relative paths of a list are seen from its folder" in content.message


def test_what_a_list_cannot_name_is_a_row(tmp_path: Path) -> None:
    publish(str(tmp_path), {"a.zip": packed(".zip", {"a.jpg": b"a"}), "folder/b.jpg": b"b"})
    os.mkfifo(tmp_path / "pipe.jpg")
    reasons = {
        b"http://example.com/a.jpg": "unsupported_url",
        b"https://user:secret@example.com/a.jpg?x=1": "unsupported_url",
        b"gs://bucket/a.jpg": "unsupported_url",
        b"file://host/a.jpg": "unsupported_url",
        b"s3://AKIA:secret@bucket/a.jpg": "unsupported_url",
        b"s3://AKIA:se/secret@bucket/a.jpg": "unsupported_url",  # keys of AWS often hold one
        b"a.zip": "nested_archive",
        b"folder/": "unreadable",
        b"folder": "unreadable",
        b"folder/..": "unreadable",
        b"pipe.jpg": "unreadable",
        b"n\xff.jpg": "unreadable",
        b"n\0.jpg": "unreadable",
        b"long" * 70_000: "unreadable",
        b"~/a.jpg": "unreadable",
        b"folder/b.jpg/c.jpg": "unreadable",
        b"file:///photos/n%00.jpg": "unreadable",
        b"file:///photos/%2E%2E": "unreadable",
        b"file://photos[1]/a.jpg": "unsupported_url",
        b"https://example.com/a.jpg?X-Amz-Expires=9&X-Amz-Signature=secret": "unsupported_url",
    }
    (tmp_path / "x.txt").write_bytes(b"\n".join(reasons) + b"\nfolder/b.jpg\n")
    found = read(str(tmp_path / "x.txt"))
    assert [data for _, data in found] == [*reasons.values(), b"b"]
    names = [name for name, _ in found]
    assert names[1] == "https://***@example.com/a.jpg?x=1"
    assert names[11] == "n\\xff.jpg"
    assert not any("secret" in name for name in names)


def test_a_file_that_was_replaced_has_another_version(tmp_path: Path) -> None:
    publish(str(tmp_path), {"a.jpg": b"one", "x.txt": b"a.jpg"})
    before = list(list_inputs(str(tmp_path / "x.txt")))
    assert before[0].size == 3
    publish(str(tmp_path), {"a.jpg": b"two"})
    assert list(list_inputs(str(tmp_path / "x.txt"))) != before


def test_a_list_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("path\n\n#a.jpg\n")
    with pytest.raises(UserError, match="has no pictures"):
        list_inputs(str(tmp_path / "x.csv"))


def test_memory_is_that_of_a_line(tmp_path: Path) -> None:
    with (tmp_path / "x.txt").open("w") as file:
        file.writelines(f"s3://bucket/deep/folder/{number:08d}.jpg\n" for number in range(50_000))
    count, grown = growth(str(tmp_path / "x.txt"))
    assert count == 50_000
    assert grown < 4_000_000


def test_a_list_in_a_folder_of_pictures_is_a_sidecar(tmp_path: Path) -> None:
    publish(str(tmp_path), {"a.jpg": b"a", "x.txt": b"a.jpg", "x.lst": b"a.jpg"})
    assert read(str(tmp_path)) == [("a.jpg", b"a")]
    assert Store(str(tmp_path)).exists("x.txt")
