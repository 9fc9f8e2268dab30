"""Convolution reads digits best, then one hidden layer, then none; pre-training helps few labels.

A linear network, 300 hidden units, LeNet-5 and a fine-tuned deep belief network, trained on the
same images and held to the errors published for all 60,000 of MNIST. With a thousand labels, the
belief network starts from what it learned of the images alone and beats the same network from
random weights in 8 seeds of 8. Controls: the linear network at LeNet's limit; pre-training on
images whose pixels were shuffled.  LeCun, Bottou, Bengio & Haffner (1998), figure 9; Hinton,
Osindero & Teh (2006), section 6.  [S0.35, S1.20, S4.3, S4.4]
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets
from experiments.harness import report_progress
from experiments.verdicts import bound, control, direction
from jaxnn import losses, metrics, nn, optimizers, schedules, training
from jaxnn.generative import dbn, greedy

PANELS = (1, 2)
PUBLISHED = {"linear": 0.12, "300 hidden": 0.047, "LeNet-5": 0.0095, "DBN": 0.0125}

# One object, so that machines of one size share a compiled program.
DESCENT = optimizers.momentum(0.05, mu=0.5)


@dataclass(frozen=True)
class Config:
    dataset: str = "mnist"
    images: int = 10_000
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 3e-3
    unroll: int = 4
    lenet_error: float = 0.025
    belief: tuple[int, ...] = (256, 256)
    pretraining_epochs: int = 6
    labels: int = 1000
    label_epochs: int = 40
    seeds: int = 8


SMOKE = Config(
    "digits",
    images=1000,
    epochs=4,
    unroll=1,
    lenet_error=0.15,
    belief=(64,),
    pretraining_epochs=4,
    labels=100,
    seeds=2,
)
PAPER = Config(
    images=60_000, epochs=20, lenet_error=0.011, belief=(500, 500, 2000), pretraining_epochs=30
)


def examples(config):
    """Images (N, 28, 28, 1) and labels to train on and to test on, as many as the config says.

    The small digits are drawn three times as large, with a border of two pixels.
    """
    found = getattr(datasets, config.dataset)()

    def images(x):
        if x.ndim == 2:
            x = np.kron(x.reshape(-1, 8, 8, 1), np.ones((1, 3, 3, 1)))
            x = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
        return jnp.asarray(x, jnp.float32)

    n = config.images
    train = images(found.x_train[:n]), jnp.asarray(found.y_train[:n], jnp.int32)
    return train, (images(found.x_test), jnp.asarray(found.y_test, jnp.int32))


def run(config, key):
    (x, y), (x_test, y_test) = examples(config)
    flat, flat_test = (images.reshape(len(images), -1) for images in (x, x_test))
    total = len(PUBLISHED) + config.seeds
    error = {}
    for i, name in enumerate(PUBLISHED):
        report_progress(i, total)
        init_key, fit_key = jax.random.split(jax.random.fold_in(key, i))
        convolves = name == "LeNet-5"
        images, test = (x, x_test) if convolves else (flat, flat_test)
        net = classifier(config, name, flat, init_key)
        params, _ = jax.jit(net.init, static_argnums=1)(init_key, images.shape[1:])
        steps = config.epochs * (len(x) // config.batch_size)
        # Steps outside loops: the gradients of convolutions are slow in them on a CPU.
        pace = {"chunk": config.unroll, "unroll": config.unroll} if convolves else {}
        fit = training.fit(
            *(net.apply, params, losses.softmax_cross_entropy, (images, y)),
            optimizers.adam(schedules.cosine_decay(config.learning_rate, steps=steps)),
            steps=steps,
            batch_size=config.batch_size,
            key=fit_key,
            **pace,
        )
        error[name] = 1.0 - metrics.accuracy(jax.jit(net.apply)(fit.params, test), y_test)

    few = {name: np.zeros(config.seeds) for name in ("scratch", "pretrained", "shuffled")}
    learned = jax.jit(partial(fine_tuned, config))
    for seed in range(config.seeds):
        report_progress(len(PUBLISHED) + seed, total)
        keys = jax.random.split(jax.random.fold_in(key, len(PUBLISHED) + seed), 6)
        rows = jax.random.permutation(keys[0], len(x))[: config.labels]
        shuffled = jax.random.permutation(keys[1], flat, axis=1, independent=True)
        starts = {
            "scratch": nn.mlp((*config.belief, 10), activation=nn.sigmoid(), weight_std=1.0),
            "pretrained": dbn.classifier(pretrained(config, flat, keys[2]), 10),
            "shuffled": dbn.classifier(pretrained(config, shuffled, keys[3]), 10),
        }
        for name, net in starts.items():
            params, _ = net.init(keys[4], flat.shape[1:])
            scores = learned(params, flat[rows], y[rows], flat_test, keys[5])
            few[name][seed] = metrics.accuracy(scores, y_test)
    return {"error": np.array([error[name] for name in PUBLISHED]), **few}


def classifier(config, name, x, key):
    if name == "LeNet-5":
        # The rectifier and the maximum, of later years, take fewer steps than tanh and the average.
        pool = nn.max_pool((2, 2))
        return nn.lenet(10, activation=nn.relu(), pool=pool, weight_std=np.sqrt(2.0).item())
    if name == "DBN":
        return dbn.classifier(pretrained(config, x, key), 10)
    return nn.mlp((10,) if name == "linear" else (300, 10))


def pretrained(config, x, key):
    """A stack of restricted machines that has seen the images and no label."""
    init_key, fit_key = jax.random.split(key)
    machines = greedy.init(init_key, (x.shape[1], *config.belief), mean=jnp.mean(x, axis=0))
    steps = config.pretraining_epochs * (len(x) // 100)
    return greedy.fit(machines, x, DESCENT, steps=steps, batch_size=100, key=fit_key).params


def fine_tuned(config, params, x, y, x_test, key):
    """Scores on the test images after training on few labels, from any start."""
    net = nn.mlp((*config.belief, 10), activation=nn.sigmoid())
    batch_size = min(50, config.labels)
    end, _ = training.descend(
        *(net.apply, params, losses.softmax_cross_entropy, (x, y), optimizers.adam(1e-3)),
        steps=config.label_epochs * (config.labels // batch_size),
        batch_size=batch_size,
        key=key,
    )
    return net.apply(end, x_test)


def verdict(config, metrics):
    linear, hidden, lenet, _ = metrics["error"]
    verdicts = [
        bound(
            f"LeNet-5 misreads at most {config.lenet_error:.1%} of the test images; "
            "control: the linear network",
            config.lenet_error,
            [lenet],
            control=(config.lenet_error, [linear]),
        ),
        bound(
            "300 hidden units misread less than no hidden ones; control: the reverse",
            linear,
            [hidden],
            control=(hidden, [linear]),
        ),
    ]
    if config == PAPER:
        verdicts += [
            bound(
                f"{name}: at most the published error; control: few labels, shuffled pixels",
                published,
                [found],
                control=(published, 1.0 - metrics["shuffled"]),
            )
            for (name, published), found in zip(PUBLISHED.items(), metrics["error"], strict=True)
            if name != "LeNet-5"  # has its limit above
        ]
    labels = f"{config.labels} labels"
    return [
        *verdicts,
        direction(
            f"{labels}: pre-trained on images beats random weights, test accuracy",
            metrics["pretrained"],
            metrics["scratch"],
        ),
        control(
            direction(
                f"{labels}: pre-trained on shuffled pixels beats random weights",
                metrics["shuffled"],
                metrics["scratch"],
            )
        ),
    ]


def plot(config, metrics, axes):
    errors, pairs = axes
    place = np.arange(len(PUBLISHED))
    errors.bar(place, 100 * metrics["error"], width=0.6, label=f"{config.images} training images")
    for i, published in enumerate(PUBLISHED.values()):
        label = "published, 60,000 images" if i == 0 else None
        line = [100 * published] * 2
        errors.plot([i - 0.4, i + 0.4], line, color="black", linestyle="--", label=label)
    errors.set_xticks(place, list(PUBLISHED))
    errors.set(yscale="log", ylabel="test error (%)")
    low, high = errors.get_ylim()
    ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50) if low < t < high]
    errors.set_yticks(ticks, ticks)
    errors.minorticks_off()
    values = [100 * (1 - metrics[name]) for name in ("scratch", "pretrained", "shuffled")]
    for points in zip(*values, strict=True):
        pairs.plot(range(3), points, "-", color="gray", alpha=0.4, linewidth=0.8)
    for i, value in enumerate(values):
        pairs.plot(np.full(len(value), i), value, "o", color=f"C{i}", alpha=0.7)
    pairs.set_xticks(
        range(3), ["random\nweights", "pre-trained", "pre-trained on\nshuffled pixels"]
    )
    pairs.set(xlim=(-0.4, 2.4), ylabel=f"test error (%), {config.labels} labels")
