"""Which experiments there are, found by looking at the folder and importing none of them.

An experiment is a module that defines Config, run, verdict and plot; its file name is its name. Its
scales are SMOKE, Config() itself and PAPER; with TOUR = Config(...) it is on the tour as well.
Reading the names from the syntax tree keeps `list` and a mistyped name from importing JAX.
"""

import ast
import difflib
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import experiments

SCALES = ("smoke", "quick", "paper")
"""Those that every experiment has; some also have a scale "tour", for `on_tour`."""

_DEFINES = {"Config", "run", "verdict", "plot"}
_TAG = re.compile(r"\[(S\d+\.\d+[^\]]*)\]")


class UnknownName(ValueError):
    """A name that is none of those there are, with the nearest one."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = list(known)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")


class UnusableRecord(ValueError):
    """A stored run that this version cannot read or draw, and must be made again."""

    def __init__(self, where: str, reason: str):
        super().__init__(f"{where}: {reason}; run the experiment again")


@dataclass(frozen=True)
class Experiment:
    """What can be said of an experiment without running it.

    claim   the docstring's first line, without source and tag
    source  the rest of the docstring: theorem, what is measured and why
    tags    items of the source texts' inventory, as S0.57
    on_tour whether the module defines a TOUR = Config(...) of some ten seconds
    """

    name: str
    claim: str
    source: str
    tags: tuple[str, ...]
    on_tour: bool = False

    def load(self) -> ModuleType:
        """The imported module, which has all that an experiment needs.

        Errors: ValueError if SMOKE or PAPER is missing, or one of them or TOUR is no Config.
        """
        module = importlib.import_module(f"experiments.{self.name}")
        for scale in ("SMOKE", "PAPER", "TOUR")[: 2 + self.on_tour]:
            if not isinstance(getattr(module, scale, None), module.Config):
                raise ValueError(f"experiments/{self.name}.py defines no {scale} = Config(...)")
        return module

    def config(self, scale: str) -> Any:
        """The Config of a scale; quick is Config() itself.

        Errors: UnknownName.
        """
        module = self.load()
        configs = {"smoke": module.SMOKE, "quick": module.Config(), "paper": module.PAPER}
        if self.on_tour:
            configs["tour"] = module.TOUR
        if scale not in configs:
            raise UnknownName("scale", scale, configs)
        return configs[scale]


def catalog() -> dict[str, Experiment]:
    """All experiments by name, in alphabetical order."""
    found = {}
    for path in (file for folder in experiments.__path__ for file in Path(folder).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        if _defined(tree) >= _DEFINES:
            docstring = ast.get_docstring(tree) or ""
            found[path.stem] = _described(path.stem, docstring, "TOUR" in _assigned(tree))
    return dict(sorted(found.items()))


def select(names: Iterable[str]) -> list[Experiment]:
    """The experiments of these names, each once, in the order given.

    Errors: UnknownName.
    """
    known = catalog()
    for name in names:
        if name not in known:
            raise UnknownName("experiment", name, known)
    return [known[name] for name in dict.fromkeys(names)]


def _defined(tree: ast.Module) -> set[str]:
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def _assigned(tree: ast.Module) -> set[str]:
    assignments = (node for node in tree.body if isinstance(node, ast.Assign))
    targets = (target for node in assignments for target in node.targets)
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _described(name: str, docstring: str, on_tour: bool = False) -> Experiment:
    tags = tuple(tag.strip() for group in _TAG.findall(docstring) for tag in group.split(","))
    first, _, rest = _TAG.sub("", docstring).strip().partition("\n")
    claim, _, beside = first.partition("  ")
    source = " ".join(f"{beside} {rest}".split())
    return Experiment(name, claim.strip(), source, tags, on_tour)
