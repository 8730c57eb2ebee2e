"""The trial as a picture: pauses over time, how often which pause, and who survived.

Needs matplotlib (`pip install 'pgkeeper[trial]'`), which is imported when it is used.
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import TYPE_CHECKING, Any, Final

from pgkeeper.trial.errors import TrialError
from pgkeeper.trial.figures import PATCHED, UNPATCHED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pgkeeper.trial.figures import Report, Result

__all__ = ["DrawingError", "check_drawing", "draw"]

# Told apart also by those who see no difference between red and green.
_COLOURS: Final = {
    "idle": "#4477aa",
    "busy": "#228833",
    "bulk": "#aa3377",
    "login-storm": "#ccbb44",
    "container": "#66ccee",
}
_LOST: Final = "#cc3311"
_GOOD: Final = "#117733"
_QUIET: Final = "#bbbbbb"
_TEXT: Final = "#333333"


class DrawingError(TrialError):
    """No picture can be drawn, or written where it should be."""


def check_drawing(path: Path) -> None:
    """Raise `DrawingError` before a long trial rather than after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise DrawingError("--png needs matplotlib: pip install 'pgkeeper[trial]'")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise DrawingError(f"{path}: its folder cannot be written to")


def draw(report: Report, path: Path) -> None:
    """Write the picture. Raises `DrawingError`."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = _style()
    with mpl.rc_context(style):
        figure = Figure(figsize=(12, 7.2), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(2, 2, height_ratios=(1.15, 1))
        figure.suptitle(_title(report), x=0.012, ha="left", fontsize=13, fontweight="bold")
        _timeline(figure.add_subplot(grid[0, :]), report)
        _histogram(figure.add_subplot(grid[1, 0]), report)
        _survivors(figure.add_subplot(grid[1, 1]), report)
        try:
            figure.savefig(path, format="png")
        except OSError as error:
            raise DrawingError(f"{path}: {error.strerror}") from error


def _style() -> dict[str, Any]:
    return {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#888888",
        "axes.labelcolor": _TEXT,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "text.color": _TEXT,
        "xtick.color": _TEXT,
        "ytick.color": _TEXT,
        "axes.grid": True,
        "grid.color": "#e5e5e5",
        "axes.axisbelow": True,
        "legend.frameon": False,
    }


def _title(report: Report) -> str:
    parts = []
    for side, name in ((PATCHED, "with pgkeeper"), (UNPATCHED, "without it")):
        results = [result for result in report.results if result.side == side]
        if results:
            survived = sum(result.survived for result in results)
            began = sum(result.sessions for result in results)
            parts.append(f"{name} {survived} of {began} sessions survive")
    kills = max(sum(len(r.kills) for r in _of(report, side)) for side in (PATCHED, UNPATCHED))
    return f"kill -9 of pgbouncer, {kills} times: " + "; ".join(parts)


def _of(report: Report, side: str) -> Sequence[Result]:
    return [result for result in report.results if result.side == side]


def _timeline(axes: Any, report: Report) -> None:
    """Each session's pause at each kill, one mode after the other, beside what it is without."""
    at, ticks = 0.0, []
    alone = {result.mode: result for result in _of(report, UNPATCHED)}
    for result in _of(report, PATCHED):
        colour = _COLOURS.get(result.mode, _TEXT)
        for number, kill in enumerate(result.kills):
            for offset, pauses, shade in (
                (-0.2, kill.quiet_s, _QUIET),
                (0.2, kill.pauses_s, colour),
            ):
                middle = at + number + offset
                places = [middle + 0.16 * _scatter(n) for n in range(len(pauses))]
                values = [max(pause, 1e-5) * 1000 for pause in pauses]
                axes.plot(places, values, ".", color=shade, markersize=3.5, alpha=0.65)
        without = alone[result.mode].kills if result.mode in alone else ()
        outages = [(at + n, kill.first_s) for n, kill in enumerate(without) if kill.first_s]
        axes.plot(
            [place for place, _ in outages],
            [seconds * 1000 for _, seconds in outages],
            "x",
            color=_LOST,
            markersize=6,
        )
        ticks.append((at + (len(result.kills) - 1) / 2, result))
        at += len(result.kills) + 1.5
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_plain_number)
    axes.set_ylabel("ms")
    axes.set_title("The longest wait of each session, kill by kill")
    handles = [
        axes.plot([], [], mark, color=colour, markersize=size, label=label)[0]
        for mark, colour, size, label in (
            (".", _QUIET, 9, "with pgkeeper, no kill"),
            (".", _COLOURS["idle"], 9, "with pgkeeper, at a kill"),
            ("x", _LOST, 6, "PgBouncer alone: until the first new session is answered"),
        )
    ]
    axes.legend(handles=handles, loc="upper left", ncols=3, fontsize=9)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 3)
    axes.set_xticks(
        [place for place, _ in ticks],
        [f"{result.mode}\n{len(result.kills)} kills" for _, result in ticks],
    )
    axes.grid(visible=False, axis="x")
    axes.set_xlim(-1, max(1.0, at - 1.5))


def _scatter(number: int) -> float:
    """From -1 to 1, evenly spread, and the same each time (the golden ratio's multiples)."""
    return 2 * math.modf(number * 0.6180339887)[0] - 1


def _plain_number(value: float, _position: int) -> str:
    return f"{value:g}"


def _histogram(axes: Any, report: Report) -> None:
    """How often which pause, all modes stacked."""
    results = [result for result in _of(report, PATCHED) if result.pause is not None]
    values = [
        [max(pause, 1e-5) * 1000 for kill in result.kills for pause in kill.pauses_s]
        for result in results
    ]
    flat = [value for group in values for value in group]
    axes.set_title("How often which pause")
    axes.set_xlabel("ms")
    axes.set_ylabel("sessions x kills")
    if not flat:
        return
    low, high = math.log10(min(flat)), math.log10(max(flat))
    width = max(high - low, 0.1) / 40
    bins = [10 ** (low + n * width) for n in range(42)]
    axes.hist(
        values,
        bins=bins,
        stacked=True,
        color=[_COLOURS.get(result.mode, _TEXT) for result in results],
        label=[_label(result) for result in results],
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain_number)
    axes.legend(fontsize=9)


def _label(result: Result) -> str:
    pause = result.pause
    return result.mode if pause is None else f"{result.mode}, median {pause.median * 1000:.1f} ms"


def _survivors(axes: Any, report: Report) -> None:
    """The share of sessions that still have their connection, after so many kills."""
    axes.set_title("Sessions that still have their connection")
    axes.set_xlabel("kills")
    for side, name, colour, style in (
        (PATCHED, "with pgkeeper", _GOOD, "-"),
        (UNPATCHED, "PgBouncer alone", _LOST, "--"),
    ):
        results = [result for result in _of(report, side) if result.kills]
        if not results:
            continue
        longest = max(len(result.kills) for result in results)
        began = sum(result.sessions for result in results)
        shares = [100.0]
        for number in range(longest):
            alive = sum(r.kills[min(number, len(r.kills) - 1)].surviving for r in results)
            shares.append(100 * alive / began)
        axes.step(
            range(len(shares)), shares, style, where="post", color=colour, linewidth=2.2, label=name
        )
        axes.fill_between(range(len(shares)), shares, step="post", color=colour, alpha=0.08)
    axes.set_ylim(-3, 106)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.lines:
        axes.legend(loc="center right", fontsize=9)
