"""Rate-distortion points of several codecs over a set of pictures: means, BD-rates, table, plot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ...core.errors import PolyditError
from ...core.media.table import ResultsTable
from ...core.metrics.bd_rate import bd_rate, within_rates

__all__ = ["RateDistortion", "plot"]

HIGHER_IS_BETTER = {"PSNR": True, "MS-SSIM": True, "LPIPS": False}
COLOURS = ("#c0392b", "#7f8c8d", "#2980b9", "#27ae60", "#8e44ad", "#d35400")


@dataclass
class RateDistortion:
    """Measurements, by codec and operating point.

    Attributes:
        anchor: codec that the others are compared with.
        values: codec -> operating point -> one record of numbers per picture, ``bpp`` among them.
    """

    anchor: str
    values: dict[str, dict[float, list[dict[str, float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def add(self, codec: str, point: float, **numbers: float) -> None:
        """Note a picture."""
        self.values[codec][point].append(numbers)

    def means(self, codec: str) -> list[dict[str, float]]:
        """A record for each operating point: the mean over the pictures of every number that all of them have."""
        result = []
        for point, records in sorted(self.values[codec].items()):
            names = [name for name in records[0] if all(name in record for record in records)]
            mean = {name: sum(record[name] for record in records) / len(records) for name in names}
            result.append({"quality": point, **mean})
        return result

    def curve(self, codec: str, metric: str) -> list[tuple[float, float]]:
        """Points (bits per pixel, metric) over those pictures that have the metric."""
        points = []
        for records in self.values[codec].values():
            kept = [record for record in records if metric in record]
            if kept:
                mean = [sum(record[name] for record in kept) / len(kept) for name in ("bpp", metric)]
                points.append((mean[0], mean[1]))
        return sorted(points)

    def metrics(self) -> list[str]:
        """Those that were measured."""
        records = [r for points in self.values.values() for rs in points.values() for r in rs]
        return [name for name in HIGHER_IS_BETTER if any(name in record for record in records)]

    def bd_rates(self, low: float, high: float) -> dict[str, dict[str, float | None]]:
        """BD-rate of each codec against the anchor, by metric; the anchor's curve counts between two rates.

        None where the curves do not overlap enough.
        """
        rates: dict[str, dict[str, float | None]] = {}
        for codec in self.values:
            if codec == self.anchor:
                continue
            rates[codec] = {}
            for metric in self.metrics():
                try:
                    reference = within_rates(self.curve(self.anchor, metric), low, high)
                    rates[codec][metric] = bd_rate(
                        reference,
                        self.curve(codec, metric),
                        "pchip",
                        higher_is_better=HIGHER_IS_BETTER[metric],
                    )
                except PolyditError:
                    rates[codec][metric] = None
        return rates

    def table(self, low: float, high: float) -> ResultsTable:
        """A row for each codec: what it needs of the anchor's bits, its range of rates, its seconds."""
        metrics = self.metrics()
        table = ResultsTable(
            [
                "codec",
                *(f"BD-rate by {metric}" for metric in metrics),
                "bpp from",
                "to",
                "encode s",
                "decode s",
            ],
            f"BD-rate against {self.anchor} over its {low:g} to {high:g} bpp",
        )
        rates = self.bd_rates(low, high)
        for codec in self.values:
            means = self.means(codec)
            cells: list[str] = []
            for metric in metrics:
                value = rates.get(codec, {}).get(metric)
                cells.append("anchor" if codec == self.anchor else "–" if value is None else f"{value:+.1%}")
            seconds = [
                sum(record[name] for record in means) / len(means)
                for name in ("encode_seconds", "decode_seconds")
            ]
            table.add(codec, *cells, means[0]["bpp"], means[-1]["bpp"], *seconds)
        return table

    def points_table(self) -> ResultsTable:
        """A row for each codec and operating point."""
        metrics = self.metrics()
        table = ResultsTable(["codec", "quality", "bpp", *metrics], "means over the pictures", digits=4)
        for codec in self.values:
            for record in self.means(codec):
                table.add(codec, f"{record['quality']:g}", record["bpp"], *(record.get(m) for m in metrics))
        return table

    def record(self, low: float, high: float) -> dict[str, Any]:
        """JSON-ready: means, BD-rates, and the values of every picture."""
        values = {
            codec: {
                f"{point:g}": [{name: round(value, 5) for name, value in one.items()} for one in records]
                for point, records in points.items()
            }
            for codec, points in self.values.items()
        }
        return {
            "anchor": self.anchor,
            "range_bpp": [low, high],
            "bd_rates": self.bd_rates(low, high),
            "points": {codec: self.means(codec) for codec in self.values},
            "values": values,
        }


def plot(result: RateDistortion, metric: str, highest_rate: float) -> str:
    """Curves of a metric as SVG."""
    curves = {
        codec: [point for point in result.curve(codec, metric) if point[0] <= highest_rate]
        for codec in result.values
    }
    curves = {codec: curve for codec, curve in curves.items() if len(curve) > 1}
    points = [point for curve in curves.values() for point in curve]
    if not points:
        raise PolyditError(f"plot of {metric}: no codec has two points up to {highest_rate:g} bpp")
    width, height, left, bottom, top = 640, 420, 64, 48, 30
    floor, ceiling = min(q for _, q in points), max(q for _, q in points)
    span = (ceiling - floor) or 1.0

    def place(rate: float, quality: float) -> tuple[float, float]:
        x = left + rate / highest_rate * (width - left - 16)
        return x, height - bottom - (quality - floor) / span * (height - bottom - top)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"',
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i in range(6):
        rate, quality = highest_rate * i / 5, floor + span * i / 5
        x, y = place(rate, quality)
        lines.append(
            f'<path d="M{x:.1f} {top}V{height - bottom}M{left} {y:.1f}H{width - 16}" stroke="#ddd"/>'
        )
        lines.append(f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">{rate:.2g}</text>')
        lines.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{quality:.4g}</text>')
    lines.append(f'<text x="{width / 2}" y="{height - 10}" text-anchor="middle">bits per pixel</text>')
    lines.append(f'<text x="{left}" y="18">{escape(metric)}</text>')
    lines += [
        line for i, (codec, curve) in enumerate(curves.items()) for line in _line(i, codec, curve, place)
    ]
    return "\n".join([*lines, "</svg>", ""])


def _line(number: int, codec: str, curve: Sequence[tuple[float, float]], place: Any) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    at = [place(*point) for point in curve]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in at)
    return [
        f'<g stroke="{colour}" fill="none"><polyline points="{path}" stroke-width="2"/>{dots}</g>',
        f'<text x="520" y="{330 - 18 * number}" fill="{colour}">{escape(codec)}</text>',
    ]
