"""sha256 of files, and of folders by their files."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

_CHUNK = 1 << 20  # bytes


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def folder_digest(files: Mapping[str, str]) -> str:
    """sha256 (hex) over the sorted (path, sha256) pairs of a folder's files: what names artifacts, checkpoints and models."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path}\0{files[path]}\n".encode())
    return digest.hexdigest()
