import operator
from dataclasses import FrozenInstanceError

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from oracles import flat, random_tree, unchecked

from jaxnn.linalg import LinearOperator, from_dense

# Spaces of dimension 9, 4, 1 and 4, with nested, scalar and empty leaves.
U = {"W": (3, 2), "b": [(2,), {"s": (), "empty": (0, 3)}], "nothing": None}
V = ((), [(1, 3)])
R = ()
V_FLAT = (4,)


def of_matrix(matrix, domain, codomain):
    """The operator whose `to_dense()` is `matrix`, carrying it as an array."""
    return LinearOperator(
        Partial(multiply, matrix, zeros(codomain)),
        Partial(multiply, matrix.T, zeros(domain)),
        domain,
        codomain,
    )


def multiply(matrix, like, v):
    return ravel_pytree(like)[1](matrix @ ravel_pytree(v)[0])


def zeros(space):
    return jax.tree.map(jnp.zeros_like, space)


def space(shapes, dtype):
    return random_tree(0, shapes, dtype)


def random_matrix(seed, domain, codomain):
    shape = (len(flat(codomain)), len(flat(domain)))
    dtype = jax.tree.leaves(domain)[0].dtype
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def random_operator(seed, domain, codomain):
    matrix = random_matrix(seed, domain, codomain)
    return of_matrix(matrix, domain, codomain), np.asarray(matrix, np.float64)


dense = jax.jit(LinearOperator.to_dense)


def close(actual, exact, dtype, factor=40):
    tolerance = factor * np.finfo(dtype).eps * max(1.0, np.max(np.abs(exact), initial=0.0))
    np.testing.assert_allclose(np.asarray(actual, np.float64), exact, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("domain", "codomain"), [(U, V), (V, U), (U, U), (R, V), (U, R)])
def test_the_matrix_in_raveled_coordinates(domain, codomain, dtype):
    domain, codomain = space(domain, dtype), space(codomain, dtype)
    operator, matrix = random_operator(1, domain, codomain)
    assert operator.shape == matrix.shape
    assert dense(operator).dtype == dtype
    close(dense(operator), matrix, dtype)
    close(dense(operator.T), matrix.T, dtype)
    v = random_tree(2, jax.tree.map(jnp.shape, domain), dtype)
    u = random_tree(3, jax.tree.map(jnp.shape, codomain), dtype)
    assert jax.tree.map(jnp.shape, operator @ v) == jax.tree.map(jnp.shape, codomain)
    close(flat(operator @ v), matrix @ flat(v), dtype)
    close(flat(operator.T @ u), matrix.T @ flat(u), dtype)
    close(flat(operator.T.T @ v), matrix @ flat(v), dtype)


def test_the_matrix_costs_as_many_applications_as_the_smaller_dimension():
    applied = []

    def matvec(v):
        applied.append("A")
        return jnp.zeros(3)

    def rmatvec(u):
        applied.append("A^T")
        return jnp.zeros(5)

    wide = LinearOperator(matvec, rmatvec, jnp.zeros(5), jnp.zeros(3))
    assert wide.to_dense().shape == (3, 5)
    assert wide.T.to_dense().shape == (5, 3)
    assert applied == ["A^T", "A^T"]  # each a batch of three


def test_dimension_zero():
    for rows, columns in [(0, 3), (3, 0), (0, 0)]:
        a = of_matrix(jnp.zeros((rows, columns)), jnp.zeros(columns), jnp.zeros(rows))
        assert a.shape == a.to_dense().shape == (rows, columns)
    nothing = LinearOperator(lambda v: v, lambda u: u, {}, {})
    assert nothing.to_dense().shape == (0, 0)
    assert nothing @ {} == {}


def combinations(A, B, C):
    return [
        A + B,
        A - B,
        -A,
        3 * A,
        A * -0.5,
        A @ C,
        C @ A,
        C @ A @ C,
        2.0 * A @ A.T - B @ B.T,
        0.25 * (A + C.T) - 2.0 * -B,
        A @ (C - B.T),
    ]


@jax.jit
def dense_combinations(A, B, C):
    return [(op.to_dense(), op.T.to_dense()) for op in combinations(A, B, C)]


def test_combinations_are_those_of_the_matrices(dtype):
    u, v = space(U, dtype), space(V, dtype)
    for seed in (0, 1):
        (A, a), (B, b) = random_operator(seed, u, v), random_operator(seed + 50, u, v)
        C, c = random_operator(seed + 100, v, u)
        for (actual, transposed), op, exact in zip(
            dense_combinations(A, B, C), combinations(A, B, C), combinations(a, b, c), strict=True
        ):
            assert op.shape == exact.shape
            close(actual, exact, dtype)
            close(transposed, exact.T, dtype)


@pytest.mark.parametrize("seed", range(4))
def test_adjointness(seed, dtype):
    domain, codomain = space(U, dtype), space(V, dtype)
    A, _ = random_operator(seed, domain, codomain)
    B, _ = random_operator(seed + 1, codomain, domain)
    for op in (A, B @ A, A.T - 2.0 * B, (A @ B).T):
        v = random_tree(seed + 2, jax.tree.map(jnp.shape, op.domain), dtype)
        u = random_tree(seed + 3, jax.tree.map(jnp.shape, op.codomain), dtype)
        forward, backward = flat(u) @ flat(op @ v), flat(op.T @ u) @ flat(v)
        scale = np.linalg.norm(flat(u)) * np.linalg.norm(flat(op @ v))
        assert abs(forward - backward) <= 40 * np.finfo(dtype).eps * max(scale, 1.0)


SCALARS = {
    "int": lambda: -2,
    "float": lambda: -2.0,
    "numpy float32": lambda: np.float32(-2),
    "numpy float64": lambda: np.float64(-2),
    "numpy int": lambda: np.int64(-2),
    "numpy array": lambda: np.array(-2.0),
    "jax": lambda: jnp.array(-2.0),
    "jax int": lambda: jnp.array(-2),
}


@pytest.mark.parametrize("kind", SCALARS)
def test_scalars_of_every_kind_on_both_sides(kind, dtype):
    factor = SCALARS[kind]()
    A, a = random_operator(0, space(U, dtype), space(V, dtype))
    for scaled in (factor * A, A * factor):
        assert isinstance(scaled, LinearOperator)
        assert scaled.to_dense().dtype == dtype
        close(scaled.to_dense(), -2 * a, dtype)


def test_frozen_and_equal_only_to_itself():
    A, _ = random_operator(0, space(U, "float32"), space(V, "float32"))
    for name in ("matvec", "rmatvec", "domain", "codomain", "new"):
        with pytest.raises(FrozenInstanceError):
            setattr(A, name, None)
    B, _ = random_operator(0, space(U, "float32"), space(V, "float32"))
    assert A == A
    assert A != B
    assert len({A, A, B}) == 2


def test_only_the_structure_of_the_spaces_is_kept():
    v = space(U, "float32")
    structs = jax.eval_shape(lambda: v)
    A = LinearOperator(Partial(lambda v: v), Partial(lambda u: u), structs, v)
    for leaf in jax.tree.leaves((A.domain, A.codomain)):
        assert isinstance(leaf, jax.ShapeDtypeStruct)
    close(A.to_dense(), np.eye(9), "float32")
    close((A @ A.T).to_dense(), np.eye(9), "float32")


class Node:
    """A pytree node without an equality of its own, as any class may be."""

    def __init__(self, value):
        self.value = value


jax.tree_util.register_pytree_node(Node, lambda n: ((n.value,), None), lambda _, c: Node(*c))


def test_nodes_without_equality():
    A = LinearOperator(lambda v: v, lambda u: u, Node(jnp.ones(2)), Node(jnp.ones(2)))
    np.testing.assert_array_equal((A @ A @ Node(jnp.arange(2.0))).value, [0.0, 1.0])
    close((A + A).to_dense(), 2 * np.eye(2), "float32")
    with pytest.raises(ValueError, match=r"A @ v: v"):
        A @ Node(jnp.ones(3))


def test_as_an_argument_of_jit_it_carries_its_arrays(dtype):
    u, v = space(U, dtype), space(V, dtype)
    traces = []

    @jax.jit
    def gram(A, x):
        traces.append(1)
        return (2.0 * A @ A.T) @ x

    for seed in range(3):
        A, a = random_operator(seed, u, v)
        close(flat(gram(A, v)), 2 * a @ a.T @ flat(v), dtype)
    assert len(traces) == 1
    assert jax.make_jaxpr(lambda A, x: A @ x)(A, u).consts == []
    gram(random_operator(3, v, v)[0], v)
    assert len(traces) == 2


def test_jit_returns_operators(dtype):
    u, v = space(U, dtype), space(V, dtype)
    B = jax.jit(lambda A: (A.T @ A - A.T @ A) + 0.5 * A.T @ A)(random_operator(0, u, v)[0])
    a = random_operator(0, u, v)[1]
    close(dense(B), 0.5 * a.T @ a, dtype)


def test_under_vmap(dtype):
    u, v = space(U, dtype), space(V, dtype)
    matrices = jnp.stack([random_matrix(seed, u, v) for seed in range(3)])
    operators = jax.jit(jax.vmap(lambda m: of_matrix(m, u, v)))(matrices)
    assert operators.shape == (4, 9)  # of each in the batch
    products, grams = jax.jit(jax.vmap(lambda A: (A @ u, (A @ A.T).to_dense())))(operators)
    for i, m in enumerate(np.asarray(matrices, np.float64)):
        close(flat(jax.tree.map(lambda leaf, i=i: leaf[i], products)), m @ flat(u), dtype)
        close(grams[i], m @ m.T, dtype)


def test_under_grad(dtype):
    u, v = space(U, dtype), space(V, dtype)
    m = random_matrix(0, u, v)

    def squared_norm(m, factor):
        image = (factor * of_matrix(m, u, v)) @ u
        return jnp.sum(ravel_pytree(image)[0] ** 2)

    by_matrix, by_factor = jax.jit(jax.grad(squared_norm, argnums=(0, 1)))(
        m, jnp.asarray(1.5, dtype)
    )
    exact, x = np.asarray(m, np.float64), flat(u)
    close(by_matrix, 2 * 1.5**2 * np.outer(exact @ x, x), dtype)
    close(by_factor, 2 * 1.5 * (exact @ x) @ (exact @ x), dtype)


def test_in_loops(dtype):
    u = space(U, dtype)
    A, a = random_operator(0, u, u)
    A, a = 0.25 * A, 0.25 * a
    exact = np.linalg.matrix_power(a, 4) @ flat(u)
    closed = jax.lax.scan(lambda x, _: (A @ x, None), u, None, length=4)[0]
    carried = jax.lax.scan(lambda c, _: ((c[0], c[0] @ c[1]), None), (A, u), None, length=4)[0][1]
    stopped = jax.lax.while_loop(
        lambda c: c[0] < 4, lambda c: (c[0] + 1, c[1], c[1] @ c[2]), (0, A, u)
    )[2]
    for x in (closed, carried, stopped):
        close(flat(x), exact, dtype)


def message_of(action):
    with pytest.raises(ValueError, match=r": got .*, expected ") as error:
        action()
    return str(error.value)


def test_vectors_that_do_not_fit():
    domain = {"a": jnp.ones((2, 3)), "b": jnp.ones(())}
    A = LinearOperator(lambda v: v, lambda u: u, domain, domain)
    bad = [
        ({"a": jnp.ones((3, 2)), "b": jnp.ones(())}, "float32[3, 2]"),
        ({"a": jnp.ones((2, 3), "bfloat16"), "b": jnp.ones(())}, "bfloat16[2, 3]"),
        ({"a": jnp.ones((2, 3))}, "{'a': 'float32[2, 3]'}"),
        ({"a": jnp.ones((2, 3)), "b": jnp.ones(()), "c": 1.0}, "'c': 'float'"),
        ([jnp.ones((2, 3)), jnp.ones(())], "['float32[2, 3]', 'float32[]']"),
        ({"a": jnp.ones((2, 3)), "b": "text"}, "'b': 'str'"),
        (jnp.ones(7), "float32[7]"),
        (None, "None"),
    ]
    for v, got in bad:
        message = message_of(lambda v=v: A @ v)
        assert message.startswith("A @ v: v: got ")
        assert got in message
        assert "{'a': 'float32[2, 3]', 'b': 'float32[]'}" in message


def test_operators_that_do_not_fit():
    u, v = space(U, "float32"), space(V, "float32")
    A, _ = random_operator(0, u, v)
    B, _ = random_operator(0, u, space(V_FLAT, "float32"))
    assert message_of(lambda: A @ A).startswith("A @ B: codomain of B: got ")
    assert message_of(lambda: A + A.T).startswith("A + B: domain of B: got ")
    for difference in (lambda: A + B, lambda: A - B):
        message = message_of(difference)
        assert message.startswith("A + B: codomain of B: got float32[4], expected ")
        assert "('float32[]', ['float32[1, 3]'])" in message


def test_factors_that_are_no_scalars():
    A, _ = random_operator(0, space(U, "float32"), space(V, "float32"))
    for factor in (np.ones(3), jnp.ones((1,)), jnp.ones((2, 2))):
        for product in (lambda f=factor: f * A, lambda f=factor: A * f):
            message = message_of(product)
            assert message.startswith(f"c * A: c: got shape {factor.shape}, expected a scalar.")
    for complex_factor in (1j, jnp.array(1j), np.complex64(1j)):
        message = message_of(lambda c=complex_factor: (c * A).to_dense())
        assert "complex64" in message


@pytest.mark.parametrize("other", [None, "text", (1.0,), {}, "A"])
@pytest.mark.parametrize("operation", [operator.mul, operator.add, operator.sub])
def test_what_is_neither_operator_nor_number(operation, other):
    A, _ = random_operator(0, space(U, "float32"), space(V, "float32"))
    with unchecked():
        if other == "A":
            other = A if operation is operator.mul else 2.0
        with pytest.raises(TypeError):
            operation(A, other)
        with pytest.raises(TypeError):
            operation(other, A)


def test_arrays_do_not_act_from_the_left():
    A, _ = random_operator(0, jnp.ones(3), jnp.ones(3))
    for row in (np.ones(3), jnp.ones(3)):
        with pytest.raises(TypeError):
            row @ A


def declared(seed, structure, dtype, n=5):
    m = np.random.default_rng(seed).normal(size=(n, n))
    m = {"general": m, "symmetric": m + m.T, "positive_semidefinite": m @ m.T}[structure]
    return from_dense(jnp.asarray(m, dtype), structure=structure)


GENERAL, SYMMETRIC, SEMIDEFINITE = "general", "symmetric", "positive_semidefinite"

ALGEBRA = [
    (lambda G, S, P: S + P, SYMMETRIC),
    (lambda G, S, P: P + 2.0 * P, SEMIDEFINITE),
    (lambda G, S, P: P + G, GENERAL),
    (lambda G, S, P: P - P, SYMMETRIC),
    (lambda G, S, P: -P, SYMMETRIC),
    (lambda G, S, P: -S, SYMMETRIC),
    (lambda G, S, P: -G, GENERAL),
    (lambda G, S, P: 0.0 * P, SEMIDEFINITE),
    (lambda G, S, P: 3 * P, SEMIDEFINITE),
    (lambda G, S, P: P * np.float32(-0.5), SYMMETRIC),
    (lambda G, S, P: P * float("nan"), SYMMETRIC),
    (lambda G, S, P: P.T, SEMIDEFINITE),
    (lambda G, S, P: S.T + P.T, SYMMETRIC),
    (lambda G, S, P: S @ P, GENERAL),
    (lambda G, S, P: G @ G, GENERAL),
    (lambda G, S, P: G.T @ G, SEMIDEFINITE),
    (lambda G, S, P: G @ G.T, SEMIDEFINITE),
    (lambda G, S, P: S @ S, SEMIDEFINITE),
    (lambda G, S, P: S.T @ S, SEMIDEFINITE),
    (lambda G, S, P: (G @ S).T @ (G @ S), GENERAL),  # not seen: a new product each time
    (lambda G, S, P: G.T @ G + 0.5 * P, SEMIDEFINITE),
    (lambda G, S, P: (2.0 * G.T) @ G, GENERAL),
]


@pytest.mark.parametrize("case", range(len(ALGEBRA)))
def test_what_is_declared_survives_as_far_as_it_holds(case):
    make, structure = ALGEBRA[case]
    made = make(
        *(declared(i, s, "float32") for i, s in enumerate((GENERAL, SYMMETRIC, SEMIDEFINITE)))
    )
    assert made.structure == structure
    assert made.symmetric == (structure != GENERAL)
    assert jax.jit(lambda A: A)(made).structure == structure
    if np.all(np.isfinite(made.to_dense())):
        dense = np.asarray(made.to_dense(), np.float64)
        atol = 1e-5 * max(1.0, np.max(np.abs(dense)))
        if structure != GENERAL:
            np.testing.assert_allclose(dense, dense.T, atol=atol)
        if structure == SEMIDEFINITE:
            assert np.linalg.eigvalsh((dense + dense.T) / 2)[0] >= -10 * atol


def test_a_traced_factor_may_be_negative():
    P = declared(0, SEMIDEFINITE, "float32")
    assert jax.jit(lambda c, A: c * A)(2.0, P).structure == SYMMETRIC


def test_products_with_a_transpose_across_jit():
    G = declared(0, GENERAL, "float32")
    assert jax.jit(lambda G: G.T @ G)(G).structure == SEMIDEFINITE
    assert jax.jit(lambda A, B: A.T @ B)(G, G).structure == GENERAL  # may be two maps


@pytest.mark.parametrize("case", range(len(ALGEBRA)))
def test_forms_are_those_of_the_products(case, dtype):
    def cheap(matrix, v):  # as curvature has one: not by the product
        return jnp.sum(matrix * v[:, None] * v[None, :])

    operators = []
    for i, structure in enumerate((GENERAL, SYMMETRIC, SEMIDEFINITE)):
        A = declared(i, structure, dtype)
        form = Partial(cheap, A.to_dense())
        operators.append(
            LinearOperator(
                A.matvec, A.rmatvec, A.domain, A.codomain, structure=structure, form=form
            )
        )
    made = ALGEBRA[case][0](*operators)
    for seed in range(2):
        v = jnp.asarray(np.random.default_rng(seed).normal(size=5), dtype)
        dense = np.asarray(made.to_dense(), np.float64)
        if np.all(np.isfinite(dense)):
            size = np.abs(flat(v)) @ np.abs(dense) @ np.abs(flat(v))
            error = float(made.quadratic_form(v)) - flat(v) @ dense @ flat(v)
            assert abs(error) <= 40 * np.finfo(dtype).eps * max(size, 1.0)


def test_a_form_is_used_where_it_is_and_survives_sums_and_factors():
    calls = {"form": 0, "product": 0}

    def product(v):
        calls["product"] += 1
        return 2.0 * v

    def form(v):
        calls["form"] += 1
        return 2.0 * jnp.sum(v**2)

    v = jnp.arange(3.0)
    A = LinearOperator(product, product, v, v, structure=SYMMETRIC, form=form)
    for made, forms in ((A, 1), (3.0 * A, 1), (-A, 1), (A + A, 2), (A - 0.5 * A, 2), (A.T, 1)):
        calls.update(form=0, product=0)
        exact = v @ made.to_dense() @ v
        calls.update(form=0, product=0)
        assert made.quadratic_form(v) == exact
        assert calls == {"form": forms, "product": 0}
    plain = LinearOperator(product, product, v, v)
    calls.update(form=0, product=0)
    (plain + A).quadratic_form(v)
    assert calls == {"form": 1, "product": 1}
    calls.update(form=0, product=0)
    assert (A @ A).quadratic_form(v) == 4 * 5.0
    assert calls == {"form": 0, "product": 1}  # a squared norm


def test_a_form_crosses_jit_with_its_arrays():
    scale = jnp.arange(3.0)
    square = lambda s, v: jnp.sum(s * v**2)
    product = Partial(jnp.multiply, scale)
    A = LinearOperator(
        product, product, scale, scale, structure=SYMMETRIC, form=Partial(square, scale)
    )
    call = lambda A, v: (2.0 * A + A).quadratic_form(v)
    assert jax.jit(call)(A, jnp.ones(3)) == 9.0
    assert jax.make_jaxpr(call)(A, jnp.ones(3)).consts == []
    with pytest.raises(ValueError, match=r"A.quadratic_form\(v\): v: got float32\[4\], expected"):
        A.quadratic_form(jnp.ones(4))


def test_complex_products_with_a_transpose_are_not_positive():
    G = from_dense(jnp.array([[0.0, 1.0], [1.0j, 0.0]]))
    assert (G.T @ G).structure == GENERAL  # transposed, not conjugated


def test_declarations_that_cannot_hold():
    real, other = jnp.ones(2), {"a": jnp.ones(2)}
    identity = lambda v: v
    for structure, domain, codomain, got in [
        (SYMMETRIC, real, jnp.ones(3), r"'symmetric' from float32\[2\] to float32\[3\]"),
        (SEMIDEFINITE, real, other, r"'positive_semidefinite' from float32\[2\] to {'a': 'float32"),
        (
            SYMMETRIC,
            jnp.ones(2, "complex64"),
            jnp.ones(2, "complex64"),
            r"'symmetric' from complex64\[2\]",
        ),
        ("hermitian", real, real, r"'hermitian', expected one of 'general', 'symmetric', 'pos"),
    ]:
        with (
            unchecked(),
            pytest.raises(ValueError, match=r"LinearOperator\(structure\): got " + got),
        ):
            LinearOperator(identity, identity, domain, codomain, structure=structure)
