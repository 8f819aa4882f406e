"""``dgis demo``: the main job on real images, in front of one's eyes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dgis.cli.output import console, duration, notes, table
from dgis.demo import images as demo_images
from dgis.demo.story import RECEIVER, Step, Story
from dgis.demo.viewer import Viewer
from dgis.localgrid import LOOPBACK, choose_ports

START_SECONDS = 90.0


@click.command("demo", epilog="Example: dgis demo --data /archive/phantoms --keep")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with more DICOM files (default: DGIS_TEST_DATA, else ../shared/data if it exists).",
)
@click.option(
    "--home", type=click.Path(path_type=Path, file_okay=False), help="Where the grid lives (default: a new one)."
)
@click.option("--keep", is_flag=True, help="Keep the grid's directory afterwards.")
def command(*, data: Path | None, home: Path | None, keep: bool) -> None:
    """Bring up a grid with two storage providers and use it as a viewer does: store, find, move, get; stop a provider
    and retrieve again; compare every data set byte for byte. Exit code 0 when all of it is right."""
    started = time.monotonic()
    place = home or Path(tempfile.mkdtemp(prefix="dgis-demo-"))
    origin, images = demo_images.collection(data or demo_images.default_data())
    out = console()
    out.print(f"[bold]dgis demo[/bold]: {len(images)} real images ({origin})")
    ports = choose_ports(place.with_name(place.name + ".ports.json"), ("dimse", "receiver"))
    grid = _start_grid(place, ports)
    try:
        ready = _wait_ready(grid, place / "ready.json")
        out.print(
            f"grid up in {duration(time.monotonic() - started)}: AE {ready['dimse']['aet']} on port "
            f"{ready['dimse']['port']}, catalog, providers " + ", ".join(p["name"] for p in ready["providers"])
        )
        steps, ok = _tell_story(ready, images, ports["receiver"])
    finally:
        _stop(grid)
        place.with_name(place.name + ".ports.json").unlink(missing_ok=True)
        if home is None and not keep:
            shutil.rmtree(place, ignore_errors=True)
    rows = [
        [s.what, s.how, s.result, f"{s.seconds:.1f} s", "[green]ok[/green]" if s.ok else "[red]FAILED[/red]"]
        for s in steps
    ]
    out.print(table("What a viewer saw", ("Step", "How", "Result", "Time", ""), rows, right=("Time",)))
    took = duration(time.monotonic() - started)
    verdict = "[bold green]All right[/bold green], in" if ok else "[bold red]Not right[/bold red], after"
    out.print(f"{verdict} {took}.")
    sys.exit(0 if ok else 1)


def _tell_story(ready: dict[str, Any], images: list[demo_images.Image], port: int) -> tuple[list[Step], bool]:
    dimse = ready["dimse"]
    viewer = Viewer(title=RECEIVER, called=dimse["aet"], host=dimse["host"], port=dimse["port"])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes(), transient=True) as bar:
        task = bar.add_task("storing", total=len(images))

        def tell(step: Step) -> None:
            bar.update(task, description=f"{step.what.lower()} done" if step.ok else f"{step.what.lower()} FAILED")

        story = Story(viewer, images, ready, port, tell, lambda n, total: bar.update(task, completed=n, total=total))
        story.run()
    return story.steps, story.ok


def _start_grid(home: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    home.mkdir(parents=True, exist_ok=True)
    argv = [
        sys.executable,
        "-m",
        "dgis.cli",
        "up",
        "--home",
        str(home),
        "--port",
        str(ports["dimse"]),
        "--peer",
        f"{RECEIVER}:{LOOPBACK}:{ports['receiver']}",
        "--providers",
        "2",
    ]
    with (home / "up.log").open("ab") as log:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def _wait_ready(grid: subprocess.Popen[bytes], ready: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and grid.poll() is None:
        if ready.exists():
            facts: dict[str, Any] = json.loads(ready.read_text())
            return facts
        time.sleep(0.1)
    log = (ready.parent / "up.log").read_text(errors="replace")
    raise click.ClickException(f"the grid did not come up; its log says:\n{log[-2000:]}")


def _stop(grid: subprocess.Popen[bytes]) -> None:
    if grid.poll() is None:
        grid.send_signal(signal.SIGTERM)
    try:
        grid.wait(40)
    except subprocess.TimeoutExpired:
        grid.kill()
        grid.wait()
