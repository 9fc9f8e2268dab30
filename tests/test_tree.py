import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import flat, random_tree

from jaxnn import tree

SHAPES = [
    {"W": (3, 2), "b": (2,), "deep": [(), {"empty": (0, 4)}], "nothing": None},
    ((5,), ((2, 1, 3), ())),
    (),
    {},
]


def close(actual, exact, dtype):
    np.testing.assert_allclose(actual, exact, rtol=20 * np.finfo(dtype).eps, atol=0)


def like(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_operations_are_those_of_the_coordinates(shapes, seed, dtype):
    x, y = random_tree(seed, shapes, dtype), random_tree(seed + 10, shapes, dtype)
    u, v = flat(x), flat(y)
    a = np.asarray(-1.75, dtype)
    eps = np.finfo(dtype).eps
    for actual, exact in [
        (tree.add(x, y), u + v),
        (tree.sub(x, y), u - v),
        (tree.scale(a, x), a * u),
        (tree.axpy(a, x, y), a * u + v),
    ]:
        like(actual, x)
        np.testing.assert_allclose(flat(actual), exact, atol=8 * eps, rtol=0)
    scale = np.abs(u) @ np.abs(v)
    np.testing.assert_allclose(tree.dot(x, y), u @ v, atol=20 * eps * scale, rtol=0)
    close(tree.norm(x), np.sqrt(u @ u), dtype)
    assert tree.norm(x).dtype == tree.dot(x, y).dtype == dtype
    assert tree.size(x) == len(u)
    assert tree.size(jax.eval_shape(lambda: x)) == len(u)


@pytest.mark.parametrize("scalar", [2, 2.0, np.float32(2), np.float64(2), np.array(2.0), "jax"])
def test_scalars_of_every_kind_keep_the_dtype(scalar, dtype):
    scalar = jnp.array(2.0) if scalar == "jax" else scalar
    x = random_tree(0, SHAPES[0], dtype)
    like(tree.scale(scalar, x), x)
    like(tree.axpy(scalar, x, x), x)
    close(flat(tree.axpy(scalar, x, x)), 3.0 * flat(x), dtype)


def test_the_left_dtype_is_kept(float64):
    narrow, wide = {"a": jnp.ones(2, "float32")}, {"a": jnp.full(2, 1.0 + 1e-12)}
    like(tree.add(narrow, wide), narrow)
    like(tree.sub(wide, narrow), wide)
    assert tree.sub(wide, narrow)["a"][0] == 1.0 + 1e-12 - 1.0
    like(tree.axpy(2.0, wide, narrow), narrow)  # axpy adds to its last argument
    half = {"a": jnp.ones(2, "bfloat16")}
    like(tree.add(half, wide), half)


def test_python_numbers_are_leaves():
    assert tree.add({"a": 1.5}, {"a": 2.0}) == {"a": 3.5}
    assert tree.scale(2, {"count": 3}) == {"count": 6}
    assert tree.dot((1.0, 2.0), (3.0, 4.0)) == 11.0
    assert tree.size((1.0, jnp.ones((2, 0)))) == 1


def test_dot_conjugates_its_left_argument():
    x, y = {"z": jnp.array([1.0 + 2.0j, 3.0j])}, {"z": jnp.array([2.0 - 1.0j, 1.0 + 0.0j])}
    np.testing.assert_allclose(tree.dot(x, y), np.vdot(x["z"], y["z"]), rtol=1e-6)
    assert tree.norm(x).dtype == "float32"
    np.testing.assert_allclose(tree.norm(x), np.sqrt(14.0), rtol=1e-6)


def test_what_would_be_lost_raises():
    for operation in (
        lambda: tree.scale(0.5, {"count": 3}),
        lambda: tree.add({"count": jnp.arange(2)}, {"count": jnp.ones(2)}),
        lambda: tree.sub({"x": jnp.ones(2)}, {"x": jnp.array([0.5j, 1.0])}),
        lambda: tree.axpy(0.5j, jnp.ones(2), jnp.ones(2)),
    ):
        with pytest.raises(ValueError, match=r"got a leaf of dtype .* expected .* astype"):
            operation()


def test_trees_of_different_structure_raise():
    with pytest.raises(ValueError, match="key"):
        tree.add({"a": 1.0}, {"b": 1.0})


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_all_finite(bad, dtype):
    x = random_tree(0, SHAPES[0], dtype)
    assert tree.all_finite(x)
    assert tree.all_finite({**x, "count": 3})
    for path in ("W", "b"):
        assert not tree.all_finite({**x, path: x[path].at[-1].set(bad)})
    assert not tree.all_finite({**x, "scalar": bad})
    assert tree.all_finite({})


def test_random_like_is_standard_normal_with_a_key_per_leaf(dtype):
    x = {"a": jnp.zeros((40, 50), dtype), "b": [jnp.zeros((40, 50), dtype), jnp.zeros((), dtype)]}
    draws = tree.random_like(jax.random.key(3), x)
    like(draws, x)
    like(tree.random_like(jax.random.key(3), jax.eval_shape(lambda: x)), x)
    a, b = flat(draws["a"]), flat(draws["b"][0])
    n = a.size
    for sample in (a, b):
        assert abs(np.mean(sample)) < 4 / np.sqrt(n)
        assert abs(np.mean(sample**2) - 1) < 4 * np.sqrt(2 / n)
    assert abs(np.mean(a * b)) < 4 / np.sqrt(n)
    np.testing.assert_array_equal(flat(tree.random_like(jax.random.key(3), x)), flat(draws))
    assert np.all(flat(tree.random_like(jax.random.key(4), x)) != flat(draws))


def test_random_like_takes_a_sampler(dtype):
    x = random_tree(0, SHAPES[0], dtype)
    draws = tree.random_like(jax.random.key(0), x, jax.random.rademacher)
    like(draws, x)
    assert set(flat(draws)) == {-1.0, 1.0}
    assert tree.random_like(jax.random.key(0), ()) == ()


def test_under_jit_vmap_and_grad(dtype):
    shapes = SHAPES[0]
    x, y = random_tree(0, shapes, dtype), random_tree(1, shapes, dtype)
    gradient = jax.jit(jax.grad(lambda x: tree.dot(x, y) + tree.dot(x, x)))(x)
    close(flat(gradient), flat(y) + 2 * flat(x), dtype)
    rates = jnp.array([0.5, -2.0], dtype)
    moved = jax.vmap(lambda a: tree.axpy(a, x, y))(rates)
    for i, a in enumerate(rates):
        exact = float(a) * flat(x) + flat(y)
        np.testing.assert_allclose(
            flat(jax.tree.map(lambda leaf, i=i: leaf[i], moved)), exact, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("x", "where", "got"),
    [
        ({"W": jnp.ones(2), "count": 3}, "params['count']", "dtype int32"),
        ([jnp.ones(2), (jnp.arange(2),)], "params[1][0]", "dtype int32"),
        ({"key": jax.random.key(0)}, "params['key']", "dtype key<fry>"),
        ({"z": jnp.array([1j])}, "params['z']", "dtype complex64"),
        ({"flag": True}, "params['flag']", "dtype bool"),
        ({"name": "relu"}, "params['name']", "a leaf of type str"),
        (jax.ShapeDtypeStruct((2,), "int8"), "params", "dtype int8"),
    ],
)
def test_what_is_not_differentiable_is_named_by_path(x, where, got):
    with pytest.raises(ValueError, match="real floating point") as error:
        tree.require_differentiable("params", x)
    assert str(error.value).startswith(f"{where}: got {got}, expected ")


def test_what_is_differentiable(dtype):
    half = {"h": jnp.ones(2, "bfloat16"), "none": None, "numpy": np.ones(2), "python": 1.0}
    for x in (half, (), jax.ShapeDtypeStruct((2,), dtype), random_tree(0, SHAPES[0], dtype)):
        tree.require_differentiable("params", x)


@pytest.mark.parametrize("n", [1001, 1_000_003])
def test_long_vectors_lose_no_digits(n):
    rng = np.random.default_rng(n)
    x, y = rng.uniform(size=(2, n)).astype(np.float32)
    exact = x.astype(np.float64) @ y.astype(np.float64)
    for dot in (tree.dot, jax.jit(tree.dot)):
        assert abs(float(dot((jnp.asarray(x),), (jnp.asarray(y),))) - exact) <= 3e-7 * exact
    size = np.sqrt(x.astype(np.float64) @ x.astype(np.float64))
    assert abs(float(tree.norm(jnp.asarray(x))) - size) <= 3e-7 * size


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.array([1e38, 0], "f4"), 1e38),
        (np.array([9e37, -9e37], "f4"), 2**0.5 * 9e37),
        ((np.zeros(3, "f4"), np.full(3, 1e-46)), 3**0.5 * 1e-46),
        ((np.zeros(2, "f2"), np.full(2, 1e-9, "f4")), 2**0.5 * 1e-9),
        ((np.full(2, 6e4, "f2"), np.full(2, 1e5, "f4")), 2**0.5 * np.hypot(6e4, 1e5)),
        ((np.array([3j], "c8"), np.array([4.0])), 5.0),
        (np.array([3, 4]), 5.0),
        ((), 0.0),
    ],
)
def test_norms_of_every_precision_and_size(x, expected, float64):
    x = jax.tree.map(jnp.asarray, x)
    np.testing.assert_allclose(tree.norm(x), expected, rtol=1e-3)
    largest = max((np.max(np.abs(leaf)) for leaf in jax.tree.leaves(x)), default=0.0)
    assert float(tree.largest_entry(x)) == float(largest)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "uint8", "int8", "bool"])
def test_sums_over_narrow_leaves_are_wide(kind):
    # 300 squares of 100 are beyond float16 and bytes, and 1 + 1 + ... stops at 256 in bfloat16.
    x = {"a": jnp.full(299, 1 if kind == "bool" else 100).astype(kind), "b": jnp.ones((), kind)}
    exact = np.float64(np.sum(flat(x) ** 2))
    half = jnp.issubdtype(kind, jnp.floating)
    for got, expected in ((tree.dot(x, x), exact), (tree.norm(x), exact**0.5)):
        assert got.dtype == (kind if half else jnp.float32)
        expected = jnp.float32(expected).astype(got.dtype)
        np.testing.assert_allclose(got.astype(float), expected.astype(float), rtol=2e-7)
    mixed = tree.dot(x, {"a": jnp.ones(299), "b": 0.5})
    assert mixed == 299 * (1 if kind == "bool" else 100) + 0.5
    # -128 has no absolute value among the integers of 8 bits.
    assert tree.largest_entry(jnp.array([-128], jnp.int8)) == 128.0
