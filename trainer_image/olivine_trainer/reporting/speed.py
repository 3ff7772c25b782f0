"""Throughput and the time that is left."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class _Window:
    """Tokens and time of one step."""

    tokens: int
    seconds: float


@dataclass(frozen=True)
class Speed:
    """Throughput over the last few steps; evaluation and checkpoints between them do not count."""

    window: tuple[_Window, ...] = ()
    size: int = 20

    def after(self, tokens: int, seconds: float) -> "Speed":
        """With one more step."""
        return replace(self, window=(*self.window, _Window(tokens, seconds))[-self.size :])

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of the batch, padding not counted, a second."""
        seconds = sum(item.seconds for item in self.window)
        return round(sum(item.tokens for item in self.window) / seconds, 1) if seconds > 0 else None

    def eta_seconds(self, steps_left: int) -> int | None:
        """Seconds until the last optimizer step."""
        if not self.window:
            return None
        return round(steps_left * sum(item.seconds for item in self.window) / len(self.window))
