"""The worker process: one JSON job a line on stdin, one JSON word a line on stdout.

    {"path": ..., "offset": ..., "length": ..., "stored": ..., "target": ..., "output": ...}
    {"frame": 1} {"frame": 2} ... {"length": 524288}      or {"failed": "the codestream cannot be decoded"}

It runs without the caller's working directory in its path (`python -I`: the GDCM module imports whatever is called
`dl`), under a limit of address space, and ends when stdin does.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import warnings
from typing import TextIO

from dgis.transcode.convert import Bounds, Job, convert
from dgis.transcode.errors import TranscodeError


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # codecs write there
    os.dup2(silence, 2)
    warnings.simplefilter("ignore")  # they quote values
    bounds, memory = Bounds(*map(int, sys.argv[1:4])), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        _serve(Job(**json.loads(line)), bounds, answers)


def _serve(job: Job, bounds: Bounds, answers: TextIO) -> None:
    frames = 0

    def frame_done() -> None:
        nonlocal frames
        frames += 1
        _say(answers, frame=frames)

    try:
        _say(answers, length=convert(job, bounds, frame_done=frame_done))
    except TranscodeError as error:
        _say(answers, failed=str(error))
    except MemoryError:
        _say(answers, failed="it needs more memory than a conversion may take")
    except OSError as error:
        _say(answers, failed=f"the converted instance cannot be written: {error.strerror}")
    except Exception as error:  # noqa: BLE001 - the edge: whatever pydicom or a codec raises, the next job is served
        _say(answers, failed=f"it cannot be understood ({type(error).__name__})")


def _say(answers: TextIO, **words: int | str) -> None:
    answers.write(json.dumps(words) + "\n")


if __name__ == "__main__":
    main()
