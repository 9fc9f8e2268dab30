import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import flat, unchecked

from jaxnn import nn, tree
from jaxnn.nn import Layer


def normal(seed, *shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(actual, exact, dtype="float32"):
    scale = max(1.0, np.max(np.abs(exact), initial=0.0))
    np.testing.assert_allclose(actual, exact, rtol=0, atol=40 * np.finfo(dtype).eps * scale)


def message_of(action):
    with pytest.raises(ValueError, match=r": got .*, expected .*\. ") as error:
        action()
    return str(error.value)


def wide(x):
    return np.asarray(x, np.float64)


def affine(params, x):
    return wide(x) @ wide(params["W"]) + wide(params["b"])


def probe(name, log):
    """A layer without parameters that writes down what it is given."""

    def init(key, in_shape):
        log.append((name, "init", in_shape, key))
        return {"of": jnp.float32(len(name))}, in_shape

    def apply(params, x, *, key=None, stats=None):
        log.append((name, params["of"], key, stats))
        return x

    return Layer(init, apply, lambda kernel: kernel)


# ------------------------------------------------------------------------------------ serial


def test_serial_is_composition(dtype):
    net = nn.serial(nn.dense(4, bias_std=0.5), nn.tanh(), nn.flatten(), nn.dense(2))
    params, out_shape = net.init(jax.random.key(0), (3, 5))
    assert out_shape == (2,)
    assert [len(p) for p in params] == [2, 0, 0, 2]
    x = normal(0, 6, 3, 5, dtype=dtype)
    hidden = np.tanh(affine(params[0], x)).reshape(6, 12)
    y = net.apply(params, x)
    assert y.dtype == dtype
    close(y, affine(params[3], hidden), dtype)


def test_serial_is_associative():
    a, b, c = nn.dense(4), nn.relu(), nn.dense(2)
    x = normal(0, 6, 3)
    left, right = nn.serial(nn.serial(a, b), c), nn.serial(a, nn.serial(b, c))
    (p, q), r = left.init(jax.random.key(0), (3,))[0]
    nested = left.apply(((p, q), r), x)
    np.testing.assert_array_equal(right.apply((p, (q, r)), x), nested)
    np.testing.assert_array_equal(nn.serial(a, b, c).apply((p, q, r), x), nested)


def test_serial_of_nothing_is_the_identity():
    params, out_shape = nn.serial().init(jax.random.key(0), (3,))
    assert (params, out_shape) == ((), (3,))
    x = normal(0, 2, 3)
    assert nn.serial().apply((), x) is x
    assert nn.serial().apply((), x, key=jax.random.key(0)) is x


@pytest.mark.parametrize("combine", [nn.serial, nn.parallel])
def test_every_layer_has_keys_of_its_own(combine):
    layer = nn.dense(4, bias_std=1.0, parametrization="ntk")
    first, second, third = combine(layer, layer, layer).init(jax.random.key(0), (4,))[0]
    draws = [flat(p) for p in (first, second, third)]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert np.all(draws[a] != draws[b])
    other = combine(layer, layer, layer).init(jax.random.key(1), (4,))[0]
    assert np.all(flat(other) != np.concatenate(draws))
    nested, _ = combine(combine(layer, layer), layer).init(jax.random.key(0), (4,))
    draws = [flat(p) for p in jax.tree.leaves(nested, is_leaf=lambda p: isinstance(p, dict))]
    assert len(np.unique(np.concatenate(draws))) == 3 * 20


def test_every_random_layer_has_a_key_of_its_own():
    n, p = 20000, 0.5
    x = jnp.ones((n, 1))
    twice = nn.serial(nn.dropout(p), nn.dropout(p))
    kept = np.mean(np.asarray(twice.apply(((), ()), x, key=jax.random.key(0))) > 0)
    assert abs(kept - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / n)  # 0.5, were the masks the same
    beside = nn.parallel(nn.dropout(p), nn.dropout(p))
    both = np.mean(np.asarray(beside.apply(((), ()), x, key=jax.random.key(0))) > 2)
    assert abs(both - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / n)
    np.testing.assert_array_equal(twice.apply(((), ()), x), x)


@pytest.mark.parametrize("combine", [nn.serial, nn.parallel])
def test_params_keys_and_stats_reach_their_layer(combine):
    log = []
    net = combine(probe("a", log), combine(probe("bb", log), probe("ccc", log)))
    params, _ = net.init(jax.random.key(0), (3,))
    keys = [tuple(jax.random.key_data(entry[3]).tolist()) for entry in log]
    assert [entry[0] for entry in log] == ["a", "bb", "ccc"]
    assert len(set(keys)) == 3
    log.clear()
    net.apply(params, jnp.ones((2, 3)), stats=("sa", ("sb", "sc")))
    assert [(n, int(of), key, s) for n, of, key, s in log] == [
        ("a", 1, None, "sa"), ("bb", 2, None, "sb"), ("ccc", 3, None, "sc"),
    ]  # fmt: skip
    log.clear()
    net.apply(params, jnp.ones((2, 3)), key=jax.random.key(1), stats=("sa", None))
    assert [entry[3] for entry in log] == ["sa", None, None]
    assert len({tuple(jax.random.key_data(entry[2]).tolist()) for entry in log}) == 3


# ------------------------------------------------------------------------ parallel, residual


def test_parallel_adds_or_concatenates(dtype):
    a, b = nn.dense(4, bias_std=0.5), nn.serial(nn.dense(4), nn.relu())
    x = normal(0, 6, 2, 3, dtype=dtype)
    total = nn.parallel(a, b)
    params, out_shape = total.init(jax.random.key(0), (2, 3))
    left, right = affine(params[0], x), np.maximum(affine(params[1][0], x), 0)
    assert out_shape == (2, 4)
    close(total.apply(params, x), left + right, dtype)
    joined = nn.parallel(a, b, nn.identity(), combine="concatenate")
    assert joined.init(jax.random.key(0), (2, 3))[1] == (2, 11)
    y = joined.apply((*params, ()), x)
    close(y, np.concatenate([left, right, wide(x)], axis=-1), dtype)
    assert y.dtype == dtype


def test_one_branch_is_itself():
    x = normal(0, 2, 3)
    for combine in ("sum", "concatenate"):
        net = nn.parallel(nn.dense(4), combine=combine)
        params, out_shape = net.init(jax.random.key(0), (3,))
        assert out_shape == (4,)
        np.testing.assert_array_equal(net.apply(params, x), nn.dense(4).apply(params[0], x))


def test_residual_adds_its_input(dtype):
    branch = nn.serial(nn.dense(7), nn.relu(), nn.dense(3))
    x = normal(0, 5, 3, dtype=dtype)
    net = nn.residual(branch)
    params, out_shape = net.init(jax.random.key(0), (3,))
    assert out_shape == (3,)
    assert params[1] == ()
    close(net.apply(params, x), wide(branch.apply(params[0], x)) + wide(x), dtype)
    wider = nn.residual(nn.dense(4), shortcut=nn.dense(4))
    params, out_shape = wider.init(jax.random.key(0), (3,))
    assert out_shape == (4,)
    close(wider.apply(params, x), affine(params[0], x) + affine(params[1], x), dtype)
    assert np.all(flat(params[0]["W"]) != flat(params[1]["W"]))


@pytest.mark.slow
def test_nested_under_jit_vmap_and_grad(float64):
    block = nn.residual(nn.serial(nn.dense(3), nn.tanh(), nn.dropout(0.4)))
    joined = nn.parallel(nn.dense(1), nn.identity(), combine="concatenate")
    net = nn.serial(nn.serial(joined, nn.residual(block)), nn.dense(1))
    x = normal(0, 4, 2, dtype="float64")
    keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), 3)  # compiles fastest
    batch = jax.jit(jax.vmap(lambda key: net.init(key, (2,))[0]))(keys)
    one = jax.tree.map(lambda p: p[1], batch)
    assert {p.dtype for p in jax.tree.leaves(batch)} == {float64}

    @jax.jit
    def loss(params):
        return jnp.sum(net.apply(params, x, key=keys[2]) ** 2)

    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(batch)[1], loss(one), rtol=1e-13)
    gradient = jax.jit(jax.grad(loss))(one)
    assert jax.tree.structure(gradient) == jax.tree.structure(one)
    v, step = tree.random_like(keys[0], one), 1e-6
    plus, minus = (loss(tree.axpy(s, v, one)) for s in (step, -step))
    np.testing.assert_allclose(tree.dot(gradient, v), (plus - minus) / (2 * step), rtol=1e-7)


# ------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "net"),
    [
        ("serial", nn.serial(nn.dense(3), nn.relu(), nn.dense(3))),
        ("parallel", nn.parallel(nn.dense(3), nn.relu(), nn.dense(3))),
    ],
)
def test_params_and_stats_of_another_network(name, net):
    params, _ = net.init(jax.random.key(0), (3,))
    x = jnp.ones((2, 3))
    for wrong, got in [
        (params[:2], "2 entries"),
        ((*params, ()), "4 entries"),
        ((), "0 entries"),
        (dict(zip("abc", params, strict=True)), "dict"),
        (params[0]["W"], "ArrayImpl"),
        (None, "NoneType"),
    ]:
        message = message_of(lambda p=wrong: net.apply(p, x))
        assert message.startswith(f"{name}.apply: params: got {got}, expected one entry for each")
        if wrong is not None:
            message = message_of(lambda s=wrong: net.apply(params, x, stats=s))
            assert message.startswith(f"{name}.apply: stats: got {got}, expected one entry for")
    np.testing.assert_array_equal(net.apply(list(params), x), net.apply(params, x))


def test_branches_that_cannot_be_combined():
    assert message_of(nn.parallel).startswith("parallel(*layers): got no layer, expected at least")
    with unchecked():
        message = message_of(lambda: nn.parallel(nn.relu(), combine="mean"))
    assert message.startswith("parallel(combine): got 'mean', expected 'sum', 'product' or 'concat")
    key = jax.random.key(0)
    for net, in_shape, combine, shapes, expected in [
        (nn.parallel(nn.dense(3), nn.dense(4)), (5,), "sum", "[(3,), (4,)]", "equal shapes. "),
        (nn.residual(nn.dense(3)), (5,), "sum", "[(3,), (5,)]", "equal shapes. "),
        (
            nn.parallel(nn.flatten(), nn.dense(3), combine="concatenate"),
            (2, 5),
            "concatenate",
            "[(10,), (2, 3)]",
            "shapes equal but for the last axis. ",
        ),
        (
            nn.parallel(nn.relu(), nn.identity(), combine="concatenate"),
            (),
            "concatenate",
            "[(), ()]",
            "shapes equal but for the last axis. ",
        ),
    ]:
        message = message_of(lambda n=net, s=in_shape: n.init(key, s))
        where = f"parallel(combine='{combine}').init: the outputs of the branches"
        assert message.startswith(f"{where}: got shapes {shapes}, expected {expected}")


def test_shapes_are_checked_inside():
    net = nn.serial(nn.dense(3), nn.residual(nn.serial(nn.relu(), nn.dense(3))))
    params, _ = net.init(jax.random.key(0), (5,))
    assert message_of(lambda: net.apply(params, jnp.ones((2, 4)))).startswith("dense.apply: x: got")
    message = message_of(lambda: nn.serial(nn.relu(), nn.dense(3)).init(jax.random.key(0), ()))
    assert message.startswith("dense.init: in_shape: got ()")


# --------------------------------------------------------------------------------------- mlp


@pytest.mark.parametrize(
    ("sizes", "exact"),
    [((10, 64, 2), 834), ((784, 300, 100, 10), 266610), ((5, 1), 6), ((3, 1, 4, 1), 17)],
)
def test_mlp_has_the_number_of_parameters_of_the_formula(sizes, exact):
    pairs = list(pairwise(sizes))
    assert sum(n * (m + 1) for m, n in pairs) == exact

    def count(**options):
        init = nn.mlp(sizes[1:], **options).init
        return tree.size(jax.eval_shape(lambda: init(jax.random.key(0), sizes[:1])[0]))

    assert count() == count(bias_std=0.1, parametrization="ntk") == exact
    assert count(parametrization="ntk") == sum(n * m for m, n in pairs)


def test_mlp_is_the_serial_network():
    options = {"weight_std": 1.1, "bias_std": 0.3, "parametrization": "ntk"}
    x = normal(0, 4, 3)
    first, second, last = (nn.dense(n, **options) for n in (5, 4, 2))
    params, out_shape = nn.mlp((5, 4, 2), **options).init(jax.random.key(0), (3,))
    assert out_shape == (2,)
    for activation, layer in [({}, nn.relu()), ({"activation": nn.tanh()}, nn.tanh())]:
        net = nn.mlp((5, 4, 2), **activation, **options)
        spelled_out = nn.serial(first, layer, second, layer, last)
        np.testing.assert_array_equal(net.apply(params, x), spelled_out.apply(params, x))
    np.testing.assert_array_equal(flat(params), flat(spelled_out.init(jax.random.key(0), (3,))[0]))


def test_mlp_without_sizes():
    for features in ((), []):
        message = message_of(lambda f=features: nn.mlp(f))
        assert message.startswith("mlp(features): got no size, expected at least one.")
    assert message_of(lambda: nn.mlp((3, 0))).startswith("dense(features): got 0, expected")
