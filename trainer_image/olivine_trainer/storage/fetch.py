"""Bringing the sources here: the base model's folder and the rows' files."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivine_api.reasons import Reason
from olivine_trainer.digests import folder_digest, sha256_file
from olivine_trainer.errors import DataError, ModelError, TrainerError
from olivine_trainer.storage.cache import FileCache
from olivine_trainer.storage.card import CARD, license_of, read_card, require_license
from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.failures import FIELDS, user_error
from olivine_trainer.storage.hub import HubAddress
from olivine_trainer.storage.ranges import LocalRange, RangeFile, RemoteRange
from olivine_trainer.storage.source import Source
from olivine_trainer.storage.splits import ROW_SUFFIXES, AmbiguousFilesError, files_by_split, is_rows_file
from olivine_trainer.storage.store import ObjectInfo

# What a model needs; weights in other formats (ONNX, GGUF, TensorFlow) are left where they are, and so is code that is not trusted.
_MODEL_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken")
_PICKLED_WEIGHTS = ".bin"
_CODE = ".py"
_FOLDERS = 64  # of a folder of rows that are looked into


@dataclass(frozen=True)
class FetchedModel:
    """A base model on disk."""

    folder: Path
    digest: str
    """sha256 over the sorted (path, sha256) of its files."""
    bytes: int
    revision: str | None = None
    """The hub's commit."""
    license: str | None = None


@dataclass(frozen=True)
class FetchedRows:
    """Files of rows on disk, by split."""

    files: Mapping[str, tuple[Path, ...]]
    revision: str | None = None
    """The hub's commit."""


def fetch_model(
    source: Source, cache: FileCache, *, allowed_licenses: Iterable[str] | None = None, with_code: bool = False
) -> FetchedModel:
    """Download a folder in Hugging Face layout, unless the cache has it. `with_code`: its own Python files, too.

    Raises ModelError where it is none, with what is there instead; where its licence is not allowed, before any weights.
    """
    if source.frozen_state is not None and (hit := cache.find(_model_state(source, source.frozen_state, with_code))) is not None:
        require_license(hit.about.get("license"), allowed_licenses, source.uri)
        return FetchedModel(hit.folder, hit.digest, hit.bytes, source.revision, hit.about.get("license"))
    listed, wanted = _look_at_model(source, with_code=with_code)
    if source.local_folder is not None:
        return _model_in_place(source, source.local_folder, listed, wanted, allowed_licenses)
    state = source.frozen_state or _listed_state(
        source, [listed[key] for key in (*wanted, *(key for key in (CARD,) if key in listed))]
    )
    state = _model_state(source, state, with_code)
    hit = cache.find(state)
    if hit is None:

        def download(target: Path) -> Mapping[str, Any]:
            licence = _license(source, target, listed)
            require_license(licence, allowed_licenses, source.uri)
            _download(source, wanted, target)
            return {"license": licence}

        hit = cache.fill(state, download, needs=sum(listed[key].size for key in wanted))
    licence = hit.about.get("license")
    require_license(licence, allowed_licenses, source.uri)
    return FetchedModel(hit.folder, hit.digest, hit.bytes, source.revision, licence)


def model_state(source: Source) -> str | None:
    """Names what `fetch_model` would fetch, without fetching it; None where the store cannot tell one content from another."""
    if source.frozen_state is not None:
        return source.frozen_state
    listed, wanted = _look_at_model(source, with_code=False)
    items = [listed[key] for key in wanted]
    return _listed_state(source, items) if all(item.tag for item in items) else None


def fetch_rows(source: Source, name: str | None, splits: tuple[str, ...] | None, cache: FileCache) -> FetchedRows:
    """Download the files of the wanted splits (None: the one that the role is named after), unless the cache has them.

    `name`: one file of the source, which is all of `train`; None: the source's files by split. Raises DataError where a file or a
    split is not there, with those that are.
    """
    if name is not None:
        _require_splits(source, splits, {"train": [name]}, whole=True)
        return FetchedRows({"train": (_rows_file(source, name, cache),)}, source.revision)
    asked = ",".join(splits) if splits is not None else f"({source.place.role})"
    if source.frozen_state is not None and (hit := cache.find(f"rows {source.frozen_state} {asked}")) is not None:
        by_split = {split: tuple(hit.folder / path for path in paths) for split, paths in hit.about["splits"].items()}
        return FetchedRows(by_split, source.revision)
    listed, known = _look_at_rows(source, cache)
    found = {split: known[split] for split in _require_splits(source, splits, known, whole=False)}
    wanted = [path for paths in found.values() for path in paths]
    folder = source.local_folder
    if folder is None:
        state = source.frozen_state or _listed_state(source, [listed[path] for path in wanted])

        def download(target: Path) -> Mapping[str, Any]:
            _download(source, wanted, target)
            return {"splits": found}

        folder = cache.find(f"rows {state} {asked}") or cache.fill(
            f"rows {state} {asked}", download, needs=sum(listed[path].size for path in wanted)
        )
        folder = folder.folder
    return FetchedRows({split: tuple(folder / path for path in paths) for split, paths in found.items()}, source.revision)


def open_rows(
    source: Source, access: Access, name: str | None, splits: tuple[str, ...] | None, cache: FileCache
) -> list[RangeFile]:
    """The same files, left where they are; a hub's are downloaded, since it serves whole files. `access`: of `source`."""
    if source.local_folder is not None or source.frozen_state is not None:
        fetched = fetch_rows(source, name, splits, cache)
        return [*(LocalRange(path) for paths in fetched.files.values() for path in paths)]
    if name is not None:
        _require_splits(source, splits, {"train": [name]}, whole=True)
        listed = {item.key: item for item in source.list_here().objects}
        if name not in listed:
            raise _no_such_file(source, name, list(listed))
        keys = [name]
    else:
        listed, known = _look_at_rows(source, cache)
        keys = [key for split in _require_splits(source, splits, known, whole=False) for key in known[split]]
    return [RemoteRange(access, key, listed[key].size, listed[key].tag) for key in keys]


def _look_at_model(source: Source, *, with_code: bool) -> tuple[dict[str, ObjectInfo], list[str]]:
    """What lies in the folder, and which of it a model needs."""
    here = source.list_here()
    listed = {item.key: item for item in here.objects}
    if not listed and not here.folders:
        raise ModelError(
            Reason.MODEL_NOT_FOUND,
            f"there is nothing at model.uri {source.uri}: it must name a folder in Hugging Face layout (config.json, *.safetensors, tokenizer)",
        )
    top = list(listed)
    if "config.json" not in top:
        held = top or [f"{name}/" for name in here.folders]
        raise ModelError(
            Reason.MODEL_NOT_FOUND,
            f"model.uri {source.uri} has no config.json: it must name a folder in Hugging Face layout; it holds: {_some(held)}",
        )
    wanted = [key for key in top if key.endswith(_MODEL_SUFFIXES)]
    if not any(key.endswith(".safetensors") for key in wanted):
        wanted += [key for key in top if key.endswith(_PICKLED_WEIGHTS)]
    if not any(key.endswith((".safetensors", _PICKLED_WEIGHTS)) for key in wanted):
        raise ModelError(Reason.MODEL_NOT_FOUND, f"model.uri {source.uri} has no weights (*.safetensors); it holds: {_some(top)}")
    if with_code:
        wanted += [key for key in top if key.endswith(_CODE)]
    return listed, wanted


def _model_in_place(
    source: Source, folder: Path, listed: Mapping[str, ObjectInfo], wanted: list[str], allowed_licenses: Iterable[str] | None
) -> FetchedModel:
    """A folder of this machine's is read where it lies."""
    try:
        licence = license_of(read_card(folder / CARD)) if CARD in listed else None
        require_license(licence, allowed_licenses, source.uri)
        digest = folder_digest({key: sha256_file(folder / key) for key in wanted})
    except PermissionError as error:
        raise _unreadable(source, str(error.filename)) from None
    return FetchedModel(folder, digest, sum(listed[key].size for key in wanted), license=licence)


def _license(source: Source, target: Path, listed: Mapping[str, ObjectInfo]) -> str | None:
    """The card is looked at, and not kept: it is no part of the model."""
    card = target / CARD
    if CARD not in listed or not source.get_to_file(CARD, card):
        return None
    licence = license_of(read_card(card))
    card.unlink()
    return licence


def _rows_file(source: Source, name: str, cache: FileCache) -> Path:
    if source.local_folder is not None:
        return _local_rows_file(source, source.local_folder, name)
    if source.frozen_state is not None and (hit := cache.find(f"file {source.frozen_state}/{name}")) is not None:
        return hit.folder / name
    listed = {item.key: item for item in source.list_here().objects}
    if name not in listed:
        raise _no_such_file(source, name, list(listed))
    state = f"file {source.frozen_state}/{name}" if source.frozen_state else f"file {_listed_state(source, [listed[name]])}"

    def download(target: Path) -> Mapping[str, Any]:
        _download(source, [name], target)
        return {}

    found = cache.find(state) or cache.fill(state, download, needs=listed[name].size)
    return found.folder / name


def _local_rows_file(source: Source, folder: Path, name: str) -> Path:
    try:
        with (folder / name).open("rb"):
            return folder / name
    except PermissionError:
        raise _unreadable(source, str(folder / name)) from None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        pass  # told below, with what lies beside it
    try:
        beside = [item.key for item in source.list_here().objects]
    except TrainerError:  # whatever hinders the look: the file is not there
        field = FIELDS[source.place.role]
        raise DataError(Reason.DATA_NOT_FOUND, f"{field}.uri {source.uri}/{name} does not exist") from None
    raise _no_such_file(source, name, beside)


def _look_at_rows(source: Source, cache: FileCache) -> tuple[dict[str, ObjectInfo], dict[str, list[str]]]:
    """The folder's files, and those of each split."""
    field = FIELDS[source.place.role]
    try:
        listed = {item.key: item for item in _files_below(source)}
        splits = files_by_split(listed, _card(source, listed, cache))
    except PermissionError as error:
        raise _unreadable(source, str(error.filename)) from None
    except AmbiguousFilesError as error:
        raise DataError(Reason.DATA_UNREADABLE, f"{field}.uri {source.uri} names a folder, but {error} in {field}.uri") from None
    if not splits:
        held = f"; it holds: {_some(list(listed))}" if listed else ", and it is empty or does not exist"
        raise DataError(
            Reason.DATA_NOT_FOUND,
            f"{field}.uri {source.uri} is no file of rows, nor a folder with any ({', '.join(ROW_SUFFIXES)}){held}",
        )
    return listed, splits


def _files_below(source: Source) -> list[ObjectInfo]:
    """Of a folder and of the folders in it: a bucket of millions of objects is not walked through. A commit's list is known whole."""
    if source.frozen_state is not None:
        return source.list()
    here = source.list_here()
    if len(here.folders) > _FOLDERS:
        field = FIELDS[source.place.role]
        raise DataError(
            Reason.DATA_UNREADABLE,
            f"{field}.uri {source.uri} names a folder of {len(here.folders)} folders: name the one that has the rows",
        )
    below = [
        ObjectInfo(f"{folder}/{item.key}", item.size, item.tag)
        for folder in here.folders
        for item in source.sub(folder).list_here().objects
    ]
    return [*here.objects, *below]


def _card(source: Source, listed: Mapping[str, ObjectInfo], cache: FileCache) -> Mapping[str, Any]:
    if CARD not in listed:
        return {}
    if source.local_folder is not None:
        return read_card(source.local_folder / CARD)
    return read_card(_rows_file(source, CARD, cache))


def _require_splits(
    source: Source, asked: tuple[str, ...] | None, known: Mapping[str, list[str]], *, whole: bool
) -> tuple[str, ...]:
    """The splits to read. Raises DataError for one that is not there."""
    field, role = FIELDS[source.place.role], str(source.place.role)
    wanted = asked if asked is not None else ("train",) if whole else (role,)
    missing = [split for split in wanted if split not in known]
    if not missing:
        return wanted
    if whole:
        raise DataError(
            Reason.SPLIT_NOT_FOUND,
            f"{field}.split asks for {missing[0]!r}, but {field}.uri {source.uri} names one file, which is all of the split 'train': write"
            " train, or train[…] with a slice",
        )
    what = f"{field}.split asks for {missing[0]!r}, but" if asked is not None else f"{field} takes the split {role!r}, but"
    raise DataError(
        Reason.SPLIT_NOT_FOUND,
        f"{what} {field}.uri {source.uri} has no such split: it has {_some(list(known))}; name one of them in {field}.split",
    )


def parent_of_rows(uri: str) -> tuple[str, str | None]:
    """The folder to open for rows, and the file of it that is meant; None: the folder itself is meant."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    inside = HubAddress.parse(uri, dataset=True).path if uri.startswith("hf://") else name
    return (folder, name) if inside and is_rows_file(name) else (uri.rstrip("/"), None)


def _download(source: Source, keys: list[str], target: Path) -> None:
    for key in keys:
        if not source.get_to_file(key, target / key):
            raise user_error(
                source.place,
                Reason.SOURCE_CHANGED,
                f"{FIELDS[source.place.role]}.uri {source.uri}: {key} was removed while it was read: put it back",
            )
        source.grant()


def _model_state(source: Source, state: str, with_code: bool) -> str:
    return f"model{' with code' if with_code else ''} {state}"


def _listed_state(source: Source, items: list[ObjectInfo]) -> str:
    """Names the content of listed objects by place, size and the store's tags."""
    rows = sorted((item.key, item.size, item.tag or "") for item in items)
    described = json.dumps([source.uri, source.place.endpoint, rows])
    return hashlib.sha256(described.encode()).hexdigest()


def _no_such_file(source: Source, name: str, beside: list[str]) -> DataError:
    hint = f"; beside it there are: {_some(beside)}" if beside else "; that folder is empty or does not exist"
    return DataError(Reason.DATA_NOT_FOUND, f"{FIELDS[source.place.role]}.uri {source.uri}/{name} does not exist{hint}")


def _unreadable(source: Source, path: str) -> TrainerError:
    """A source on disk is there, but not for the trainer."""
    return user_error(
        source.place,
        Reason.STORAGE_ACCESS_DENIED,
        f"{FIELDS[source.place.role]}.uri: {path} cannot be read by the trainer, which runs as user {os.getuid()}: let everybody read it",
    )


def _some(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
