"""A `.pts` file a face, as 300-W has it: 1-based, six decimals.

`pts/URI.K.pts` is face K of the picture URI. Copied over the folder of the pictures (`cp -r OUT/pts/. photos`),
they are a source for `prepare`: the reader of 300-W knows `a.jpg.0.pts` as a face of `a.jpg`. Such files of an older
export are removed before the first is written, others stay.

Several pictures may have one path: members of one name of an archive, or `/a/b.jpg` beside `a/b.jpg` in a list. Then
the files of one are called so, those of the others have a digest in their name.
"""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from pipelines.annotation.exports import require_own
from pipelines.annotation.exports.pictures import AnnotatedPictures, Face, Picture
from pipelines.sources.pts import format_pts
from pipelines.storage import Store

FOLDER: Final = "pts"
THREADS: Final = 16
"""Each waits for a disk or a server most of the time."""
MAX_NAME: Final = 200
"""Bytes of a file name; file systems end at 255."""
_OURS: Final = re.compile(r"\.\d+\.pts$")
MAX_FOLDERS: Final = 600
"""Bytes of a picture's folders; a path ends at 4096, and making folders goes one call deeper for each."""


def write(pictures: AnnotatedPictures, out: Store) -> str:
    """See `Exporter`."""
    owners = pictures.owners(_path)

    def key_of(picture: Picture, face: Face) -> str:
        owner = owners.get(_path(picture.uri), picture.sha256)
        return pts_key(picture.uri, face.index, "" if owner == picture.sha256 else picture.sha256)

    def publish(file: tuple[str, Face]) -> None:
        key, face = file
        out.publish(key, format_pts(face.landmarks))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(out.delete, older(out)))  # a face may be left out now
        for _, found in pictures.units():
            files = {key_of(picture, face): face for picture in found for face in picture.faces}
            list(pool.map(publish, files.items()))  # or raise what one of them raised
    return FOLDER


def older(out: Store) -> list[str]:
    """See `Exporter`."""
    require_own(out, FOLDER)
    return [key for key in out.keys(FOLDER) if _OURS.search(key)]


def pts_key(uri: str, face_index: int, apart: str = "") -> str:
    """`pts/` + the picture's own path + the face's index: it joins back. `apart`, of a picture that is not the one of
    that path, tells it from others.

    What no file system holds, and what would leave the folder, is shortened to its beginning and a digest.
    """
    folder, _, name = uri.rpartition("/")
    deep = len(folder.encode()) > MAX_FOLDERS
    parts = [_digested(folder)] if deep else map(_file_name, filter(None, _path(folder).split("/")))
    own = _digested(name, f"{_path(uri)} {apart}") if apart else _file_name(name)
    return "/".join((FOLDER, *parts, f"{own}.{face_index}.pts"))


def _path(uri: str) -> str:
    """Where a picture lies, whichever of the ways to write it is the uri."""
    return "/".join(part for part in uri.split("/") if part not in {"", "."})


def _file_name(part: str) -> str:
    # A folder that ends in .pts could have the name of another picture's file.
    unusable = len(part.encode()) > MAX_NAME or "\0" in part or part.endswith(".pts") or part == ".."
    return _digested(part) if unusable else part


def _digested(name: str, of: str = "") -> str:
    return (
        name[:40].replace("\0", "_").replace("/", "_") + "-" + hashlib.sha256((of or name).encode()).hexdigest()[:16]
    )
