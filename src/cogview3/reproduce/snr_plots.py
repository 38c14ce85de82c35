"""The figures of `reproduce.snr`, drawn with matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cogview3 import checkpoints
from cogview3.config import UserError
from cogview3.diffusion import schedule
from cogview3.reproduce.snr import PAPER_SIDE, PAPER_START, PAPER_STARTS, Spectrum, Start

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEVEL = {"pixels": 0.9, "latents": 1.0}  # noise levels at which spectra are compared
_COLORS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")


def new_figure(columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """A figure with plots side by side. Raises UserError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: pip install 'cogview3[plots]'") from None
    figure = Figure(figsize=(5.4 * columns, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write the figures into a folder: by frequency, by noise level, and the relay's starts; gives their paths."""
    kinds = [kind for kind in ("pixels", "latents") if any(s.kind == kind for s in result["spectra"])]
    by_kind = {kind: [s for s in result["spectra"] if s.kind == kind] for kind in kinds}
    figures = {"snr_frequency.png": _by_frequency(by_kind), "snr_level.png": _by_level(by_kind)}
    if result["starts"]:
        figures["snr_start.png"] = _starts(result["starts"], result.get("model"))
    return [save_figure(figure, folder / name) for name, figure in figures.items()]


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure as a PNG, whole or not at all; gives the path."""
    with checkpoints.whole_file(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _by_frequency(by_kind: dict[str, list[Spectrum]]) -> "Figure":
    figure, plots = new_figure(len(by_kind))
    for plot, (kind, spectra) in zip(plots, by_kind.items(), strict=True):
        sigma = _LEVEL[kind]
        for spectrum, color in zip(spectra, _COLORS, strict=False):
            where = np.sqrt(np.multiply(spectrum.edges[:-1], spectrum.edges[1:]))  # the bands' centers
            plot.loglog(where, spectrum.snr(sigma), "o-", color=color, label=f"{spectrum.side}, white noise")
            if spectrum.block:
                label = f"{spectrum.side}, block noise"
                plot.loglog(where, spectrum.snr(sigma, "block"), "--", color=color, label=label)
        _label(plot, f"{kind}, noise level {sigma:g}", "frequency (cycles a picture)")
    return figure


def _by_level(by_kind: dict[str, list[Spectrum]]) -> "Figure":
    figure, plots = new_figure(len(by_kind))
    sigmas = schedule.make_sigmas().numpy()
    for plot, (kind, spectra) in zip(plots, by_kind.items(), strict=True):
        for spectrum, color in zip(spectra, _COLORS, strict=False):
            bands = {0: "-", len(spectra[0].signal) - 1: ":"}
            for band, style in bands.items():
                low, high = spectrum.edges[band : band + 2]
                ratio = spectrum.signal[band] / (sigmas**2 * spectrum.white[band])
                plot.loglog(sigmas, ratio, style, color=color, label=f"{spectrum.side}, {low:g} to {high:g} cycles")
        _label(plot, f"{kind}, white noise", "noise level sigma")
    return figure


def _label(plot: "Axes", title: str, across: str) -> None:
    plot.axhline(1, color="#888888", linewidth=0.8)
    plot.set(title=title, xlabel=across, ylabel="signal-to-noise ratio")
    plot.legend(fontsize=7)
    plot.grid(alpha=0.25)


def _starts(starts: Sequence[Start], model: tuple[int, int] | None) -> "Figure":
    figure, (plot, scores) = new_figure(2)
    sides = [start.side for start in starts]
    plot.plot(sides, [s.equivalent for s in starts], "o-", color=_COLORS[0], label="ratio of the paper's start")
    plot.plot(sides, [s.detail for s in starts], "s--", color=_COLORS[1], label="missing detail drowned")
    plot.plot(sides, [s.kept for s in starts], "^--", color=_COLORS[2], label="finest detail kept")
    plot.plot([PAPER_SIDE], [PAPER_START], "*", color=_COLORS[3], markersize=14, label="table 3's best")
    if model:
        plot.plot(*([number] for number in model), "P", color=_COLORS[4], markersize=11, label="the model's own")
    plot.set(title="what spectra say", xlabel="side of the relay's latents", ylabel="relay start T_r", ylim=(0, 1000))
    plot.set_xscale("log", base=2)
    plot.xaxis.set_major_formatter("{x:g}")
    plot.legend(fontsize=7)
    plot.grid(alpha=0.25)
    scores.plot(list(PAPER_STARTS), [reward for _, reward in PAPER_STARTS.values()], "o-", color=_COLORS[3])
    scores.set(title=f"table 3 of the paper, side {PAPER_SIDE}", xlabel="relay start T_r", ylabel="ImageReward")
    scores.grid(alpha=0.25)
    return figure
