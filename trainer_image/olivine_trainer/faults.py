"""What an exception tells of the machine below: memory that ran out, a disk that fails. Neither is the user's."""

import errno
from collections.abc import Iterator

_ALLOCATION_FAILURES = (
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "out of memory",
    "bad_alloc",
)
_DISK_FAULTS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ENFILE, errno.EMFILE)


def is_out_of_memory(error: BaseException) -> bool:
    """torch tells of exhausted memory by RuntimeErrors, by text alone on the CPU; libraries wrap what they caught."""
    return any(_is_allocation_failure(one) for one in _chain(error))


def is_disk_fault(error: BaseException) -> bool:
    """Whether a file could not be read or written for the disk's sake."""
    return any(isinstance(one, OSError) and one.errno in _DISK_FAULTS for one in _chain(error))


def is_machine_fault(error: BaseException) -> bool:
    """Either of them: what was being read, built or run is not to blame."""
    return is_out_of_memory(error) or is_disk_fault(error)


def first_line(error: BaseException, limit: int = 300) -> str:
    """What an exception says, for a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:limit] if lines else type(error).__name__


def _is_allocation_failure(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | OSError) and any(sign in str(error).lower() for sign in _ALLOCATION_FAILURES)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
