"""The guard refuses the faulty jaxlibs, and only those, without initializing a backend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxnn.compatibility import jaxlib_fault

ROOT = Path(__file__).parents[1]
FLAG = "--xla_cpu_experimental_ynn_fusion_type"


@pytest.mark.parametrize(
    ("version", "issue"),
    [
        ("0.10.0", None),
        ("0.10.1", None),
        ("0.10.2", "39103"),
        ("0.10.2+cuda13", "39103"),
        ("0.10.20", None),
        ("0.11.0", "39257"),
        ("0.11.1", None),
        ("0.11.2", None),
        ("1.0.10.2", None),
    ],
)
def test_the_faulty_releases_and_no_others(version, issue):
    fault = jaxlib_fault(version, {})
    if issue is None:
        assert fault is None
    else:
        assert fault is not None
        assert all(part in fault for part in (version, issue, "pip install", "!=0.10.2", FLAG))


@pytest.mark.parametrize("version", ["0.10.2", "0.11.0"])
@pytest.mark.parametrize(
    ("flags", "remedied"),
    [
        ("", False),
        (f"{FLAG}=", True),
        (f"  {FLAG}=\n", True),
        (f"--xla_dump_to=/tmp/x {FLAG}= --xla_cpu_multi_thread_eigen=false", True),
        (f"{FLAG}=LIBRARY_FUSION_TYPE_REDUCE", False),
        (f"{FLAG}= {FLAG}=LIBRARY_FUSION_TYPE_REDUCE", False),
        (f"{FLAG}=LIBRARY_FUSION_TYPE_REDUCE {FLAG}=", True),
        (FLAG, False),
        (f"{FLAG}_too=", False),
        (f"-{FLAG}=", False),
        ("--xla_cpu_multi_thread_eigen=false", False),
    ],
)
def test_the_last_occurrence_of_the_flag_decides(version, flags, remedied):
    assert (jaxlib_fault(version, {"XLA_FLAGS": flags, "HOME": "/"}) is None) == remedied


def run(program: str, **environ: str) -> subprocess.CompletedProcess:
    inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={**inherited, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_importing_initializes_no_backend():
    # JAX refuses to change the number of devices once a backend is there.
    done = run(
        "import jax, jaxnn\n"
        "assert len([getattr(jaxnn, name) for name in jaxnn.__all__]) > 3\n"
        "jax.config.update('jax_num_cpu_devices', 3)\n"
        "assert len(jax.devices()) == 3, jax.devices()\n"
        "try: jax.config.update('jax_num_cpu_devices', 4)\n"
        "except RuntimeError: print('too late, as it should be')"
    )
    assert done.returncode == 0, done.stderr
    assert "too late" in done.stdout


# After jax, which has its own opinion on the versions of jaxlib it runs with.
PRETEND = "import jax, jaxlib.version; jaxlib.version.__version__ = {version!r}\nimport jaxnn\n"


@pytest.mark.parametrize(("version", "issue"), [("0.10.2", "39103"), ("0.11.0", "39257")])
def test_importing_on_a_faulty_release(version, issue):
    program = PRETEND.format(version=version)
    refused = run(program)
    assert refused.returncode == 1
    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert all(part in last for part in (version, issue, "pip install", f"XLA_FLAGS={FLAG}="))
    # The pretended release lacks nothing, so that the flag alone has to let it pass.
    allowed = run(program + "print(jaxnn.nn.__name__)", XLA_FLAGS=f"{FLAG}=")
    assert (allowed.returncode, allowed.stdout.strip()) == (0, "jaxnn.nn"), allowed.stderr
