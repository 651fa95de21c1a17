"""Hard limits of a space, checked as soon as a number is known."""

from __future__ import annotations

from dataclasses import dataclass

from core.candidate import KB, LatencyReport
from core.errors import InfeasibleCandidate


@dataclass(frozen=True)
class Limits:
    """None: no limit. 1 KB is 1000 bytes; accuracy in (0, 1]."""

    latency_ms: float | None = None
    size_kb: float | None = None
    accuracy: float | None = None

    def check_size(self, size_bytes: int) -> None:
        """Raises InfeasibleCandidate above the limit."""
        if self.size_kb is not None and size_bytes > self.size_kb * KB:
            raise InfeasibleCandidate(f"size_kb must be at most {self.size_kb:g}, but is {size_bytes / KB:.2f}; not trained")

    def check_latency(self, report: LatencyReport) -> None:
        """Raises InfeasibleCandidate above the limit."""
        if self.latency_ms is not None and report.p50_ms > self.latency_ms:
            raise InfeasibleCandidate(f"latency_ms must be at most {self.latency_ms:g}, but is {report.p50_ms:.4f}; not trained")

    def check_accuracy(self, accuracy: float) -> None:
        """Raises InfeasibleCandidate below the limit."""
        if self.accuracy is not None and accuracy < self.accuracy:
            raise InfeasibleCandidate(f"accuracy must be at least {self.accuracy:g}, but is {accuracy:.4f}")
