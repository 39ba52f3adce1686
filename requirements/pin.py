"""Rewrite the pinned requirement files from what is installed in this environment: `make pins`.

Each file holds the whole closure of an extra in pyproject.toml, minus what a file it builds on holds already, so that
`pip install --no-deps -r` needs no resolver. `gpu.txt` comes from a resolver's report instead, see its head.
"""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
# Installed first and apart, because which build fits depends on the machine.
APART = {"torch"}
# Only CUDA builds exist; vLLM and LMCache run text models on CPU without them, and transformers breaks with them.
UNWANTED = {"torchvision", "torchaudio", "torchcodec"}


def closure(roots: list[str]) -> set[str]:
    """Return the canonical names of everything `roots` (requirement strings) need, themselves included."""
    found: set[str] = set()
    todo = [(Requirement(root), "") for root in roots]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in APART | UNWANTED or (name in found and not requirement.extras):
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            sys.stderr.write(f"not installed, left out: {requirement}\n")
            continue
        found.add(name)
        for need in needs:
            todo.extend((Requirement(need), wanted) for wanted in ("", *requirement.extras))
    return found


def main() -> None:
    """Write base.txt, cpu.txt, test.txt, dev.txt and bench.txt."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    base = closure([*project["dependencies"], "setuptools"])
    cpu = closure(extras["cpu"]) - base
    test = closure(extras["test"]) - base
    dev = closure(extras["dev"]) - base - test
    bench = closure(extras["bench"]) - base - cpu
    for file, names in (("base", base), ("cpu", cpu), ("test", test), ("dev", dev), ("bench", bench)):
        pins = "".join(f"{name}=={distribution(name).version.split('+')[0]}\n" for name in sorted(names))
        (HERE / f"{file}.txt").write_text(f"# Written by requirements/pin.py; do not edit.\n{pins}")
        sys.stderr.write(f"{file}.txt: {len(names)} packages\n")


if __name__ == "__main__":
    main()
