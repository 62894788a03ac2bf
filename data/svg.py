"""How the pictures of pages look: inline SVG whose ink is the page's, in light and in dark."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

WIDTH = 10.6
"""Inches at 100 pixels each: fits a laptop."""

# Stand for what the page decides.
_INK, _RULE = "#010203", "#040506"

BLUE, ORANGE, GREEN, RED, GRAY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#8a8a8a"
"""Told apart with every kind of color vision (Okabe & Ito 2008), and on white and on black."""

_SETTINGS = {
    "svg.fonttype": "none",
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "grid.color": _RULE,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "lines.linewidth": 1.2,
}


def scores_map() -> Colormap:
    """Return the colors of scores: viridis without its ends, which vanish on black or on white."""
    return LinearSegmentedColormap.from_list(
        "scores", mpl.colormaps["viridis"]([0.28, 0.42, 0.56, 0.7, 0.82])
    )


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the style of the pages."""
    with mpl.rc_context(_SETTINGS):
        yield


def ink() -> str:
    """Return the color of the page's text."""
    return _INK


def rule(axes: Axes, *, axis: str = "y") -> None:
    """Draw thin lines behind the data."""
    axes.grid(axis=axis, color=_RULE, linewidth=0.6)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def legend_beside(axes: Axes) -> None:
    """Name what is drawn, to the right of it; nothing where nothing is."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def to_svg(figure: Figure, *, name: str) -> str:
    """Return a figure as SVG to put into a page: no network, no second copy of an identifier.

    Args:
        figure: drawn inside ``styled``.
        name: unique on the page.
    """
    buffer = io.StringIO()
    with mpl.rc_context(_SETTINGS | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href").replace(_INK, "currentColor").replace(_RULE, "var(--rule)")
    svg = svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    # Groups are numbered anew in every figure.
    svg = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick)[^"]*"', "", svg)
    # The page decides how wide it is.
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _sized, svg, count=1)


def _sized(match: re.Match[str]) -> str:
    width = float(match[1].split()[2])
    return f'<svg viewBox="{match[1]}" style="width: 100%; max-width: {width * 4 / 3:.0f}px" role="img">'
