"""The demonstration: the whole line on synthetic photographs, small enough for two cores and minutes."""

from dataclasses import dataclass
from typing import Final

from flows.progress import progress, say
from flows.retrain import RetrainResult, retrain
from msrrn.augmentation import AugmentationSettings
from pipelines.settings import PrepareSettings, TrainSettings
from pipelines.storage import Store
from pipelines.synthesis import synthesise, synthetic_archive

NAME: Final = "msrrn-demo"
"""The registered model: a demonstration never touches the champion of `msrrn`."""

SEED: Final = 1
PHOTOS: Final = 700
ARCHIVE_PHOTOS: Final = 40
ARCHIVE: Final = "album.tar"
PREPARE: Final = PrepareSettings(augmentation=AugmentationSettings(copies=6))
TRAIN: Final = TrainSettings(epochs=8)


@dataclass(frozen=True)
class Demo:
    """What the demonstration made."""

    photos: str
    archive: str
    result: RetrainResult


def demo(out: str, workers: int) -> Demo:
    """Draws photographs and an archive, then retrains on them; what is there already is used again."""
    place = Store(out)
    photos = place.child("photos").url
    with progress("drawing photos") as update:
        drawn, reused = synthesise(photos, PHOTOS, SEED, workers, update)
    say(f"photos {photos}: {drawn.photos} photos, {drawn.faces} faces" + (" (drawn before: reused)" * reused))
    if synthetic_archive(out, ARCHIVE, SEED, PHOTOS, ARCHIVE_PHOTOS):
        say(f"archive {out}/{ARCHIVE} (drawn before: reused)")
    archive = f"{place.url}/{ARCHIVE}"
    result = retrain([photos], place.url, archive, NAME, PREPARE, TRAIN, workers=workers)
    return Demo(photos, archive, result)
