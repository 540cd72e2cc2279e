"""Peak memory of a piece of work, as the operating system counts it. Not here: accelerators' own memory."""

from __future__ import annotations

from pathlib import Path
from typing import Self

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """Context manager; afterwards `mb` is the largest resident size during the block, in MB, or None where unknown.

    Only Linux lets a process start its high-water mark anew; elsewhere there is no honest number per method.
    """

    mb: float | None = None

    def __enter__(self) -> Self:
        self._counts = self._reset()
        return self

    def __exit__(self, *error: object) -> None:
        if self._counts:
            line = next(row for row in _STATUS.read_text().splitlines() if row.startswith("VmHWM:"))
            self.mb = float(line.split()[1]) / 1024

    @staticmethod
    def _reset() -> bool:
        try:
            _RESET.write_text("5")
        except OSError:
            return False
        return True
