"""The learning curve of a run, from its metrics file, as an SVG element."""

import html
import math
from collections.abc import Mapping, Sequence

from megatrain.base.errors import DataError
from megatrain.monitor.metric import METRICS
from megatrain.monitor.metrics_file import read_metrics
from megatrain.run.directory import RunDir

Points = Sequence[tuple[int, float]]
_COLORS = ("#4477aa", "#cc3311", "#228833", "#aa3377", "#ccbb44", "#66ccee")
_WIDTH, _HEIGHT, _MARGIN = 800, 320, 50
_MOST = 500  # points of a line


def read_curve(run: RunDir) -> dict[str, Points]:
    """(step, value) of the losses that the run reported; nothing where its metrics cannot be read."""
    try:
        rows = read_metrics(run.metrics)
    except DataError:
        return {}
    found: dict[str, Points] = {}
    of_sets = dict.fromkeys(name for row in rows for name in row if METRICS.split(name)[1] == "validation_loss")
    titles = {"loss": "training loss"} | {name: f"{METRICS.split(name)[0]} validation loss".strip() for name in of_sets}
    for name, title in titles.items():
        points = [(row["step"], float(row[name])) for row in rows if row.get(name) is not None]
        if len(points) > 1:
            found[title] = points[:: math.ceil(len(points) / _MOST)]
    return found


def svg(lines: Mapping[str, Points]) -> str:
    """An `<svg>` element with a line each; nothing where there is none."""
    everything = [point for points in lines.values() for point in points]
    if not everything:
        return ""
    last = max(step for step, _ in everything) or 1
    low, high = min(value for _, value in everything), max(value for _, value in everything)
    span = high - low or 1.0

    def place(step: int, value: float) -> str:
        x = _MARGIN + step / last * (_WIDTH - 2 * _MARGIN)
        y = _HEIGHT - _MARGIN - (value - low) / span * (_HEIGHT - 2 * _MARGIN)
        return f"{x:.1f},{y:.1f}"

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" font-size="13">']
    for number, (title, points) in enumerate(lines.items()):
        color = _COLORS[number % len(_COLORS)]
        path = " ".join(place(*point) for point in points)
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{path}"/>')
        parts.append(f'<text x="{_MARGIN + 160 * number}" y="20" fill="{color}">{html.escape(title)}</text>')
    bottom = _HEIGHT - _MARGIN
    parts.append(f'<text x="0" y="{bottom}">{low:.3g}</text><text x="0" y="{_MARGIN + 5}">{high:.3g}</text>')
    parts.append(f'<text x="{_MARGIN}" y="{_HEIGHT - 25}">step 0</text>')
    parts.append(f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 25}" text-anchor="end">step {last:,}</text></svg>')
    return "\n".join(parts)
