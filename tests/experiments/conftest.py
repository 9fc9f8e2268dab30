"""A folder of made-up experiments in the place of the real ones."""

import importlib
import sys
import textwrap

import pytest

import experiments
from experiments import catalog, display, harness, pictures, records, report, session, verdicts  # noqa: F401

MODULE = '''
"""{claim}  Somebody (1999), theorem 1.

And why.  [{tags}]
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.harness import report_progress
from experiments.verdicts import identity

@dataclass(frozen=True)
class Config:
    n: int = 3
    sizes: tuple[int, ...] = (1, 2)


SMOKE = Config(n=1)
PAPER = Config(n=100)
{constants}


def run(config, key):
{run}


def verdict(config, metrics):
{verdict}


def plot(config, metrics, axes):
{plot}
'''


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make(name, run=..., ...) writes an experiment; only those made exist during the test."""
    folder = tmp_path / "made"
    folder.mkdir()
    monkeypatch.setattr(experiments, "__path__", [str(folder)])
    made = []

    def make(
        name,
        *,
        claim="One is one.",
        tags="S0.57, S1.2",
        constants="",
        run='return {"one": jnp.ones(config.n)}',
        verdict='return [identity("one", 1.0, metrics["one"].mean())]',
        plot='axes.plot(metrics["one"], label="one")',
    ):
        def indented(text):
            return textwrap.indent(textwrap.dedent(text).strip(), "    ")

        source = MODULE.format(
            claim=claim,
            tags=tags,
            constants=constants,
            run=indented(run),
            verdict=indented(verdict),
            plot=indented(plot),
        )
        (folder / f"{name}.py").write_text(source.lstrip())
        importlib.invalidate_caches()
        sys.modules.pop(f"experiments.{name}", None)
        made.append(name)
        return catalog.catalog()[name]

    yield make
    for name in made:
        sys.modules.pop(f"experiments.{name}", None)
        experiments.__dict__.pop(name, None)
