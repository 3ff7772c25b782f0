"""Bringing the sources here: the base model's folder and the rows' files."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from olivine_api.reasons import Reason
from olivine_trainer.digests import folder_digest, sha256_file
from olivine_trainer.errors import DataError, ModelError, TrainerError
from olivine_trainer.storage.failures import FIELDS, user_error
from olivine_trainer.storage.store import Store

# What a model needs; weights in other formats (ONNX, GGUF, TensorFlow) and code are left where they are.
_MODEL_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken")
_PICKLED_WEIGHTS = ".bin"


@dataclass(frozen=True)
class FetchedModel:
    """A base model on disk."""

    folder: Path
    digest: str
    """sha256 over the sorted (path, sha256) of its files."""
    bytes: int


def fetch_model(store: Store, target: Path) -> FetchedModel:
    """Download a folder in Hugging Face layout. Raises ModelError where it is none, with what is there instead."""
    here = store.list_here()
    listed = {item.key: item for item in here.objects}
    if not listed and not here.folders:
        raise ModelError(
            Reason.MODEL_NOT_FOUND,
            f"there is nothing at model.uri {store.uri}: it must name a folder in Hugging Face layout (config.json, *.safetensors, tokenizer)",
        )
    top = list(listed)
    if "config.json" not in top:
        held = top or [f"{name}/" for name in here.folders]
        raise ModelError(
            Reason.MODEL_NOT_FOUND,
            f"model.uri {store.uri} has no config.json: it must name a folder in Hugging Face layout; it holds: {_some(held)}",
        )
    wanted = [key for key in top if key.endswith(_MODEL_SUFFIXES)]
    if not any(key.endswith(".safetensors") for key in wanted):
        wanted += [key for key in top if key.endswith(_PICKLED_WEIGHTS)]
    if not any(key.endswith((".safetensors", _PICKLED_WEIGHTS)) for key in wanted):
        raise ModelError(Reason.MODEL_NOT_FOUND, f"model.uri {store.uri} has no weights (*.safetensors); it holds: {_some(top)}")
    if store.local_folder is not None:
        folder = store.local_folder
    else:
        folder = target
        shutil.rmtree(folder, ignore_errors=True)
        for key in wanted:
            store.get_to_file(key, folder / key)
            store.grant()
    try:
        digest = folder_digest({key: sha256_file(folder / key) for key in wanted})
    except PermissionError as error:
        raise _unreadable(store, str(error.filename)) from None
    return FetchedModel(folder=folder, digest=digest, bytes=sum(listed[key].size for key in wanted))


def fetch_rows_file(store: Store, name: str, target: Path) -> Path:
    """Download one file of rows. Raises DataError where it is not there, with the names that are."""
    local = store.local_folder / name if store.local_folder is not None else target / name
    if store.local_folder is None:
        if store.get_to_file(name, local):
            return local
    else:
        try:
            with local.open("rb"):
                return local
        except PermissionError:
            raise _unreadable(store, str(local)) from None
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            pass  # told below, with what lies beside it
    field = FIELDS[store.place.role]
    try:
        beside = [item.key for item in store.list_here().objects]
    except TrainerError:  # whatever hinders the look: the file is not there
        raise DataError(Reason.DATA_NOT_FOUND, f"{field}.uri {store.uri}/{name} does not exist") from None
    hint = f"; beside it there are: {_some(beside)}" if beside else "; that folder is empty or does not exist"
    raise DataError(Reason.DATA_NOT_FOUND, f"{field}.uri {store.uri}/{name} does not exist{hint}")


def _unreadable(store: Store, path: str) -> TrainerError:
    """A file:// source is there, but not for the trainer."""
    return user_error(
        store.place,
        Reason.STORAGE_ACCESS_DENIED,
        f"{FIELDS[store.place.role]}.uri: {path} cannot be read by the trainer, which runs as user {os.getuid()}: let everybody read it",
    )


def _some(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
