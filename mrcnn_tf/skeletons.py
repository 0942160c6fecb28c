"""Keypoints in a picture: a dot for each, and the lines of their skeleton, coloured by the side of the body.

Shape letters: N objects, J keypoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from mrcnn_tf.coco_names import KEYPOINTS, SKELETON

LEFT, RIGHT = "#ffb000", "#22c7f0"  # told apart by those who see no red or no green, too
INK = "#14181d"


@dataclass(frozen=True)
class Skeleton:
    """What the J keypoints are.

    Attributes:
        names: of the keypoints; "left_..." and "right_..." have a colour each, others that of their object.
        lines: pairs of keypoints, counted from 0, to be joined.
    """

    names: tuple[str, ...]
    lines: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, source: Any) -> Skeleton:
        """Of a data set (`data.schema.Dataset`), or of a model's `config.keypoint_head`."""
        names = source.keypoint_names if hasattr(source, "keypoint_names") else source.names
        return cls(tuple(names), tuple(source.skeleton))

    @classmethod
    def of_count(cls, count: int) -> Skeleton:
        """COCO's for 17 keypoints; dots without lines for any other number."""
        return cls(KEYPOINTS, SKELETON) if count == len(KEYPOINTS) else cls(("",) * count)

    def colours(self, own: str) -> list[str]:
        """[J] colours of the keypoints of an object whose own colour is `own`."""
        return [LEFT if name.startswith("left") else RIGHT if name.startswith("right") else own for name in self.names]


def draw_skeleton(
    axes: Any,
    points: np.ndarray,
    shown: np.ndarray,
    skeleton: Skeleton,
    colour: str,
    size: float,
    zorder: float,
) -> None:
    """Draws one object's keypoints into matplotlib axes.

    Args:
        axes: in the pixels of the image.
        points: [J, 2 or more], y and x first.
        shown: [J] bool; a line needs both of its ends.
        skeleton: of these J keypoints.
        colour: of the object; lines between the two sides have it.
        size: diameter of a dot in points; lines are thinner.
        zorder: of the lines; the dots lie on them.

    Raises:
        ValueError: the skeleton is of another number of keypoints.
    """
    if len(skeleton.names) != len(points):
        raise ValueError(f"a skeleton of {len(skeleton.names)} keypoints for objects that have {len(points)}")
    colours = skeleton.colours(colour)
    outline = [withStroke(linewidth=0.6 * size + 1.2, foreground=INK, alpha=0.6)]
    for start, end in skeleton.lines:
        if shown[start] and shown[end]:
            (y1, x1), (y2, x2) = points[start, :2], points[end, :2]
            line_colour = colours[start] if colours[start] == colours[end] else colour
            style = {"linewidth": 0.6 * size, "solid_capstyle": "round", "zorder": zorder}
            axes.add_artist(Line2D([x1, x2], [y1, y2], color=line_colour, path_effects=outline, **style))
    for place in np.flatnonzero(shown):
        y, x = points[place, :2]
        style = {"markersize": size, "markeredgecolor": INK, "markeredgewidth": 0.14 * size, "zorder": zorder + 0.5}
        axes.add_artist(Line2D([x], [y], marker="o", color=colours[place], **style))
