"""Adversarial networks: a generator and a discriminator trained against each other.

The discriminator D gives a logit, positive for what it takes for data: σ(D(x)) is its probability
that x is real. With D* = ln p - ln q, the best against densities p of data and q of the generator,

    max_D E_p ln σ(D) + E_q ln(1 - σ(D)) = -ln 4 + 2 JSD(p ‖ q)        (Goodfellow et al. 2014)

Networks are plain functions f(params, x), batch axis first; logits are (N,) or (N, 1).
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import softplus
from jaxtyping import Float, Shaped

from jaxnn.errors import invalid, require_between, require_real
from jaxnn.generative import iteration
from jaxnn.generative.iteration import Fit, State
from jaxnn.jaxprs import compiled
from jaxnn.precision import accumulated, inexact
from jaxnn.types import Apply, Array, ArrayLike, Key, Params

Kind = Literal["original", "non_saturating"]


class Players(NamedTuple):
    """Something of each of the two networks: parameters, optimizers, optimizer states."""

    generator: Any
    discriminator: Any


def discriminator_loss(
    real_logits: Shaped[Array, "N"], fake_logits: Shaped[Array, "M"]
) -> Float[Array, ""]:
    """-mean ln σ(D(x)) - mean ln(1 - σ(D(G(z)))), to be minimized by the discriminator.

    Source: Goodfellow et al. (2014), equation 1 with the sign turned.

    >>> discriminator_loss(jnp.zeros(3), jnp.zeros(2))
    Array(1.3862944, dtype=float32)
    """
    require_real("discriminator_loss(logits)", real_logits, fake_logits)
    loss = lambda real, fake: jnp.mean(softplus(-real)) + jnp.mean(softplus(fake))
    return accumulated(loss, real_logits, fake_logits)


def generator_loss(
    fake_logits: Shaped[Array, "M"], kind: Kind = "non_saturating"
) -> Float[Array, ""]:
    """What the generator minimizes.

        "original"         mean ln(1 - σ(D(G(z)))), the negative of the discriminator's term
        "non_saturating"  -mean ln σ(D(G(z)))

    Both fall where D rises; where D is sure of a fake the derivative of the first by D, -σ(D),
    vanishes, and that of the second, -σ(-D), does not.

    Errors: another kind.

    Source: Goodfellow et al. (2014), equation 1 and section 3.

    >>> fake = jnp.array([-10.0])
    >>> slopes = jax.grad(generator_loss)(fake, "original"), jax.grad(generator_loss)(fake)
    >>> print(f"{slopes[0].item():.5f} {slopes[1].item():.5f}")
    -0.00005 -0.99995
    """
    if kind not in ("original", "non_saturating"):
        raise invalid(
            "generator_loss(kind)",
            got=repr(kind),
            expected="'original' or 'non_saturating'",
            remedy="The second one learns also where the discriminator wins.",
        )
    require_real("generator_loss(fake_logits)", fake_logits)
    if kind == "original":
        return accumulated(lambda fake: -jnp.mean(softplus(fake)), fake_logits)
    return accumulated(lambda fake: jnp.mean(softplus(-fake)), fake_logits)


def r1_penalty(discriminator: Apply, params: Params, x: Shaped[Array, "N *d"]) -> Float[Array, ""]:
    """½ mean ‖∇_x D(x)‖² over real examples.

    Errors: logits that are not (N,) or (N, 1). The gradients of all examples are taken at once,
    so D must treat each on its own: no batch statistics.

    Source: Mescheder, Geiger & Nowozin (2018), equation 9.

    >>> r1_penalty(lambda w, x: x @ w, jnp.array([3.0, 4.0]), jnp.zeros((5, 2)))
    Array(12.5, dtype=float32)
    """
    require_real("r1_penalty(x)", x)
    x = inexact(x, *jax.tree.leaves(params))
    slopes = jax.grad(lambda x: jnp.sum(logits(discriminator, params, x)))(x)
    return accumulated(lambda slopes: 0.5 * jnp.sum(jnp.square(slopes)) / len(x), slopes)


def logits(discriminator: Apply, params: Params, x: Shaped[Array, "N *d"]) -> Float[Array, "N"]:
    """D(x) as one number per example.

    Errors: outputs that are not (N,) or (N, 1).

    >>> logits(lambda w, x: x @ w, jnp.ones((2, 1)), jnp.ones((3, 2)))
    Array([2., 2., 2.], dtype=float32)
    """
    d = discriminator(params, x)
    if d.shape not in ((len(x),), (len(x), 1)):
        raise invalid(
            "the discriminator's output",
            got=f"shape {d.shape}",
            expected=f"({len(x)},) or ({len(x)}, 1)",
            remedy="It gives one logit per example.",
        )
    return d.reshape(len(x))


def optimal_value(p: Shaped[Array, "K"], q: Shaped[Array, "K"]) -> Float[Array, ""]:
    """max_D E_p ln σ(D) + E_q ln(1 - σ(D)) = -ln 4 + 2 JSD(p ‖ q) for distributions on K points.

    It is reached by D = ln p - ln q. At p = q, where no D tells them apart, it is -ln 4.

    Source: Goodfellow et al. (2014), theorem 1.

    >>> optimal_value(jnp.array([0.5, 0.5]), jnp.array([0.5, 0.5]))
    Array(-1.3862944, dtype=float32)
    """
    return accumulated(lambda p, q: 2.0 * jensen_shannon_divergence(p, q) - math.log(4.0), p, q)


def jensen_shannon_divergence(p: Shaped[Array, "K"], q: Shaped[Array, "K"]) -> Float[Array, ""]:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q)/2, in nats: from 0 to ln 2.

    Source: Lin (1991).

    >>> jensen_shannon_divergence(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
    Array(0.6931472, dtype=float32)
    """
    require_real("jensen_shannon_divergence(p, q)", p, q)
    entropy = lambda r: jnp.sum(jax.scipy.special.entr(r))
    return accumulated(lambda p, q: entropy(0.5 * (p + q)) - 0.5 * (entropy(p) + entropy(q)), p, q)


@compiled(
    static_argnames=(
        *("generator", "discriminator", "optimizers", "latent", "steps", "batch_size"),
        *("kind", "simultaneous"),
    ),
)
def fit(
    generator: Apply,
    discriminator: Apply,
    params: Players,
    x: Shaped[Array, "N *d"],
    optimizers: Players,
    *,
    latent: int,
    steps: int,
    batch_size: int | None = None,
    key: Key | None = None,
    kind: Kind = "non_saturating",
    r1_weight: ArrayLike = 0.0,
    simultaneous: bool = False,
    state: State | None = None,
) -> Fit:
    """Train both networks: in every step one update of the discriminator, one of the generator.

        discriminator   ↓ discriminator_loss + r1_weight · r1_penalty, on a batch and as many fakes
        generator       ↓ generator_loss, on fakes of other latents z ~ N(0, I), (N, latent)

    The generator plays against the updated discriminator, or with `simultaneous` against the one
    before. `optimizers` are a pair of pairs (init, update); one that needs an objective is told of
    its player's loss on the same draws. `history` has per step both losses,
    "discriminator" and "generator", and "r1", the penalty before its weight. To go on, pass
    `params` and `state` of a Fit.

    Errors: neither a key nor a state, steps < 1, a batch size outside [1, N], latent < 1,
    r1_weight < 0, logits that are not one per example, an unknown kind.

    Source: Goodfellow et al. (2014), algorithm 1 with k = 1; Mescheder, Geiger & Nowozin (2018).

    >>> from jaxnn import optimizers
    >>> shift, slope = lambda m, z: m + z, lambda w, x: x @ w
    >>> x = 3.0 + jax.random.normal(jax.random.key(0), (256, 1))
    >>> descent = Players(optimizers.gradient_descent(0.1), optimizers.gradient_descent(0.1))
    >>> run = fit(shift, slope, Players(jnp.zeros(1), jnp.zeros(1)), x, descent, latent=1,
    ...           steps=1000, batch_size=64, key=jax.random.key(1), r1_weight=1.0)
    >>> bool(abs(run.params.generator[0] - 3.0) < 0.3)
    True
    """
    require_between("gan.fit(r1_weight)", r1_weight, 0.0, math.inf, remedy="It is a weight.")
    if latent < 1:
        raise invalid("gan.fit(latent)", got=latent, expected="an integer ≥ 1", remedy="Take 2.")
    both = Players(*optimizers)

    def init(params: Players) -> Players:
        return Players(
            both.generator.init(params.generator), both.discriminator.init(params.discriminator)
        )

    x = inexact(x, *jax.tree.leaves(params))
    state = iteration.begin("gan.fit", init, params, key, state)

    def step(params: Players, state: State, real: Array, key: Key) -> tuple:
        draws = [
            jax.random.normal(k, (len(real), latent), real.dtype) for k in jax.random.split(key)
        ]

        def discriminate(theta: Params) -> tuple[Array, tuple[Array, Array]]:
            fake = generator(params.generator, draws[0])
            loss = discriminator_loss(
                logits(discriminator, theta, real), logits(discriminator, theta, fake)
            )
            penalty = r1_penalty(discriminator, theta, real)
            return loss + jnp.asarray(r1_weight, loss.dtype) * penalty, (loss, penalty)

        def generate(theta: Params, judge: Params) -> Array:
            fake = generator(theta, draws[1])
            return generator_loss(logits(discriminator, judge, fake), kind)

        slope, (d_loss, penalty) = jax.grad(discriminate, has_aux=True)(params.discriminator)
        judge, judge_state = iteration.descend(
            *(both.discriminator, params.discriminator, state.optimizer.discriminator, slope),
            lambda theta: discriminate(theta)[0],
        )
        opponent = params.discriminator if simultaneous else judge
        g_loss, slope = jax.value_and_grad(generate)(params.generator, opponent)
        maker, maker_state = iteration.descend(
            *(both.generator, params.generator, state.optimizer.generator, slope),
            lambda theta: generate(theta, opponent),
        )
        info = {"discriminator": d_loss, "generator": g_loss, "r1": penalty}
        state = state._replace(optimizer=Players(maker_state, judge_state))
        return Players(maker, judge), state, info

    return iteration.run(step, params, state, x, steps=steps, batch_size=batch_size)
