"""300-W and what is laid out like it: folders, at any depth, of pictures beside `.pts` of the same stem.

A picture with several faces may have `a.jpg.0.pts`, `a.jpg.1.pts`, …, as `msrrn export` writes them. What has such
ones is a picture whatever its own name ends with.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from pipelines.archives.ahead import begun
from pipelines.archives.names import IMAGE_SUFFIXES, is_picture
from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.sources import AnnotatedPhoto, DeclaredSplit, Rejected, rejected_files
from pipelines.sources.annotation import BadAnnotation
from pipelines.sources.files import Files, open_files
from pipelines.sources.held import root_parts, without_suffix
from pipelines.sources.pts import parse_pts

SUBSETS: Final = ("lfpw", "helen", "afw", "ibug")
TEST_FOLDERS: Final = frozenset({"testset", "01_indoor", "02_outdoor"})
"""What the packages call the pictures to test on; the latter two are of the challenge itself."""
VALIDATION_LIST: Final = "val.txt"
_REMEDY: Final = "a source is a folder or an archive of pictures, each beside a .pts file of the same name"


class _Pair(NamedTuple):
    """A picture and its annotation; the pictures of one `stem` are one photo, as `val.txt` lists it."""

    uri: str
    annotation_uri: str
    stem: str


@dataclass(frozen=True)
class ThreeHundredW:
    """A folder or an archive in the layout of 300-W; its `.pts` are 1-based.

    `val.txt` in its root, if there is one, or in folders of the root, each for its own, lists the photographs
    of the validation split: one path below its folder a line, without suffix. All others there are then for
    training, but those of `testset`, `ibug` and the challenge.
    """

    url: str

    @staticmethod
    def recognises(files: Files) -> bool:
        """See `Reader.recognises`: there are `.pts` files."""
        return any(PurePosixPath(name).suffix.lower() == ".pts" for name in files.sizes())

    def scan(self) -> Iterator[AnnotatedPhoto | Rejected]:
        """See `AnnotatedSource.scan`; every picture and every `.pts` is either in a pair or rejected."""
        files = open_files(self.url)
        if files.only:
            raise UserError(f"{self.url} is one file: give its folder; {_REMEDY}")
        images: dict[str, list[str]] = defaultdict(list)
        annotations: dict[str, str] = {}
        second: list[Rejected] = []
        numbered: dict[str, list[str]] = defaultdict(list)
        readable = [PurePosixPath(name) for name, size in files.sizes().items() if size is not None]
        parts = (
            path.with_suffix("").as_posix().rpartition(".") for path in readable if path.suffix.lower() == ".pts"
        )
        with_faces = {name for name, _, number in parts if _is_number(number)}
        for path in sorted(readable, key=lambda path: not is_picture(path.name)):
            if is_picture(path.name) or (path.suffix.lower() != ".pts" and path.as_posix() in with_faces):
                images[path.with_suffix("").as_posix()].append(path.as_posix())
        pictures = {name for same in images.values() for name in same}
        for path in readable:
            if path.suffix.lower() == ".pts":
                stem = path.with_suffix("").as_posix()
                picture, _, number = stem.rpartition(".")
                # `a.jpg.0.jpg` may be a picture, too; then its own are `a.jpg.0.jpg.0.pts`, …, or this one.
                own = not with_faces.isdisjoint(images.get(stem, ()))
                if (stem not in images or own) and _is_number(number) and picture in pictures:
                    numbered[picture].append(path.as_posix())
                elif stem in annotations:
                    taken = f"{annotations[stem]} was taken for the annotation of this name"
                    second.append(Rejected(path.as_posix(), "face_twice", taken))
                else:
                    annotations[stem] = path.as_posix()
        if not annotations and not numbered:
            found = f"{len(images)} pictures but no .pts file" if images else "no pictures"
            raise UserError(f"{self.url} has {found}: {_REMEDY}")
        lists = self._validation(files, images)

        def read(row: _Pair | Rejected) -> AnnotatedPhoto | Rejected:
            return self._photo(files, row, lists) if isinstance(row, _Pair) else row

        refused = [*rejected_files(files, IMAGE_SUFFIXES | {".pts"}), *second]
        rows = self._rows(images, annotations, numbered, refused)
        return (finished() for finished in begun((files.url, partial(read, row)) for row in rows))

    def _rows(
        self,
        images: dict[str, list[str]],
        annotations: dict[str, str],
        numbered: dict[str, list[str]],
        refused: Iterable[Rejected],
    ) -> Iterator[_Pair | Rejected]:
        rejected = {row.uri: row for row in refused}
        pairs: list[tuple[str, str]] = [
            (uri, stem) for stem in images.keys() | annotations.keys() for uri in _uris(stem, images, annotations)
        ]
        for uri, stem in sorted([*pairs, *((uri, "") for uri in rejected)]):
            if uri in rejected:
                yield rejected[uri]
            elif stem not in images:
                yield Rejected(uri, "no_image", "an annotation without a picture of the same name")
            elif uri in numbered:
                own = [annotations[stem]] if stem in annotations and uri == images[stem][0] else []
                for annotation in (*own, *sorted(numbered[uri], key=_number)):
                    yield _Pair(uri, annotation, stem)
            elif stem not in annotations:
                yield Rejected(uri, "no_annotation", "a picture without a .pts file of the same name")
            elif uri != images[stem][0]:
                yield Rejected(uri, "second_image", f"its annotation was taken for {images[stem][0]}")
            else:
                yield _Pair(uri, annotations[stem], stem)

    def _photo(self, files: Files, pair: _Pair, lists: Mapping[str, frozenset[str]]) -> AnnotatedPhoto | Rejected:
        uri, annotation_uri, stem = pair
        try:
            shape = parse_pts(files.read(annotation_uri))
        except BadAnnotation as error:
            return Rejected(uri, error.reason, f"{annotation_uri}: {error.message}")
        except OutageError:
            raise
        except UserError:  # its text names the source's place, which differs from machine to machine
            return Rejected(uri, "unreadable", f"{annotation_uri} cannot be read, or is too large")
        subset = _subset(self.url, uri)
        validation = next((stems for place, stems in lists.items() if stem.startswith(place)), None)
        split = _split(self.url, uri, subset, stem, validation)
        return AnnotatedPhoto(files.url, uri, annotation_uri, subset, split, shape)

    def _validation(self, files: Files, images: Collection[str]) -> dict[str, frozenset[str]]:
        """Folder → the pictures that its list names; the folder is "", the root, or ends in a slash."""
        if files.exists(VALIDATION_LIST):
            return {"": self._checked(files, "", self._listed(files, ""), images)}
        # A folder that may be listed and not entered may not be asked for a list, either, nor has it any photo.
        readable = (name for name, size in files.sizes().items() if size is not None)
        tops = {f"{PurePosixPath(name).parts[0]}/" for name in readable if "/" in name}
        lists = {top: self._listed(files, top) for top in sorted(tops) if files.exists(top + VALIDATION_LIST)}
        return {
            top: self._checked(files, top, stems, images)
            for top, stems in lists.items()
            if len(tops) == 1 or not stems.isdisjoint(images)  # other tools write lists of this name, too
        }

    def _listed(self, files: Files, place: str) -> frozenset[str]:
        try:
            text = files.read(place + VALIDATION_LIST).decode("utf-8-sig")
        except UnicodeDecodeError as error:  # as PowerShell writes it, in UTF-16
            raise UserError(f"{files.url}/{place}{VALIDATION_LIST} is no text in UTF-8: save it as that") from error
        return frozenset(place + line.strip() for line in text.splitlines() if line.strip())

    def _checked(self, files: Files, place: str, listed: frozenset[str], images: Collection[str]) -> frozenset[str]:
        name = f"{files.url}/{place}{VALIDATION_LIST}"
        missing = sorted(listed - set(images))
        if missing:
            raise UserError(
                f"{name} lists {len(missing)} pictures that do not exist, first {missing[0]!r}: "
                "write paths below its folder, without suffix"
            )
        for stem in sorted(listed):
            if _is_test(self.url, stem, _subset(self.url, stem)):
                raise UserError(f"{name} lists {stem!r}, a test picture: take it out of the list")
        return listed


def _uris(stem: str, images: dict[str, list[str]], annotations: dict[str, str]) -> list[str]:
    return images[stem] if stem in images else [annotations[stem]]


def _is_number(text: str) -> bool:
    """Whether a file's name may end with it for a face; Python refuses to read the longest ones."""
    return text.isdecimal() and len(text) < 10


def _number(annotation: str) -> int:
    return int(PurePosixPath(annotation).stem.rpartition(".")[2])


def _folders(uri: str) -> tuple[str, ...]:
    return tuple(without_suffix(part) for part in PurePosixPath(uri).parts[:-1])


def _subset(url: str, uri: str) -> str:
    """A known name among the folders below the root, else in the root's own path, else the first folder.

    Of the root's path, `lfpw/trainset` says something, `/home/helen` does not: the last two names count. Photos
    that lie in no folder are the root's, by its own name. An archive is a folder of its name.
    """
    below = _folders(uri)
    for part in (*below, *reversed(root_parts(url))):
        if part.lower() in SUBSETS:
            return part.lower()
    return below[0] if below else root_parts(url)[-1]


def _is_test(url: str, uri: str, subset: str) -> bool:
    return subset == "ibug" or any(part.lower() in TEST_FOLDERS for part in (*_folders(uri), *root_parts(url)))


def _split(url: str, uri: str, subset: str, stem: str, validation: frozenset[str] | None) -> DeclaredSplit | None:
    if _is_test(url, uri, subset):
        return "test"
    if validation is not None:
        return "val" if stem in validation else "train"
    return "train" if "trainset" in (part.lower() for part in (*_folders(uri), *root_parts(url))) else None
