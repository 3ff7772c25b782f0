"""The steps that are measured, each in a process of its own: `python -m tests.bench.bundle.steps STEP WORKLOAD [ARGUMENT…]` prints one JSON object."""

import contextlib
import importlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from tests.bench.bundle.decode import with_threads
from tests.bench.bundle.workload import WIDE, Workload, make_adapters

Result = dict[str, Any]


@contextlib.contextmanager
def _clock(result: Result, name: str) -> Generator[None]:
    began, wall = time.process_time(), time.perf_counter()
    yield
    result[name] = time.process_time() - began
    result[f"{name}_wall"] = time.perf_counter() - wall


def _import_all() -> None:
    """What everybody needs for seconds before the first line of work."""
    for name in ("torch", "peft", "onnx_ir", "onnxruntime_genai.models.builder", "transformers.models.auto.modeling_auto"):
        importlib.import_module(name)


def adapters(load: Workload) -> Result:
    """What everybody starts from."""
    make_adapters(load)
    sizes = {name: _bytes(load.adapter(name)) for name in [*load.names(load.most), WIDE]}
    return {"bytes": sizes}


def bundle(load: Workload, precision: str, count: str) -> Result:
    """`olivine-train bundle build`, its proof included; `count`: adapters, or `all`."""
    from olivine_trainer.bundle.build import build_bundle
    from olivine_trainer.bundle.spec import parse_build

    _import_all()
    names = [WIDE] if count == WIDE else load.names(int(count))
    raw = {
        "model": {"uri": Path(load.model).absolute().as_uri()},
        "adapters": [{"name": name, "uri": load.adapter(name).as_uri()} for name in names],
        "onnx": {"precision": precision},
        "verify": {"maxExtraKL": 10.0},
    }
    target = load.folder / f"bundle-{precision}-{count}"
    result: Result = {}
    with _clock(result, "cpu"):
        report = build_bundle(parse_build(raw, "the bench"), target)
    sizes = {path.name: path.stat().st_size for path in (target / "adapters").iterdir()}
    ready = [one for one in report.adapters if one.state == "Ready"]
    if len(ready) != len(names):
        raise SystemExit(f"adapters were rejected: {report.adapters}")
    return result | {
        "bytes": _bytes(target),
        "adapter_bytes": sum(sizes.values()),
        "max_logit_difference": max(one.max_logit_difference or 0.0 for one in ready),
        "top1": ready[0].shipped_top1_agreement,
        "greedy": ready[0].shipped_greedy_agreement,
        "kl": ready[0].mean_kl,
        "base_kl": ready[0].base_mean_kl,
    }


def graph_only(load: Workload, precision: str) -> Result:
    """The same without any proof: base, slots and files of the largest bundle; `next`: one adapter more for the base that is there."""
    from olivine_trainer.bundle.base import MODEL, build_base
    from olivine_trainer.bundle.files import BASE, adapter_path, pad, write_adapter
    from olivine_trainer.bundle.graph import add_slots
    from olivine_trainer.bundle.peft_reader import read_peft
    from olivine_trainer.bundle.reference import Reference
    from olivine_trainer.bundle.slots import choose_slots, linears_of

    _import_all()
    result: Result = {}
    folder = load.folder / f"unproven-{precision}"
    graph = folder / MODEL
    with _clock(result, "cpu"):
        build_base(Path(load.model), folder, precision)  # pyright: ignore[reportArgumentType]
        bare = graph.read_bytes()
        linears = linears_of(Reference(Path(load.model), load.model).model)
        found = {name: read_peft(load.adapter(name), linears) for name in load.names(load.most)}
        slots = choose_slots((slot for one in found.values() for slot in one.slots), linears, "Union")
        add_slots(folder, slots)
        write_adapter(adapter_path(folder, BASE), pad({}, slots))
        for name, one in found.items():
            write_adapter(adapter_path(folder, name), pad(one.tensors, slots))
    with _clock(result, "next"):
        graph.write_bytes(bare)
        name = load.names(load.most + 1)[-1]
        one = read_peft(load.adapter(name), linears)
        slots = choose_slots([*slots, *one.slots], linears, "Union")
        add_slots(folder, slots)
        write_adapter(adapter_path(folder, BASE), pad({}, slots))
        write_adapter(adapter_path(folder, name), pad(one.tensors, slots))
    shutil.rmtree(folder)
    return result


def plain(load: Workload, precision: str) -> Result:
    """The same base without slots."""
    from olivine_trainer.bundle.base import build_base

    _import_all()
    result: Result = {}
    target = load.folder / f"plain-{precision}"
    with _clock(result, "cpu"):
        build_base(Path(load.model), target, precision)  # pyright: ignore[reportArgumentType]
    return result | {"bytes": _bytes(target)}


def merged(load: Workload, precision: str, name: str) -> Result:
    """What people do without slots: peft's merge_and_unload, then onnxruntime-genai's builder with its own defaults."""
    import tempfile

    from onnxruntime_genai.models.builder import create_model, parse_extra_options
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _import_all()
    target, result = load.folder / f"merged-{precision}-{name}", {}
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr), _clock(result, "cpu"):
        base = AutoModelForCausalLM.from_pretrained(load.model)
        whole: Any = PeftModel.from_pretrained(base, str(load.adapter(name)))
        whole.merge_and_unload().save_pretrained(f"{scratch}/merged")
        AutoTokenizer.from_pretrained(load.model).save_pretrained(f"{scratch}/merged")
        where = ("", f"{scratch}/merged", str(target), precision, "cpu", f"{scratch}/cache")
        create_model(*where, **parse_extra_options(*where, []))
    return result | {"bytes": _bytes(target)}


def divergence(load: Workload, folder: str, name: str) -> Result:
    """Mean KL of a merged model from PyTorch with the adapter, over the texts of a bundle's proof."""
    from olivine_trainer.bundle import reference
    from olivine_trainer.bundle.onnx_model import OnnxModel, stop_tokens
    from olivine_trainer.bundle.parity import mean_divergence
    from olivine_trainer.bundle.verify import ANSWER_TOKENS, PROMPTS

    torch = reference.Reference(Path(load.model), load.model)
    model, stops = torch.adapted(load.adapter(name)), stop_tokens(load.folder / folder)
    texts: list[list[int]] = []
    for prompt in PROMPTS:
        ids = [int(token) for token in torch.tokenizer.encode(prompt)]
        texts.append(ids + [token for token in reference.answer(model, ids, ANSWER_TOKENS, stops) if token not in stops])
    wanted = [reference.logits(model, text) for text in texts]
    return {"kl": mean_divergence(texts, wanted, OnnxModel(load.folder / folder), None)}


def one_more(load: Workload, precision: str) -> Result:
    """Two builds as a builder pod makes them, in one process: the first, and the same bundle with one adapter more."""
    from olivine_api.sources import Storage
    from olivine_trainer.storage.credentials import access_to
    from olivine_trainer.storage.store import Store
    from tests.support.bundles import Shop

    root = load.folder / f"store-{precision}"
    root.mkdir()
    storage = Storage(uri=root.as_uri())
    access = access_to(storage, storage, "storage", {})
    shop = Shop(access, {}, load.folder / f"pods-{precision}", onnx={"precision": precision}, verify={"maxExtraKL": 10.0})
    shop.scratch.mkdir()
    shutil.copytree(load.model, root / "model")
    shutil.copytree(load.folder / "adapters", root / "adapters")
    assert isinstance(shop.store, Store)
    _import_all()
    places = {name: f"{storage.uri}/adapters/{name}" for name in load.names(load.most + 1)}
    result: Result = {}
    with _clock(result, "first"):
        shop.run(shop.build({name: places[name] for name in load.names(load.most)}))
    with _clock(result, "next"):
        found = shop.run(shop.build(places))
    return result | {"base_reused": found.base_reused, "ready": sum(one.state == "Ready" for one in found.adapters)}


def switch(load: Workload, folder: str) -> Result:
    """What a switch adds to the token after it: pairs of tokens, the first after a switch and the second not, medians."""
    import numpy as np

    from olivine_trainer.bundle.onnx_model import OnnxModel

    onnx = OnnxModel(with_threads(load, folder))
    names = [path.stem for path in sorted((load.folder / folder / "adapters").glob("*.onnx_adapter")) if path.stem != "base"][:2]
    generator = onnx.generator(8 + 2 * load.switches + 4)
    onnx.activate(generator, names[0])
    generator.append_tokens(np.array([[5, 6, 7, 8]], np.int32))
    calls: list[float] = []
    first: list[float] = []
    second: list[float] = []
    for turn in range(load.switches):
        calls.append(onnx.activate(generator, names[turn % len(names)]))
        for taken in (first, second):
            began = time.process_time()
            generator.append_tokens(np.array([[9]], np.int32))
            taken.append(1e6 * (time.process_time() - began))
    extra = float(np.median(np.array(first) - np.array(second)))
    return {"call": float(np.median(calls)), "token": extra, "load": float(np.median(list(onnx.load_milliseconds.values())))}


def opened(load: Workload, folder: str) -> Result:
    """Loading a folder, and the memory that it takes."""
    genai: Any = importlib.import_module("onnxruntime_genai")  # its classes have no types
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result: Result = {}
    with _clock(result, "cpu"):
        model = genai.Model(str(load.folder / folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=64)
    generator = genai.Generator(model, parameters)
    generator.append_tokens([[5, 6, 7, 8]])
    return result | {"bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name not in ("report.json",))


STEPS: dict[str, Callable[..., Result]] = {
    one.__name__: one for one in (adapters, bundle, graph_only, plain, merged, divergence, one_more, switch, opened)
}

if __name__ == "__main__":
    from tests.bench.bundle.decode import decode

    chosen, path, *more = sys.argv[1:]
    made = (STEPS | {"decode": decode})[chosen](Workload.load(Path(path)), *more)
    made["peak_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(made))
