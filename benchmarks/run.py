"""Runs the benchmarks: `make bench`, `python -m benchmarks`, or `python benchmarks/run.py`. See README.md here."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from platform import machine, python_version

# one intra-op thread: must stand before NumPy is loaded
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"
ROOT = Path(__file__).resolve().parent.parent
# run as a script, Python looks for modules in this folder and not in its parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.timing import Effort, Line, MismatchError  # noqa: E402

TOPICS = ("stepping", "distances", "learning", "edits", "training", "search", "layers", "startup")


def main() -> int:
    """Run the topics asked for: 1 when contenders that must agree do not, else 0. A missed bar is no error."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="Ratios against peers that run beside it.")
    parser.add_argument("topic", nargs="*", metavar="TOPIC", help=f"any of {', '.join(TOPICS)}; all by default")
    parser.add_argument("--rounds", type=int, default=11, help="rounds in which every contender runs once")
    parser.add_argument("--sample", type=float, default=0.05, help="least seconds of one sample")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench.json", help="where the figures go")
    chosen = parser.parse_args()
    for topic in chosen.topic:
        if topic not in TOPICS:
            parser.error(f"unknown topic {topic!r}; known: {', '.join(TOPICS)}")
    if chosen.rounds < 1 or chosen.sample < 0:
        parser.error("--rounds must be at least 1 and --sample at least 0")
    console = Console(stderr=True)
    lines: list[Line] = []
    for topic in chosen.topic or TOPICS:
        with console.status(f"{topic} ..."):
            try:
                lines += importlib.import_module(f"benchmarks.{topic}").run(Effort(chosen.rounds, chosen.sample))
            except MismatchError as error:
                console.print(f"error: {error}", style="red")
                return 1
    Console(width=None if sys.stdout.isatty() else 150).print(table(lines))
    _save(chosen.out, lines)
    console.print(f"written to {chosen.out}")
    return 0


def table(lines: list[Line]) -> Table:
    """What a reader sees."""
    out = Table(title=f"{os.cpu_count()} cores, CPU, one thread; medians, with the quartiles of the ratio")
    for name in ("ours", "against"):
        out.add_column(name, overflow="fold")
    for name in ("ours/s", "other/s", "ratio", "quartiles", "bar"):
        out.add_column(name, justify="right", no_wrap=True)
    topic = ""
    for line in lines:
        if topic and line.topic != topic:
            out.add_section()
        topic = line.topic
        bar = "limit" if line.kind == "limit" else ""
        if line.bar is not None:
            bar = f"{line.bar:,g} " + ("[green]met[/]" if line.met else "[red]missed[/]")
        if line.aim is not None:
            bar = f"toward {line.aim:,g}"
        out.add_row(
            line.what, line.against, short(line.ours), short(line.other), ratio(line.ratio),
            f"{ratio(line.low)}-{ratio(line.high)}", bar,
        )  # fmt: skip
    return out


def short(x: float) -> str:
    """Three digits and a metric prefix: 1.23 M."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if x >= size:
            return f"{x / size:.3g}{letter}"
    return f"{x:.3g}"


def ratio(x: float) -> str:
    """Two decimals below 10, none from there on."""
    return f"{x:.2f}" if x < 10 else f"{x:,.0f}"


def _save(path: Path, lines: list[Line]) -> None:
    packages = ("retarget", "numpy", "numba", "scipy", "gymnasium", "torch", "pytorch-lightning", "typer", "rich")
    about = {
        "cores": os.cpu_count(),
        "machine": machine(),
        "python": python_version(),
        "packages": {name: version(name) for name in packages},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, "lines": [line.as_dict() for line in lines]}, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
