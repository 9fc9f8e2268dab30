"""Calls of layers, activations, losses, metrics, augmentations and Boltzmann machines."""

import jax
import jax.numpy as jnp
import numpy as np
from calls import Call, data, floats, labels, layer, parameters, share, small

from jaxnn import data as examples
from jaxnn import losses, metrics, nn, optimizers, pruning, regularizers, schedules, signal
from jaxnn.generative import dbm, dbn, gan, greedy, partition, rbm, units
from jaxnn.nn import activations

KEY = jax.random.key(0)
IDS = labels(2, 6, classes=5)
SIGNS = np.array([[1, -1], [-1, -1], [1, 1]], np.int32)


def of_ids(net) -> Call:
    """A network of tokens: its parameters alone have a dtype."""
    apply = lambda params: net.apply(params, jnp.asarray(IDS))
    return Call(apply, (parameters(net, IDS.shape[1:]),), integers="kept", ulps=16.0)


VECTORS, IMAGES, TIMES = (4, 3), (2, 6, 6, 2), (2, 7, 4)

LAYERS = {
    "nn.aggregate": layer(nn.aggregate(floats(5, 4)), (2, 4, 3), ulps=16.0),
    "nn.avg_pool": layer(nn.avg_pool((3, 3), padding="SAME"), IMAGES),
    "nn.batch_norm": layer(nn.batch_norm(), VECTORS),
    "nn.cnn": layer(nn.cnn((3, 2), 2), IMAGES, ulps=16.0),
    "nn.conv": layer(nn.conv(3, (3, 3)), IMAGES),
    "nn.conv_transpose": layer(nn.conv_transpose(3, (3, 3), strides=(2, 2)), IMAGES),
    "nn.dense": layer(nn.dense(3), VECTORS),
    "nn.dropout": layer(nn.dropout(0.5), VECTORS, key=KEY, ulps=None),
    "nn.elementwise": layer(nn.elementwise(jnp.square), VECTORS),
    "nn.embedding": of_ids(nn.embedding(5, 3)),
    "nn.flatten": layer(nn.flatten(), IMAGES, integers="kept"),
    "nn.global_avg_pool": layer(nn.global_avg_pool(), IMAGES),
    "nn.global_max_pool": layer(nn.global_max_pool(), IMAGES),
    "nn.global_sum_pool": layer(nn.global_sum_pool(), IMAGES),
    "nn.gru": layer(nn.gru(3), TIMES, ulps=16.0),
    "nn.identity": layer(nn.identity(), VECTORS, integers="kept"),
    "nn.layer_norm": layer(nn.layer_norm(), VECTORS),
    "nn.lenet": layer(nn.lenet(), (1, 28, 28, 1), ulps=32.0),
    "nn.lstm": layer(nn.lstm(3), TIMES, ulps=16.0),
    "nn.lstm_classifier": of_ids(nn.lstm_classifier((3,), 2, vocabulary=5)),
    "nn.max_pool": layer(nn.max_pool((3, 3), padding="SAME"), IMAGES),
    "nn.mlp": layer(nn.mlp((3, 2)), VECTORS),
    "nn.parallel": layer(nn.parallel(nn.identity(), nn.identity()), VECTORS),
    "nn.positional_encoding": layer(nn.positional_encoding(), (1, 300, 4)),
    "nn.prelu": layer(nn.prelu(), VECTORS),
    "nn.residual": layer(nn.residual(nn.dense(3)), VECTORS),
    "nn.residual_cnn": layer(nn.residual_cnn((2,), 2), IMAGES, ulps=32.0),
    "nn.resize": layer(nn.resize((3, 9)), IMAGES, ulps=16.0),
    "nn.rnn": layer(nn.rnn(3), TIMES, ulps=16.0),
    "nn.rnn_classifier": of_ids(nn.rnn_classifier((3,), 2, vocabulary=5)),
    "nn.self_attention": layer(nn.self_attention(2), TIMES, ulps=16.0),
    "nn.serial": layer(nn.serial(nn.relu(), nn.dense(2)), VECTORS),
    "nn.stateless": layer(nn.stateless("same", lambda x: x, lambda k: k), (2,), integers="kept"),
    "nn.sum_pool": layer(nn.sum_pool((3, 3), padding="SAME"), IMAGES),
    "nn.transformer": of_ids(nn.transformer(4, 2, vocabulary=5, heads=2, depth=1)),
}

ELEMENTWISE = {
    **{name: () for name in ("abs", "cos", "elu", "erf", "exp", "gaussian", "gelu", "gelu_tanh")},
    **{name: () for name in ("leaky_relu", "relu", "selu", "sigmoid", "sign", "sin", "softmax")},
    **{name: () for name in ("softplus", "swish", "tanh", "threshold")},
    "polynomial": ((1.0, -0.5, 0.25),),
    "rectified_monomial": (2,),
}
LAYERS |= {
    f"nn.{name}": layer(getattr(nn, name)(*options), VECTORS)
    for name, options in {
        **ELEMENTWISE,
        **{"hermite": (3,), "monomial": (3,), "piecewise_linear": (-0.5, 1.5), "rbf": ()},
    }.items()
}
ACTIVATIONS = {
    f"nn.activations.{name}": Call(
        lambda x, name=name, options=options: getattr(activations, name)(x, *options),
        (data(*VECTORS),),
    )
    for name, options in ELEMENTWISE.items()
} | {"nn.activations.identity": Call(activations.identity, (data(3),), integers="kept")}

DENSE = nn.dense(2)
CELL = {"W": floats(2, 3), "U": floats(3, 3), "b": floats(3)}
GATES = {name: np.concatenate([p] * 4, axis=-1) for name, p in CELL.items()}
NETWORKS = {
    **LAYERS,
    **ACTIVATIONS,
    "nn.apply_with_stats": Call(
        lambda params, x: nn.apply_with_stats(nn.batch_norm(), params, x)[0],
        (parameters(nn.batch_norm(), (3,)), data(*VECTORS)),
    ),
    "nn.calibrate": Call(
        lambda params, x: nn.calibrate(nn.batch_norm(), params, x, batch_size=2),
        (parameters(nn.batch_norm(), (3,)), data(*VECTORS)),
        ulps=None,  # statistics of half precision are float32
    ),
    "nn.moving_average": Call(nn.moving_average, ({"m": floats(3)}, {"m": floats(3)}), "kept"),
    "nn.rnn_cell": Call(nn.rnn_cell, (CELL, small(2, 3), small(2, 2))),
    "nn.gru_cell": Call(
        nn.gru_cell,
        ({n: p[..., :9] for n, p in GATES.items()} | {"c": floats(3)}, small(2, 3), small(2, 2)),
        ulps=16.0,
    ),
    "nn.lstm_cell": Call(nn.lstm_cell, (GATES, (small(2, 3), small(2, 3)), small(2, 2)), ulps=16.0),
}

PREDICTIONS, LABELS = data(5, 3), labels(5, classes=3)
LOSSES = {
    "losses.half_squared_error": Call(losses.half_squared_error, (data(5, 3), data(5, 3))),
    "losses.mean_squared_error": Call(losses.mean_squared_error, (data(5, 3), data(5, 3))),
    "losses.sigmoid_cross_entropy": Call(losses.sigmoid_cross_entropy, (data(5, 3), share(5, 3))),
    "losses.binary_cross_entropy": Call(losses.binary_cross_entropy, (share(5, 3), share(5, 3))),
    "losses.softmax_cross_entropy": Call(losses.softmax_cross_entropy, (data(5, 3), LABELS)),
    "losses.cross_entropy": Call(losses.cross_entropy, (share(5, 3), LABELS)),
    "losses.hinge": Call(losses.hinge, (data(3, 2), SIGNS)),
    "losses.zero_one": Call(losses.zero_one, (data(5, 3), LABELS)),
    "losses.negative_log_likelihood": Call(
        lambda z, y, s: losses.negative_log_likelihood(z, y, scale=s),
        (data(5, 3), data(5, 3), np.abs(floats(5, 3)) + 0.5),
    ),
}
CONFUSION = np.array([[3, 1], [2, 4]], np.int32)
METRICS = {
    "metrics.accuracy": Call(metrics.accuracy, (LABELS, LABELS[::-1].copy()), "kept", None),
    "metrics.top_k_accuracy": Call(
        lambda scores, y: metrics.top_k_accuracy(scores, y, 2), (data(5, 3), LABELS), ulps=None
    ),
    "metrics.confusion_matrix": Call(
        lambda y: metrics.confusion_matrix(y, y, 3), (LABELS,), "kept", ulps=None
    ),
    "metrics.precision": Call(metrics.precision, (data(3, 3),), ulps=None),
    "metrics.recall": Call(metrics.recall, (data(3, 3),), ulps=None),
    "metrics.f1_score": Call(metrics.f1_score, (data(3, 3),), ulps=None),
    "metrics.roc_auc": Call(metrics.roc_auc, (data(400), labels(400, classes=2))),
    "metrics.mean_absolute_error": Call(metrics.mean_absolute_error, (data(400, 2), data(400, 2))),
    "metrics.root_mean_squared_error": Call(
        metrics.root_mean_squared_error, (data(400, 2), data(400, 2))
    ),
    "metrics.r_squared": Call(metrics.r_squared, (data(400, 2), data(400, 2))),
}
REGULARIZERS = {
    "regularizers.l0": Call(regularizers.l0, ([data(3), data(2, 2)],), "kept"),
    "regularizers.l1": Call(regularizers.l1, ([data(300), data(2, 2)],), "refused"),
    "regularizers.l2": Call(regularizers.l2, ([data(300), data(2, 2)],), "refused"),
    "regularizers.elastic_net": Call(
        lambda p: regularizers.elastic_net(p, 0.25), ([data(300), data(2, 2)],), "refused"
    ),
}
PRUNING = {
    "pruning.full_mask": Call(pruning.full_mask, (data(3, 2),), "kept"),
    "pruning.magnitude_mask": Call(
        lambda p: pruning.magnitude_mask(p, 0.5, scope="global"),
        ([data(3, 2), data(2, 2)],),
        "kept",
    ),
    "pruning.masked_params": Call(
        lambda p: pruning.masked_params(p, jnp.eye(3, 2, dtype=bool)), (data(3, 2),), "kept"
    ),
    "pruning.lottery_rounds": Call(
        lambda p: [
            ticket.trained
            for ticket in pruning.lottery_rounds(lambda p, m: p, p, rounds=1, fraction=0.5)
        ],
        (data(3, 2),),
        "kept",
    ),
}

PICTURES = data(2, 5, 4, 1)
DATA = {
    "data.augmented": Call(
        lambda x: examples.augmented(lambda p, x: x, examples.flip)(None, x, key=KEY),
        (PICTURES,),
        "kept",
        None,
    ),
    "data.compose": Call(
        lambda x: examples.compose(examples.flip)(KEY, x), (PICTURES,), "kept", None
    ),
    "data.crop": Call(
        lambda x: examples.crop(KEY, x, (3, 3), padding=2), (PICTURES,), "kept", None
    ),
    "data.flip": Call(lambda x: examples.flip(KEY, x), (PICTURES,), "kept", None),
    "data.displace": Call(
        lambda x, u, fill: examples.displace(x, u, fill=fill),
        (PICTURES, floats(2, 5, 4, 2), floats()),
    ),
    "data.noisy_weights": Call(
        lambda w, x: examples.noisy_weights(lambda w, x: x, 0.1)(w, x, key=KEY),
        (floats(2), data(2)),
        "kept",
        None,
    ),
    "data.one_hot": Call(lambda y: examples.one_hot(y, 3), (LABELS,), "kept", ulps=None),
    "data.perturb": Call(lambda x: examples.perturb(KEY, x, 0.1), (data(3),), "refused", None),
    "data.rotate": Call(lambda x: examples.rotate(KEY, x, 1.0), (PICTURES,), ulps=None),
    "data.rotated": Call(examples.rotated, (PICTURES, floats(2))),
    "data.split": Call(
        lambda x: examples.split(KEY, x, sizes=(2, 1, 1)), (data(4, 2),), "kept", None
    ),
    "data.standardize": Call(lambda x: examples.standardize(x)[0], (data(6, 3),)),
    "data.warp": Call(
        lambda x: examples.warp(KEY, x, displacement=1.0, smoothness=2.0), (PICTURES,), ulps=None
    ),
}

MACHINE = {"W": floats(3, 2), "b": floats(3), "c": floats(2)}
DEEP = {"W": (floats(3, 2), floats(2, 2)), "b": (floats(3), floats(2), floats(2))}
STACK = (MACHINE, {"W": floats(2, 2), "b": floats(2), "c": floats(2)})
LAYERS_OF_UNITS = (share(4, 3), share(4, 2), share(4, 2))
GENERATIVE = {
    "generative.rbm.init": Call(
        lambda mean: rbm.init(KEY, 3, 2, mean=mean, weight_std=0.0), (share(3),)
    ),
    "generative.rbm.transposed": Call(rbm.transposed, (MACHINE,), "kept"),
    "generative.rbm.energy": Call(rbm.energy, (MACHINE, share(4, 3), share(4, 2))),
    "generative.rbm.free_energy": Call(rbm.free_energy, (MACHINE, share(4, 3))),
    "generative.rbm.log_likelihood": Call(
        rbm.log_likelihood, (MACHINE, share(4, 3), np.float32(2.75))
    ),
    "generative.rbm.hidden_logits": Call(rbm.hidden_logits, (MACHINE, share(4, 3))),
    "generative.rbm.hidden_mean": Call(rbm.hidden_mean, (MACHINE, share(4, 3))),
    "generative.rbm.visible_mean": Call(rbm.visible_mean, (MACHINE, share(4, 2))),
    "generative.rbm.gibbs_step": Call(
        lambda p, v: rbm.gibbs_step(KEY, p, v), (MACHINE, share(4, 3)), ulps=None
    ),
    "generative.rbm.gibbs": Call(
        lambda p, v: rbm.gibbs(KEY, p, v, 2), (MACHINE, share(4, 3)), ulps=None
    ),
    "generative.rbm.statistics": Call(rbm.statistics, (MACHINE, share(400, 3))),
    "generative.rbm.log_likelihood_gradient": Call(
        rbm.log_likelihood_gradient, (MACHINE, share(4, 3), share(3, 3))
    ),
    "generative.rbm.contrastive_divergence": Call(
        lambda p, v: rbm.contrastive_divergence(KEY, p, v), (MACHINE, share(4, 3)), ulps=None
    ),
    "generative.dbm.init": Call(
        lambda mean: dbm.init(KEY, (3, 2), mean=mean, weight_std=0.0), (share(3),)
    ),
    "generative.dbm.energy": Call(dbm.energy, (DEEP, LAYERS_OF_UNITS)),
    "generative.dbm.layer_mean": Call(
        lambda p, x: dbm.layer_mean(p, x, 1), (DEEP, LAYERS_OF_UNITS)
    ),
    "generative.dbm.gibbs_step": Call(
        lambda p, x: dbm.gibbs_step(KEY, p, x), (DEEP, LAYERS_OF_UNITS), ulps=None
    ),
    "generative.dbm.gibbs": Call(
        lambda p, x: dbm.gibbs(KEY, p, x, 2), (DEEP, LAYERS_OF_UNITS), ulps=None
    ),
    "generative.dbm.mean_field": Call(lambda p, v: dbm.mean_field(p, v).means, (DEEP, share(4, 3))),
    "generative.dbm.bound": Call(
        dbm.bound, (DEEP, share(4, 3), (share(4, 2), share(4, 2)), np.float32(2.75))
    ),
    "generative.dbm.as_rbm": Call(dbm.as_rbm, (DEEP,), "kept"),
    "generative.dbm.log_likelihood": Call(
        dbm.log_likelihood, (DEEP, share(4, 3), np.float32(2.75))
    ),
    "generative.dbm.statistics": Call(dbm.statistics, (DEEP, LAYERS_OF_UNITS)),
    "generative.dbm.from_stack": Call(dbm.from_stack, (STACK,), "kept"),
    "generative.dbn.log_joint": Call(dbn.log_joint, (STACK, LAYERS_OF_UNITS, np.float32(2.75))),
    "generative.dbn.log_conditional": Call(
        dbn.log_conditional, (MACHINE, share(4, 3), share(4, 2))
    ),
    "generative.dbn.log_likelihood": Call(
        dbn.log_likelihood, (STACK, share(4, 3), np.float32(2.75))
    ),
    "generative.dbn.recognition_means": Call(dbn.recognition_means, (STACK, share(4, 3))),
    "generative.dbn.unrolled": Call(lambda p: dbn.unrolled(p, 2), (MACHINE,), "kept"),
    "generative.dbn.classifier": Call(
        lambda p, x: dbn.classifier(p, 2).apply(
            (
                *({"W": m["W"], "b": m["c"]} if i == 0 else () for m in p for i in (0, 1)),
                {"W": p[1]["W"], "b": p[1]["b"]},
            ),
            x,
        ),
        (STACK, share(4, 3)),
    ),
    "generative.greedy.init": Call(
        lambda mean: greedy.init(KEY, (3, 2), mean=mean, weight_std=0.0), (share(3),)
    ),
    "generative.partition.log_partition": Call(partition.log_partition, (MACHINE,), "kept"),
    "generative.partition.model_statistics": Call(partition.model_statistics, (MACHINE,), "kept"),
    "generative.partition.annealed_log_partition": Call(
        lambda p, base: partition.annealed_log_partition(
            KEY, p, chains=3, base=base, betas=jnp.array([0, 1])
        ),
        (MACHINE, share(3)),
        ulps=None,
    ),
    "generative.units.bernoulli": Call(
        lambda logits: units.bernoulli(KEY, logits), (data(30),), ulps=None
    ),
    "generative.gan.discriminator_loss": Call(gan.discriminator_loss, (data(400), data(300))),
    "generative.gan.generator_loss": Call(gan.generator_loss, (data(400),)),
    "generative.gan.r1_penalty": Call(
        lambda w, x: gan.r1_penalty(lambda w, x: jnp.tanh(x @ w), w, x), (floats(3), small(4, 3))
    ),
    "generative.gan.logits": Call(
        lambda w, x: gan.logits(lambda w, x: x.astype(w.dtype) @ w, w, x), (floats(3), data(4, 3))
    ),
    "generative.gan.optimal_value": Call(gan.optimal_value, (share(4), share(4))),
    "generative.gan.jensen_shannon_divergence": Call(
        gan.jensen_shannon_divergence, (share(4), share(4))
    ),
}

DESCENT = optimizers.gradient_descent(0.1)


def fitted(fit, params):
    """Some steps of training on binary data."""
    return Call(
        lambda p, x: fit(p, x, DESCENT, steps=2, key=KEY)[0], (params, share(4, 3)), ulps=None
    )


GENERATIVE |= {
    "generative.rbm.fit": fitted(rbm.fit, MACHINE),
    "generative.dbm.fit": fitted(dbm.fit, DEEP),
    "generative.greedy.fit": fitted(greedy.fit, STACK),
    "generative.gan.fit": Call(
        lambda params, x: gan.fit(
            *(lambda m, z: m * z, lambda w, x: x @ w, gan.Players(*params), x),
            gan.Players(DESCENT, DESCENT),
            latent=1,
            steps=2,
            key=KEY,
        )[0],
        ((floats(1, 1), floats(1)), small(4, 1)),
        ulps=None,
    ),
}

# Computed in the default float, whatever comes in.
SIGNAL = {
    "signal.correlation_map": Call(
        lambda c, q, w: signal.correlation_map(nn.relu(), c, q, weight_std=w, bias_std=w),
        (share(3), data(3), data()),
        ulps=None,
    ),
    "signal.fixed_point": Call(
        lambda w, q: signal.fixed_point(nn.erf(), weight_std=w, start=q, max_steps=5)[0],
        (small(), small()),
        ulps=None,
    ),
    "signal.correlation_depth": Call(signal.correlation_depth, (data(3),), ulps=None),
    "signal.critical_weight_std": Call(
        lambda b: signal.critical_weight_std(nn.erf(), bias_std=b, halvings=2),
        (share(),),
        ulps=None,
        slow=True,
    ),
}
STEPS = (data(3),)
SCHEDULES = {
    f"schedules.{name}": Call(schedule, STEPS, ulps=None)
    for name, schedule in {
        "constant": schedules.constant(0.5),
        "step_decay": schedules.step_decay(0.5, factor=0.5, steps=300),
        "exponential_decay": schedules.exponential_decay(0.5, factor=0.5, steps=300),
        "inverse_time_decay": schedules.inverse_time_decay(0.5, tau=300.0),
        "polynomial_decay": schedules.polynomial_decay(0.5, steps=300, power=2.0),
        "linear_decay": schedules.linear_decay(0.5, steps=300),
        "cosine_decay": schedules.cosine_decay(0.5, steps=300),
        "warmup": schedules.warmup(schedules.linear_decay(0.5, steps=500), 300),
    }.items()
}

CALLS = {
    **NETWORKS,
    **LOSSES,
    **METRICS,
    **REGULARIZERS,
    **PRUNING,
    **DATA,
    **GENERATIVE,
    **SIGNAL,
    **SCHEDULES,
}
