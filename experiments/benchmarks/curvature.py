"""Products, eigenvalues, spectral density and trace of a Hessian: ours beside matfree's.

A 64-256-256-10 tanh network (85,002 parameters) after 60 steps of Adam on 1797 digits, full-batch
softmax cross-entropy, float32. The tasks are those of matfree's documentation:

    gradient   one gradient, the unit of the products
    product    one product H v from nothing, activations included
    in a loop  one of 20 products in a `lax.scan`
    top 5      the five largest eigenvalues: ours restarted until each residual is below 2e-5 λ_max
               and nothing was missed, matfree's after 40 Lanczos steps, however far they are
    density    10 probes of 80 Lanczos steps with full orthogonalization
    trace      100 random signs

The variants take turns in one process, so that other load falls on both; a ratio is the median of
the ratios of neighboring runs. matfree's estimators batch all probes (`vmap`); beside that they
run one after another (`lax.map`), and the faster one is the ratio's denominator. Peak memory is
that of a process of its own.

    python -m experiments.benchmarks.curvature [--repeats 9] [--only TASK ...] [--memory]

Measured on 2026-11-26 on 2 idle cores of an AMD EPYC, Python 3.11.7, jax and jaxlib 0.10.1, matfree
0.6.3; ranges over sittings, up to a load of 4:

                 ours      ours/best of matfree    peak, ours and the best of matfree
    gradient     3.0 ms                            290 MB
    product      6.3 ms    1.01                    295 | 279    1.6 to 2.1 gradients
    in a loop    5.9 ms    0.98-1.02               321 | 302    1.2 to 2.0 gradients
    top 5        251 ms    0.38-0.54               540 | 404
    density      5.8 s     0.73-0.85 (idle 0.77)   481 | 463
    trace        487 ms    0.66-0.76               326 | 420

Of the peaks 210 MB are JAX with data, and most of the rest is the compiler's: with programs from
JAX's cache the three estimators need 335, 324 and 249 MB. XLA's newer emitters of fused loops take
the memory: with XLA_FLAGS=--xla_cpu_use_fusion_emitters=false it is 354, 352 and 284 MB, at .49,
.74 and .81 of matfree's time.
"""

import argparse
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets
from jaxnn import linalg, losses, nn, optimizers, training
from jaxnn.types import Array

NETWORK = nn.serial(
    *(nn.dense(256, weight_std=1.0), nn.tanh()),
    *(nn.dense(256, weight_std=1.0), nn.tanh()),
    nn.dense(10, weight_std=1.0),
)
LOOP, EIGENVALUES, KRYLOV, PROBES, STEPS, SIGNS = 20, 5, 40, 10, 80, 100


def write_problem(file: Path) -> None:
    """Train the network, and store its parameters and the data."""
    digits = datasets.digits()
    x = np.concatenate([digits.x_train, digits.x_test]).astype("float32")
    y = np.concatenate([digits.y_train, digits.y_test])
    params, _ = NETWORK.init(jax.random.key(0), (64,))
    data, loss = (jnp.asarray(x), jnp.asarray(y)), losses.softmax_cross_entropy
    params, _ = jax.jit(
        lambda p: training.descend(NETWORK.apply, p, loss, data, optimizers.adam(1e-2), steps=60)
    )(params)
    flat = linalg.coordinates(params)
    np.savez(file, theta=flat.ravel(params), x=x, y=y)


def read_problem(file: Path) -> tuple[Callable[..., Array], Array, tuple[Array, Array]]:
    """The objective of flat parameters, the parameters, and the data that it takes."""
    with np.load(file) as stored:
        theta, x, y = (jnp.asarray(stored[name]) for name in ("theta", "x", "y"))
    flat = linalg.coordinates(
        jax.eval_shape(lambda k: NETWORK.init(k, (64,))[0], jax.random.key(0))
    )
    loss = losses.softmax_cross_entropy
    return lambda t, x, y: jnp.mean(loss(NETWORK.apply(flat.unravel(t), x), y)), theta, (x, y)


def ours(objective, theta, data) -> dict[str, Callable[[], Any]]:
    """Our call of every task."""
    H, key = linalg.hessian(objective, theta, *data), jax.random.key(1)
    v = jax.random.normal(key, theta.shape)
    product = jax.jit(lambda H, v: H @ v)

    @jax.jit
    def loop(H, v):
        prepared = linalg.prepared(H)
        return jax.lax.scan(lambda v, _: (prepared(v) / 10, None), v, None, length=LOOP)[0]

    gradient = jax.jit(jax.grad(objective))
    return {
        "gradient": lambda: gradient(theta, *data),
        "product": lambda: product(H, v),
        "in a loop": lambda: loop(H, v),
        "top 5": lambda: linalg.eigsh(H, EIGENVALUES, key=key),
        "density": lambda: linalg.spectral_density(H, key, steps=STEPS, probes=PROBES)[:3],
        "trace": lambda: linalg.trace(H, key, probes=SIGNS)[:2],
    }


def matfree(objective, theta, data, *, batched: bool) -> dict[str, Callable[[], Any]]:
    """matfree's call of every task, with probes batched or one after another."""
    from matfree import decomp, stochtrace

    key = jax.random.key(1)
    v = jax.random.normal(key, theta.shape)
    over_probes = jax.vmap if batched else lambda f: lambda xs: jax.lax.map(f, xs)

    def product(v, theta, x, y):
        return jax.jvp(lambda t: jax.grad(objective)(t, x, y), (theta,), (v,))[1]

    def loop(v, *args):
        step = lambda v, _: (product(v, *args) / 10, None)
        return jax.lax.scan(step, v, None, length=LOOP)[0]

    def tridiagonal(v, steps, *args):
        found = decomp.tridiag_sym(steps, reortho="full")(lambda v: product(v, *args), v)
        return found.J_small

    def top(v, *args):
        return jnp.linalg.eigvalsh(tridiagonal(v, KRYLOV, *args))[-EIGENVALUES:]

    def density(v, *args):
        def one(z):
            nodes, u = jnp.linalg.eigh(tridiagonal(z, STEPS, *args))
            return nodes, u[0] ** 2

        return over_probes(one)(jax.random.rademacher(key, (PROBES, v.size), jnp.float32))

    def trace(v, *args):
        if batched:
            sampler = stochtrace.sampler_signs(v, num=SIGNS)
            integrand = stochtrace.monte_carlo_trace()
            estimate = stochtrace.estimator_monte_carlo_mean_and_sem(integrand, sampler)
            return estimate(product, key, *args)
        forms = over_probes(lambda z: z @ product(z, *args))
        return forms(jax.random.rademacher(key, (SIGNS, v.size), jnp.float32))

    tasks = {"product": product, "in a loop": loop, "top 5": top, "density": density}
    tasks["trace"] = trace
    return {name: partial(jax.jit(task), v, theta, *data) for name, task in tasks.items()}


def seconds(call: Callable[[], Any]) -> float:
    """What one call takes."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


LIBRARIES: dict[str, Callable[..., dict[str, Callable[[], Any]]]] = {
    "ours": ours,
    "batched": partial(matfree, batched=True),
    "mapped": partial(matfree, batched=False),
}


def peak(file: Path, name: str, task: str) -> float:
    """Megabytes at the peak of a process that runs one task: imports and compilation as well."""
    argv = [sys.executable, "-m", __spec__.name, "--alone", str(file), name, task]
    return float(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print the table, or as a process of its own the memory of one task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", nargs="+", metavar="TASK")
    parser.add_argument("--memory", action="store_true", help="measure the peaks as well")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        file, name, task = options.alone
        seconds(LIBRARIES[name](*read_problem(Path(file)))[task])
        # Not `getrusage`: its maximum begins with the memory of the process that forked this one.
        (line,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
        print(int(line) / 1024)
        return
    print(
        f"{jax.devices()[0].device_kind} ({platform.machine()}), "
        f"Python {platform.python_version()}, jax {jax.__version__}, "
        f"jaxlib {version('jaxlib')}, matfree {version('matfree')}, {options.repeats} repeats\n"
    )
    with TemporaryDirectory() as folder:
        file = Path(folder) / "problem.npz"
        write_problem(file)
        compare(file, options)


def compare(file: Path, options: argparse.Namespace) -> None:
    """Time all tasks in turns and print the table of ratios."""
    libraries = {name: make(*read_problem(file)) for name, make in LIBRARIES.items()}
    headers = ["ours", "matfree", "mapped", "ours/best", "first call", "matfree"]
    headers += ["peak MB", "matfree", "mapped"] if options.memory else []
    print(f"{'':10}" + "".join(f"{h:>11}" for h in headers))
    unit = None
    for task in options.only or libraries["ours"]:
        calls = {name: tasks[task] for name, tasks in libraries.items() if task in tasks}
        first = {name: seconds(call) for name, call in calls.items()}
        inner = LOOP if task == "in a loop" else 1
        repeats = options.repeats * (10 if task in ("gradient", "product") else 1)
        times = {name: [] for name in calls}
        for i in range(repeats):
            for name in list(calls)[:: 1 if i % 2 == 0 else -1]:
                times[name].append(seconds(calls[name]) / inner)
        middle = {name: median(t) for name, t in times.items()}
        unit = middle["ours"] if task == "gradient" else unit
        others = [name for name in calls if name != "ours"]
        row = [f"{1e3 * middle[name]:.2f} ms" if name in middle else "" for name in libraries]
        if others:
            best = min(others, key=lambda name: middle[name])
            ratio = median(a / b for a, b in zip(times["ours"], times[best], strict=True))
            row += [f"{ratio:.2f}"]
        else:
            row += [""]
        row += [f"{first[n]:.1f} s" if n in first else "" for n in ("ours", "batched")]
        if options.memory:
            row += [f"{peak(file, name, task):.0f}" if name in calls else "" for name in libraries]
        print(f"{task:10}" + "".join(f"{cell:>11}" for cell in row), flush=True)
        if task in ("product", "in a loop") and unit:
            print(f"{'':10}{middle['ours'] / unit:11.2f} gradients")


if __name__ == "__main__":
    main()
