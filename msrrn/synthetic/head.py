"""One person's head drawn into a picture."""

from dataclasses import dataclass

import cv2
import numpy as np

from msrrn.synthetic.anatomy import Array, Expression, Rng
from msrrn.synthetic.camera import Camera, Raster, rasterise
from msrrn.synthetic.features import paint_features
from msrrn.synthetic.light import Light, shade
from msrrn.synthetic.paint import Picture
from msrrn.synthetic.skin import HEIGHT, TALL, TOP, WIDTH, Looks, paint_skin
from msrrn.synthetic.surface import AZIMUTHS, HEIGHTS, normals


@dataclass(frozen=True)
class Person:
    anchors: Array
    expression: Expression
    looks: Looks
    camera: Camera
    light: Light
    grid: Array
    """(HEIGHTS, AZIMUTHS, 3), the skin in the head's own axes."""


def draw_head(picture: Picture, person: Person, rng: Rng) -> Picture:
    """Draws skin, neck and ears in place; gives the coverage (H, W) in [0, 1]."""
    covered = np.zeros(picture.shape[:2], np.float32)
    turned = person.camera.turn(person.grid)
    size = picture.shape[1], picture.shape[0]
    raster = rasterise(person.camera.project(turned), turned[..., 2], size)
    if raster is None:
        return covered
    albedo = paint_skin(rng, person.expression, person.looks)
    paint_features(albedo, rng, person.anchors, person.expression, person.looks)
    diffuse, glossy = shade(turned, normals(turned), person.light)
    y = np.interp(raster.row, np.arange(len(HEIGHTS)), HEIGHTS)
    map_x = (raster.column * ((WIDTH - 1) / (len(AZIMUTHS) - 1))).astype(np.float32)
    map_y = ((y - TOP) / TALL * (HEIGHT - 1)).astype(np.float32)
    colour = cv2.remap(albedo, map_x, map_y, cv2.INTER_LINEAR)
    colour = colour * cv2.remap(diffuse, raster.column, raster.row, cv2.INTER_LINEAR)
    colour = colour + cv2.remap(glossy, raster.column, raster.row, cv2.INTER_LINEAR)
    window = composite(picture, raster, colour.astype(np.float32), raster.covered.astype(np.float32))
    covered[window] = raster.covered
    return covered


def composite(picture: Picture, raster: Raster, colour: Picture, alpha: Picture) -> tuple[slice, slice]:
    """Lays a raster's colours (h, w, 3) over the picture, edges softened; gives the window."""
    h, w = alpha.shape
    window = slice(raster.y0, raster.y0 + h), slice(raster.x0, raster.x0 + w)
    soft = alpha * cv2.blur(raster.covered.astype(np.float32), (3, 3))
    part = picture[window]
    part += (colour - part) * soft[..., None]
    return window
