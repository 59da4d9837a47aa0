"""What is installed with the package, beside its modules."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_its_types_are_installed_for_those_who_import_it(tmp_path: Path) -> None:
    """Without the marker (PEP 561), type checkers take all of it for `Any`."""
    build = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", *build], cwd=ROOT, check=True
    )
    marked = sorted(path.parent.name for path in (tmp_path / "lib").glob("*/py.typed"))
    assert marked == ["msrrn", "pipelines"]
