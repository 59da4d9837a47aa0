"""The picture at the top of the README: python -m tests.benchmarks.portrait .github/portrait.jpg

The portrait of Grace Hopper that comes with Matplotlib (U.S. Navy, public domain), as it is and made worse as in the
table of robustness. The detector looks at each by itself, and the model in the box finds the landmarks.
"""

import argparse
from pathlib import Path

import cv2
import matplotlib
import numpy as np

from pipelines.decoding import decode
from pipelines.detection import open_detector
from pipelines.drawing import PREDICTION, Picture, contact_sheet, face_tile, to_jpeg
from pipelines.opening import open_model
from pipelines.pyramid import crop, frame_around


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    tiles = [tile(worse) for worse in made_worse(decode(portrait.read_bytes()).rgb)]
    arguments.out.write_bytes(to_jpeg(contact_sheet(tiles, len(tiles))))


def made_worse(rgb: Picture) -> list[Picture]:
    """It, and it rolled by 40°, blurred by 3 % of its box, dark and noisy, and with half of the face hidden."""
    height, width = rgb.shape[:2]
    box = open_detector("blazeface")(rgb, 40)[0].box
    roll = cv2.getRotationMatrix2D(box.centre, 40, 1.0)
    rolled = cv2.warpAffine(rgb, roll, (width, height), borderMode=cv2.BORDER_REPLICATE)
    blurred = cv2.GaussianBlur(rgb, (0, 0), 0.03 * box.side)
    dark = np.clip(np.rint(rgb * 0.25 + np.random.default_rng(1).normal(0, 6, rgb.shape)), 0, 255)
    hidden = rgb.copy()
    hidden[:, round(box.centre[0]) :] = 128
    return [each.astype(np.uint8) for each in (rgb, rolled, blurred, dark, hidden)]


def tile(rgb: Picture) -> Picture:
    """Its largest face with landmarks."""
    model = open_model("box")
    box = open_detector("blazeface")(rgb, 40)[0].box
    frame = frame_around(box, model.card.crop_margin)
    (shape,) = model.predictor.predict(crop(rgb, frame)[None]).shapes
    return face_tile(rgb, box, [(frame.shape_to_upright(shape), PREDICTION)], 220)


if __name__ == "__main__":
    main()
