"""Bars, as SVG: written by hand, for a page that looks the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Group", "bars"]

WIDTH, LABEL, VALUE = 760, 220, 110
BAR, GAP, HEAD, MARGIN = 16, 5, 30, 16
OURS_COLOUR, OTHER_COLOUR, FLOOR_COLOUR = "#2f6f9f", "#b9bec5", "#d9a441"
#: A bar that would be so many times as long as the middle one is cut, or the others could not be told apart.
CUT = 3.0


@dataclass(frozen=True)
class Bar:
    """One contender; *text* is written beside its bar."""

    label: str
    value: float
    text: str
    kind: str = "other"


@dataclass(frozen=True)
class Group:
    """Bars that share a scale, under a title."""

    title: str
    bars: Sequence[Bar]

    @property
    def scale(self) -> float:
        """The value of a bar of full length."""
        values = sorted(bar.value for bar in self.bars)
        return min(values[-1], CUT * values[len(values) // 2]) or 1.0


def bars(title: str, groups: Sequence[Group]) -> str:
    """A chart of horizontal bars, one block below the other; each begins at zero, and has a scale of its own."""
    colours = {"ours": OURS_COLOUR, "floor": FLOOR_COLOUR}
    room = WIDTH - LABEL - VALUE - 2 * MARGIN
    parts: list[str] = []
    y = MARGIN
    for group in groups:
        y += HEAD - BAR // 2
        parts.append(f'<text x="{MARGIN}" y="{y}" class="title">{escape(group.title)}</text>')
        y += BAR // 2 + 2
        for bar in group.bars:
            cut = bar.value > group.scale
            length = max(1.0, room * min(1.0, bar.value / group.scale))
            x, middle = MARGIN + LABEL, y + BAR - 4
            colour = colours.get(bar.kind, OTHER_COLOUR)
            parts += [
                f'<text x="{x - 8}" y="{middle}" text-anchor="end">{escape(bar.label)}</text>',
                f'<rect x="{x}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
            ]
            if cut:
                at = x + length - 24
                parts.append(
                    f'<path d="M{at:.1f} {y + BAR + 1} l8 -{BAR + 2} h6 l-8 {BAR + 2} z" fill="#fff"/>'
                )
            parts.append(
                f'<text x="{x + length + 6:.1f}" y="{middle}" class="value">{escape(bar.text)}</text>'
            )
            y += BAR + GAP
    height = y + MARGIN
    style = "text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-weight:600}.value{fill:#57606a}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style>",
            f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#fff"/>',
            *parts,
            "</svg>\n",
        ]
    )
