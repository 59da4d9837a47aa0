"""300-W and what is laid out like it: folders, at any depth, of pictures beside `.pts` of the same stem."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from pipelines.errors import UserError
from pipelines.sources import AnnotatedPhoto, Rejected, Split
from pipelines.sources.pts import BadAnnotation, parse_pts
from pipelines.storage import Store

IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
SUBSETS: Final = ("lfpw", "helen", "afw", "ibug")
VALIDATION_LIST: Final = "val.txt"
_REMEDY: Final = "a source is a folder of pictures, each beside a .pts file of the same name"


@dataclass(frozen=True)
class ThreeHundredW:
    """A folder in the layout of 300-W, local or on S3.

    `val.txt` in its root, if there is one, lists the photographs of the validation split: one path below
    the root a line, without suffix. All others are then for training, but those of `testset` or `ibug`.
    """

    url: str

    def scan(self) -> Iterator[AnnotatedPhoto | Rejected]:
        """See `AnnotatedSource.scan`; every picture and every `.pts` is either in a pair or rejected."""
        store = Store(self.url)
        if not store.exists():
            raise UserError(f"{self.url} does not exist: {_REMEDY}")
        images: dict[str, list[str]] = defaultdict(list)
        annotations: dict[str, str] = {}
        keys = store.keys()
        for key in keys:
            path = PurePosixPath(key)
            if any(part.startswith(".") for part in path.parts):
                continue
            stem = path.with_suffix("").as_posix()
            if path.suffix.lower() in IMAGE_SUFFIXES:
                images[stem].append(key)
            elif path.suffix.lower() == ".pts":
                annotations.setdefault(stem, key)
        if not annotations:
            found = f"{len(images)} pictures but no .pts file" if images else "no pictures"
            raise UserError(f"{self.url} has {found}: {_REMEDY}")
        return self._rows(store, images, annotations, self._validation(store, images))

    def _rows(
        self,
        store: Store,
        images: dict[str, list[str]],
        annotations: dict[str, str],
        validation: frozenset[str] | None,
    ) -> Iterator[AnnotatedPhoto | Rejected]:
        pairs: list[tuple[str, str]] = [
            (uri, stem) for stem in images.keys() | annotations.keys() for uri in _uris(stem, images, annotations)
        ]
        for uri, stem in sorted(pairs):
            if stem not in images:
                yield Rejected(uri, "no_image", "an annotation without a picture of the same name")
            elif stem not in annotations:
                yield Rejected(uri, "no_annotation", "a picture without a .pts file of the same name")
            elif uri != images[stem][0]:
                yield Rejected(uri, "second_image", f"its annotation was taken for {images[stem][0]}")
            else:
                yield self._photo(store, uri, annotations[stem], stem, validation)

    def _photo(
        self, store: Store, uri: str, annotation_uri: str, stem: str, validation: frozenset[str] | None
    ) -> AnnotatedPhoto | Rejected:
        try:
            shape = parse_pts(store.read_bytes(annotation_uri))
        except BadAnnotation as error:
            return Rejected(uri, error.reason, f"{annotation_uri}: {error.message}")
        subset = _subset(self.url, uri)
        split = _split(self.url, uri, subset, stem, validation)
        return AnnotatedPhoto(store.url, uri, annotation_uri, subset, split, shape)

    def _validation(self, store: Store, images: Iterable[str]) -> frozenset[str] | None:
        if not store.exists(VALIDATION_LIST):
            return None
        name = f"{store.url}/{VALIDATION_LIST}"
        lines = store.read_bytes(VALIDATION_LIST).decode("utf-8-sig", "replace").splitlines()
        listed = [line.strip() for line in lines if line.strip()]
        missing = sorted(set(listed) - set(images))
        if missing:
            raise UserError(
                f"{name} lists {len(missing)} pictures that do not exist, first {missing[0]!r}: "
                "write paths below its folder, without suffix"
            )
        for stem in listed:
            if _is_test(self.url, stem, _subset(self.url, stem)):
                raise UserError(f"{name} lists {stem!r}, a test picture: take it out of the list")
        return frozenset(listed)


def _uris(stem: str, images: dict[str, list[str]], annotations: dict[str, str]) -> list[str]:
    return images[stem] if stem in images else [annotations[stem]]


def _folders(uri: str) -> tuple[str, ...]:
    return PurePosixPath(uri).parts[:-1]


def _subset(url: str, uri: str) -> str:
    """A known name among the folders below the root, else in the root's own path, else the first folder.

    Photos that lie in no folder are the root's, by its own name.
    """
    below = _folders(uri)
    for part in (*below, *reversed(_root(url))):
        if part.lower() in SUBSETS:
            return part.lower()
    return below[0] if below else _root(url)[-1]


def _root(url: str) -> tuple[str, ...]:
    """The root's own folder and the one above it: `lfpw/trainset` says something, `/home/helen` does not."""
    place = Store(url).absolute()
    local = place.local_path()
    return (local.resolve().parts if local else tuple(place.url.split("/")))[-2:]


def _is_test(url: str, uri: str, subset: str) -> bool:
    return subset == "ibug" or "testset" in (part.lower() for part in (*_folders(uri), *_root(url)))


def _split(url: str, uri: str, subset: str, stem: str, validation: frozenset[str] | None) -> Split | None:
    if _is_test(url, uri, subset):
        return "test"
    if validation is not None:
        return "val" if stem in validation else "train"
    return "train" if "trainset" in (part.lower() for part in (*_folders(uri), *_root(url))) else None
