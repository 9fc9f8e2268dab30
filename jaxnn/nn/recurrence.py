"""The simple recurrent network of infinite width: covariances that a scan over time carries."""

from dataclasses import replace

import jax.numpy as jnp
from jax import lax

from jaxnn.nn import lengths, limit
from jaxnn.nn.layers import Layer
from jaxnn.nn.limit import MOMENTS, Kernel
from jaxnn.nn.parametrization import like
from jaxnn.nn.positions import Positions
from jaxnn.types import Array, ArrayLike


def limit_of(
    kernel: Kernel,
    activation: Layer,
    width: int,
    std: tuple[ArrayLike, ArrayLike | None, ArrayLike],
    parametrization: str,
    *,
    last: bool,
    reverse: bool,
) -> Kernel:
    """The kernel of h_t = φ(x_t W + h_{t-1} U + b), of the last state or of all, (T[, T], N1, N2).

        K_u(t, t') = σ_w²K_x(t, t') + σ_b² + σ_u²K_h(t-1, t'-1)
        Θ_u(t, t') = own(t, t') + σ_w²Θ_x(t, t') + σ_u²Θ_h(t-1, t'-1)

    and (K_h, Θ_h) from (K_u, Θ_u) as of any activation; own is K_u in the NTK parametrization, and
    dK_x + nK_h(t-1, t'-1) + 1 in the standard one. Only derivatives that go back equally many
    steps correlate, so that pairs of equal times need no others, unless padded sequences
    end at different times. std = (σ_w, σ_b, σ_u).

    Source: Yang (2019), section 4; Alemohammad et al. (2021), theorem 1.
    """
    weight_std, bias_std, recurrent_std = std
    u2 = like(recurrent_std, kernel.nngp) ** 2
    padded = kernel.lengths1 is not None
    if padded:
        limit.require_crossed("rnn over nn.Sequences", kernel)
    elif last and kernel.positions.crossed:
        kernel = kernel.map(
            lambda k: kernel.positions.variances(k)[:, 0],
            positions=Positions(kernel.positions.shape),
        )
    (times,) = kernel.positions.shape
    back = tuple(range(len(kernel.positions.axes)))
    flip = lambda k: jnp.flip(k, back) if reverse else k
    drive = limit.affine(kernel.map(flip), width, weight_std, bias_std, parametrization)

    def after(drive: Kernel, before: Kernel) -> Kernel:
        own = u2 * before.nngp if parametrization == "ntk" else width * before.nngp
        moments = {name: getattr(drive, name) + u2 * getattr(before, name) for name in MOMENTS}
        moments["ntk"] = moments["ntk"] + own
        return activation.kernel(replace(drive, **moments))

    if kernel.positions.crossed:
        inside = (
            [jnp.flip(w, 0) if reverse else w for w in lengths.within(kernel)] if padded else []
        )

        def states_after(before: Kernel) -> Kernel:
            state = after(drive, before)
            return lengths.weigh(state, *inside) if padded else state

        # After pass t all entries (s, s') with min(s, s') ≤ t are final: T passes suffice.
        pass_ = lambda _, states: states_after(states.map(_delayed))
        states = lax.fori_loop(0, times, pass_, states_after(_nothing(drive))).map(flip)
        if last and padded:
            return lengths.total(states, *(lengths.first if reverse else lengths.last)(kernel))
        return states
    at = replace(drive, positions=Positions())
    first = at.map(lambda k: k[0])
    start = _nothing(after(first, _nothing(first)))

    def step(before: Kernel, drive: Kernel) -> tuple[Kernel, Kernel]:
        state = after(drive, before)
        return state, state

    end, states = lax.scan(step, start, at)
    return end if last else replace(states, positions=kernel.positions).map(flip)


def _nothing(kernel: Kernel) -> Kernel:
    return kernel.map(jnp.zeros_like)


def _delayed(k: Array) -> Array:
    """k[t - 1, t' - 1], and 0 before the first time."""
    return jnp.pad(k[:-1, :-1], [(1, 0), (1, 0), (0, 0), (0, 0)])
