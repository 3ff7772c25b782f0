"""What a bundle is built from, outside of Kubernetes: the part of an AdapterBundle's spec that the builder reads, with folders of this machine."""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import ConfigDict, Field, ValidationError

from olivine_api import names
from olivine_api.adapterbundle import ADAPTER_LIMIT, Adapter, BundleModel, Onnx, Verify
from olivine_api.base import ApiModel, Rule
from olivine_api.reasons import Reason
from olivine_trainer.errors import ConfigurationError


class BuildSpec(ApiModel):
    """An AdapterBundle's model, adapters, onnx and verify; the rest is the operator's."""

    model_config = ConfigDict(extra="ignore")

    rules = (
        Rule(
            holds=lambda s: len({adapter.name for adapter in s.adapters}) == len(s.adapters),
            message="two entries of adapters have the same name: give each its own",
        ),
    )

    model: BundleModel
    adapters: Annotated[list[Adapter], Field(min_length=1, max_length=ADAPTER_LIMIT)]
    onnx: Onnx = Onnx()
    verify: Verify = Verify()


def parse_build(raw: Any, source: str) -> BuildSpec:
    """A whole AdapterBundle, or its spec alone. Raises ConfigurationError naming the field."""
    if isinstance(raw, dict) and "kind" in raw:
        if raw["kind"] != "AdapterBundle" or raw.get("apiVersion") != names.API_VERSION:
            kind = f"{raw.get('apiVersion')} {raw['kind']}"
            raise ConfigurationError(Reason.INVALID_SPEC, f"{source} is a {kind}: it must be a {names.API_VERSION} AdapterBundle")
        raw = raw.get("spec")
    try:
        return BuildSpec.model_validate(raw)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}".lstrip(": ") for one in error.errors()[:4])
        raise ConfigurationError(Reason.INVALID_SPEC, f"{source}: {said}") from None


def local_folder(uri: str | None, field: str) -> Path:
    """The folder of a file:// address. Raises ConfigurationError for any other."""
    parts = urlsplit(uri or "")
    if parts.scheme != "file" or parts.netloc:
        raise ConfigurationError(
            Reason.INVALID_SPEC,
            f"{field} is {uri!r}: outside a pod a bundle is built from folders of this machine, write file:///path",
        )
    return Path(unquote(parts.path))
