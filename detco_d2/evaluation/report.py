"""The report of a pretrain-and-transfer run: numbers as JSON and Markdown, and one picture."""

import json
import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from .benchmark import METRICS as _METRICS
from .benchmark import mean_and_std, show

METRICS = _METRICS["bbox"]
_FAMILY_TITLES = {
    "gg": "global - global (eq. 2)",
    "gl": "global - local (eq. 4)",
    "ll": "local - local (eq. 5)",
}


def summarise_pretraining(
    histories: dict[str, list[float]], queue_length: int, last: int = 50
) -> dict[str, Any]:
    """Each loss term, its accuracy and each embedding's spread over the last iterations.

    Args:
        histories: values at every iteration by scalar name (`info_nce/gg_res5`, `top1/gg_res5`,
            `spread/global_res5`, ...).
        queue_length: K; chance is log(K + 1) for a loss and 1 / (K + 1) for top-1.
        last: how many iterations to average.
    """
    mean = {name: float(np.mean(values[-last:])) for name, values in histories.items()}
    terms = [name.split("/")[1] for name in histories if name.startswith("info_nce/")]
    return {
        "chance_loss": math.log(queue_length + 1),
        "chance_top1": 1 / (queue_length + 1),
        "terms": {t: {"loss": mean[f"info_nce/{t}"], "top1": mean[f"top1/{t}"]} for t in terms},
        "spread": {n.split("/")[1]: v for n, v in mean.items() if n.startswith("spread/")},
    }


def summarise_transfer(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over seeds: {init: {metric: {mean, std, n}}}.

    Args:
        runs: one dict a run with `init`, `seed` and the metrics AP, AP50, AP75 in percent.
    """
    table: dict[str, dict[str, Any]] = {}
    for init in dict.fromkeys(run["init"] for run in runs):
        table[init] = {}
        for metric in METRICS:
            values = [run[metric] for run in runs if run["init"] == init]
            table[init][metric] = mean_and_std(values)
    return table


def write_markdown(path: Path, report: dict[str, Any]) -> str:
    """Write the report's tables; returns the text."""
    lines = ["# Report", "", report["description"], "", f"Command: `{report['command']}`", ""]
    lines += ["| initialisation | " + " | ".join(METRICS) + " | seeds |", "|---|---|---|---|---|"]
    for init, row in report["transfer"].items():
        cells = " | ".join(show(row[m]) for m in METRICS)
        lines.append(f"| {init} | {cells} | {row['AP']['n']} |")
    pretraining = report["pretraining"]
    lines += [
        "",
        f"Pretraining, mean of the last 50 iterations (chance: loss "
        f"{pretraining['chance_loss']:.2f}, top-1 {100 * pretraining['chance_top1']:.1f} %):",
    ]
    lines += ["", "| term | InfoNCE | top-1 % |", "|---|---|---|"]
    for term, row in pretraining["terms"].items():
        lines.append(f"| {term} | {row['loss']:.3f} | {100 * row['top1']:.1f} |")
    spread = ", ".join(f"{name} {value:.2f}" for name, value in pretraining["spread"].items())
    lines += ["", f"Embedding spread (1: uniform on the sphere, 0: collapsed): {spread}.", ""]
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report["seconds"].items())
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines += [f"Wall time: {times}.", "", f"Versions: {versions}.", ""]
    text = "\n".join(lines)
    path.write_text(text)
    return text


def _plot_losses(axes: list[Any], histories: dict[str, list[float]], chance: float) -> None:
    for axis, (family, title) in zip(axes, _FAMILY_TITLES.items()):
        for name, values in histories.items():
            if name.startswith(f"info_nce/{family}_"):
                width = max(1, len(values) // 30)
                smooth = np.convolve(values, np.ones(width) / width, mode="valid")
                axis.plot(np.arange(len(smooth)) + width - 1, smooth, label=name.split("_")[-1])
        axis.axhline(chance, color="grey", linestyle=":", label="log(K+1)")
        axis.set(title=title, xlabel="iteration", ylabel="InfoNCE")
        axis.legend(fontsize=7)


def draw_figure(
    path: Path,
    report: dict[str, Any],
    histories: dict[str, list[float]],
    views: np.ndarray,
    detections: list[np.ndarray],
) -> None:
    """Draw loss curves, views, the AP table and some detections into one picture.

    Args:
        path: the .png to write.
        report: as in :func:`write_markdown`.
        histories: as in :func:`summarise_pretraining`.
        views: an RGB picture, from :func:`draw_views`.
        detections: RGB pictures with boxes drawn.
    """
    figure = plt.figure(figsize=(15, 13), constrained_layout=True)
    grid = figure.add_gridspec(3, 12, height_ratios=[1, 1.35, 1])
    axes = [figure.add_subplot(grid[0, 4 * i : 4 * i + 4]) for i in range(3)]
    _plot_losses(axes, histories, report["pretraining"]["chance_loss"])

    axis = figure.add_subplot(grid[1, :7])
    axis.imshow(views)
    axis.set_title("what went in")
    axis.axis("off")

    axis = figure.add_subplot(grid[1, 7:])
    inits = list(report["transfer"])
    for i, init in enumerate(inits):
        row = [report["transfer"][init][m] for m in METRICS]
        mean, error = [v["mean"] for v in row], [v["std"] or 0.0 for v in row]
        offset = (i - (len(inits) - 1) / 2) * 0.8 / len(inits)
        places = np.arange(len(METRICS)) + offset
        axis.bar(places, mean, 0.8 / len(inits), yerr=error, label=init)
    cells = [[show(report["transfer"][init][m]) for m in METRICS] for init in inits]
    if cells:
        axis.table(cells, rowLabels=inits, colLabels=METRICS, cellLoc="center", loc="bottom")
        axis.legend()
    axis.set(title="detection after the same fine-tuning", ylabel="%", xticks=[])

    for i, picture in enumerate(detections[:4]):
        axis = figure.add_subplot(grid[2, 3 * i : 3 * i + 3])
        axis.imshow(picture)
        axis.set_title("detections from DetCo" if i == 0 else "", fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def write_report(
    folder: str,
    report: dict[str, Any],
    histories: dict[str, list[float]],
    views: np.ndarray,
    detections: list[np.ndarray],
) -> str:
    """Write report.json, report.md and report.png into a folder; returns the Markdown text."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    (root / "report.json").write_text(json.dumps({**report, "curves": histories}, indent=1))
    draw_figure(root / "report.png", report, histories, views, detections)
    return write_markdown(root / "report.md", report)
