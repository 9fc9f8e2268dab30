"""What an installed jaxnn shows of itself: its modules, its version, and that it is typed."""

import tomllib
from pathlib import Path

import jaxnn

ROOT = Path(__file__).parents[1]
INTERNAL = {"compatibility", "errors", "jaxprs", "minibatches", "precision", "types"}


def test_every_module_can_be_reached_by_name():
    files = {path.stem for path in (ROOT / "jaxnn").iterdir() if not path.stem.startswith("__")}
    assert set(jaxnn.__all__) == files - INTERNAL - {"py"}
    assert all(getattr(jaxnn, name).__name__ == f"jaxnn.{name}" for name in dir(jaxnn))


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert jaxnn.__version__ == project["version"]


def test_type_checkers_may_read_the_annotations():
    assert (Path(jaxnn.__file__).parent / "py.typed").exists()
