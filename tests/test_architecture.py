"""The layout is a checked fact: imports go down, `__init__` files hand on names, nothing private.

Files are read with `ast`, never imported. Each rule is also run on a small source that breaks it.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TIERS = (
    ("compatibility", "errors", "types", "tree", "precision"),
    ("jaxprs",),
    ("linalg", "nn", "losses", "regularizers", "metrics", "minibatches", "schedules"),
    (
        *("optimizers", "training", "data", "search", "generative"),
        *("kernels", "curvature", "parallel"),
    ),
    (
        *("perceptron", "boolean", "signal", "convergence", "pruning"),
        *("approximation", "generalization"),
    ),
)
TIER = {name: tier for tier, names in enumerate(TIERS) for name in names}
FOUNDATION = 0  # its few files may import each other, as the files of one package may
APART = "autodiff"  # neither imports jaxnn nor is imported by it
OUTSIDE = {"jax", "jaxlib", "jaxtyping", "numpy", *sys.stdlib_module_names}
VAGUE = {"util", "core", "common", "misc", "helper", "backend"}
LONGEST = 500
DEFENCE = f"{LONGEST} lines"  # words that the docstring of a longer file has to contain

Files = dict[str, str]
"""Path from the repository root ↦ source."""


def files_below(*folders: str) -> Files:
    paths = [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]
    return {p.relative_to(ROOT).as_posix(): p.read_text(encoding="utf-8") for p in paths}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(path: str, source: str) -> Iterator[tuple[str, str | None, str]]:
    """(module, name or None, name it is bound to) of every import, at any depth of the file."""
    parents = module_name(path).split(".")
    package = parents if path.endswith("/__init__.py") else parents[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield module, alias.name, alias.asname or alias.name


def dependencies(path: str, files: Files) -> set[str]:
    """Modules of jaxnn that a file imports; a submodule rather than its package where it can be."""
    modules = {module_name(p) for p in files}
    targets = {
        f"{module}.{name}" if f"{module}.{name}" in modules else module
        for module, name, _ in imported(path, files[path])
    }
    return {t for t in targets if t.split(".")[0] == "jaxnn"}


def room(module: str) -> str:
    """The file or package directly below jaxnn that a module belongs to; "" for jaxnn itself."""
    return module.split(".")[1] if "." in module else ""


def wrong_directions(files: Files) -> Iterator[str]:
    for path in files:
        own = room(module_name(path))
        if own == "":
            continue
        if own != APART and own not in TIER:
            yield f"{path}: {own} has no tier"
            continue
        for target in dependencies(path, files):
            other = room(target)
            if other == own:
                continue
            if other == "":
                yield f"{path}: imports the whole package"
            elif APART in (own, other):
                yield f"{path}: {own} and {other} are apart"
            elif other not in TIER:
                yield f"{path}: imports {target}, which has no tier"
            elif TIER[other] > TIER[own]:
                yield f"{path}: imports {target} upward"
            elif TIER[other] == TIER[own] != FOUNDATION:
                yield f"{path}: imports {target} sideways"


def cycles(files: Files) -> Iterator[str]:
    graph = {module_name(p): dependencies(p, files) for p in files}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> Iterator[str]:
        if module in above:
            yield f"cycle: {' -> '.join([*above[above.index(module) :], module])}"
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                yield from visit(target, (*above, module))
            done.add(module)

    for module in graph:
        yield from visit(module, ())


def foreign_imports(files: Files) -> Iterator[str]:
    for path, source in files.items():
        for module, _, _ in imported(path, source):
            if module.split(".")[0] not in {*OUTSIDE, "jaxnn"}:
                yield f"{path}: imports {module}, which the library does not depend on"


def jax_internals(files: Files) -> Iterator[str]:
    for path, source in files.items():
        bound = {}
        used = set()
        for module, name, alias in imported(path, source):
            whole = module if name is None else f"{module}.{name}"
            used.add(whole)
            bound[alias] = alias if name is None and alias == module.split(".")[0] else whole
        for node in ast.walk(ast.parse(source)):
            attributes = []
            while isinstance(node, ast.Attribute):
                attributes.append(node.attr)
                node = node.value
            if attributes and isinstance(node, ast.Name) and node.id in bound:
                used.add(".".join([bound[node.id], *reversed(attributes)]))
        for dotted in sorted(used):
            first, *rest = dotted.split(".")
            private = any(p.startswith("_") and not p.startswith("__") for p in rest)
            internal = rest[:1] in (["core"], ["interpreters"])
            if first in ("jax", "jaxlib") and (private or internal):
                yield f"{path}: uses {dotted}, which is internal to jax"


def prints(files: Files) -> Iterator[str]:
    for path, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print":
                yield f"{path}:{node.lineno}: prints"


def vague_names(files: Files) -> Iterator[str]:
    for path in files:
        for part in module_name(path).split("."):
            if part.strip("_").removesuffix("s") in VAGUE:
                yield f"{path}: the name {part} says nothing"


def shadowed_modules(files: Files) -> Iterator[str]:
    """A package that hands on a function `f` from its module `f` hides the module."""
    modules = {module_name(p) for p in files}
    for path in files:
        if path.endswith("/__init__.py"):
            package = module_name(path)
            for module, name, alias in imported(path, files[path]):
                is_module = name is None or f"{module}.{name}" in modules
                if not is_module and f"{package}.{alias}" in modules:
                    yield f"{path}: hands on {alias}, the name of a module"


def busy_inits(files: Files) -> Iterator[str]:
    for path, source in files.items():
        if not path.endswith("/__init__.py"):
            continue
        body = ast.parse(source).body
        if ast.get_docstring(ast.parse(source)) is not None:
            body = body[1:]
        for node in body:
            names_all = (
                isinstance(node, ast.Assign)
                and [getattr(t, "id", None) for t in node.targets] == ["__all__"]
                and isinstance(node.value, (ast.List, ast.Tuple))
                and all(isinstance(e, ast.Constant) for e in node.value.elts)
            )
            # Modules handed on when first named (PEP 562), with imports for type checkers alone.
            lazy = isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__")
            parts = [node]
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                parts = node.body + node.orelse
            hands_on = all(isinstance(part, (ast.Import, ast.ImportFrom)) for part in parts)
            if not (names_all or lazy or hands_on):
                yield f"{path}:{node.lineno}: does more than hand on names"


def long_files(files: Files) -> Iterator[str]:
    for path, source in files.items():
        length = len(source.splitlines())
        if length > LONGEST and DEFENCE not in (ast.get_docstring(ast.parse(source)) or ""):
            yield f"{path}: {length} lines, and no word on why more than {DEFENCE}"


def future_annotations(files: Files) -> Iterator[str]:
    for path, source in files.items():
        if any(m == "__future__" and n == "annotations" for m, n, _ in imported(path, source)):
            yield f"{path}: postpones annotations, which breaks shape strings"


LIBRARY_RULES = (
    *(wrong_directions, cycles, foreign_imports, prints, vague_names),
    *(shadowed_modules, busy_inits),
)
RULES = (jax_internals, long_files, future_annotations)


@pytest.mark.parametrize("rule", [*LIBRARY_RULES, *RULES])
def test_the_library_keeps(rule):
    files = files_below("jaxnn")
    assert "jaxnn/nn/limit.py" in files
    assert list(rule(files)) == []


@pytest.mark.parametrize("rule", RULES)
def test_experiments_and_tests_keep(rule):
    files = files_below("experiments", "tests")
    assert "tests/test_architecture.py" in files
    assert list(rule(files)) == []


LONG = "x = 1\n" * (LONGEST + 1)

BROKEN = [
    (wrong_directions, {"jaxnn/zoo.py": ""}, "zoo has no tier"),
    (wrong_directions, {"jaxnn/tree.py": "import jaxnn.nn.layers"}, "jaxnn.nn.layers upward"),
    (wrong_directions, {"jaxnn/tree.py": "from jaxnn import nn", "jaxnn/nn.py": ""}, "nn upward"),
    (wrong_directions, {"jaxnn/nn/a.py": "from ..kernels.b import c"}, "kernels.b upward"),
    (wrong_directions, {"jaxnn/nn/a.py": "def f():\n  from jaxnn.signal import g"}, "upward"),
    (wrong_directions, {"jaxnn/losses.py": "from jaxnn.nn.layers import dense"}, "sideways"),
    (wrong_directions, {"jaxnn/kernels/a.py": "from jaxnn.curvature import b"}, "sideways"),
    (wrong_directions, {"jaxnn/losses.py": "import jaxnn"}, "imports the whole package"),
    (wrong_directions, {"jaxnn/losses.py": "from jaxnn import zoo"}, "imports the whole package"),
    (wrong_directions, {"jaxnn/losses.py": "import jaxnn.zoo"}, "jaxnn.zoo, which has no tier"),
    (wrong_directions, {"jaxnn/autodiff/a.py": "from jaxnn.types import Array"}, "are apart"),
    (wrong_directions, {"jaxnn/signal.py": "from jaxnn.autodiff import b"}, "are apart"),
    (
        cycles,
        {"jaxnn/tree.py": "from jaxnn.types import A", "jaxnn/types.py": "import jaxnn.tree"},
        "jaxnn.tree -> jaxnn.types -> jaxnn.tree",
    ),
    (
        cycles,
        {
            "jaxnn/nn/__init__.py": "from jaxnn.nn.a import b",
            "jaxnn/nn/a.py": "from jaxnn.nn import c",
        },
        "jaxnn.nn -> jaxnn.nn.a -> jaxnn.nn",
    ),
    (
        cycles,
        {"jaxnn/nn/a.py": "from . import b", "jaxnn/nn/b.py": "def f():\n  from .a import c"},
        "jaxnn.nn.a -> jaxnn.nn.b -> jaxnn.nn.a",
    ),
    (foreign_imports, {"jaxnn/losses.py": "import optax"}, "imports optax"),
    (foreign_imports, {"jaxnn/data.py": "from sklearn.datasets import load_iris"}, "sklearn"),
    (foreign_imports, {"jaxnn/data.py": "def f():\n  import flax.nnx"}, "imports flax.nnx"),
    (jax_internals, {"jaxnn/tree.py": "from jax._src import core"}, "uses jax._src.core"),
    (jax_internals, {"jaxnn/tree.py": "from jax import core"}, "uses jax.core"),
    (jax_internals, {"jaxnn/tree.py": "import jax.core as c"}, "uses jax.core"),
    (jax_internals, {"jaxnn/tree.py": "import jax\njax.core.Tracer"}, "uses jax.core.Tracer"),
    (jax_internals, {"jaxnn/tree.py": "import jax.numpy\njax.interpreters.ad"}, "interpreters.ad"),
    (jax_internals, {"jaxnn/tree.py": "import jax as j\nj._src.api()"}, "uses jax._src.api"),
    (jax_internals, {"tests/a.py": "import jax.numpy as jnp\njnp._x(1).y"}, "uses jax.numpy._x"),
    (jax_internals, {"experiments/a.py": "from jaxlib import _jax"}, "uses jaxlib._jax"),
    (prints, {"jaxnn/tree.py": "def f(x):\n  print(x)"}, "tree.py:2: prints"),
    (vague_names, {"jaxnn/nn/utils.py": ""}, "utils says nothing"),
    (vague_names, {"jaxnn/backends/a.py": ""}, "backends says nothing"),
    (vague_names, {"jaxnn/nn/_helper.py": ""}, "_helper says nothing"),
    (vague_names, {"jaxnn/core.py": ""}, "core says nothing"),
    (
        shadowed_modules,
        {"jaxnn/nn/__init__.py": "from jaxnn.nn.mlp import mlp", "jaxnn/nn/mlp.py": ""},
        "hands on mlp",
    ),
    (
        shadowed_modules,
        {"jaxnn/nn/__init__.py": "from .networks import net as mlp", "jaxnn/nn/mlp.py": ""},
        "hands on mlp",
    ),
    (busy_inits, {"jaxnn/nn/__init__.py": '"""Doc."""\nx = 1'}, ":2: does more"),
    (busy_inits, {"jaxnn/nn/__init__.py": "def f(): ..."}, "does more"),
    (busy_inits, {"jaxnn/nn/__init__.py": "__all__ = sorted(globals())"}, "does more"),
    (busy_inits, {"jaxnn/__init__.py": "if True:\n  from jaxnn import nn"}, "does more"),
    (busy_inits, {"jaxnn/__init__.py": "if TYPE_CHECKING:\n  x = 1"}, "does more"),
    (busy_inits, {"jaxnn/__init__.py": "if TYPE_CHECKING:\n  import a\nelse: f()"}, "does more"),
    (long_files, {"jaxnn/tree.py": LONG}, "501 lines"),
    (long_files, {"tests/a.py": '"""It is long."""\n' + LONG}, "502 lines"),
    (future_annotations, {"tests/a.py": "from __future__ import annotations"}, "postpones"),
]


@pytest.mark.parametrize(("rule", "files", "complaint"), BROKEN)
def test_a_broken_source_is_seen(rule, files, complaint):
    complaints = list(rule(files))
    assert complaints
    assert any(complaint in c for c in complaints), complaints


SOUND = {
    "jaxnn/__init__.py": '"""Doc."""\nif TYPE_CHECKING:\n  from jaxnn import nn, kernels\n'
    '__all__ = ["nn", "kernels"]\ndef __getattr__(name):\n  return name',
    "jaxnn/types.py": "import jax\nArray = jax.Array",
    "jaxnn/tree.py": "from jaxnn.types import Array\nfrom jax.extend import core",
    "jaxnn/nn/__init__.py": "from jaxnn.nn import a\nfrom jaxnn.nn.b import f",
    "jaxnn/nn/a.py": "from jaxnn import tree\nimport jax\njax.extend.core.Jaxpr, jax.__version__",
    "jaxnn/nn/b.py": "from . import a\nfrom functools import reduce\nimport numpy as np",
    "jaxnn/kernels/__init__.py": "from jaxnn.kernels.c import g as h",
    "jaxnn/kernels/c.py": f'"""More than {DEFENCE}: a table."""\nfrom jaxnn import nn\n' + LONG,
    "jaxnn/autodiff/__init__.py": "from jaxnn.autodiff.graph import node",
    "jaxnn/autodiff/graph.py": '"""Mentions print(x) and jax.core only in words."""\nimport math',
}


@pytest.mark.parametrize("rule", [*LIBRARY_RULES, *RULES])
def test_a_sound_source_passes(rule):
    assert list(rule(SOUND)) == []
