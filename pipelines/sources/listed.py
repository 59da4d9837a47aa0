"""What readers of lists share: one annotation file names many pictures, and a picture may have many faces."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import PurePosixPath
from typing import Final
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from msrrn.geometry import Box
from pipelines.archives.names import IMAGE_SUFFIXES, is_picture
from pipelines.errors import UserError
from pipelines.outages import OutageError
from pipelines.secrecy import masked
from pipelines.sources import AnnotatedPhoto, DeclaredSplit, Rejected, rejected_files
from pipelines.sources.annotation import BadAnnotation, as_unicode, subset_name
from pipelines.sources.corrections import Reviewed, review_of, subset_of
from pipelines.sources.files import Files
from pipelines.sources.held import root_parts, without_suffix
from pipelines.sources.splits import SPLIT_WORD, split_in
from pipelines.sources.three_hundred_w import SUBSETS, TEST_FOLDERS
from pipelines.storage import Store

_DRIVE: Final = re.compile(r"[A-Za-z]:")
_LONGEST_NAME: Final = 255
_LOOKED_AT: Final = 4
"""Annotation files by which a format is known."""
_OF_CVAT: Final = "person_keypoints_"
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""And line ends of other kinds, and what is no Unicode; of what is missing a page or a terminal would show none."""


class OtherKind(UserError):  # noqa: N818 - it names a state of a file
    """A whole file that holds something else; beside others of the right kind it is passed over."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One face as its file lists it.

    `image` is the picture's path as written, `number` tells the entry from the others of its file. `face` is
    the shape, float64 (68, 2), 0-based pixels, or why there is none. `split` and `subset` are the entry's own;
    `checked` is set where it says that a person found it right. `folder` is one in which the picture may lie, below
    those where it is looked for.
    """

    image: str
    number: int
    face: NDArray[np.float64] | BadAnnotation
    box: Box | None = None
    split: DeclaredSplit | None = None
    subset: str = ""
    checked: bool = False
    folder: str = ""


ListReader = Callable[[Files, str], Iterator[Entry]]
"""Reads the named file; raises `UserError` when it is broken, `OtherKind` when it is something else."""
_Row = AnnotatedPhoto | Rejected


def listed_files(files: Files, suffixes: Collection[str]) -> list[str]:
    """The annotation files: the one that was named, or all with such a suffix."""
    if files.only:
        return [files.only]
    return [name for name, size in files.sizes().items() if size is not None and _suffix(name) in suffixes]


def heads(files: Files, suffixes: Collection[str], size: int) -> Iterator[bytes]:
    """The first bytes of a few annotation files with such a suffix, to know their format by."""
    for name in [name for name in listed_files(files, suffixes) if _suffix(name) in suffixes][:_LOOKED_AT]:
        try:
            with files.open(name) as file:
                yield file.read(size)
        except OutageError:
            raise
        except (UserError, OSError):
            continue


def scan_listed(
    files: Files,
    suffixes: Collection[str],
    read: ListReader,
    remedy: str,
    places: Callable[[str], Sequence[str]] | None = None,
) -> Iterator[_Row]:
    """A row for every entry of every annotation file, and for every picture that no entry names.

    `places` gives the folders in which the pictures of an annotation file are looked for, its own by default.
    Rows are sorted by uri, then by annotation. A rejected entry whose picture has several has its number as well.
    Faces of a review have the subset that `corrections` gives them, and the digest of their picture.
    """
    names = listed_files(files, suffixes)
    if not names:
        raise UserError(f"{files.url} has no {' or '.join(suffixes)} file: {remedy}")
    is_there = _look_up(files)
    found: list[tuple[str, str, Entry]] = []
    others: list[OtherKind] = []
    for name in names:
        folders = places(name) if places else [_folder(name)]
        try:
            found += [_placed(is_there, folders, name, entry) for entry in read(files, name)]
        except OtherKind as error:
            others.append(error)
    if len(others) == len(names):
        raise others[0]
    if not found:
        raise UserError(f"{files.url}/{names[0]} lists no face: {remedy}")
    return iter(_rows(files, suffixes, found, _reviews(files, [annotation for _, annotation, _ in found])))


def near(name: str) -> list[str]:
    """Where the pictures of an annotation file usually lie.

    Its own folder, or `images` in it, or `data`, as FiftyOne has it, or a folder named like the file, like the split
    in its name (`val2017`), or like the subset, with which CVAT ends it (`person_keypoints_Batch 2.json`); for a file
    in a folder `annotations`, the same beside that. COCO-WholeBody leaves the year out of the name
    (`coco_wholebody_val_v1.0.json`).
    """
    path = PurePosixPath(name)
    splits = [word for match in SPLIT_WORD.finditer(path.stem) for word in (match[0], match[0].lower())]
    years = [f"{split}2017" for split in splits if path.stem.lower().startswith("coco_wholebody_")]
    subset = [path.stem.removeprefix(_OF_CVAT)] if path.stem.startswith(_OF_CVAT) else []
    own = dict.fromkeys((path.stem, *splits, *years, *subset))
    bases = [path.parent, *([path.parent.parent] if path.parent.name.lower() == "annotations" else [])]
    return [
        "" if str(place) == "." else place.as_posix()
        for base in bases
        for place in (
            *(base, base / "images", base / "data"),
            *(base / folder / one for one in own for folder in ("", "images")),
        )
    ]


def _reviews(files: Files, annotations: Iterable[str]) -> dict[str, Reviewed]:
    """Annotation files that are of a review, each with it."""
    names = dict.fromkeys(_file(annotation) for annotation in annotations)
    reviews = {name: review for name in names if (review := review_of(files, name))}
    first: dict[str, str] = {}
    for name, review in reviews.items():
        other = first.setdefault(review.place, name)
        if other != name:
            raise UserError(f"{files.url}: {other} and {name} are of one review: keep the corrected file only")
    return reviews


def _rows(
    files: Files,
    suffixes: Collection[str],
    found: Sequence[tuple[str, str, Entry]],
    reviews: Mapping[str, Reviewed],
) -> list[_Row]:
    faces = Counter(uri for uri, _, _ in found)
    keyed = [
        (annotation, _row(files, uri, annotation, entry, faces[uri], reviews.get(_file(annotation))))
        for uri, annotation, entry in found
    ]
    if not files.only:
        alone = (name for name, size in files.sizes().items() if size is not None and is_picture(name))
        keyed += [
            ("", Rejected(name, "no_annotation", "a picture that no annotation file names"))
            for name in alone
            if name not in faces
        ]
        keyed += [("", row) for row in rejected_files(files, IMAGE_SUFFIXES | set(suffixes))]
    keyed.sort(key=lambda pair: (pair[1].uri, pair[0]))
    return [row for _, row in keyed]


def _row(files: Files, uri: str, annotation: str, entry: Entry, faces: int, review: Reviewed | None) -> _Row:
    if isinstance(entry.face, BadAnnotation):
        own = f"{uri}#{entry.number}" if faces > 1 and uri != annotation else uri
        return Rejected(own, entry.face.reason, f"{annotation}: {entry.face.message}")
    drawn = review.picture(uri) if review else None
    said = subset_name(entry.subset) or _subset(files.url, uri)
    subset = subset_of(drawn, entry.face, entry.checked) if drawn else said
    split = entry.split or _split(files.url, _file(annotation), uri, subset)
    sha256 = drawn.sha256 if drawn else ""
    return AnnotatedPhoto(files.url, uri, annotation, subset, split, entry.face, entry.box, sha256)


def _placed(
    is_there: Callable[[str], bool], folders: Sequence[str], name: str, entry: Entry
) -> tuple[str, str, Entry]:
    """The entry with the uri of its picture and its own; one whose picture cannot be had says so."""
    annotation = f"{name}#{entry.number}"
    image = masked(as_unicode(entry.image))  # what is not there is told to whoever reads the dataset's page
    plain = image.strip()
    if not plain:
        missing = BadAnnotation("no_image", "it names no picture")
        uri = annotation
    else:
        # Windows separates folders by what may be part of a name elsewhere, and macOS may write ë as e and its dots;
        # blanks around a name may be its own.
        slashes = plain.replace("\\", "/")
        written = PurePosixPath(slashes)
        names = dict.fromkeys((image, plain, slashes, normalize("NFC", slashes), normalize("NFD", slashes)))
        paths = [path.as_posix() for path in map(PurePosixPath, names) if _is_below(path)]
        places = _places(tuple(folders), entry.folder)
        wanted = (path if place == "." else f"{place}/{path}" for path in paths for place in places)
        there = next((uri for uri in wanted if _is_short(uri) and is_there(uri)), None)
        if there:
            return there, annotation, entry
        if _is_below(written) and not _DRIVE.match(image) and not _CONTROLS.search(image):
            looked = ", ".join(places)[:400]  # each may be as long as a file makes a subset's name
            missing = BadAnnotation("no_image", f"{image[:200]!r} is not there (looked in: {looked})")
            uri = (PurePosixPath(folders[0]) / written).as_posix()
        else:
            missing = BadAnnotation(
                "unsafe_path",
                f"{image[:200]!r} leaves the folder, or has control characters: write a path below {name}'s own",
            )
            uri = image
    face = entry.face if isinstance(entry.face, BadAnnotation) else missing
    return uri, annotation, Entry(image, entry.number, face)


@lru_cache(maxsize=1)  # of most lists the same for every entry
def _places(folders: tuple[str, ...], folder: str) -> list[str]:
    """Where a picture is looked for: in each of `folders`, below that first in the entry's own."""
    below = ((place / folder, place) for place in map(PurePosixPath, folders))
    return [place.as_posix() for place in dict.fromkeys(chain.from_iterable(below))]


def _is_below(path: PurePosixPath) -> bool:
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _is_short(uri: str) -> bool:
    return all(len(part.encode()) <= _LONGEST_NAME for part in uri.split("/"))


def _look_up(files: Files) -> Callable[[str], bool]:
    """Whether a picture is there. One file of a local folder may lie among anything, which is not listed."""
    if files.only and Store(files.url).local_path():
        return files.exists
    listing = Files(files.url).sizes()
    return frozenset(name for name, size in listing.items() if size is not None).__contains__


def _file(annotation: str) -> str:
    """The file that an entry is in."""
    return annotation.rpartition("#")[0]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _folders(uri: str) -> list[str]:
    """Deepest first."""
    return [without_suffix(part).lower() for part in reversed(PurePosixPath(uri).parts[:-1])]


def _subset(url: str, uri: str) -> str:
    """A set of 300-W that the path of the picture or of the root names, else the root's own name."""
    parts = (*_folders(uri), *(part.lower() for part in reversed(root_parts(url))))
    return next((part for part in parts if part in SUBSETS), root_parts(url)[-1])


def _split(url: str, name: str, uri: str, subset: str) -> DeclaredSplit | None:
    """What the annotation file's name says, else the picture's folders."""
    said = split_in(PurePosixPath(name).stem)
    if said:
        return said
    folders = _folders(uri)
    if subset == "ibug" or TEST_FOLDERS & {*folders, *(part.lower() for part in root_parts(url))}:
        return "test"
    return next(filter(None, map(split_in, folders)), None)
