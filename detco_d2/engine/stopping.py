"""Signals that ask a run to stop: the step is finished and saved first."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_SAME_REQUEST = 1.0  # seconds; launchers and terminals may send one request by two ways


class StopRequest:
    """Listens for SIGTERM, SIGINT and SIGUSR1 while it is entered; only a main thread can.

    The first one is only noted. A second one ends the process at once, as does time: a process
    that has not stopped `patience` seconds after the first is stuck.

    Attributes:
        number: of the signal that came, 0 before.
    """

    def __init__(self, patience: float) -> None:
        self.number = 0
        self.patience = patience
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        if self.number:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen_in_worker(self) -> None:
        """In a loader process: work on after a SIGTERM, at which torch has it end.

        torchrun and SLURM send it to all processes alike, also to those that the last step needs.
        """
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._since = number, now
            signal.setitimer(signal.ITIMER_REAL, self.patience)  # SIGALRM kills
        elif now - self._since > _SAME_REQUEST:
            os._exit(128 + number)
