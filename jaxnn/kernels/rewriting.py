"""Products with composed parameters, regrouped so that every parameter is a factor by itself.

A weight may be computed from parameters: A B of low rank, W + A B, V divided by the norms of its
columns. Its gradient then has no factors in the parameters, but an equal function of them has:

    x (A B) = (x A) B,   x (P ± Q) = x P ± x Q,   x (V c) = (x V) c,   x (c V) = (x c) V

where c is constant along the axes of V that are summed over, or along all others. A complex weight
P + iQ of real parameters is such a sum.
"""

import string
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn
from jax.extend.core import primitives as p

from jaxnn.kernels.program import Equation, Program, bind, is_concrete
from jaxnn.types import Array, Shape


class Regrouping(NamedTuple):
    """An equal function, of other values of the program."""

    function: Callable[..., Array]
    operands: tuple[int, ...]


def regrouped(program: Program, eqn: JaxprEqn, inputs: tuple[int, ...]) -> Regrouping | None:
    """What to compute instead of a product of data with a composed parameter, or None.

    >>> from jaxnn.kernels.unfolding import trace
    >>> f = lambda a, b, x: [x @ (a @ b)]
    >>> program = trace(f, [jnp.ones((3, 2)), jnp.ones((2, 3))], [jnp.ones(3)])
    >>> [program.avals[e.outputs[0]].shape for e in program.equations]
    [(2,), (3,)]
    """
    weights = [k for k, i in enumerate(inputs) if program.is_parameter(i)]
    if len(weights) != 1 or not any(program.varying[i] for i in inputs):
        return None
    (position,) = weights
    if eqn.primitive is p.dot_general_p:
        product: _Product = _einsum(program, eqn, inputs, position)
    elif eqn.primitive is p.conv_general_dilated_p and position == 1:
        product = _Convolution(eqn.params)
    else:
        return None
    data = inputs[1 - position]
    composed = program.producer(inputs[position])
    while composed is not None:
        if composed.primitive is p.transpose_p:
            product = product.transposed(composed.params["permutation"])
        elif not _makes_complex(program, composed, data):
            break
        composed = program.producer(composed.inputs[0])
    if composed is None or composed.primitive not in _RULES:
        return None
    return _RULES[composed.primitive](program, composed, product, data)


def _makes_complex(program: Program, equation: Equation, data: int) -> bool:
    """Whether a weight was only converted to the complex type of the data it multiplies."""
    target = program.avals[data].dtype
    converts = equation.primitive is p.convert_element_type_p
    return (
        converts
        and jnp.iscomplexobj(program.avals[data])
        and target == equation.params["new_dtype"]
    )


class _Einsum(NamedTuple):
    """A product of data and weight as an einsum; the letters are those of their axes."""

    data: str
    weight: str
    output: str
    options: dict[str, Any]

    def times(self, data: Array, weight: Array) -> Array:
        letters = f"{self.data},{self.weight}->{self.output}"
        with jax.numpy_dtype_promotion("standard"):  # dot_general takes complex times real
            return jnp.einsum(letters, data, weight, **self.options)

    def transposed(self, order: tuple[int, ...]) -> "_Einsum":
        """The product with a weight whose transpose this product takes."""
        letters = sorted(zip(order, self.weight, strict=True))
        return self._replace(weight="".join(letter for _, letter in letters))

    def into_data(self, axis: int) -> int:
        """The axis of the data that an axis of the weight meets, -1 if it meets none."""
        return self.data.find(self.weight[axis])

    def into_output(self, axis: int) -> int:
        """The axis of the output that an axis of the weight becomes, -1 if it is summed over."""
        return self.output.find(self.weight[axis])


class _Convolution(NamedTuple):
    """A convolution of data with a weight, as `_Einsum`."""

    params: dict[str, Any]

    def times(self, data: Array, weight: Array) -> Array:
        equation = Equation(p.conv_general_dilated_p, self.params, (), ())
        return bind(equation, [data, weight.astype(data.dtype)])[0]

    def transposed(self, order: tuple[int, ...]) -> "_Convolution":
        numbers = self.params["dimension_numbers"]
        rhs = tuple(order[axis] for axis in numbers.rhs_spec)
        return _Convolution({**self.params, "dimension_numbers": numbers._replace(rhs_spec=rhs)})

    def into_data(self, axis: int) -> int:
        return -1  # every output has its own window of the data

    def into_output(self, axis: int) -> int:
        numbers = self.params["dimension_numbers"]
        return numbers.out_spec[1] if axis == numbers.rhs_spec[0] else -1


_Product: TypeAlias = _Einsum | _Convolution


def _einsum(program: Program, eqn: JaxprEqn, inputs: tuple[int, ...], position: int) -> _Einsum:
    left, right, output = _letters(program, eqn.params["dimension_numbers"], inputs)
    data, weight = (left, right) if position else (right, left)
    names = ("precision", "preferred_element_type")
    return _Einsum(data, weight, output, {name: eqn.params[name] for name in names})


def _letters(program: Program, numbers: Any, inputs: tuple[int, ...]) -> tuple[str, str, str]:
    """dot_general as an einsum."""
    alphabet = iter(string.ascii_letters)
    ranks = [len(program.avals[i].shape) for i in inputs]
    names: tuple[dict[int, str], dict[int, str]] = ({}, {})
    (contracted, batch) = numbers
    for pair in (batch, contracted):
        for axes in zip(*pair, strict=True):
            letter = next(alphabet)
            names[0][axes[0]] = names[1][axes[1]] = letter
    output = "".join(names[0][axis] for axis in batch[0])
    for rank, known in zip(ranks, names, strict=True):
        free = [axis for axis in range(rank) if axis not in known]
        known.update(zip(free, alphabet, strict=False))
        output += "".join(known[axis] for axis in free)
    left, right = (
        "".join(known[axis] for axis in range(rank))
        for rank, known in zip(ranks, names, strict=True)
    )
    return left, right, output


def _product_of_two(
    program: Program, composed: Equation, product: _Product, data: int
) -> Regrouping | None:
    if not isinstance(product, _Einsum):
        return None
    left, right, output = _letters(program, composed.params["dimension_numbers"], composed.inputs)
    types = {program.avals[i].dtype for i in (*composed.inputs, composed.outputs[0])}
    if len(types) > 1:
        return None
    outer = dict(zip(output, product.weight, strict=True))
    taken = {*product.data, *product.weight, *product.output}
    others = iter([letter for letter in string.ascii_letters if letter not in taken])
    for letter in (*left, *right):
        if letter not in outer:
            outer[letter] = next(others)
    first, second = ("".join(outer[letter] for letter in side) for side in (left, right))
    operands = composed.inputs
    if not {*product.data} & {*first} - {*product.output}:  # nothing to sum over with the first
        first, second, operands = second, first, operands[::-1]
    joined = dict.fromkeys(product.data + first)
    between = "".join(letter for letter in joined if letter in second + product.output)
    inner = product._replace(
        weight=first, output=between, options={"precision": product.options["precision"]}
    )
    last = product._replace(data=between, weight=second)
    return Regrouping(lambda x, a, b: last.times(inner.times(x, a), b), (data, *operands))


def _sum_of_two(
    program: Program, composed: Equation, product: _Product, data: int
) -> Regrouping | None:
    shapes = {program.avals[i].shape for i in composed.inputs}
    if len(shapes) > 1:
        return None

    def function(x: Array, a: Array, b: Array) -> Array:
        return bind(composed, [product.times(x, a), product.times(x, b)])[0]

    return Regrouping(function, (data, *composed.inputs))


def _complex_sum(
    program: Program, composed: Equation, product: _Product, data: int
) -> Regrouping | None:
    dtype = program.avals[composed.outputs[0]].dtype

    def function(x: Array, real: Array, imaginary: Array) -> Array:
        first, second = (product.times(x, part.astype(dtype)) for part in (real, imaginary))
        return first + 1j * second

    return Regrouping(function, (data, *composed.inputs))


def _scaled(
    program: Program, composed: Equation, product: _Product, data: int
) -> Regrouping | None:
    """V c, c V or V / c, where c is a broadcast of something smaller."""
    orders = [(0, 1), (1, 0)] if composed.primitive is p.mul_p else [(0, 1)]
    shape = program.avals[composed.outputs[0]].shape
    for weight, scale in orders:
        if program.avals[composed.inputs[weight]].shape != shape:
            continue
        compact, source, axes = _compact(program, composed.inputs[scale])
        operands = (data, composed.inputs[weight], source)
        output = [product.into_output(axis) for axis in axes]
        if -1 not in output:
            scaled = partial(_scaled_by, composed, compact, output)
            return Regrouping(partial(_scaled_output, product, scaled), operands)
        met = [product.into_data(axis) for axis in axes]
        if -1 not in met:
            scaled = partial(_scaled_by, composed, compact, met)
            return Regrouping(partial(_scaled_data, product, scaled), operands)
    return None


def _scaled_output(product: _Product, scaled: Callable, x: Array, v: Array, c: Array) -> Array:
    return scaled(product.times(x, v), c)


def _scaled_data(product: _Product, scaled: Callable, x: Array, v: Array, c: Array) -> Array:
    return product.times(scaled(x, c), v)


def _scaled_by(
    composed: Equation, compact: Callable[[Array], Array], axes: list[int], array: Array, c: Array
) -> Array:
    """array c or array / c, where the axes of c are `axes` of the array."""
    order = sorted(range(len(axes)), key=axes.__getitem__)
    c = compact(c).transpose(order)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.promote_types(array.dtype, c.dtype)
    array, c = array.astype(dtype), c.astype(dtype)
    c = lax.broadcast_in_dim(c, array.shape, sorted(axes))
    return bind(composed, [array, c])[0]


def _compact(program: Program, value: int) -> tuple[Callable[[Array], Array], int, list[int]]:
    """(compact, source, axes): the value is compact(source), broadcast along all but some axes."""
    shape: Shape = program.avals[value].shape
    constant, equation = program.constants.get(value), program.producer(value)
    if constant is not None and is_concrete(constant):
        known = np.asarray(constant)
        axes = [k for k in range(known.ndim) if not np.all(known == known.take([0], axis=k))]
        at = tuple(slice(None) if k in axes else 0 for k in range(known.ndim))
        return (lambda c: c[at]), value, axes
    if equation is not None and equation.primitive is p.broadcast_in_dim_p:
        (source,) = equation.inputs
        shape, into = program.avals[source].shape, equation.params["broadcast_dimensions"]
    else:
        source, into = value, range(len(shape))
    kept = [k for k, n in enumerate(shape) if n > 1]
    sizes = [shape[k] for k in kept]
    return (lambda c: c.reshape(sizes)), source, [into[k] for k in kept]


_RULES: dict[Any, Callable[[Program, Equation, _Product, int], Regrouping | None]] = {
    p.dot_general_p: _product_of_two,
    p.add_p: _sum_of_two,
    p.sub_p: _sum_of_two,
    p.complex_p: _complex_sum,
    p.mul_p: _scaled,
    p.div_p: _scaled,
}
