"""Kernels against neural-tangents: two processes that take turns, so that both see the same load.

    python -m experiments.benchmarks.peers --python PYTHON --script ../shared/peers/ntk_peer.py
                                           [--only WORKLOAD ...] [--rounds N]

PYTHON is the interpreter of an environment with neural-tangents; the script's docstring says how
to make one. Both libraries get the script's inputs and networks. Per workload: median seconds of
each implementation and of ours, the ratio to the fastest (the median of the ratios of neighbours
in time), and by how much the kernels differ, relative to their largest entry: the largest
difference in an example's row, for the median example (an example with a unit within rounding of
zero, on in one library and off in the other, differs by 1e-3 to 1e-2).

Measured on 2 shared cores (AMD EPYC, JAX 0.10.1 and 0.4.25, float32), ours / neural-tangents 0.6.5:
mlp_full .59 to .69, mlp_traced .57 to .62, cnn_full .83 to .89, cnn_traced .82 to .84. Idle,
inf_fcn took .74 to .81 of its time in turns, .5 where each ran alone, and inf_cnn .15 to .17.
"""

import argparse
import json
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

# neural-tangents' implementations that can be fastest; the others take seconds to minutes.
IMPLEMENTATIONS = {
    "mlp_full": (3,),
    "mlp_traced": (3,),
    "cnn_full": (1, 3),
    "cnn_traced": (1, 3),
    "inf_fcn": ("closed_form",),
    "inf_cnn": ("closed_form",),
}


def load(script):
    """The names of the peer's script."""
    return SimpleNamespace(**runpy.run_path(script))


def ours(peer, workload):
    """Our kernel of the workload, and its arguments."""
    import jax

    from jaxnn import kernels

    if workload in peer.CLOSED_FORM:
        x, _ = peer.make_inputs(workload)
        limit = partial(kernels.infinite, infinite_network(workload))
        moments = lambda x: {name: getattr(limit(x), name) for name in ("nngp", "ntk")}
        return jax.jit(moments), (jax.numpy.asarray(x),)
    net, _, kind = workload.partition("_")
    x, params = peer.make_inputs(net)
    apply = {"mlp": peer.apply_mlp, "cnn": peer.apply_cnn}[net]
    outputs = "full" if kind == "full" else "mean"
    kernel = jax.jit(lambda x, p: {"kernel": kernels.ntk(apply, p, x, outputs=outputs)})
    return kernel, jax.tree.map(jax.numpy.asarray, (x, params))


def infinite_network(workload):
    """The network of a closed-form workload, as the script's docstring gives it."""
    from jaxnn import nn

    options = {"bias_std": 0.1, "parametrization": "ntk"}
    if workload == "inf_fcn":
        return nn.mlp((1,) * 5, **options)
    layers = [layer for _ in range(3) for layer in (nn.conv(1, (3, 3), **options), nn.relu())]
    return nn.serial(*layers, nn.global_avg_pool(), nn.dense(1, **options))


def work(script, workload, implementation, result):
    """Time one call for every line that comes in, after another that wakes caches and threads."""
    import jax
    import numpy as np

    peer = load(script)
    if implementation == "ours":
        function, arguments = ours(peer, workload)
    else:
        function, arguments = peer.build(workload, implementation)
    compiled = function.lower(*arguments).compile()
    out = jax.block_until_ready(compiled(*arguments))
    np.save(result, np.stack([out[name] for name in sorted(out)]))
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        jax.block_until_ready(compiled(*arguments))
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        print(json.dumps(time.perf_counter() - start), flush=True)


class Worker:
    """A process that times one implementation of one workload, one call at a time."""

    def __init__(self, python, script, workload, implementation, folder):
        self.result = Path(folder) / f"{workload}_{implementation}.npy"
        command = [python, __file__, "--script", script, "--work", workload]
        command += [str(implementation), str(self.result)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.questions, self.answers = self.process.stdin, self.process.stdout
        self.read()

    def read(self):
        """What the process says next."""
        line = self.answers.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)

    def seconds(self):
        """Of one call."""
        self.questions.write("\n")
        self.questions.flush()
        return self.read()


def difference(a, b):
    """The largest difference in an example's row, for the median example, relative to all of b."""
    import numpy as np

    apart = np.abs(a - b).reshape(len(b), -1)
    return np.median(apart.max(axis=1)) / np.abs(b).max()


def compare(options, workload, folder):
    """Take turns, and print one line per implementation."""
    import numpy as np

    start = partial(Worker, script=options.script, workload=workload, folder=folder)
    workers = {"ours": start(sys.executable, implementation="ours")}
    for number in IMPLEMENTATIONS[workload]:
        workers[number] = start(options.python, implementation=number)
    times = {name: [] for name in workers}
    for _ in range(options.rounds):
        for name, worker in workers.items():
            times[name].append(worker.seconds())
    kernels = {name: np.load(worker.result) for name, worker in workers.items()}
    for worker in workers.values():
        worker.process.terminate()
    peers = [name for name in workers if name != "ours"]
    fastest = min(peers, key=lambda name: statistics.median(times[name]))
    pairs = zip(times["ours"], times[fastest], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    error = max(map(difference, kernels["ours"], kernels[fastest]))
    medians = ", ".join(f"{name} {statistics.median(times[name]):.4f}" for name in workers)
    print(
        f"{workload:12} {medians}; ours / {fastest} = {ratio:.2f}; differ {error:.0e}", flush=True
    )


def main():
    parser = argparse.ArgumentParser(description="Time kernels against neural-tangents.")
    parser.add_argument("--script", required=True)
    parser.add_argument("--python", help="interpreter with neural-tangents")
    parser.add_argument("--only", nargs="*", default=list(IMPLEMENTATIONS))
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.script, *options.work)
        return
    with tempfile.TemporaryDirectory() as folder:
        for workload in options.only:
            compare(options, workload, folder)


if __name__ == "__main__":
    main()
