"""TensorBoard event files, by tensorboard's own writer: torch.utils.tensorboard takes seconds to import."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """Scalars of one attempt in a folder; the caller uploads its files. tensorboard is imported at the first scalar."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write scalars of a step."""
        from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415  # pyright: ignore[reportAttributeAccessIssue]

        if self._writer is None:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415

            self.folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventFileWriter(str(self.folder))
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def files(self) -> Iterator[Path]:
        """The event files, written out."""
        if self._writer is None:
            return
        self._writer.flush()
        yield from sorted(path for path in self.folder.iterdir() if path.is_file())

    def close(self) -> None:
        """End the writer's thread."""
        if self._writer is not None:
            self._writer.close()
