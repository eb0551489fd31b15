"""One page about a run that needs no network: curves, pictures, tables, config, command lines.

Whatever comes from a file is escaped, and the page forbids the browser to load or run anything.
"""

import base64
import io
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from ..data.decode import UnreadableImage, decode_image
from .benchmark import METRICS, difference, show
from .charts import line_chart
from .run_folder import FAMILIES, Run, health, is_number, latest, read_json

# Headings, and the charts below each: a title, and a pattern for the scalars in it, whose group is
# the name of the line. What no chart takes is not drawn.
_CHARTS: dict[str, list[tuple[str, str]]] = {
    "Losses: InfoNCE of each term": [(f, rf"info_nce/{k}_(\w+)") for k, f in FAMILIES.items()],
    "Top-1 accuracy of the contrast, 0 to 1": [
        (f, rf"top1/{k}_(\w+)") for k, f in FAMILIES.items()
    ],
    "Top-5 accuracy of the contrast, 0 to 1": [
        (f, rf"top5/{k}_(\w+)") for k, f in FAMILIES.items()
    ],
    "Spread of the embeddings (1: uniform on the sphere, 0: collapsed)": [
        (view, rf"spread/{view}_(\w+)") for view in ("global", "local")
    ],
    "Alignment of positives (smaller: closer)": [
        (f, rf"alignment/{k}_(\w+)") for k, f in FAMILIES.items()
    ],
    "Uniformity of the embeddings (smaller: more even)": [
        (view, rf"uniformity/{view}_(\w+)") for view in ("global", "local")
    ],
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
# What guessing among a positive and the K keys of the queue gives.
_CHANCE: dict[str, tuple[str, Callable[[int], float]]] = {
    "info_nce/": ("log(K+1)", lambda k: math.log(k + 1)),
    "top1/": ("1/(K+1)", lambda k: 1 / (k + 1)),
    "top5/": ("5/(K+1)", lambda k: min(1.0, 5 / (k + 1))),
}
_MAX_PIXELS = 10**8
_MAX_SIDE = 1600  # pixels of a picture within the page
_STYLE = Path(__file__).with_name("report.css")


def page(run: Run) -> str:
    """The whole HTML page."""
    visualize = "python tools/visualize.py all --weights random --weights "
    visualize += shlex.quote(f"{run.folder.name}={run.folder}/model_final.pth") + " --images FOLDER"
    sections = {
        "Summary": _summary(run),
        "Curves": _curves(run),
        "Views": _pictures(
            run.folder / "views", "the views that enter the network", "pretrain_net.py", last=2
        ),
        "Features": _pictures(run.folder / "pictures", "what features look like", visualize),
        "Probes": _probes(run),
        "Transfer": _transfer(run),
        "Config": _config(run),
        "Versions": _versions(run),
        "Command lines": _commands(run),
    }
    ids = {title: title.lower().replace(" ", "-") for title in sections}
    links = "".join(f'<a href="#{ids[title]}">{title}</a>' for title in sections)
    body = "".join(
        f'<section id="{ids[title]}"><h2>{title}</h2>{content}</section>'
        for title, content in sections.items()
    )
    name = escape(run.folder.resolve().name)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: report of a run</title><style>{_STYLE.read_text()}</style></head>"
        f"<body><main><h1>{name}</h1><nav>{links}</nav>{body}</main></body></html>\n"
    )


def _absent(command: str) -> str:
    return f'<p class="absent">Not there; made by <code>{escape(command)}</code></p>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Of escaped cells; the first of each row is its heading."""
    lines = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    title = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="wide"><table>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _items(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{text}</li>' for text in texts)}</ul>"


def _duration(seconds: float) -> str:
    """
    >>> _duration(5000)
    '1 h 23 min'
    """
    if not math.isfinite(seconds) or seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _summary(run: Run) -> str:
    done = 1 + max((points[-1][0] for points in run.curves.values()), default=-1)
    asked = run.key("SOLVER.MAX_ITER")
    whole = (run.folder / "model_final.pth").is_file()
    state = "finished" if whole else "not finished, or still running"
    steps = [y for _, y in run.curves.get("time", []) if math.isfinite(y)]
    facts = [
        f"<b>{escape(str(run.key('MODEL.META_ARCHITECTURE')))}</b>, "
        f"ResNet-{escape(str(run.key('MODEL.RESNETS.DEPTH')))}, "
        f"{escape(str(run.key('SOLVER.IMS_PER_BATCH')))} images an iteration, on "
        f"{escape(', '.join(map(str, _listed(run.key('DATASETS.TRAIN')))))}",
        f"<b>{done:,}</b> of {escape(str(asked))} iterations: {state}",
    ]
    if steps:
        spent = f"about {_duration(sum(steps) / len(steps) * done)} of training"
        speed = run.curves.get("images_per_second", [])
        spent += f", {latest(speed):.1f} images/s lately" if speed else ""
        device = run.starts[-1].get("device") if run.starts else None
        facts.append(spent + (f", on {escape(str(device))}" if device else ""))
    good, bad = health(run)
    verdict = "Worth a look" if bad else "Nothing looks wrong"
    text = f'<p class="{"bad" if bad else "good"}"><b>{verdict}.</b></p>' + _items(
        [f'<span class="bad">{escape(line)}</span>' for line in bad] + [escape(g) for g in good]
    )
    if run.warnings:
        lines = [f"{count} x {escape(text)}" for text, count in run.warnings[-20:]]
        total = sum(count for _, count in run.warnings)
        text += (
            f"<details{' open' if len(lines) <= 3 else ''}><summary>Warnings in the log: {total}"
        )
        text += f"</summary>{_items(lines)}</details>"
    return _items(facts) + text


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _curves(run: Run) -> str:
    length = run.key("MODEL.DETCO.QUEUE_LENGTH")
    text = ""
    for heading, charts in _CHARTS.items():
        figures = []
        for title, pattern in charts:
            matches = [(re.fullmatch(pattern, name), name) for name in sorted(run.curves)]
            lines = {m[1]: run.curves[name] for m, name in matches if m}
            guides = {}
            for prefix, (name, chance) in _CHANCE.items():
                if pattern.startswith(prefix) and isinstance(length, int) and length > 0:
                    guides[f"chance, {name}"] = chance(length)
            if lines:
                figures.append(line_chart(title, lines, guides))
        if figures:
            text += f'<h3>{heading}</h3><div class="charts">{"".join(figures)}</div>'
    return text or _absent("more iterations")


def _pictures(folder: Path, what: str, command: str, last: int | None = None) -> str:
    """The pictures of a folder, within the page.

    Args:
        folder: that may be there.
        what: they show, for those who cannot see them.
        command: that makes them.
        last: how many, from the end of their sorted names; None: all.
    """
    files = sorted(f for f in folder.glob("*") if f.suffix in (".png", ".jpg"))
    shown = files[-last:] if last else files
    return "".join(_picture(file, what) for file in shown) or _absent(command)


def _picture(file: Path, what: str) -> str:
    try:
        with open(file, "rb") as opened:
            image = decode_image(opened, min_side=1, max_pixels=_MAX_PIXELS)
    except (OSError, UnreadableImage) as error:
        return f'<p class="absent">{escape(f"{file.name} cannot be shown: {error}")}</p>'
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    data = base64.b64encode(content.getvalue()).decode()
    name = escape(file.stem.replace("_", " "))
    return (
        f'<figure class="picture"><figcaption>{name}</figcaption>'
        f'<img alt="{escape(what)}: {name}" width="{image.width}" height="{image.height}" '
        f'src="data:image/jpeg;base64,{data}"></figure>'
    )


def _probes(run: Run) -> str:
    """A table for each set of labelled images, a row for each weight file."""
    weights = shlex.quote(f"{run.folder}/model_final.pth")
    command = f"python tools/probe.py --weights {weights} --random --data DATA"
    files = sorted((run.folder / "probes").glob("*.json"))
    found = [content for file in files if isinstance(content := read_json(file), dict)]
    groups: dict[str, list[dict[str, Any]]] = {}
    for content in found:
        halves = f"{content.get('num_train')} + {content.get('num_test')} images"
        groups.setdefault(f"{content.get('data')}, {halves}, %", []).append(content)
    text = ""
    for caption, members in groups.items():
        rows: dict[str, dict[str, float]] = {}
        chances: dict[str, float] = {}
        for content in members:
            results = [r for r in _listed(content.get("results")) if isinstance(r, dict)]
            cells = {_column(r): float(r["value"]) for r in results if is_number(r.get("value"))}
            rows[str(content.get("weights"))] = cells
            if isinstance(chance := content.get("chance"), dict):
                rates = {_column(r): chance.get(str(r.get("metric")), "") for r in results}
                chances |= {c: float(v) for c, v in rates.items() if is_number(v)}
        rows |= {"chance": chances} if chances else {}
        columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        lines = [
            [escape(weights), *(f"{cells[c]:.1f}" if c in cells else "" for c in columns)]
            for weights, cells in rows.items()
        ]
        text += _table(["weights", *map(escape, columns)], lines, escape(caption))
    commands = dict.fromkeys(str(content.get("command")) for content in found)
    return text + _code(commands) if text else _absent(command)


def _column(result: Mapping[str, Any]) -> str:
    return f"{result.get('probe')} {result.get('stage')} ({result.get('metric')})"


def _code(lines: Iterable[str]) -> str:
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def _transfer(run: Run) -> str:
    text = ""
    for folder in run.transfer:
        content = read_json(folder / "results.json") or read_json(folder / "report.json")
        try:
            text += _transfer_tables(content)
        except (TypeError, KeyError, AttributeError, ValueError, StopIteration):
            where = f"{folder}: no results.json of tools/benchmark.py, or report.json of the demo"
            text += f'<p class="absent">{escape(where)}</p>'
            continue
        for picture in (folder / "bars.png", folder / "curves.png"):
            text += _picture(picture, "results of transfer") if picture.is_file() else ""
    own = read_json(run.folder / "results.json")  # of fine-tuning
    if isinstance(own, dict):
        rows = [
            [escape(kind), *(f"{found[m]:.1f}" if is_number(found.get(m)) else "" for m in names)]
            for kind, names in METRICS.items()
            if isinstance(found := own.get(kind), dict)
        ]
        text += _table(["of this run, %", "AP or IoU", "AP50", "AP75"], rows) if rows else ""
    command = "python tools/benchmark.py --suite quick --init random --init "
    command += shlex.quote(f"{run.folder.name}={run.folder}/model_final.pth")
    command += " --output output/benchmark; python tools/report.py "
    command += f"{shlex.quote(str(run.folder))} --transfer output/benchmark"
    return text or _absent(command)


def _transfer_tables(content: Any) -> str:
    """
    Raises:
        TypeError, KeyError, AttributeError, ValueError, StopIteration: other content.
    """
    tasks = content.get("summary") or {content["description"]: content["transfer"]}
    text = ""
    for task, inits in tasks.items():
        metrics = list(dict.fromkeys(metric for row in inits.values() for metric in row))
        base = next(iter(inits.values()))
        rows = [
            [escape(init), *(_transfer_cell(row.get(m), base.get(m), row is base) for m in metrics)]
            for init, row in inits.items()
        ]
        header = ["initialisation", *map(escape, metrics)]
        text += _table(header, rows, escape(f"{task}, %"))
    note = "Mean ± standard deviation over seeds; in brackets the difference to the first row, bold"
    note += " beyond two standard deviations of the difference of two runs."
    return f"{text}<p>{note}</p>{_code([str(content['command'])])}"


def _transfer_cell(value: Any, base: Any, is_base: bool) -> str:
    if not value:
        return ""
    text = escape(show(value))
    if is_base or not base:
        return text
    delta, is_beyond = difference(value, base)
    return f"{text} ({'<b>' if is_beyond else ''}{delta:+.1f}{'</b>' if is_beyond else ''})"


def _config(run: Run) -> str:
    rows = [
        [f"<code>{escape(key)}</code>", escape(str(value)), escape(str(default))]
        for key, (default, value) in sorted(run.changed.items())
    ]
    table = _table(["key", "value", "default"], rows, "Keys that differ from the defaults")
    whole = f"<details><summary>The whole config</summary><pre>{escape(run.config[0])}</pre>"
    return f"{table if rows else ''}{whole}</details>"


def _versions(run: Run) -> str:
    """Those of the last start."""
    versions = run.starts[-1].get("versions") if run.starts else None
    if not isinstance(versions, dict):
        return _absent("a start of pretrain_net.py or train_net.py, in run.json")
    rows = [[escape(str(name)), escape(str(version))] for name, version in versions.items()]
    return _table(["package", "version"], rows)


def _commands(run: Run) -> str:
    rows = [
        [escape(str(s.get("time"))), f"<code>{escape(str(s.get('command')))}</code>"]
        + [escape(f"{s.get('processes')} processes, {s.get('device')}")]
        for s in run.starts
    ]
    if run.command:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        rows.append([escape(now), f"<code>{escape(run.command)}</code>", "this report"])
    text = _table(["start", "command", "on"], rows) if rows else ""
    return text if run.starts else _absent("a start of pretrain_net.py, in run.json") + text
