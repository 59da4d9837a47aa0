"""Face boxes that come with the data, in whatever convention its makers used."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

from pipelines.detection.boxes import BoxMapping, Detection, expected_box
from pipelines.sources import AnnotatedPhoto

_Source = tuple[str, str]


@dataclass(frozen=True)
class AnnotatedBoxes:
    """The boxes of annotated faces, each source's own convention mapped to that of `expected_box`.

    `mappings` are (source, mapping) pairs; a source is a root and the kind of its annotation files, of which one
    folder may hold several. No picture is searched, so this is no `Detector`.
    """

    mappings: tuple[tuple[_Source, BoxMapping], ...] = ()
    name: ClassVar[str] = "annotated"

    @classmethod
    def fit(cls, faces: Iterable[AnnotatedPhoto]) -> Self:
        """Measures every source's convention on its faces that have a box; their order changes nothing.

        The figures are rounded to hundredths of a side, so that a source that grows by a few faces nearly
        always keeps its mapping, and its finished shards.
        """
        boxed: dict[_Source, list[AnnotatedPhoto]] = {}
        for face in faces:
            if _is_measurable(face):
                boxed.setdefault(_source(face), []).append(face)
        mappings = []
        for source, group in sorted(boxed.items()):
            exact = BoxMapping.median([face.box for face in group if face.box], [face.shape for face in group])
            mappings.append((source, BoxMapping(round(exact.dx, 2), round(exact.dy, 2), round(exact.scale, 2))))
        return cls(tuple(mappings))

    def __call__(self, face: AnnotatedPhoto) -> Detection | None:
        """The face's own box with a score of 1; None where the source gives none, or one of no use."""
        mapping = dict(self.mappings).get(_source(face))
        if face.box is None or mapping is None:
            return None
        try:
            return Detection(mapping(face.box), 1.0)
        except ValueError:  # mapped, it lies too far away, or has no pixel left
            return None


def _source(face: AnnotatedPhoto) -> _Source:
    # Not the file: where each holds one face, a mapping would make of its box what the points say.
    return face.root, face.annotation_uri.rpartition(".")[2].partition("#")[0].lower()


def _is_measurable(face: AnnotatedPhoto) -> bool:
    """Whether its box says something of its source's convention; what is absurdly large or small does not."""
    try:
        expected_box(face.shape)
    except ValueError:
        return False
    return face.box is not None and face.box.side > 0
