"""How is a human body built, and how does it stand?

Metres, x to the picture's right, y down, z towards the viewer, the origin at the pelvis. The body faces the viewer, so
its left (side = 1) has positive x.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_Vector = NDArray[np.float64]
_Matrix = NDArray[np.float64]

PART_NAMES: Final = (
    "head",
    *("torso0L", "torso0R", "torso1L", "torso1R", "torso2L", "torso2R"),
    *("leg0L", "leg0R", "leg1L", "leg1R", "leg2L", "leg2R"),
    *("arm0L", "arm0R", "arm1L", "arm1R", "arm2L", "arm2R"),
    "background",
)
BACKGROUND: Final = PART_NAMES.index("background")
_HEAD, _TORSO, _LEG, _ARM = (PART_NAMES.index(name) for name in ("head", "torso0L", "leg0L", "arm0L"))
_WAIST: Final = np.array([0.0, -0.12, 0.0])


def pose(rng: np.random.Generator, yaw: float) -> tuple[_Vector, _Vector, _Vector, NDArray[np.uint8]]:
    """Draws a body and its pose, turned by up to `yaw` degrees.

    Returns:
        starts and ends [n, 3] of its capsules, radii [n] in metres, and part labels [n].
    """
    body = _Body(rng)
    pelvis = _about_y(_radians(rng, -yaw, yaw))
    chest = pelvis @ _about_z(_radians(rng, -12, 12)) @ _about_x(_radians(rng, -12, 20))
    body.torso(pelvis, chest)
    body.head(chest @ _about_y(_radians(rng, -30, 30)) @ _about_x(_radians(rng, -15, 20)), chest)
    stride = rng.choice([-1, 1]) * _radians(rng, 8, 35) if rng.random() < 0.6 else 0.0
    for side in (1, -1):
        body.leg(pelvis, side, stride * side)
        body.arm(chest, side)
    return body.capsules()


class _Body:
    """Collects the capsules of one body, whose build is drawn at the start."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.tall = rng.uniform(0.9, 1.08)
        self.limbs = rng.uniform(0.94, 1.06)
        self.girth = rng.uniform(0.85, 1.2)
        self.starts: list[_Vector] = []
        self.ends: list[_Vector] = []
        self.radii: list[float] = []
        self.labels: list[int] = []

    def capsules(self) -> tuple[_Vector, _Vector, _Vector, NDArray[np.uint8]]:
        return (
            np.array(self.starts) * self.tall,
            np.array(self.ends) * self.tall,
            np.array(self.radii) * self.tall,
            np.array(self.labels, dtype=np.uint8),
        )

    def add(self, start: _Vector, end: _Vector, radius: float, label: int, girth: float = 1.0) -> None:
        self.starts.append(start)
        self.ends.append(end)
        self.radii.append(radius * girth)
        self.labels.append(label)

    def torso(self, pelvis: _Matrix, chest: _Matrix) -> None:
        for side, right in ((1, 0), (-1, 1)):
            # wide and flat: two capsules a side, so that both halves meet in a straight border
            wide = side * self.girth
            for label, x, low, high, radius in (
                (_TORSO, 0.080, -0.37, -0.46, 0.092),
                (_TORSO, 0.050, -0.36, -0.46, 0.100),
                (_TORSO + 2, 0.070, -0.20, -0.29, 0.088),
                (_TORSO + 2, 0.045, -0.20, -0.29, 0.096),
            ):
                bottom, top = np.array([x * wide, low, 0]), np.array([x * wide, high, 0])
                self.add(_bent(chest, bottom), _bent(chest, top), radius, label + right, self.girth)
            inner, outer = np.array([0.07 * side, -0.47, 0]), np.array([0.15 * side, -0.475, 0])
            self.add(_bent(chest, inner), _bent(chest, outer), 0.062, _TORSO + right)
            for x, radius in ((0.080, 0.094), (0.050, 0.100)):
                bottom, top = np.array([x * wide, 0.0, 0]), np.array([x * wide, -0.10, 0])
                self.add(pelvis @ bottom, pelvis @ top, radius, _TORSO + 4 + right, self.girth)

    def head(self, face: _Matrix, chest: _Matrix) -> None:
        neck = _bent(chest, np.array([0, -0.50, 0]))
        skull = neck + face @ np.array([0, -0.15, 0.01])
        self.add(neck, skull, 0.052, _HEAD)
        self.add(skull, skull + face @ np.array([0, -0.075, 0.0]), 0.086, _HEAD)
        self.add(skull + face @ np.array([0, 0.03, 0.03]), skull + face @ np.array([0, -0.04, 0.03]), 0.066, _HEAD)

    def leg(self, pelvis: _Matrix, side: int, stride: float) -> None:
        rng, right = self.rng, int(side < 0)
        thigh = pelvis @ _about_z(-side * _radians(rng, 0, 14)) @ _about_x(stride + _radians(rng, -6, 10))
        # a knee bends backwards, and more in the leg that is behind
        shin = thigh @ _about_x(-_radians(rng, 0, 20) - max(0.0, -stride) * rng.uniform(0, 2))
        foot = shin @ _about_y(side * _radians(rng, -5, 30)) @ _about_x(_radians(rng, -20, 20))
        hip = pelvis @ np.array([0.088 * side, 0.03, 0])
        knee = hip + thigh @ np.array([0, 0.40 * self.limbs, 0])
        ankle = knee + shin @ np.array([0, 0.38 * self.limbs, 0])
        self.add(hip, (hip + knee) / 2, 0.082, _LEG + right, self.girth)
        self.add(hip, knee, 0.062, _LEG + right, self.girth)
        self.add(knee, (knee + ankle) / 2 + shin @ np.array([0, -0.04, -0.012]), 0.056, _LEG + 2 + right, self.girth)
        self.add(knee, ankle, 0.042, _LEG + 2 + right, self.girth)
        heel = ankle + foot @ np.array([0, 0.03, -0.02])
        self.add(heel, ankle + foot @ np.array([0, 0.065, 0.15]), 0.040, _LEG + 4 + right)

    def arm(self, chest: _Matrix, side: int) -> None:
        rng, right = self.rng, int(side < 0)
        if rng.random() < 0.55:
            lift, swing, bend, twist = (_radians(rng, *span) for span in ((6, 30), (-25, 30), (5, 55), (-20, 40)))
        else:
            lift, swing, bend, twist = (_radians(rng, *span) for span in ((20, 150), (-15, 50), (5, 110), (-60, 60)))
        upper = chest @ _about_z(-side * lift) @ _about_x(swing) @ _about_y(-side * twist)
        lower = upper @ _about_x(bend)
        hand = lower @ _about_x(_radians(rng, -25, 25)) @ _about_z(_radians(rng, -20, 20))
        shoulder = _bent(chest, np.array([0.185 * side, -0.46, 0]))
        elbow = shoulder + upper @ np.array([0, 0.27 * self.limbs, 0])
        wrist = elbow + lower @ np.array([0, 0.24 * self.limbs, 0])
        self.add(shoulder, elbow, 0.048, _ARM + right, self.girth)
        self.add(elbow, wrist, 0.037, _ARM + 2 + right, self.girth)
        palm = wrist + hand @ np.array([0, 0.065, 0])
        self.add(wrist + hand @ np.array([0, 0.03, 0]), palm, 0.038, _ARM + 4 + right)
        self.add(palm, palm + hand @ np.array([0, 0.06, 0]), 0.028, _ARM + 4 + right)


def _bent(chest: _Matrix, point: _Vector) -> _Vector:
    """Where a point of the upright trunk lies once the chest has turned about the waist."""
    bent: _Vector = _WAIST + chest @ (point - _WAIST)
    return bent


def _radians(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.radians(rng.uniform(low, high)))


def _about_x(angle: float) -> _Matrix:
    """Turns y (down) towards z (the viewer)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_y(angle: float) -> _Matrix:
    """Turns z (the viewer) towards x (right)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _about_z(angle: float) -> _Matrix:
    """Turns x (right) towards y (down)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
