"""The standard networks, as one expression each."""

from collections.abc import Sequence
from functools import partial

from jaxnn.errors import invalid
from jaxnn.nn.attention import embedding, positional_encoding, self_attention
from jaxnn.nn.combinators import residual, serial
from jaxnn.nn.convolution import conv
from jaxnn.nn.layers import Layer, dense, dropout, flatten, identity, require_count
from jaxnn.nn.nonlinearities import gelu, relu, tanh
from jaxnn.nn.normalization import batch_norm, layer_norm
from jaxnn.nn.parametrization import SQRT2, Parametrization
from jaxnn.nn.pooling import avg_pool, global_avg_pool
from jaxnn.nn.recurrent import lstm, rnn
from jaxnn.nn.windows import Padding
from jaxnn.types import ArrayLike


def mlp(
    features: Sequence[int],
    *,
    activation: Layer | None = None,
    weight_std: ArrayLike = SQRT2,
    bias_std: ArrayLike | None = 0.0,
    parametrization: Parametrization = "standard",
) -> Layer:
    """A multilayer perceptron: dense layers of the given sizes with an activation between them.

    `activation` is ReLU unless given; none follows the last layer. The other options are those of
    `nn.dense`. The number of parameters is Σ n_l (n_{l-1} + 1) in the standard parametrization.

    Errors: no features.

    >>> import jax
    >>> from jaxnn import tree
    >>> params, _ = mlp((64, 2)).init(jax.random.key(0), (10,))
    >>> tree.size(params)
    834
    """
    if not features:
        raise invalid(
            "mlp(features)",
            got="no size",
            expected="at least one",
            remedy="List the size of every layer, the output last: (512, 512, 10).",
        )
    activation = relu() if activation is None else activation
    layer = partial(
        dense, weight_std=weight_std, bias_std=bias_std, parametrization=parametrization
    )
    hidden = [part for size in features[:-1] for part in (layer(size), activation)]
    return serial(*hidden, layer(features[-1]))


def cnn(
    channels: Sequence[int],
    outputs: int,
    *,
    window: Sequence[int] = (3, 3),
    padding: Padding = "SAME",
    activation: Layer | None = None,
    pool: Layer | None = None,
    readout: Layer | None = None,
    weight_std: ArrayLike = SQRT2,
    bias_std: ArrayLike | None = 0.0,
    parametrization: Parametrization = "standard",
) -> Layer:
    """A convolutional network: convolutions with these channels, a readout, a dense layer.

    After every convolution come `activation` (ReLU unless given) and, if given, `pool`. `readout`
    makes (N, features) of the last channels: `nn.global_avg_pool()` unless given, or
    `nn.flatten()`. The other options are those of `nn.conv`.

    Errors: no channels.

    >>> import jax
    >>> net = cnn((8, 16), 10)
    >>> net.init(jax.random.key(0), (28, 28, 1))[1]
    (10,)
    """
    if not channels:
        raise invalid(
            "cnn(channels)",
            got="no size",
            expected="at least one",
            remedy="List the channels of every convolution: (32, 64).",
        )
    options = {"weight_std": weight_std, "bias_std": bias_std, "parametrization": parametrization}
    after = [relu() if activation is None else activation, *([] if pool is None else [pool])]
    hidden = [
        part
        for size in channels
        for part in (conv(size, window, padding=padding, **options), *after)
    ]
    readout = global_avg_pool() if readout is None else readout
    return serial(*hidden, readout, dense(outputs, **options))


def lenet(
    outputs: int = 10,
    *,
    activation: Layer | None = None,
    pool: Layer | None = None,
    weight_std: ArrayLike = 1.0,
    bias_std: ArrayLike | None = 0.0,
    parametrization: Parametrization = "standard",
) -> Layer:
    """LeNet-5 for images of 28 x 28: two 5 x 5 convolutions of 6 and 16 channels, 120-84-`outputs`.

    `activation` is tanh and `pool`, of 2 x 2, averages unless given; for `nn.relu()`, choose
    weight_std √2. As is usual today, all channels of the second convolution are connected, pooling
    has no parameters and the output is linear. 61,706 parameters with one channel and 10 outputs.

    Source: LeCun, Bottou, Bengio & Haffner (1998), figure 2.

    >>> import jax
    >>> from jaxnn import tree
    >>> params, _ = lenet().init(jax.random.key(0), (28, 28, 1))
    >>> tree.size(params)
    61706
    """
    options = {"weight_std": weight_std, "bias_std": bias_std, "parametrization": parametrization}
    activation = tanh() if activation is None else activation
    pool = avg_pool((2, 2)) if pool is None else pool
    return serial(
        *(conv(6, (5, 5), padding="SAME", **options), activation, pool),
        *(conv(16, (5, 5), padding="VALID", **options), activation, pool),
        flatten(),
        mlp((120, 84, outputs), activation=activation, **options),
    )


def residual_cnn(
    channels: Sequence[int],
    outputs: int,
    *,
    blocks: int = 1,
    window: Sequence[int] = (3, 3),
    normalize: bool = True,
    weight_std: ArrayLike = SQRT2,
    bias_std: ArrayLike | None = 0.0,
    parametrization: Parametrization = "standard",
) -> Layer:
    """A residual network: a convolution, stages of residual blocks, global average, a dense layer.

        block(x) = relu(conv(relu(conv(x))) + shortcut(x)),   each conv followed by a batch norm

    A stage is `blocks` blocks of the same number of channels. The first block of every stage but
    the first halves the resolution. Where shapes change, the shortcut is a convolution of window
    1. `normalize=False` leaves the batch norms out. With (16, 32, 64) and blocks = n it has 6n + 2
    layers of weights. The other options are those of `nn.conv`.

    Errors: no channels, blocks < 1.

    Source: He et al. (2016), section 4.2.

    >>> import jax
    >>> net = residual_cnn((8, 16), 10)
    >>> net.init(jax.random.key(0), (28, 28, 1))[1]
    (10,)
    """
    if not channels:
        raise invalid(
            "residual_cnn(channels)",
            got="no size",
            expected="at least one",
            remedy="List the channels of every stage: (16, 32, 64).",
        )
    require_count("residual_cnn(blocks)", blocks, "It is the number of blocks per stage.")
    options = {"weight_std": weight_std, "bias_std": bias_std, "parametrization": parametrization}
    axes = len(window)

    def unit(size: int, window: Sequence[int], stride: int = 1) -> list[Layer]:
        convolution = conv(size, window, strides=(stride,) * axes, **options)
        return [convolution, batch_norm()] if normalize else [convolution]

    def block(size: int, stride: int, changes: bool) -> list[Layer]:
        branch = serial(*unit(size, window, stride), relu(), *unit(size, window))
        shortcut = serial(*unit(size, (1,) * axes, stride)) if changes else identity()
        return [residual(branch, shortcut), relu()]

    layers = [*unit(channels[0], window), relu()]
    for stage, size in enumerate(channels):
        for i in range(blocks):
            first = stage > 0 and i == 0
            layers += block(size, 2 if first else 1, first)
    return serial(*layers, global_avg_pool(), dense(outputs, **options))


def rnn_classifier(
    features: Sequence[int], outputs: int, *, vocabulary: int | None = None
) -> Layer:
    """Simple recurrent layers of these sizes, and a dense layer on the last state of the last one.

    x is (N, T, d), or with a `vocabulary` integer tokens (N, T), which get vectors of features[0]
    numbers; or `nn.Sequences` of either.

    Errors: no features.

    >>> import jax
    >>> rnn_classifier((16,), 3).init(jax.random.key(0), (20, 2))[1]
    (3,)
    """
    return _recurrent_classifier("rnn_classifier", rnn, features, outputs, vocabulary)


def lstm_classifier(
    features: Sequence[int], outputs: int, *, vocabulary: int | None = None
) -> Layer:
    """LSTM layers of these sizes, and a dense layer on the last state; else as `rnn_classifier`.

    >>> import jax
    >>> lstm_classifier((16, 8), 3, vocabulary=100).init(jax.random.key(0), (20,))[1]
    (3,)
    """
    return _recurrent_classifier("lstm_classifier", lstm, features, outputs, vocabulary)


def transformer(
    features: int,
    outputs: int,
    *,
    vocabulary: int | None = None,
    heads: int = 4,
    depth: int = 2,
    hidden: int | None = None,
    causal: bool = False,
    drop_probability: float = 0.0,
) -> Layer:
    """A transformer encoder that classifies sequences: `depth` pre-norm blocks, the mean over time.

        h ← h + attention(norm(h)),   h ← h + W₂ gelu(W₁ norm(h)),   y = W mean_t norm(h_t)

    Tokens (N, T) of a `vocabulary`, or data (N, T, d) through a dense layer, become vectors of
    `features` numbers, to which sinusoidal positions are added; x may be `nn.Sequences` of either.
    `hidden`, the size of W₁, is 4·features unless given. Dropout follows every branch.

    Errors: those of its layers; depth < 1.

    Source: Vaswani et al. (2017), with the norms placed as in Xiong et al. (2020).

    >>> import jax
    >>> transformer(16, 3, vocabulary=100).init(jax.random.key(0), (20,))[1]
    (3,)
    """
    require_count("transformer(depth)", depth, "It is the number of blocks.")
    drop = [dropout(drop_probability)] if drop_probability else []
    first = (
        dense(features, weight_std=1.0) if vocabulary is None else embedding(vocabulary, features)
    )
    blocks = []
    for _ in range(depth):
        wide = dense(4 * features if hidden is None else hidden)
        blocks += [
            residual(serial(layer_norm(), self_attention(heads, causal=causal), *drop)),
            residual(serial(layer_norm(), wide, gelu(), dense(features, weight_std=1.0), *drop)),
        ]
    readout = [layer_norm(), global_avg_pool(), dense(outputs, weight_std=1.0)]
    return serial(first, positional_encoding(), *blocks, *readout)


def _recurrent_classifier(name, layer, features, outputs, vocabulary) -> Layer:
    if not features:
        raise invalid(
            f"{name}(features)",
            got="no size",
            expected="at least one",
            remedy="List the size of every recurrent layer: (64,).",
        )
    tokens = [] if vocabulary is None else [embedding(vocabulary, features[0])]
    below = [layer(size, output="sequence") for size in features[:-1]]
    return serial(*tokens, *below, layer(features[-1]), dense(outputs, weight_std=1.0))
