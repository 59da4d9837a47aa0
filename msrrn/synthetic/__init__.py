"""Synthetic face photographs with exact landmarks: a procedural generator, free of anyone's data.

The demo and the tests use it where real annotated photographs may not be. Everything is drawn from
`numpy.random.default_rng((seed, index))`; nothing is read from disk.
"""

from msrrn.synthetic.photo import SyntheticPhoto, draw_photo

__all__ = ["SyntheticPhoto", "draw_photo"]
