"""What operator and builder pod tell each other of one build of an AdapterBundle: the task down, the report up."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from olivine_api.adapterbundle import ADAPTER_LIMIT, AdapterStatus, BaseStatus, BundleModel, BundleStatus, Onnx, Retention, Verify
from olivine_api.base import ApiModel, StatusModel
from olivine_api.publish import Publish
from olivine_api.sources import Storage, Uri
from olivine_api.status import Digest, Message, ShortText, TerminationMessage


class BuildAdapter(ApiModel):
    """One adapter that is wanted."""

    name: ShortText
    uri: Uri
    endpoint: Uri | None = None
    credentials: Annotated[int, Field(ge=0)] | None = None
    """Its Secret's keys stand in the environment behind ENV_ADAPTER_PREFIX with this number; None: storage's, where the scheme is the same."""
    secret: ShortText | None = None
    """The Secret's name, for sentences: in the pod it is optional, so that one that is missing costs this adapter only."""
    digest: Digest | None = None
    """Of the artifact, where a FineTuneJob published it."""
    model_digest: Digest | None = None
    """Of the base that the FineTuneJob trained on; for others the artifact's own manifest.json may tell it."""


class BundleBuild(ApiModel):
    """One build: spec.json in the builder pod's ConfigMap. Everything is resolved; no cluster is asked any more."""

    sequence: Annotated[int, Field(ge=1)]
    """Grows with each build of a bundle: latest.json never goes back to a build with a smaller one."""
    digest: Digest
    """Names the inputs. The storage holds the result by it, so that a pod that comes later repeats it instead of building again."""
    model: BundleModel
    model_digest: Digest | None = None
    """That the base must have, where a FineTuneJob knows it."""
    adapters: Annotated[list[BuildAdapter], Field(max_length=ADAPTER_LIMIT)]
    onnx: Onnx
    verify: Verify
    storage: Storage
    publish: Publish | None = None
    retention: Retention = Retention()


class BuildStage(StrEnum):
    """What the builder is doing."""

    STARTING = "Starting"
    FETCHING = "Fetching"
    BUILDING = "Building"
    VERIFYING = "Verifying"
    PUBLISHING = "Publishing"


class BuildResult(StatusModel):
    """What a build came to; `bundle` is absent where nothing could be published."""

    base: BaseStatus | None = None
    bundle: BundleStatus | None = None
    adapters: Annotated[list[AdapterStatus], Field(max_length=ADAPTER_LIMIT)] = []
    """Ready ones with their numbers, Rejected ones with their reason."""
    not_verified: Message | None = None
    """Why the shipped build could not be run here; then only its fp32 twin was proven."""
    base_reused: bool = False
    """Whether the base of an earlier version was taken as it lay there."""


class BuildSnapshot(StatusModel):
    """Everything that the builder knows, whole in each report."""

    sequence: int
    pod: ShortText = ""
    stage: BuildStage
    verified: int = 0
    """Adapters so far."""
    total: int = 0
    last_update_time: datetime | None = None
    result: BuildResult | None = None
    """At the end only."""


class BuildTermination(TerminationMessage):
    """What the builder's PID 1 leaves in the termination log, at most 4 KiB: what does not fit is left out of the result."""

    build: BuildSnapshot | None = None
