"""A model divided among the ranks by FSDP2 (`fully_shard`): each holds a part of every parameter, gradient and optimizer state.

Beside the divided model stands an ordinary one without weights, its face: evaluation, saving and publishing work with that, and it
has the weights while `whole` is open. So nothing but the optimizer step knows that the model is divided, and a checkpoint is the
same whatever number of ranks wrote it.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from olivine_trainer.world.world import World


class Shards:
    """`model` (on the CPU, whole on every rank) divided; `root` is the module that is called, and holds it."""

    def __init__(self, model: Any, root: nn.Module, world: World, device: torch.device) -> None:
        self._world = world
        self._device = device
        self.face: Any = _without_weights(model)
        self.root = root
        mesh = init_device_mesh(device.type, (world.size,))
        for layer in _layers(model):
            fully_shard(layer, mesh=mesh)
        # What no layer has: embeddings, the last norm, the head.
        fully_shard(root, mesh=mesh, reshard_after_forward=True)
        self._model = model

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The divided parameters, by the face's names, sorted: what the optimizer moves."""
        return dict(sorted(self._model.named_parameters()))

    @property
    def held(self) -> int:
        """Weights that this rank holds between two steps."""
        return sum(
            parameter.to_local().numel() if isinstance(parameter, DTensor) else parameter.numel()
            for parameter in self.parameters.values()
        )

    @contextmanager
    def whole(self, device: torch.device | None = None) -> Generator[None]:
        """The face has the weights, on `device` (default: where training computes). All ranks come."""
        where = device or self._device
        with self._world.collectives():
            full = {name: _full(parameter, where) for name, parameter in self.parameters.items()}
        _put(self.face, full, where)
        del full
        try:
            yield
        finally:
            _drop(self.face)

    def take(self) -> None:
        """The divided model gets the weights that the face has, inside `whole`."""
        own = dict(self.face.named_parameters())
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(divided_like(own[name].detach(), parameter))

    def clip(self, limit: float) -> float:
        """Clip the gradients to a norm over all ranks; returns what it was."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        with self._world.collectives():
            norm = torch.nn.utils.get_total_norm(gradients)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), limit, norm)
        return float(norm)


def gathered(value: torch.Tensor, world: World) -> torch.Tensor:
    """A tensor of the optimizer's, whole, on the CPU. All ranks come."""
    with world.collectives():
        return _full(value, torch.device("cpu"))


def divided_like(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """This rank's part of a tensor that every rank has."""
    if not isinstance(parameter, DTensor) or not value.ndim:
        return value
    mesh: DeviceMesh = parameter.device_mesh
    return distribute_tensor(value.to(parameter.device), mesh, parameter.placements, src_data_rank=None)


def _full(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().to(device)


def _layers(model: Any) -> Iterable[nn.Module]:
    """The model's repeated blocks, as transformers names their classes."""
    names: set[str] = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _without_weights(model: Any) -> Any:
    """The same architecture on no device; buffers (few and small) are the model's own."""
    with torch.device("meta"):
        face = type(model)(model.config)
    face.train(model.training)
    buffers = dict(model.named_buffers())
    for name, module in face.named_modules():
        for key in module._buffers:
            module._buffers[key] = buffers[f"{name}.{key}" if name else key].clone()
    for (name, own), (other, parameter) in zip(model.named_parameters(), face.named_parameters(), strict=True):
        if name != other or own.shape != parameter.shape:
            raise RuntimeError(f"{type(model).__name__} has {name}, made anew it has {other}")
        parameter.requires_grad_(own.requires_grad)
    return face


def _put(face: Any, full: dict[str, torch.Tensor], device: torch.device) -> None:
    """Give each parameter its value; what is tied stays tied."""
    _replace(
        face, {id(parameter): nn.Parameter(full[name], parameter.requires_grad) for name, parameter in face.named_parameters()}
    )
    for module in face.modules():
        for key, buffer in module._buffers.items():
            module._buffers[key] = buffer.to(device) if buffer is not None else None


def _drop(face: Any) -> None:
    _replace(face, {id(own): nn.Parameter(torch.empty_like(own, device="meta"), own.requires_grad) for own in face.parameters()})


def _replace(face: Any, by_id: dict[int, nn.Parameter]) -> None:
    for module in face.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = by_id[id(parameter)]
