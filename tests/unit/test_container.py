"""The job worker's container, as far as it can be checked without Docker."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_build_sh_honours_name_and_tag(tmp_path: Path) -> None:
    """From any folder; further flags are Docker's."""
    for variables, image in (
        ({}, "penstock-job-worker:latest"),
        ({"IMAGE_NAME": "my-worker", "IMAGE_TAG": "v1.0"}, "my-worker:v1.0"),
    ):
        environment = {**os.environ, "DOCKER": "echo", **variables}
        done = subprocess.run(
            [ROOT / "build.sh", "--pull"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout == f"build --tag {image} --pull .\n"


def test_the_dockerfile_s_parts_exist() -> None:
    """What it copies is there and not ignored; what it runs can be run."""
    text = (ROOT / "Dockerfile").read_text()
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for words in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for word in words.split()]
    assert copied
    assert set(copied) <= allowed
    assert all((ROOT / path).exists() for path in copied)
    (module,) = re.findall(r'ENTRYPOINT \[.*"-m", "([a-z._]+)"\]', text)
    assert importlib.util.find_spec(module) is not None
