"""The cut of a garment: its outline in garment units, laid flat."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .fabric import Pictures, Sheet, draw_colour, draw_fabric, draw_print

__all__ = ["ARMPIT", "KINDS", "Garment", "draw_garment"]

KINDS = ("tank", "t-shirt", "long sleeves")
ARMPIT = 0.33
SHOULDER_DROP = 0.1

Values = NDArray[np.float32]


@dataclass
class Garment:
    """A garment. Its unit is the length of the torso from the base of the neck, at (0, 0), to the hips; y goes down.

    Attributes:
        kind: one of `KINDS`.
        length: of the body part.
        shoulder: half width at the shoulders.
        chest, hem: half widths under the arms and at the end.
        neck: half width of the neckline.
        neck_depth: how deep the neckline goes.
        pointed: a V instead of a round neckline.
        sleeve: length of a sleeve, 0 for none.
        sleeve_width: half widths of a sleeve at the shoulder and at its end.
        sleeve_angle: between a sleeve laid flat and straight down, radians.
        trim: width of the bands at neck and cuffs, 0 for none.
        sheet, sleeve_sheet: fabric of the body part and of the sleeves.
        trim_colour: of the bands.
    """

    kind: str
    length: float
    shoulder: float
    chest: float
    hem: float
    neck: float
    neck_depth: float
    pointed: bool
    sleeve: float
    sleeve_width: tuple[float, float]
    sleeve_angle: float
    trim: float
    sheet: Sheet = field(repr=False)
    sleeve_sheet: Sheet = field(repr=False)
    trim_colour: Values = field(repr=False)

    def half_width(self, y: Values) -> Values:
        """Half width of the body part at a height, the armholes not cut."""
        return np.interp(
            y,
            [0.0, ARMPIT * 0.8, ARMPIT + 0.06, self.length],
            [self.shoulder, self.shoulder, self.chest, self.hem],
        ).astype(np.float32)

    def neckline(self, x: Values) -> Values:
        """Height of the upper edge at a distance from the middle."""
        share = np.clip(np.abs(x) / self.neck, 0, 1)
        opening = self.neck_depth * ((1 - share) if self.pointed else np.sqrt(1 - share**2))
        slope = SHOULDER_DROP / (self.shoulder - self.neck)
        return (opening + np.maximum(np.abs(x) - self.neck, 0) * slope).astype(np.float32)

    def body_inside(self, x: Values, y: Values) -> Values:
        """How far inside the body part, in garment units; negative outside."""
        side = np.abs(x)
        inside = np.minimum(self.half_width(y) - side, self.length - y)
        inside = np.minimum(inside, y - self.neckline(x))
        if self.kind == "tank":  # armholes are cut out: ellipses beside the straps
            strap = self.neck + 0.1
            a, b = self.shoulder - strap + 0.04, ARMPIT + 0.02
            hole = np.hypot((side - self.shoulder - 0.04) / a, y / b) - 1
            inside = np.minimum(inside, hole * min(a, b))
        return inside

    def trim_share(self, x: Values, y: Values) -> Values:
        """1 on the band along the neckline, else 0."""
        if self.trim == 0:
            return np.zeros_like(x)
        near = (y - self.neckline(x) < self.trim) & (np.abs(x) < self.neck + self.trim)
        return near.astype(np.float32)

    def sleeve_half_width(self, along: Values) -> Values:
        """Half width of a sleeve at a distance from the shoulder."""
        first, last = self.sleeve_width
        return (first + (last - first) * np.clip(along / max(self.sleeve, 0.01), 0, 1)).astype(np.float32)


def draw_garment(rng: np.random.Generator, pictures: Pictures, resolution: int) -> Garment:
    """A random garment.

    Args:
        rng: of all draws.
        pictures: for fabrics and prints.
        resolution: pixels of its sheets of fabric.
    """
    kind = str(rng.choice(KINDS, p=[0.25, 0.45, 0.3]))
    shoulder = rng.uniform(0.4, 0.46)
    chest = rng.uniform(0.38, 0.45)
    sleeve = {"tank": 0.0, "t-shirt": rng.uniform(0.3, 0.5), "long sleeves": rng.uniform(0.95, 1.1)}[kind]
    top = rng.uniform(0.15, 0.19)
    end = top * rng.uniform(0.85, 1.0) if kind == "t-shirt" else rng.uniform(0.07, 0.12)
    deep = rng.random()
    fabric = draw_fabric(rng, pictures, resolution)
    sleeves = fabric if rng.random() < 0.8 else draw_fabric(rng, pictures, resolution)  # raglan
    return Garment(
        kind=kind,
        length=rng.uniform(0.88, 1.16),
        shoulder=shoulder,
        chest=chest,
        hem=chest * rng.uniform(0.95, 1.15),
        neck=rng.uniform(0.14, 0.22),
        neck_depth=0.06 + 0.2 * deep**2 + (0.06 if kind == "tank" else 0.0),
        pointed=bool(rng.random() < 0.3),
        sleeve=sleeve,
        sleeve_width=(top, end),
        sleeve_angle=float(rng.uniform(0.75, 1.05) if kind == "t-shirt" else rng.uniform(0.3, 0.55)),
        trim=float(rng.choice([0.0, rng.uniform(0.03, 0.05)])),
        sheet=draw_print(rng, pictures, fabric) if rng.random() < 0.6 else fabric,
        sleeve_sheet=sleeves,
        trim_colour=draw_colour(rng),
    )
