"""One page about a run that needs no network: results, curves, pictures, tables, command lines.

Whatever comes from a file is escaped, and the page forbids the browser to load or run anything.
"""

import base64
import io
import math
import re
import shlex
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ..data.decode import UnreadableImage, decode_image
from ..engine.health import duration
from .benchmark import METRICS, difference, show
from .charts import Points, line_chart
from .run_folder import FAMILY_TITLES, Run, health, is_number, latest, read_json

_VIEWS = {**FAMILY_TITLES, "global": "global", "local": "local"}
_HEADINGS = {
    "info_nce": "Losses: InfoNCE of each term",
    "top1": "Top-1 accuracy of the contrast, 0 to 1",
    "top5": "Top-5 accuracy of the contrast, 0 to 1",
    "spread": "Spread of the embeddings (1: uniform on the sphere, 0: collapsed)",
    "alignment": "Alignment of positives (smaller: closer)",
    "uniformity": "Uniformity of the embeddings (smaller: more even)",
}
# Headings, and the charts below each: a title, and a pattern for the scalars in it, whose group is
# the name of the line. What no chart takes is not drawn.
_CHARTS: dict[str, list[tuple[str, str]]] = {
    **{
        heading: [(title, rf"{prefix}/{view}_(\w+)") for view, title in _VIEWS.items()]
        for prefix, heading in _HEADINGS.items()
    },
    "What the backbone knows": [("k-NN top-1, %", r"knn/(\w+)")],
    "Results of the evaluations, %": [
        (kind, rf"{kind}/({'|'.join(metrics)})") for kind, metrics in METRICS.items()
    ],
    "Training": [
        ("total loss", r"(total_loss)"),
        ("other losses", r"(loss_(?!(?:gg|gl|ll)_)\w+)"),
        ("learning rate", r"(lr)"),
        ("gradient norm", r"(gradient_norm)"),
        ("images/s", r"(images_per_second)"),
        ("share of the time spent waiting for images", r"(data_time_share)"),
    ],
    "Queue": [("filled, 0 to 1", r"queue/(filled)"), ("iterations since enqueued", r"queue/(age)")],
}
_MAX_PIXELS = 10**8
_MAX_SIDE = 1600  # pixels of a picture within the page


def page(run: Run) -> str:
    """Renders the whole HTML page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    done = 1 + max((points[-1][0] for points in run.curves.values()), default=-1)
    good, bad = health(run)
    template = environment.get_template("page.html.j2")
    text = template.render(
        run=run,
        name=run.folder.resolve().name,
        data=", ".join(map(str, _listed(run.key("DATASETS.TRAIN")))),
        done=done,
        is_finished=(run.folder / "model_final.pth").is_file(),
        spent=_spent(run, done),
        good=good,
        bad=bad,
        results=_results(run),
        charts=_charts(run),
        views=_pictures(run.folder / "views", "the views that enter the network", last=2),
        features=_pictures(run.folder / "pictures", "what features look like"),
        probes=_probes(run),
        versions=run.starts[-1].get("versions") if run.starts else None,
        now=datetime.now().astimezone().isoformat(timespec="seconds"),
        quoted=shlex.quote,
    )
    return text.lstrip()


def _spent(run: Run, done: int) -> str:
    """How long so many iterations took, how fast the last ones were, and on what."""
    steps = [y for _, y in run.curves.get("time", []) if math.isfinite(y)]
    if not steps:
        return ""
    spent = f"about {duration(sum(steps) / len(steps) * done)} of training"
    if speed := run.curves.get("images_per_second"):
        spent += f", {latest(speed):.1f} images/s lately"
    device = run.starts[-1].get("device") if run.starts else None
    return spent + (f", on {device}" if device else "")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _charts(run: Run) -> dict[str, list[dict[str, Any]]]:
    """Charts of what there is, by heading."""
    length = run.key("MODEL.DETCO.QUEUE_LENGTH")
    guides: dict[str, dict[str, float]] = {}  # by the prefix of a pattern
    if isinstance(length, int) and length > 0:
        guides["info_nce"] = {"chance, log(K+1)": math.log(length + 1)}
        guides["top1"] = {"chance, 1/(K+1)": 1 / (length + 1)}
        guides["top5"] = {"chance, 5/(K+1)": min(1.0, 5 / (length + 1))}
    found: dict[str, list[dict[str, Any]]] = {}
    for heading, charts in _CHARTS.items():
        for title, pattern in charts:
            matches = [(re.fullmatch(pattern, name), name) for name in sorted(run.curves)]
            lines = {match[1]: run.curves[name] for match, name in matches if match}
            if lines:
                chart = _chart(title, lines, guides.get(pattern.partition("/")[0], {}))
                found.setdefault(heading, []).append(chart)
    return found


def _chart(title: str, lines: Mapping[str, Points], guides: Mapping[str, float]) -> dict[str, Any]:
    spoken = [f"{n} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for n, points in lines.items()]
    spoken += [f"{name} {height:.3g}" for name, height in guides.items()]
    alt = f"{title} over iterations: {', '.join(spoken)}"
    return _figure(title, alt, "svg+xml", line_chart(lines, guides))


def _figure(title: str, alt: str, kind: str, content: bytes) -> dict[str, Any]:
    src = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"title": title, "alt": alt, "src": src}


def _pictures(folder: Path, what: str, last: int = 0) -> list[dict[str, Any]]:
    """The last so many (0: all) pictures of a folder that may be there, and what they show."""
    files = sorted(file for file in folder.glob("*") if file.suffix in (".png", ".jpg"))
    return [_picture(file, what) for file in files[-last:]]


def _picture(file: Path, what: str) -> dict[str, Any]:
    """Decoded and encoded anew, or an error in its place."""
    try:
        with open(file, "rb") as opened:
            image = decode_image(opened, min_side=1, max_pixels=_MAX_PIXELS)
    except (OSError, UnreadableImage) as error:
        return {"error": f"{file.name} cannot be shown: {error}"}
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    title = file.stem.replace("_", " ")
    return _figure(title, f"{what}: {title}", "jpeg", content.getvalue())


def _probes(run: Run) -> dict[str, list[Any]]:
    """A table for each set of labelled images, a row for each weight file; and the commands."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    commands = []
    for file in sorted((run.folder / "probes").glob("*.json")):
        content = read_json(file)
        if not isinstance(content, dict):
            continue
        commands.append(str(content.get("command")))
        halves = f"{content.get('num_train')} + {content.get('num_test')} images"
        rows = groups.setdefault(f"{content.get('data')}, {halves}, %", {"chance": {}})
        row = rows.setdefault(str(content.get("weights")), {})
        rates = content.get("chance")
        for result in _listed(content.get("results")):
            if isinstance(result, dict) and is_number(result.get("value")):
                metric = str(result.get("metric"))
                column = f"{result.get('probe')} {result.get('stage')} ({metric})"
                row[column] = result["value"]
                rows["chance"][column] = rates.get(metric) if isinstance(rates, dict) else None
    tables = []
    for caption, rows in groups.items():
        columns = list(rows["chance"])
        chance = rows.pop("chance")
        rows |= {"chance": chance} if any(map(is_number, chance.values())) else {}
        lines = [[name, *(_number(row.get(c)) for c in columns)] for name, row in rows.items()]
        tables.append({"caption": caption, "header": ["weights", *columns], "rows": lines})
    return {"tables": tables, "commands": list(dict.fromkeys(commands))}


def _number(value: Any) -> str:
    return f"{value:.1f}" if is_number(value) else ""


def _results(run: Run) -> dict[str, list[Any]]:
    """Of transfer, from the folders of tools/benchmark.py; and of this run, if it fine-tunes."""
    found: dict[str, list[Any]] = {"tables": [], "pictures": [], "commands": []}
    for folder in run.transfer:
        content = read_json(folder / "results.json")
        try:
            tables, command = _transfer_tables(content["summary"]), str(content["command"])
        except (TypeError, KeyError, AttributeError, ValueError, StopIteration):
            error = f"{folder}: no results.json of tools/benchmark.py"
            found["pictures"].append({"error": error})
            continue
        found["tables"] += tables
        found["commands"].append(command)
        files = [folder / "detections.png", folder / "bars.png"]
        found["pictures"] += [_picture(f, "results of transfer") for f in files if f.is_file()]
    own = read_json(run.folder / "results.json")
    rows = [
        [kind, *(_number(values.get(metric)) for metric in metrics)]
        for kind, metrics in METRICS.items()
        if isinstance(own, dict) and isinstance(values := own.get(kind), dict)
    ]
    if rows:
        header = ["of this run, %", "AP or IoU", "AP50", "AP75"]
        found["tables"].append({"header": header, "rows": rows})
    return found


def _transfer_tables(summary: Any) -> list[dict[str, Any]]:
    """A table for each task, with the differences to its first row."""
    tables = []
    for task, inits in summary.items():
        metrics = list(dict.fromkeys(metric for row in inits.values() for metric in row))
        base = next(iter(inits.values()))
        rows = [
            [
                init,
                *(
                    _transfer_cell(row.get(m), None if row is base else base.get(m))
                    for m in metrics
                ),
            ]
            for init, row in inits.items()
        ]
        header = ["initialisation", *metrics]
        tables.append({"caption": f"{task}, %", "header": header, "rows": rows})
    return tables


def _transfer_cell(value: Any, base: Any) -> str:
    if not value or not base:
        return show(value) if value else ""
    delta, is_beyond = difference(value, base)
    return Markup("{} (<b>{:+.1f}</b>)" if is_beyond else "{} ({:+.1f})").format(show(value), delta)
