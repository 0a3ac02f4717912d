"""SIGTERM as a request: the step in progress is finished, a checkpoint written, and then the process ends."""

import signal
import threading
from types import FrameType
from typing import Any, Self

import torch

from gssf_plug.distributed import gather_detached

__all__ = ["EXIT_CODE", "Interruption"]

EXIT_CODE = 128 + signal.SIGTERM  # what a shell reports for a process ended by SIGTERM


class Interruption:
    """While entered, SIGTERM is remembered instead of ending the process. Only the main thread can listen."""

    def __init__(self) -> None:
        self._received = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def requested(self, device: torch.device) -> bool:
        """Whether any process was asked to end. A collective, so that all end after the same step."""
        return bool(gather_detached(torch.tensor([self._received], device=device)).any())

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._received = True
