"""A bundle by its address: a folder of this machine, of a store, or a repository of a hub; a bundle's root means its newest version."""

import json
from collections.abc import Mapping
from pathlib import Path

from olivine_api.sources import Source, Storage
from olivine_trainer.bundle.check import BundleDamagedError
from olivine_trainer.bundle.layout import LATEST
from olivine_trainer.bundle.manifest import HUBS_OWN, MANIFEST
from olivine_trainer.storage.cache import FileCache
from olivine_trainer.storage.credentials import access_to
from olivine_trainer.storage.source import open_source


def find_bundle(where: str, environ: Mapping[str, str], scratch: Path) -> Path:
    """The folder of a version. `where`: a path, or an address, whose credentials are the plain ones of the environment.

    From a store or a hub every file is brought into `scratch`. Raises BundleDamagedError where there is no bundle.
    """
    if "://" not in where:
        return _newest(Path(where))
    access = access_to(Source.model_construct(uri=where), Storage.model_construct(uri=where), "bundle", environ)
    source = open_source(access, FileCache(scratch / "cache"), scratch, environ)
    if source.local_folder is not None:
        return _newest(source.local_folder)
    here = {item.key for item in source.list_here().objects}
    if LATEST in here and MANIFEST not in here:
        source.get_to_file(LATEST, scratch / LATEST)
        source = source.sub(_digest_in(scratch / LATEST))
    folder = scratch / "bundle"
    items = [item for item in source.list() if access.scheme != "hf" or item.key not in HUBS_OWN]
    if not any(item.key == MANIFEST for item in items):
        raise BundleDamagedError(f"{source.uri} has no {MANIFEST}: it is no bundle of Olivine, or not a whole one")
    for item in items:
        if not (folder / item.key).resolve().is_relative_to(folder.resolve()):
            raise BundleDamagedError(f"{source.uri} holds {item.key}, outside the folder")
        source.get_to_file(item.key, folder / item.key)
    return folder


def _newest(folder: Path) -> Path:
    if (folder / LATEST).is_file() and not (folder / MANIFEST).exists():
        return folder / _digest_in(folder / LATEST)
    return folder


def _digest_in(path: Path) -> str:
    try:
        digest = json.loads(path.read_bytes())["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleDamagedError(f"{LATEST} is unreadable ({error})") from None
    if not isinstance(digest, str) or not digest.isalnum():
        raise BundleDamagedError(f"{LATEST} names the version {digest!r}, which is no digest")
    return digest
