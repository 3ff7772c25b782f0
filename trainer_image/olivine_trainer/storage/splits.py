"""Which files of a folder are rows, and of which split: by the dataset card, else by their names, as the hub does."""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

# What lies beside rows under the same suffixes.
_NOT_ROWS = ("config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json")
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {keyword: split for split, keywords in _KEYWORDS.items() for keyword in keywords}
_SHARD = re.compile(r"^(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}")
_SEPARATORS = re.compile(r"[-._ 0-9]+")


class AmbiguousFilesError(Exception):
    """The files can be read in more than one way; the text says what to write."""


def is_rows_file(path: str) -> bool:
    """Whether a name says that rows are in the file."""
    name = PurePosixPath(path).name
    hidden = any(part.startswith((".", "__")) for part in PurePosixPath(path).parts)
    return name.lower().endswith(ROW_SUFFIXES) and name not in _NOT_ROWS and not hidden


def files_by_split(paths: Iterable[str], card: Mapping[str, Any]) -> dict[str, list[str]]:
    """The files of each split, sorted; `card` is the front matter of the folder's README.md.

    Files whose names tell no split are all of train, where none of them does; else they belong to none.
    Raises AmbiguousFilesError: several configurations, or several formats in one split.
    """
    found = sorted(path for path in paths if is_rows_file(path))
    splits = _by_card(found, card) or _by_name(found)
    for split, files in splits.items():
        suffixes = sorted({PurePosixPath(path).suffix.lower() for path in files})
        if len(suffixes) > 1:
            raise AmbiguousFilesError(f"its split {split!r} has files of several formats ({', '.join(suffixes)}): name one of them")
    return splits


def _by_name(paths: list[str]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for path in paths:
        if (split := _split_of(path)) is not None:
            splits.setdefault(split, []).append(path)
    return splits or ({"train": paths} if paths else {})


def _split_of(path: str) -> str | None:
    """By the file's name, else by the nearest folder's that tells."""
    *folders, name = PurePosixPath(path).parts
    shard = _SHARD.match(name)
    if shard is not None:
        return _SPLIT_OF.get(shard["split"], shard["split"])
    for part in (PurePosixPath(name).stem, *reversed(folders)):
        for word in _SEPARATORS.split(part.lower()):
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
    return None


def _by_card(paths: list[str], card: Mapping[str, Any]) -> dict[str, list[str]]:
    """What the card's `configs` say (empty where it says nothing of files)."""
    configs = [config for config in card.get("configs") or [] if isinstance(config, dict) and config.get("data_files")]
    if not configs:
        return {}
    names = [str(config.get("config_name", "default")) for config in configs]
    chosen = [
        config
        for config, name in zip(configs, names, strict=True)
        if len(configs) == 1 or name == "default" or config.get("default") is True
    ]
    if len(chosen) != 1:
        raise AmbiguousFilesError(f"it has several configurations ({', '.join(names)}): name the folder or the file of one of them")
    splits: dict[str, list[str]] = {}
    data_files = chosen[0]["data_files"]
    for entry in data_files if isinstance(data_files, list) else [data_files]:
        split, patterns = (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            splits.setdefault(str(split), []).extend(path for path in paths if _matches(path, str(pattern)))
    return {split: sorted(set(files)) for split, files in splits.items() if files}


def _matches(path: str, pattern: str) -> bool:
    """As a shell does: * stays within one folder, ** does not."""
    pattern = pattern.removeprefix("./")
    if "**" in pattern:
        return fnmatch.fnmatchcase(path, pattern.replace("**/", "*").replace("**", "*"))
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)
