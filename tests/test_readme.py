"""The README is true: its Python runs, and its two command lines are those that CI runs."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[tuple[int, str]]:
    """(line number of the first line, text) of every fenced block of a language."""
    fences = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text[: m.start(1)].count("\n") + 1, m[1]) for m in fences]


def test_every_fence_is_seen():
    fences = re.findall(r"^```.*$", README, re.MULTILINE)
    assert len(fences) == 2 * (len(blocks("python")) + len(blocks("sh")))
    assert len(blocks("python")) >= 3
    assert len(blocks("sh")) >= 2
    assert blocks("python", "a\n```python\nx = 1\n```\n```sh\nls\n```\n") == [(3, "x = 1\n")]


def test_python_blocks_run_in_order():
    namespace = {"__name__": "README"}
    for line, source in blocks("python"):
        # Blank lines above, so that a traceback names the line of the README.
        exec(compile("\n" * (line - 1) + source, "README.md", "exec"), namespace)


def extracted(module: str) -> str:
    """The command line as `.ci/run` finds it: with its own function, in its own shell."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (definition,) = re.findall(r"^line\(\) \{.*\}$", script, re.MULTILINE)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{definition}\nline {module}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("module", "options", "extras"),
    [("experiments", [], {"experiments"}), ("pytest", ["-n", "auto"], {"experiments", "test"})],
)
def test_the_command_lines_are_those_of_ci(module, options, extras):
    command = extracted(module)
    assert command in {block.strip() for _, block in blocks("sh")}  # alone in its block
    venv, install, run = (shlex.split(part) for part in command.split(" && "))
    assert venv == ["python3", "-m", "venv", ".venv"]
    assert (install[0], install[1], install[-2]) == (".venv/bin/pip", "install", "-e")
    named = re.fullmatch(r"\.\[(.*)\]", install[-1])
    assert named is not None
    assert set(named[1].split(",")) == extras
    assert run == [".venv/bin/python", "-m", module, *options]


def test_ci_runs_nothing_in_their_place():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    evaluated = re.findall(r"^eval \"(.*)\"$", script, re.MULTILINE)
    assert evaluated == ["$tests", "$main_job"]
    assert script.endswith("\n.venv/bin/python -m experiments run --all --scale smoke\n")
    assert re.search(r"^tests=\$\(line pytest\)$", script, re.MULTILINE)
    assert re.search(r"^main_job=\$\(line experiments\)$", script, re.MULTILINE)
