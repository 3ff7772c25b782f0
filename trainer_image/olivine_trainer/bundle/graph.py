"""The surgery: slots for adapters in a finished, quantised graph. The weights' file stays as it is, byte for byte."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from olivine_api.reasons import Reason
from olivine_trainer.bundle.base import MODEL
from olivine_trainer.bundle.slots import Slot
from olivine_trainer.errors import ModelError

_MATMULS = ("MatMul", "MatMulNBits")


def projections_of(folder: Path) -> set[str]:
    """The graph's names of the projections that can have a slot."""
    return set(_projections(ir.load(folder / MODEL).graph))


def add_slots(folder: Path, slots: Sequence[Slot]) -> None:
    """Put slots into the graph in `folder`. Raises ModelError where it has no such projection, or one of another width.

    LoRA stands beside its projection, x·A·B added to what the projection gives; a bottleneck stands behind it, bias included. LoRA
    goes first, as in PyTorch, where the bottleneck wraps the projection. All of it stays fp32, whatever the base was quantised to, and
    in an fp16 graph too: what comes in and goes out is cast, so that an adapter's file is the same at every precision.
    """
    model = ir.load(folder / MODEL)
    found = _projections(model.graph)
    behind: dict[str, ir.Value] = {}
    for number, slot in enumerate(sorted(slots, key=lambda one: (one.kind != "lora", one.name))):
        if slot.projection not in found:
            raise ModelError(Reason.MODEL_UNSUPPORTED, f"the base's graph has no projection {slot.projection}")
        surgeon = _Surgeon(model.graph, found[slot.projection], slot, f"slot{number}")
        behind[slot.projection] = surgeon.operate(behind.get(slot.projection))
    model.graph.sort()
    ir.save(model, folder / MODEL)


def _projections(graph: ir.Graph) -> dict[str, ir.Node]:
    found: dict[str, ir.Node] = {}
    for node in graph:
        name = (node.name or "").removeprefix("/").replace("/", ".")
        if node.op_type in _MATMULS and name.startswith("model.layers.") and ".MatMul" in name:
            found[name[: name.rindex(".MatMul")]] = node
    return found


class _Surgeon:
    """One slot at one projection. What it adds has short names: with hundreds of slots, long ones weigh more than a small adapter may."""

    def __init__(self, graph: ir.Graph, projection: ir.Node, slot: Slot, prefix: str) -> None:
        """`prefix`: of all that the slot adds; no other slot has it."""
        self._graph = graph
        self._projection = projection
        self._slot = slot
        self._prefix = prefix

    def operate(self, behind: ir.Value | None) -> ir.Value:
        """Add the slot's inputs and nodes, let everybody read what they give, and return that; `behind`: what the projection's slot before this one gives."""
        before = behind if behind is not None else self._projection.outputs[0]
        if self._slot.kind == "lora":
            source = self._projection.inputs[0]
        else:
            before = source = self._with_bias(before)
        assert source is not None
        width = before.shape[-1] if before.shape is not None else None
        if width is not None and width != self._slot.outputs:
            raise ModelError(
                Reason.MODEL_UNSUPPORTED, f"{self._slot.projection} is {width} wide in the graph, not {self._slot.outputs}"
            )
        lora = self._slot.kind == "lora"
        users = list(before.uses())
        source = self._cast(source, ir.DataType.FLOAT, "in")
        inner = self._node("MatMul", [source, self._input(self._slot.down)], "down")
        if not lora:
            inner = self._activate(self._node("Add", [inner, self._input(self._slot.down_bias)], "down_bias"))
        outer = self._node("MatMul", [inner, self._input(self._slot.up)], "up")
        if not lora:
            outer = self._node("Add", [outer, self._input(self._slot.up_bias)], "up_bias")
        total = self._node("Add", [before, self._cast(outer, before.dtype, "out")], "add")
        total.type, total.shape = before.type, before.shape
        for user, index in users:
            user.replace_input_with(index, total)
        return total

    def _with_bias(self, value: ir.Value) -> ir.Value:
        """What the projection gives in the end, where the builder adds a bias to it."""
        path = (self._projection.name or "").rpartition("/")[0]
        own = [user for user, _ in value.uses() if user.op_type == "Add" and (user.name or "").startswith(f"{path}/")]
        return own[0].outputs[0] if own else value

    def _input(self, name: str) -> ir.Value:
        """A graph input whose default, an initializer of rank 0, is no adapter."""
        empty = ir.tensor(self._slot.empty()[name], name=name)
        # What differs between adapters has no symbol: where two slots shared one, onnxruntime would reuse the buffer of one rank for another.
        shape = ir.Shape(self._slot.shapes()[name])
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=empty)
        self._graph.inputs.append(value)
        self._graph.register_initializer(value)
        return value

    def _cast(self, value: ir.Value, to: ir.DataType | None, part: str) -> ir.Value:
        own = value.dtype or ir.DataType.FLOAT
        return value if to in (own, None) else self._node("Cast", [value], f"cast_{part}", {"to": to.value})

    def _node(self, op: str, inputs: list[ir.Value], part: str, attributes: dict[str, Any] | None = None) -> ir.Value:
        node = ir.node(op, inputs, attributes or {})
        node.outputs[0].name = f"{self._prefix}.{part}"
        self._graph.append(node)
        return node.outputs[0]

    def _activate(self, value: ir.Value) -> ir.Value:
        match self._slot.kind:
            case "relu":
                return self._node("Relu", [value], "relu")
            case "tanh":
                return self._node("Tanh", [value], "tanh")
            case "silu":
                return self._node("Mul", [value, self._node("Sigmoid", [value], "sigmoid")], "silu")
            case _:  # gelu, exact as in PyTorch: x/2 · (1 + erf(x/√2))
                half = self._node("Mul", [value, self._constant(0.5, "half")], "halved")
                spread = self._node("Mul", [value, self._constant(2**-0.5, "root")], "spread")
                erf = self._node("Add", [self._node("Erf", [spread], "erf"), self._constant(1.0, "one")], "shifted")
                return self._node("Mul", [half, erf], "gelu")

    def _constant(self, number: float, part: str) -> ir.Value:
        name = f"{self._prefix}.{part}"
        tensor = ir.tensor(np.array(number, np.float32), name=name)
        value = ir.Value(name=name, shape=ir.Shape(()), type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor)
        self._graph.register_initializer(value)
        return value
