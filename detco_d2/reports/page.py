"""One page about a run, without a network: results, curves, pictures, tables, versions, commands.

Whatever comes from a file is escaped, and the page forbids the browser to load or run anything.
"""

import base64
import io
import json
import math
import re
import shlex
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from tabulate import tabulate

from ..data.decode import UnreadableImage
from ..data.images import read_image
from ..engine.health import duration
from .benchmark import METRICS
from .charts import Points, line_chart
from .run_folder import Run, read_json
from .tables import EXPLANATION, table, task_tables

_VIEWS = {
    "gg": "global-global",
    "gl": "global-local",
    "ll": "local-local",
    "global": "global",
    "local": "local",
}
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
}
_MAX_SIDE = 1600  # pixels of a picture within the page
# What reading a file of JSON in another form than this project's raises.
_OTHER_FORM = (TypeError, KeyError, AttributeError, ValueError, StopIteration)


def page(run: Run) -> str:
    """Renders the whole HTML page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["table"] = _html
    template = environment.get_template("page.html.j2")
    done = 1 + run.curves.get("total_loss", [(-1, 0.0)])[-1][0]  # evaluations count one more
    starts = read_json(run.folder / "run.json")
    steps = [y for _, y in run.curves.get("time", []) if math.isfinite(y)]
    text = template.render(
        run=run,
        name=run.folder.resolve().name,
        done=done,
        is_finished=(run.folder / "model_final.pth").is_file(),
        spent=duration(statistics.mean(steps) * done) if steps else "",
        results=_results(run),
        charts=_charts(run),
        views=_pictures(run.folder / "views", "the views that enter the network", last=2),
        features=_pictures(run.folder / "pictures", "what features look like"),
        probes=_probes(run),
        starts=json.dumps(starts, indent=1) if starts else "",
        explanation=EXPLANATION,
        quoted=shlex.quote,
    )
    return text.lstrip()


def _html(content: Mapping[str, Any]) -> Markup:
    """A table, with all text escaped and what stands between ** in bold."""
    text = tabulate(content["rows"], content["header"], tablefmt="html", disable_numparse=True)
    return Markup(re.sub(r"\*\*([^*<]+)\*\*", r"<b>\1</b>", text))


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
            if lines := {match[1]: run.curves[name] for match, name in matches if match}:
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
        image = read_image({"file_name": str(file)})
    except UnreadableImage as error:
        return {"error": f"{file.name} cannot be shown: {error.reason}"}
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    title = file.stem.replace("_", " ")
    return _figure(title, f"{what}: {title}", "jpeg", content.getvalue())


def _probes(run: Run) -> dict[str, list[Any]]:
    """A table for each set of labelled images, a row for each weight file; and the commands."""
    groups: dict[str, dict[str, dict[str, str]]] = {}
    commands = []
    for file in sorted((run.folder / "probes").glob("*.json")):
        content = read_json(file)
        try:
            halves = f"{content['num_train']} + {content['num_test']} images"
            rows = groups.setdefault(f"{content['data']}, {halves}, %", {"chance": {}})
            row = rows.setdefault(str(content["weights"]), {})
            for result in content["results"]:
                column = f"{result['probe']} {result['stage']} ({result['metric']})"
                row[column] = f"{result['value']:.1f}"
                rows["chance"][column] = f"{content['chance'][result['metric']]:.1f}"
            commands.append(str(content["command"]))
        except _OTHER_FORM:
            continue
    tables = [table(title, rows) for title, rows in groups.items()]
    return {"tables": tables, "commands": list(dict.fromkeys(commands))}


def _results(run: Run) -> dict[str, list[Any]]:
    """Tables and pictures of transfer, from the folders of tools/benchmark.py."""
    found: dict[str, list[Any]] = {"tables": [], "pictures": [], "commands": []}
    for folder in run.transfer:
        content = read_json(folder / "results.json")
        try:
            tables, command = task_tables(content["runs"]), str(content["command"])
        except _OTHER_FORM:
            error = f"{folder}: no results.json of tools/benchmark.py"
            found["pictures"].append({"error": error})
            continue
        found["tables"] += tables
        found["commands"].append(command)
        if (file := folder / "detections.png").is_file():
            found["pictures"].append(_picture(file, "results of transfer"))
    return found
