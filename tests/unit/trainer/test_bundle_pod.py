"""Builds of one bundle after another in a real S3: what is new is built, the rest stays as it lies."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.adapters import make_peft
from tests.support.bundles import Shop
from tests.support.models import WIDE, make_tiny

_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("Llama", tmp_path_factory.mktemp("wide") / "model", intermediate_size=96, **WIDE)


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "one": make_peft(model, root / "one", seed=1, target_modules=_ATTENTION),
        "two": make_peft(model, root / "two", seed=2, target_modules=_ATTENTION, r=8),
        "more": make_peft(model, root / "more", seed=3, target_modules=["down_proj"]),
    }


@pytest.fixture
def shop(s3: Any, model: Path, tmp_path: Path) -> Shop:
    environ = {"OLIVINE_STORAGE_AWS_ACCESS_KEY_ID": s3.key, "OLIVINE_STORAGE_AWS_SECRET_ACCESS_KEY": s3.secret}
    scratch = tmp_path / "pods"
    scratch.mkdir()
    made = Shop(s3.access(f"s3://bucket/{tmp_path.name}"), environ, scratch)
    made.upload("model", model)
    return made


def test_adding_replacing_and_removing_leave_the_base_alone(shop: Shop, adapters: dict[str, Path]) -> None:
    one, two = shop.upload("one", adapters["one"]), shop.upload("two", adapters["two"])
    first = shop.run(shop.build({"one": one}))
    print(first)
    bases = shop.tags("bases")
    second = shop.run(shop.build({"one": one, "two": two}))
    print(second)
