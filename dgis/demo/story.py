"""The steps of the demo, each timed and judged; what a person reads at the end is this list."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dgis.demo.images import Image
from dgis.demo.viewer import Received, Viewer

RECEIVER = "DEMO_RECV"


@dataclass(slots=True)
class Step:
    """One line of the closing table."""

    what: str
    how: str
    seconds: float = 0.0
    result: str = ""
    ok: bool = False


@dataclass(slots=True)
class Story:
    """Run the main job as a viewer would; ``tell`` hears each step as it ends, ``progress`` each stored image."""

    viewer: Viewer
    images: Sequence[Image]
    ready: Mapping[str, Any]
    receiver_port: int
    tell: Callable[[Step], None]
    progress: Callable[[int, int], None]
    steps: list[Step] = field(default_factory=list)
    _listener: Any = None
    _received: Received = field(default_factory=Received)

    @property
    def ok(self) -> bool:
        """True when every step so far succeeded."""
        return bool(self.steps) and all(step.ok for step in self.steps)

    def run(self) -> bool:
        """All steps in order; a failed step does not hide the later ones. Returns :attr:`ok`."""
        self._listener, self._received = self.viewer.listen(self.receiver_port, self.images)
        try:
            self._echo()
            self._store()
            self._find()
            self._move("C-MOVE to a receiving AE")
            self._get("C-GET on the same association")
            self._lose_a_provider()
            self._move("C-MOVE with one provider down")
            self._get("C-GET with one provider down")
        finally:
            self._listener.shutdown()
        return self.ok

    @contextmanager
    def _step(self, what: str, how: str) -> Iterator[Step]:
        step = Step(what, how)
        started = time.monotonic()
        try:
            yield step
        except (ConnectionError, TimeoutError, OSError) as error:
            step.ok, step.result = False, str(error)
        step.seconds = time.monotonic() - started
        self.steps.append(step)
        self.tell(step)

    def _echo(self) -> None:
        with self._step("Echo", "C-ECHO") as step:
            step.ok = self.viewer.echo()
            step.result = "the AE answers" if step.ok else "no answer"

    def _store(self) -> None:
        stored, total = 0, sum(image.size for image in self.images)
        with self._step("Store", "C-STORE, each image in its own transfer syntax") as step:
            for number, (_, status) in enumerate(self.viewer.store(self.images), 1):
                stored += status == 0x0000
                self.progress(number, len(self.images))
            step.ok = stored == len(self.images)
        rate = total / 1e6 / max(step.seconds, 1e-3)
        step.result = step.result or f"{stored} of {len(self.images)} images, {total / 1e6:.1f} MB, {rate:.0f} MB/s"

    def _find(self) -> None:
        studies = {image.study_uid for image in self.images}
        series = {(image.study_uid, image.series_uid) for image in self.images}
        with self._step("Find", "C-FIND at patient, study, series and image level") as step:
            patients = self.viewer.find("PATIENT", PatientID="", PatientName="")
            found_studies = {str(m.StudyInstanceUID) for m in self.viewer.find("STUDY", StudyInstanceUID="")}
            found_series: set[tuple[str, str]] = set()
            found_images: set[str] = set()
            for study in sorted(studies):
                for match in self.viewer.find("SERIES", StudyInstanceUID=study, SeriesInstanceUID=""):
                    found_series.add((study, str(match.SeriesInstanceUID)))
            for study, one in sorted(series):
                keys = {"StudyInstanceUID": study, "SeriesInstanceUID": one, "SOPInstanceUID": ""}
                found_images |= {str(m.SOPInstanceUID) for m in self.viewer.find("IMAGE", **keys)}
            wanted = {image.instance_uid for image in self.images}
            step.ok = studies <= found_studies and series <= found_series and wanted <= found_images
            step.result = (
                f"{len(patients)} patients, {len(found_studies)} studies, {len(found_series)} series, "
                f"{len(found_images)} images"
            )

    def _move(self, what: str) -> None:
        self._received.digests.clear()
        self._received.times.clear()
        studies = sorted({image.study_uid for image in self.images})
        with self._step("Move", what) as step:
            completed, failed = self.viewer.move(studies, RECEIVER)
            self._judge(step, self._received, completed, failed)

    def _get(self, what: str) -> None:
        with self._step("Get", what) as step:
            (completed, failed), received = self.viewer.get(self.images)
            self._judge(step, received, completed, failed)

    def _judge(self, step: Step, received: Received, completed: int, failed: int) -> None:
        """Right means: every image once, its data set the very bytes that were stored, nothing else."""
        same = sum(received.digests.get(image.instance_uid) == image.data_sha256 for image in self.images)
        twice = sum(times > 1 for times in received.times.values())
        step.ok = same == len(self.images) == completed and not failed and not twice
        step.result = f"{completed} came, {same} of {len(self.images)} data sets identical byte for byte"
        if failed or twice:
            step.result += f"; {failed} failed, {twice} twice"

    def _lose_a_provider(self) -> None:
        provider = self.ready["providers"][0]
        with self._step("Break", f"stop storage provider {provider['name']}") as step:
            os.kill(provider["pid"], signal.SIGTERM)
            step.ok = _gone(provider["pid"])
            step.result = "gone" if step.ok else "still there after 15 s"


def _gone(pid: int, seconds: float = 15.0) -> bool:
    """Wait until the process has ended (a zombie of another parent counts as ended)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except OSError:
            return True
        time.sleep(0.05)
    return False
