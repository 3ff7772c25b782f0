"""What every cluster's store holds before anybody uses it: the base model, and the rows of the examples."""

from collections.abc import Mapping
from pathlib import Path

import obstore
from obstore.store import S3Store

from devcluster import basemodel
from devcluster.console import say
from devcluster.paths import CHECKOUT
from devcluster.s3 import Access

MODEL = ("models", "smollm2-135m-instruct")
# Where examples/*.yaml look for their rows.
ROWS = ("olivine", "data")


def upload(access: Access) -> None:
    """Puts all of it into the buckets, but for files of the same size that are there."""
    # The configuration goes last: who finds it finds a whole model.
    model = sorted(basemodel.files(basemodel.base_model().build()), key=lambda path: path.name == "config.json")
    _upload(access, *MODEL, {path.name: path for path in model})
    _upload(access, *ROWS, {path.name: path for path in sorted((CHECKOUT / "examples" / "data").iterdir())})


def _upload(access: Access, bucket: str, prefix: str, files: Mapping[str, Path]) -> None:
    store = S3Store(
        bucket,
        prefix=prefix,
        endpoint=access.endpoint,
        access_key_id=access.key,
        secret_access_key=access.secret,
        region=access.region,
        client_options={"allow_http": True},
    )
    there = {item["path"]: item["size"] for batch in obstore.list(store) for item in batch}
    missing = [name for name, path in files.items() if there.get(name) != path.stat().st_size]
    if missing:
        say(f"uploading {', '.join(missing) if len(missing) < 3 else f'{len(missing)} files'} to s3://{bucket}/{prefix}")
    for name in missing:
        obstore.put(store, name, files[name])
