"""A stack of restricted machines, trained one upon the other: the start of every deep model."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Shaped

from jaxnn.errors import invalid
from jaxnn.generative import rbm
from jaxnn.generative.iteration import Fit
from jaxnn.types import Array, ArrayLike, Key, Params


def init(
    key: Key,
    sizes: tuple[int, ...],
    *,
    weight_std: float = 0.01,
    mean: Shaped[Array, "visible"] | None = None,
) -> tuple[Params, ...]:
    """A restricted machine between every two neighboring layers, by `rbm.init`, the lowest first.

    Errors: fewer than two layers.

    >>> [machine["W"].shape for machine in init(jax.random.key(0), (4, 3, 2))]
    [(4, 3), (3, 2)]
    """
    if len(sizes) < 2:
        raise invalid(
            "sizes of layers",
            got=sizes,
            expected="at least two, the visible layer's first",
            remedy="Hidden units model what visible ones have in common.",
        )
    keys = jax.random.split(key, len(sizes) - 1)
    means = (mean, *(None for _ in sizes[2:]))
    return tuple(
        rbm.init(k, below, above, weight_std=weight_std, mean=m)
        for k, below, above, m in zip(keys, sizes[:-1], sizes[1:], means, strict=True)
    )


def fit(
    machines: tuple[Params, ...],
    x: Shaped[Array, "N visible"],
    optimizer: Any,
    *,
    steps: int,
    batch_size: int | None = None,
    key: Key,
    gibbs_steps: ArrayLike = 1,
    chains: int | None = None,
    doubled: bool = False,
) -> Fit:
    """Train each machine by `rbm.fit` on the means that the one below it gives its hidden units.

    With `doubled`, evidence counts twice wherever a layer of a deep Boltzmann machine would get as
    much again from its other side: upward below the top machine, downward above the bottom one.

    `params` and `state` of the Fit are tuples, its history and `diverged` have a row per machine.

    Errors: as `rbm.fit`.

    Source: Hinton, Osindero & Teh (2006), section 4; Salakhutdinov & Hinton (2009), section 3.1,
    for `doubled`.

    >>> from jaxnn import optimizers
    >>> run = fit(init(jax.random.key(0), (3, 2, 2)), jnp.eye(3),
    ...           optimizers.gradient_descent(0.1), steps=10, key=jax.random.key(1))
    >>> len(run.params), run.history["free_energy_gap"].shape
    (2, (2, 10))
    """
    fits = []
    for level, machine_key in enumerate(jax.random.split(key, len(machines))):
        up = 2.0 if doubled and level < len(machines) - 1 else 1.0
        down = 2.0 if doubled and level > 0 else 1.0
        found = rbm.fit(
            machines[level],
            x,
            optimizer,
            steps=steps,
            batch_size=batch_size,
            key=machine_key,
            gibbs_steps=gibbs_steps,
            chains=chains,
            up=up,
            down=down,
        )
        x = rbm.hidden_mean({**found.params, "W": up * found.params["W"]}, x)
        fits.append(found)
    return Fit(
        tuple(f.params for f in fits),
        tuple(f.state for f in fits),
        {name: jnp.stack([f.history[name] for f in fits]) for name in fits[0].history},
        jnp.stack([f.diverged for f in fits]),
    )
