"""What is published of a tuned model: what training made, the merged model, the ONNX folder, each of them proven and uploaded."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from olivine_api.finetunejob import NAME_LIMIT, NAME_PATTERN, MethodType, OnnxOutput, Outputs
from olivine_api.reasons import Reason
from olivine_api.status import Artifact, ArtifactKind
from olivine_trainer.errors import ModelError
from olivine_trainer.loop.answers import has_head
from olivine_trainer.loop.micro import free_caches
from olivine_trainer.loop.run import Run
from olivine_trainer.methods.merging import MERGE_TOLERANCE, Base, merge_adapter
from olivine_trainer.methods.method import About
from olivine_trainer.reporting.logs import log
from olivine_trainer.storage.manifest import describe
from olivine_trainer.storage.records import upload_artifact

_PROVEN_ROWS = 4
_PROVEN_TOKENS = 128
_PROVEN_PROMPTS = 8
_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True)
class Output:
    """One artifact, its folder on this machine, and what its manifest tells beside the files."""

    artifact: Artifact
    folder: Path
    about: dict[str, Any]


def make_outputs(run: Run, *, everything: bool) -> list[Output]:
    """Export, prove and upload what `outputs` asks for: what training made first, so that it outlives whatever goes wrong later.

    Without `everything` (a gate is unmet) only what training made is kept. The engine is of no use afterwards. Raises ModelError
    with the number where an output does not compute what was trained, InterruptedRunError between two outputs.
    """
    asked = run.job.spec.outputs or Outputs()
    maker = _Maker(run)
    whole = run.job.spec.method.type is MethodType.FULL  # its merged model is what it is
    made: list[Output] = []
    if asked.adapter or (whole and asked.merged) or not everything:
        made.append(maker.upload(maker.own, run.engine.method.kind))
    merges = asked.merged and not whole
    if not everything or not (merges or asked.onnx is not None):
        return made
    run.engine.let_go()
    free_caches()
    try:
        if merges:
            run.stop.check()
            made.append(maker.merged())
        if asked.onnx is not None:
            run.stop.check()
            made.append(maker.onnx(asked.onnx, made[0].artifact.uri if asked.adapter else run.claim.run.uri))
    except ModelError as error:
        kept = made[0] if made else maker.upload(maker.own, run.engine.method.kind)
        raise ModelError(error.reason, f"{error.message}; what was trained is kept at {kept.artifact.uri}") from error
    return made


class _Maker:
    """Makes one output after the other, each in a folder of its own."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.own = self._folder("artifact")
        run.engine.method.export(self.own, About(base_uri=run.job.spec.model.uri, tokenizer=run.evaluator.tokenizer.backend))

    def merged(self) -> Output:
        """The whole model with the adapter folded in. Raises ModelError where it computes something else."""
        run, spec = self._run, self._run.job.spec
        labels = run.sources.rows.labels
        base = Base(
            folder=run.sources.model.folder,
            uri=spec.model.uri,
            labels=labels.names if has_head(spec) and labels is not None else (),
            trust_remote_code=spec.model.trust_remote_code,
        )
        target = self._folder("merged")
        worst = merge_adapter(base, self.own, target, self._texts())
        log("the adapter is merged", maxLogitDifference=worst)
        if not worst <= MERGE_TOLERANCE:
            raise ModelError(
                Reason.PARITY_UNMET,
                f"outputs.merged: a logit of the merged model differs by {worst:.2g} from base and adapter side by side,"
                f" {MERGE_TOLERANCE:g} is allowed: leave outputs.merged out, and merge it where its numbers can be looked at",
            )
        return self.upload(target, "Model", merged=True, maxLogitDifference=worst)

    def onnx(self, asked: OnnxOutput, source: str) -> Output:
        """A folder for onnxruntime-genai: a bundle of the one adapter, or the whole model. Raises ModelError where it computes something else."""
        from olivine_trainer.bundle.single import export_adapter, export_whole  # noqa: PLC0415  (seconds)

        run = self._run
        target = self._folder("onnx")
        prompts = [row.prompt for row in (run.data.validation or run.data.some)[:_PROVEN_PROMPTS]]
        uri = run.job.spec.model.uri
        try:
            if run.engine.method.kind == "Model":
                exported = export_whole(self.own, target, uri=uri, onnx=asked, prompts=prompts)
            else:
                exported = export_adapter(
                    run.sources.model.folder,
                    self.own,
                    target,
                    name=_adapter_name(run.job.identity.name),
                    source=source,
                    onnx=asked,
                    prompts=prompts,
                )
        except ModelError as error:
            raise ModelError(error.reason, f"outputs.onnx: {error.message}") from error
        log("the ONNX folder is proven", maxLogitDifference=exported.max_logit_difference, meanKL=exported.mean_kl)
        # Of a whole model the graph is made of what was trained, not of the base.
        more = {"modelDigest": describe(self.own, {}).digest} if run.engine.method.kind == "Model" else {}
        return self.upload(target, "Onnx", **more)

    def upload(self, folder: Path, kind: ArtifactKind, **more: Any) -> Output:
        """Into the run's folder, under its digest."""
        run = self._run
        about = {**self._about(), **more}
        return Output(upload_artifact(run.claim.run, run.claim.attempt, folder, kind, about), folder, {"kind": kind, **about})

    def _about(self) -> dict[str, Any]:
        spec = self._run.job.spec
        base = self._run.board.snapshot.resolved.model
        return {
            "method": spec.method.type.value,
            "specDigest": self._run.job.spec_digest,
            # What it belongs on: whoever gathers adapters tells one base from another of the same shapes by this.
            "modelUri": spec.model.uri,
            **({"modelDigest": base.digest} if base is not None else {}),
        }

    def _texts(self) -> list[list[int]]:
        rows = (self._run.data.validation or self._run.data.some)[:_PROVEN_ROWS]
        return [[int(token) for token in row.ids[:_PROVEN_TOKENS]] for row in rows]

    def _folder(self, name: str) -> Path:
        folder = self._run.scratch / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder


def _adapter_name(job: str) -> str:
    """The job's own, where a bundle takes it for an adapter."""
    return job if _NAME.match(job) and len(job) <= NAME_LIMIT and job != "base" else "tuned"
