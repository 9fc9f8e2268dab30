"""Diagonal blocks against slices of the dense matrix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from oracles import flat, random_tree, unchecked

from jaxnn import curvature, linalg, tree
from jaxnn.linalg import LinearOperator


class Pair(NamedTuple):
    left: object
    right: object


# Eleven entries, so that "[1]" is the beginning of "[10]" as a string and not as a path.
SHAPES = [
    {"W": (2, 3), "b": (3,)},
    {"W": (3,), "inner": {"scale": (), "shift": (2,)}},
    {},
    Pair((2,), None),
    *[{}] * 6,
    {"W": (1, 2)},
]
SIZES = [6, 3, 3, 1, 2, 2, 2]  # of the leaves, in order
LEAVES = [
    *("[0]['W']", "[0]['b']", "[1]['W']", "[1]['inner']['scale']", "[1]['inner']['shift']"),
    *("[3].left", "[10]['W']"),
]
ENDS = np.cumsum(SIZES)


def slices(*leaves):
    return np.concatenate([np.arange(ENDS[i] - SIZES[i], ENDS[i]) for i in leaves])


def problem(dtype, structure="symmetric"):
    params = random_tree(0, SHAPES, dtype)
    n = sum(SIZES)
    matrix = np.random.default_rng(1).normal(size=(n, n))
    if structure != "general":
        matrix = matrix @ matrix.T
    matrix = jnp.asarray(matrix, dtype)
    return params, matrix, linalg.from_dense(matrix, params, params, structure=structure)


@pytest.mark.parametrize(
    ("select", "leaves"),
    [
        ("", range(7)),
        ("[0]", (0, 1)),
        ("[1]", (2, 3, 4)),
        ("[1]['inner']", (3, 4)),
        ("[1]['inner']['scale']", (3,)),
        ("[3]", (5,)),
        ("[10]['W']", (6,)),
        (lambda path: path.endswith("['W']"), (0, 2, 6)),
        (lambda path: "inner" not in path, (0, 1, 2, 5, 6)),
    ],
)
def test_a_block_is_a_slice_of_the_matrix(select, leaves, dtype):
    _, matrix, A = problem(dtype)
    B, rows = curvature.block(A, select), slices(*leaves)
    np.testing.assert_array_equal(B.to_dense(), np.asarray(matrix)[np.ix_(rows, rows)])
    assert B.structure == "symmetric"
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(B.domain))


def test_paths_give_subtrees_and_predicates_the_whole_with_holes():
    params, _, A = problem("float32")
    domain = lambda select: jax.tree.structure(curvature.block(A, select).domain)
    assert domain("[1]") == jax.tree.structure(params[1])
    assert domain("[3]") == jax.tree.structure(params[3])
    assert domain("[0]['b']") == jax.tree.structure(params[0]["b"])
    W = {"W": 0, "b": None}
    holes = [W, {"W": 0, "inner": {"scale": None, "shift": None}}, {}, Pair(None, None)]
    assert domain(lambda path: "W" in path) == jax.tree.structure([*holes, *[{}] * 6, {"W": 0}])


def test_blocks_cover_all_coordinates_once(dtype):
    _, matrix, A = problem(dtype)
    whole = np.asarray(matrix)
    layers = curvature.blocks(A)
    expected = {"[0]": (0, 1), "[1]": (2,), "[1]['inner']": (3, 4), "[3]": (5,), "[10]": (6,)}
    assert list(layers) == list(expected)
    for path, leaves in expected.items():
        rows = slices(*leaves)
        np.testing.assert_array_equal(layers[path].to_dense(), whole[np.ix_(rows, rows)])
    by_leaf = curvature.blocks(A, per="leaf")
    assert list(by_leaf) == LEAVES
    for i, B in enumerate(by_leaf.values()):
        np.testing.assert_array_equal(B.to_dense(), whole[np.ix_(slices(i), slices(i))])
    assert set(layers["[1]"].domain) == {"W", "inner"}


def test_maps_that_are_not_symmetric_and_bare_arrays(dtype):
    _, matrix, A = problem(dtype, "general")
    B, rows = curvature.block(A, "[0]"), slices(0, 1)
    assert B.structure == "general"
    np.testing.assert_array_equal(B.T.to_dense(), np.asarray(matrix).T[np.ix_(rows, rows)])
    C = linalg.from_dense(matrix)
    assert list(curvature.blocks(C)) == list(curvature.blocks(C, per="leaf")) == [""]
    np.testing.assert_array_equal(curvature.blocks(C)[""].to_dense(), matrix)


def test_the_cheap_quadratic_form_is_kept(dtype):
    params, matrix, _ = problem(dtype, "positive_semidefinite")
    space = linalg.coordinates(params)
    refuse = lambda v: 1 / 0
    quadratic = lambda v: space.ravel(v) @ (matrix @ space.ravel(v))
    A = LinearOperator(
        refuse, refuse, params, params, structure="positive_semidefinite", form=quadratic
    )
    B, rows = curvature.block(A, "[0]"), slices(0, 1)
    v, M = params[0], np.asarray(matrix, np.float64)[np.ix_(rows, rows)]
    assert B.structure == "positive_semidefinite"
    np.testing.assert_allclose(B.quadratic_form(v), flat(v) @ M @ flat(v), rtol=1e-5)


def test_blocks_cross_jit_as_one_program():
    params, traces = random_tree(0, SHAPES, "float32"), []

    @jax.jit
    def apply(B, v):
        traces.append(1)
        return B @ v

    for scale in (2.0, 3.0):
        product = Partial(tree.scale, scale)
        A = LinearOperator(product, product, params, params, structure="symmetric")
        image = apply(curvature.block(A, "[0]"), params[0])
        np.testing.assert_array_equal(flat(image), flat(tree.scale(scale, params[0])))
    assert len(traces) == 1


def test_bad_input():
    _, _, A = problem("float32")
    wide = linalg.from_dense(jnp.ones((2, 3)))
    cases = [
        (
            lambda: curvature.block(wide, ""),
            r"block\(operator\): got an operator of shape \(2, 3\)",
        ),
        (lambda: curvature.blocks(wide), r"blocks\(operator\)"),
        (lambda: curvature.block(A, "[2]"), r"no leaf at '\[2\]', expected at least one of \[0\]"),
        (lambda: curvature.block(A, "[0]['c']"), r"block\(select\): got no leaf at"),
        (lambda: curvature.block(A, "[0"), r"block\(select\): got no leaf at"),
        (lambda: curvature.block(A, lambda path: False), r"block\(select\): got no leaf, expected"),
        (lambda: curvature.blocks(A, per="row"), r"blocks\(per\): got 'row'"),
    ]
    for call, message in cases:
        with unchecked(), pytest.raises(ValueError, match=message):
            call()
