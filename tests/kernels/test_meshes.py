"""Kernels on two devices: inside shard_map, and of arrays on a mesh with explicit axes."""

import subprocess
import sys

PROGRAM = '''
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jaxnn import kernels

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
keys = jax.random.split(jax.random.key(0), 6)
p = {
    "table": jax.random.normal(keys[0], (7, 5)),
    "layers": jax.random.normal(keys[1], (3, 5, 5)),
    "filter": jax.random.normal(keys[2], (3, 1, 2)),
    "scale": jax.random.normal(keys[3], (5,)),
}
x = jax.random.randint(keys[4], (4, 6), 0, 7)


def f(p, x):
    """A look-up, a loop, a constant, a convolution and a scale that is formed."""
    h = jnp.where(p["table"][x] > 0.1, p["table"][x], 0.0).mean(1) * np.arange(5.0)
    h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, p["layers"])[0]
    numbers = ("NHC", "HIO", "NHC")
    h = lax.conv_general_dilated(h[..., None], p["filter"], (1,), "SAME", dimension_numbers=numbers)
    return jnp.tanh(h.sum(2)) * p["scale"]


def check(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


full = np.asarray(kernels.ntk(f, p, x, outputs="full"))
own = np.concatenate([full[:2, :2], full[2:, 2:]])
for method in ("structured", "vector_products"):
    kernel = partial(kernels.ntk, f, outputs="full", method=method)
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))
    shard = partial(jax.shard_map, mesh=mesh, out_specs=P("rows"))
    check(shard(kernel, in_specs=(P(), P("rows")))(p, x), own)
    check(shard(kernel, in_specs=(P(), P("rows"), P()))(p, x, x), full)

mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Explicit,))
rows = jax.device_put(x, NamedSharding(mesh, P("rows")))
found = kernels.ntk(f, p, rows, outputs="full")
check(found, full)
assert found.sharding.spec[0] == "rows"
with jax.set_mesh(mesh):
    check(jax.jit(partial(kernels.ntk, f, outputs="full"))(p, rows), full)
for kind in (AxisType.Auto, AxisType.Explicit):  # whose gradients of convolutions XLA gets wrong
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(kind,))
    rows = jax.device_put(x, NamedSharding(mesh, P("rows")))
    check(kernels.ntk(f, p, rows, outputs="full", method="jacobian"), full)
f2 = lambda p, x: p["table"][x].mean(1)
check(kernels.nngp(f2, p, rows), kernels.nngp(f2, p, x))
print("right")
'''


def test_on_two_devices():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == "right\n", done.stderr[-2000:]
