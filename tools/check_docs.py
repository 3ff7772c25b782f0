"""Every relative link and every `make` target in the documentation exists. Part of `make verify`."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
_TARGET = re.compile(r"\bmake ([a-z][a-z-]*)")


def main() -> int:
    """Prints each broken reference; returns their number."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard", "*.md"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    broken: list[str] = []
    for name in listed.stdout.split("\0")[:-1]:
        page = ROOT / name
        if not page.exists():
            continue
        text = page.read_text()
        for link, _ in _LINK.findall(text):
            if "://" not in link and not (page.parent / link).exists():
                broken.append(f"{name}: link to {link}, which does not exist")
        code = " ".join(re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL))
        broken += [
            f"{name}: make {target}, which the Makefile does not have" for target in _TARGET.findall(code) if target not in targets
        ]
    for line in broken:
        print(line)
    return len(broken)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
