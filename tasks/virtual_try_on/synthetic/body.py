"""A posed body: proportions, joints, and what each of its parts says of a pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SPLITS", "Body", "Limb", "LimbField", "Torso", "draw_body"]

SPLITS = ("train", "val", "test")
SKIN = np.array(
    [
        [0.98, 0.86, 0.77],
        [0.95, 0.79, 0.68],
        [0.90, 0.70, 0.57],
        [0.80, 0.58, 0.44],
        [0.66, 0.45, 0.33],
        [0.52, 0.34, 0.25],
        [0.38, 0.25, 0.19],
        [0.29, 0.19, 0.15],
    ],
    np.float32,
)
HAIR = np.array(
    [
        [0.09, 0.07, 0.06],
        [0.22, 0.14, 0.09],
        [0.4, 0.26, 0.15],
        [0.72, 0.56, 0.33],
        [0.55, 0.22, 0.1],
        [0.6, 0.6, 0.6],
    ],
    np.float32,
)

Values = NDArray[np.float32]
Point = NDArray[np.float64]


@dataclass(frozen=True)
class LimbField:
    """What a limb says of pixels.

    Attributes:
        outside: distance from its surface, negative inside.
        along: place along it from its beginning.
        side: across it, -1..1 inside.
        facing: the part of `side` that points to the right of the picture.
    """

    outside: Values
    along: Values
    side: Values
    facing: Values


@dataclass(frozen=True)
class Limb:
    """Two tapered segments from `a` over the joint `b` to `c`, in torso lengths from the picture's corner.

    Attributes:
        a, b, c: the ends and the joint.
        radii: at the three points.
    """

    a: Point
    b: Point
    c: Point
    radii: tuple[float, float, float]

    @property
    def lengths(self) -> tuple[float, float]:
        """Of the two segments."""
        return float(np.linalg.norm(self.b - self.a)), float(np.linalg.norm(self.c - self.b))

    def field(self, x: Values, y: Values, second_only: bool = False) -> LimbField:
        """At pixels; `second_only` leaves the first segment out."""
        upper = self.lengths[0]
        second = _segment(x, y, self.b, self.c, self.radii[1], self.radii[2], upper)
        if second_only:
            return second
        first = _segment(x, y, self.a, self.b, self.radii[0], self.radii[1], 0.0)
        closer = first.outside <= second.outside
        return LimbField(
            *(
                np.where(closer, one, two)
                for one, two in (
                    (first.outside, second.outside),
                    (first.along, second.along),
                    (first.side, second.side),
                    (first.facing, second.facing),
                )
            )
        )


def _segment(
    x: Values, y: Values, start: Point, end: Point, r0: float, r1: float, offset: float
) -> LimbField:
    axis = end - start
    length = float(np.linalg.norm(axis))
    ux, uy = (axis / length).astype(np.float32)
    dx, dy = x - np.float32(start[0]), y - np.float32(start[1])
    along, across = dx * ux + dy * uy, dx * uy - dy * ux
    share = np.clip(along / length, 0, 1)
    beyond = along - share * length
    distance = np.sqrt(across * across + beyond * beyond)
    radius = r0 + (r1 - r0) * share
    side = across / radius
    return LimbField(distance - radius, along + offset, side, side * uy)


@dataclass(frozen=True)
class Torso:
    """Frame of the torso: pixels to (across, down) in torso lengths, bend and tilt taken out."""

    neck: Point
    lean: float
    bend: float
    shoulder_tilt: float

    def coordinates(self, x: Values, y: Values) -> tuple[Values, Values]:
        """(across, down) of pixels; the neck's base is (0, 0) and the hips' middle (0, 1)."""
        c, s = np.float32(np.cos(self.lean)), np.float32(np.sin(self.lean))
        dx, dy = x - np.float32(self.neck[0]), y - np.float32(self.neck[1])
        across, down = dx * c - dy * s, dx * s + dy * c
        inside = np.clip(down, 0, 1)
        across = across - self.bend * 4 * inside * (1 - inside)
        return across, down - self.shoulder_tilt * across * (1 - inside)

    def point(self, across: float, down: float) -> Point:
        """The pixel at (across, down); inverse of `coordinates`."""
        tilt = self.shoulder_tilt * across
        down = (down + tilt) / (1 + tilt) if 0 <= down <= 1 else down
        inside = min(max(down, 0.0), 1.0)
        across += self.bend * 4 * inside * (1 - inside)
        c, s = np.cos(self.lean), np.sin(self.lean)
        return self.neck + np.array([across * c + down * s, -across * s + down * c])


@dataclass(frozen=True)
class Body:
    """A person without clothes; lengths in torso lengths (base of the neck to hips), places in image coordinates.

    Attributes:
        unit: torso length as a share of the picture's height.
        torso: its frame.
        shoulder, chest, waist, hips: half widths.
        arms, legs: (left, right) in the picture.
        head: its middle; `head_size` its half axes; `head_turn` its inclination, radians.
        skin, hair: colours in [0, 1].
        long_hair: how far it falls, 0 for short.
        bald_line: height of the hair line on the head, in half axes.
        yaw: how far the torso is turned, -0.3..0.3 of its half width.
        light: (across, towards the viewer) direction of the light.
    """

    unit: float
    torso: Torso
    shoulder: float
    chest: float
    waist: float
    hips: float
    arms: tuple[Limb, Limb]
    legs: tuple[Limb, Limb]
    head: Point
    head_size: tuple[float, float]
    head_turn: float
    neck_radius: float
    skin: Values
    hair: Values
    long_hair: float
    hair_line: float
    yaw: float
    light: tuple[float, float]

    def half_width(self, down: Values) -> Values:
        """Half width of the torso at a height."""
        outer = self.shoulder + 0.03
        return np.interp(
            down,
            [0.0, 0.16, 0.38, 0.68, 0.95, 1.2],
            [outer, outer, self.chest, self.waist, self.hips, self.hips],
        ).astype(np.float32)


def draw_body(rng: np.random.Generator, split: str, aspect: float) -> Body:
    """A random body in a random pose.

    The three proportions that matter most are drawn from cells of which no two splits share one.

    Args:
        rng: of all draws.
        split: one of `SPLITS`.
        aspect: width of the picture over its height.
    """
    build = _build(rng, split)
    unit = rng.uniform(0.36, 0.46)
    wide, high = aspect / unit, 1 / unit
    neck = np.array([wide / 2 + rng.uniform(-0.12, 0.12), high * rng.uniform(0.25, 0.3)])
    torso = Torso(neck, rng.uniform(-0.16, 0.16), rng.uniform(-0.05, 0.05), rng.uniform(-0.1, 0.1))
    shoulder = 0.33 + 0.08 * build[0]
    waist = 0.25 + 0.08 * build[1]
    arm = 0.56 + 0.1 * build[2]
    thick = rng.uniform(0.85, 1.15)
    skin = _between(SKIN, rng) * rng.uniform(0.95, 1.03)
    arms = (_draw_arm(rng, torso, -shoulder, arm, thick), _draw_arm(rng, torso, shoulder, arm, thick))
    hips = waist + rng.uniform(0.02, 0.07)
    legs = (_draw_leg(rng, torso, -hips), _draw_leg(rng, torso, hips))
    turn = torso.lean * 0.5 + rng.uniform(-0.15, 0.15)
    size = (rng.uniform(0.165, 0.185), rng.uniform(0.22, 0.25))
    head = torso.point(0.0, -0.12) + np.array([-np.sin(turn), -np.cos(turn)]) * (0.06 + size[1])
    angle = rng.uniform(-0.9, 0.9)
    return Body(
        unit=unit,
        torso=torso,
        shoulder=shoulder,
        chest=(shoulder + 0.03) * rng.uniform(0.84, 0.92),
        waist=waist,
        hips=hips,
        arms=arms,
        legs=legs,
        head=head,
        head_size=size,
        head_turn=turn,
        neck_radius=rng.uniform(0.085, 0.105),
        skin=skin.astype(np.float32),
        hair=(_between(HAIR, rng) * rng.uniform(0.8, 1.2)).clip(0, 1).astype(np.float32),
        long_hair=float(rng.choice([0.0, rng.uniform(0.1, 0.45)])),
        hair_line=rng.uniform(-0.65, -0.35),
        yaw=rng.uniform(-0.3, 0.3),
        light=(float(np.sin(angle)), float(np.cos(angle))),
    )


def _build(rng: np.random.Generator, split: str) -> NDArray[np.float64]:
    """Three numbers in [0, 1) from the cells of a split: 80 % of all are train's, 10 % each val's and test's."""
    while True:
        build = rng.random(3)
        cell = int((build * 10).astype(int) @ (1, 3, 7)) % 10
        if SPLITS[max(0, cell - 7)] == split:
            return build


def _between(colours: Values, rng: np.random.Generator) -> Values:
    place = rng.uniform(0, len(colours) - 1)
    first = min(int(place), len(colours) - 2)
    return colours[first] + (colours[first + 1] - colours[first]) * (place - first)


def _draw_arm(rng: np.random.Generator, torso: Torso, across: float, length: float, thick: float) -> Limb:
    """Hanging, hand on the hip, forearm before the torso, or raised."""
    outward, bend = {
        "hanging": (rng.uniform(0.1, 0.45), rng.uniform(-0.05, 0.4)),
        "hip": (rng.uniform(0.6, 0.95), rng.uniform(1.3, 1.8)),
        "front": (rng.uniform(0.05, 0.3), rng.uniform(1.0, 2.0)),
        "raised": (rng.uniform(1.1, 2.2), rng.uniform(-1.2, 0.3)),
    }[str(rng.choice(["hanging", "hip", "front", "raised"], p=[0.45, 0.17, 0.2, 0.18]))]
    sign = np.sign(across)
    shoulder = torso.point(across * 0.96, 0.2)
    first = sign * outward + torso.lean
    elbow = shoulder + length * np.array([np.sin(first), np.cos(first)])
    second = first - sign * bend
    wrist = elbow + 0.88 * length * np.array([np.sin(second), np.cos(second)])
    return Limb(shoulder, elbow, wrist, (0.098 * thick, 0.076 * thick, 0.055 * thick))


def _draw_leg(rng: np.random.Generator, torso: Torso, across: float) -> Limb:
    hip = torso.point(across * 0.55, 1.02)
    first = np.sign(across) * rng.uniform(0.0, 0.16)
    knee = hip + 0.95 * np.array([np.sin(first), np.cos(first)])
    second = first - np.sign(across) * rng.uniform(0.0, 0.12)
    ankle = knee + 0.9 * np.array([np.sin(second), np.cos(second)])
    return Limb(hip, knee, ankle, (abs(across) * 0.55, 0.13, 0.09))
