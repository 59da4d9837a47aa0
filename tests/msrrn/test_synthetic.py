"""The synthetic photographs: repeatable, well annotated, seen by the detector that real photographs go through."""

import cv2
import dlib
import numpy as np
import pytest
from numpy.typing import NDArray

from msrrn.geometry import Box, fit_similarity
from msrrn.landmarks import MIRROR, inter_pupil, pupils
from msrrn.synthetic import SyntheticPhoto, draw_photo
from msrrn.synthetic.anatomy import MEAN, draw_anchors, draw_expression
from msrrn.synthetic.camera import Camera, rasterise
from msrrn.synthetic.paint import swept
from msrrn.synthetic.pose import MAX_PITCH, MAX_ROLL, MAX_YAW, draw_pose, landmarks_seen
from msrrn.synthetic.surface import head_grid

SEED = 2024
PHOTOS = 28


@pytest.fixture(scope="module")
def photos() -> list[SyntheticPhoto]:
    return [draw_photo(SEED, index) for index in range(PHOTOS)]


def decoded(photo: SyntheticPhoto, flag: int = cv2.IMREAD_GRAYSCALE) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(photo.jpeg, np.uint8), flag), np.uint8)


def random_shapes(count: int, yaw: float | None = None) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    shapes, poses = [], []
    for index in range(count):
        rng = np.random.default_rng((77, index))
        anchors = draw_anchors(rng, draw_expression(rng))
        pose = draw_pose(rng) if yaw is None else (yaw, 0.0, 0.0)
        camera = Camera(*pose, distance=15.0, scale=100.0, centre=(0.0, 0.0))
        shapes.append(landmarks_seen(anchors, camera))
        poses.append(pose)
    return np.stack(shapes), np.array(poses)


def test_same_numbers_same_photo_and_other_numbers_another(photos: list[SyntheticPhoto]) -> None:
    again = draw_photo(SEED, 3)
    assert again.jpeg == photos[3].jpeg
    np.testing.assert_array_equal(again.shapes, photos[3].shapes)
    np.testing.assert_array_equal(again.poses, photos[3].poses)
    assert len({photo.jpeg for photo in photos}) == PHOTOS
    assert draw_photo(SEED + 1, 3).jpeg != photos[3].jpeg


def test_a_picture_that_is_swept_stays_where_it_is() -> None:
    point = np.zeros((61, 61), np.float32)
    point[30, 30] = 1
    places = np.moveaxis(np.mgrid[0:61, 0:61], 0, -1)
    for reach in range(3, 25):
        for turn in np.linspace(0, np.pi, 37):
            streak = swept(point, reach, turn)
            assert streak.sum() == pytest.approx(1, abs=1e-5)
            centre = np.tensordot(streak, places)
            np.testing.assert_allclose(centre, 30, atol=1e-3)
            length = np.ptp(places[streak > 1e-4] @ [np.sin(turn), np.cos(turn)]) + 1
            assert abs(length - reach) < 1.5


def test_a_photo_is_a_jpeg_of_the_promised_size(photos: list[SyntheticPhoto]) -> None:
    for photo in photos:
        assert photo.jpeg[:3] == b"\xff\xd8\xff"
        assert decoded(photo, cv2.IMREAD_COLOR).shape == (photo.height, photo.width, 3)
        assert 300 <= photo.width <= 640
        assert 300 <= photo.height <= 640


def test_annotations_have_their_shapes_and_lie_in_or_near_the_picture(photos: list[SyntheticPhoto]) -> None:
    for photo in photos:
        faces = len(photo.shapes)
        assert faces >= 1
        assert photo.shapes.shape == (faces, 68, 2)
        assert photo.poses.shape == (faces, 3)
        assert photo.shapes.dtype == photo.poses.dtype == np.float32
        size = np.array([photo.width, photo.height])
        inside = ((photo.shapes >= -0.5) & (photo.shapes <= size - 0.5)).all(axis=-1)
        assert inside.mean() > 0.8
        assert (np.abs(np.clip(photo.shapes, 0, size) - photo.shapes) < 0.25 * size.min()).all()


def test_some_photos_have_several_faces_largest_first_and_apart(photos: list[SyntheticPhoto]) -> None:
    several = [photo for photo in photos if len(photo.shapes) > 1]
    assert 0.1 < len(several) / PHOTOS < 0.6
    for photo in several:
        boxes = [Box.around(shape) for shape in photo.shapes]
        assert [box.area for box in boxes] == sorted((box.area for box in boxes), reverse=True)
        overlaps = [one.iou(other) for i, one in enumerate(boxes) for other in boxes[:i]]
        assert max(overlaps) < 0.15


def test_poses_keep_their_ranges_and_use_them() -> None:
    poses = np.abs(random_shapes(400)[1])
    limits = np.array([MAX_YAW, MAX_PITCH, MAX_ROLL])
    assert (poses <= limits).all()
    assert (poses.max(axis=0) > 0.8 * limits).all()


def test_faces_are_the_right_way_round(photos: list[SyntheticPhoto]) -> None:
    for photo in photos:
        right, left = pupils(photo.shapes)
        assert (right[:, 0] < left[:, 0]).all()
        mouth = photo.shapes[:, 48:68].mean(axis=1)
        assert (mouth[:, 1] > np.maximum(right[:, 1], left[:, 1])).all()


def test_the_mean_head_is_symmetric_and_mirrors_with_its_pose() -> None:
    cameras = [Camera(yaw, 5.0, 0.0, 15.0, 100.0, (0.0, 0.0)) for yaw in (20.0, -20.0)]
    turned, other = (landmarks_seen(MEAN, camera) for camera in cameras)
    np.testing.assert_allclose(other[MIRROR] * [-1, 1], turned, atol=0.01)


def test_the_jaw_runs_from_ear_to_ear_along_the_face() -> None:
    shapes, _ = random_shapes(150, yaw=0.0)
    jaw = shapes[:, :17]
    around = jaw - shapes[:, 27:28]
    assert (np.diff(np.arctan2(around[..., 0], np.maximum(around[..., 1], 0)), axis=1) >= 0).all()
    assert (np.diff(jaw[:, 4:13, 0], axis=1) > 0).all()
    assert (np.diff(jaw[:, :8, 1], axis=1) > 0).all()
    assert (np.diff(jaw[:, 9:, 1], axis=1) < 0).all()


@pytest.mark.parametrize("yaw", [-40.0, -20.0, 0.0, 20.0, 40.0])
def test_the_far_jaw_lies_on_the_silhouette_of_the_drawn_head(yaw: float) -> None:
    rng = np.random.default_rng(5)
    anchors = draw_anchors(rng, draw_expression(rng))
    camera = Camera(yaw, 0.0, 0.0, 15.0, 80.0, (200.0, 200.0))
    turned = camera.turn(head_grid(anchors, ear_size=0.0))
    raster = rasterise(camera.project(turned), turned[..., 2], (400, 400))
    assert raster is not None
    shape = landmarks_seen(anchors, camera)
    far = shape[3:6] if yaw < 0 else shape[11:14]
    for x, y in far:
        columns = np.flatnonzero(raster.covered[round(float(y)) - raster.y0]) + raster.x0
        edge = columns[0] if yaw < 0 else columns[-1]
        assert abs(x - edge) < (4.0 if yaw else 20.0)


def test_shapes_vary_as_much_as_people_do() -> None:
    """A mean shape fitted by a similarity misses real faces by about a tenth of the pupils' distance."""
    shapes = random_shapes(300)[0].astype(np.float64)
    mean = MEAN[:68, :2]
    misses = [
        np.linalg.norm(fit_similarity(mean, shape)(mean) - shape, axis=1).mean() / inter_pupil(shape)
        for shape in shapes
    ]
    assert 0.09 < float(np.mean(misses)) < 0.16


def test_the_detector_finds_frontal_faces(photos: list[SyntheticPhoto]) -> None:
    detector = dlib.get_frontal_face_detector()
    found, frontal = 0, 0
    for photo in photos:
        picture = decoded(photo)
        for shape, pose in zip(photo.shapes, photo.poses, strict=True):
            if np.abs(pose).max() > 20:
                continue
            frontal += 1
            truth = Box.around(shape)
            found += any(
                Box(r.left(), r.top(), r.right() + 1, r.bottom() + 1).iou(truth) > 0.35
                for r in detector(picture, 0) or detector(picture, 1)
            )
    assert frontal >= 20
    assert found / frontal >= 0.9
