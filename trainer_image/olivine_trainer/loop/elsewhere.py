"""A run's artifacts in their second place, outputs.publish."""

from collections.abc import Sequence

from olivine_api.status import ArtifactKind
from olivine_trainer.errors import ConfigurationError
from olivine_trainer.loop.answers import has_head
from olivine_trainer.loop.claim import published_below
from olivine_trainer.loop.outputs import Output
from olivine_trainer.loop.run import Run
from olivine_trainer.reporting.board import finite
from olivine_trainer.reporting.logs import log
from olivine_trainer.storage.credentials import Access
from olivine_trainer.storage.head import require_head
from olivine_trainer.storage.manifest import manifest_of
from olivine_trainer.storage.model_card import ModelCard
from olivine_trainer.storage.publishing import Part, publish_parts

_WHAT: dict[ArtifactKind, str] = {
    "Adapter": "the adapter, which goes onto the base",
    "Model": "the whole tuned model, for transformers",
    "Onnx": "the tuned model for onnxruntime-genai",
}


def publish_elsewhere(run: Run, access: Access, outputs: Sequence[Output]) -> None:
    """Before the run's record: a run that is over has been published everywhere.

    Raises the user's error where the place does not take it; the artifacts in storage are kept.
    """
    identity = run.job.identity
    parts = [Part(one.artifact.kind.lower(), one.folder, manifest_of(one.folder, one.about)) for one in outputs]
    try:
        placed = publish_parts(
            access,
            published_below(identity),
            parts,
            card=_card(run, parts, outputs).render(),
            title=f"{identity.namespace}/{identity.name}, run {identity.uid}",
            may_write=lambda: require_head(run.claim.run, run.claim.attempt),
        )
    except ConfigurationError as error:
        error.message += f"; what was trained is kept at {outputs[0].artifact.uri}"
        raise
    for place in placed:
        run.tracker.events.add(event="PublishedElsewhere", uri=place.uri, commit=place.commit)
        log("published elsewhere", uri=place.uri, commit=place.commit)


def _card(run: Run, parts: Sequence[Part], outputs: Sequence[Output]) -> ModelCard:
    spec, snapshot, identity = run.job.spec, run.board.snapshot, run.job.identity
    base = snapshot.resolved.model
    method = spec.method.type.value
    libraries = {"Adapter": None if method == "Adapter" else "peft", "Model": "transformers", "Onnx": "onnxruntime-genai"}
    folders = ["" if number == 0 else part.name for number, part in enumerate(parts)]
    return ModelCard(
        title=identity.name,
        base_uri=spec.model.uri,
        base_digest=base.digest if base is not None else None,
        license=base.license if base is not None else None,
        method=method,
        library=libraries[outputs[0].artifact.kind],
        task="text-classification" if has_head(spec) else "text-generation",
        contents={folder: _WHAT[one.artifact.kind] for folder, one in zip(folders, outputs, strict=True)},
        metrics=finite(snapshot.metrics),
        baseline=snapshot.baseline,
    )
