import jax
import jax.numpy as jnp
import pytest
from networks_compared import message_of
from oracles import unchecked

from jaxnn import nn, tree


def test_counts_follow_the_formulas():
    net = nn.serial(
        nn.conv(6, (3, 2), padding="VALID"),
        nn.relu(),
        nn.max_pool((2, 2)),
        nn.flatten(),
        nn.dense(5),
    )
    table = nn.summary(net, (7, 9, 2))
    whole, conv, relu, pool, flatten, dense = table.rows
    assert [row.depth for row in table.rows] == [0, 1, 1, 1, 1, 1]
    assert [row.name for row in table.rows[1:]] == ["conv", "relu", "max_pool", "flatten", "dense"]
    assert (conv.out_shape, conv.parameters) == ((5, 8, 6), 3 * 2 * 2 * 6 + 6)
    assert conv.flops == 5 * 8 * 6 * (2 * 3 * 2 * 2 + 1)
    assert (relu.out_shape, relu.parameters, relu.flops) == ((5, 8, 6), 0, 5 * 8 * 6)
    assert (pool.out_shape, flatten.out_shape) == ((2, 4, 6), (48,))
    assert (dense.parameters, dense.flops) == (48 * 5 + 5, 2 * 48 * 5 + 5)
    assert (
        whole.parameters == conv.parameters + dense.parameters == nn.parameter_count(net, (7, 9, 2))
    )
    assert whole.flops == sum(row.flops for row in table.rows[1:])
    assert whole.out_shape == nn.output_shape(net, (7, 9, 2)) == (5,)
    lines = str(table).splitlines()
    assert len(lines) == 7
    assert lines[0].split() == ["layer", "shape", "parameters", "flops"]
    assert lines[2].split() == ["conv", "(5,", "8,", "6)", "78", "6,000"]


def test_loops_over_time_count_as_often_as_they_run():
    flops = [nn.summary(nn.rnn(8), (times, 3)).rows[0].flops for times in (1, 2, 11)]
    step = flops[1] - flops[0]
    assert step >= 2 * 3 * 8 + 2 * 8 * 8  # the products with W and U
    assert step <= 2 * 3 * 8 + 2 * 8 * 8 + 4 * 8 + 20
    assert flops[2] - flops[0] == 10 * step
    assert step <= flops[0] <= step + 40


def test_nests_and_tokens():
    net = nn.transformer(8, 3, vocabulary=11, heads=2, depth=1)
    table = nn.summary(net, (5,), dtype=jnp.dtype("int32"))
    assert table.rows[0].out_shape == (3,)
    assert [row.name for row in table.rows if row.depth == 1] == [
        "embedding", "positional_encoding", "parallel", "parallel", "layer_norm",
        "global_avg_pool", "dense",
    ]  # fmt: skip
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), (5,))[0])
    leaves = [
        row.parameters for i, row in enumerate(table.rows) if row.name not in ("serial", "parallel")
    ]
    assert sum(leaves) == tree.size(params) == table.rows[0].parameters


@pytest.mark.slow
def test_receptive_fields_follow_the_formula():
    layers = (
        nn.conv(2, (3, 2), dilation=(2, 1)),
        nn.max_pool((2, 2)),
        nn.conv(1, (3, 3), strides=(2, 1)),
    )
    net = nn.serial(*layers[:2], nn.batch_norm(), nn.relu(), layers[2])
    rows, columns = nn.receptive_field(net, (24, 21, 2))
    # 1 + Σ (window - 1)·dilation·Π strides before.
    assert len(rows) == 1 + 2 * 2 + 1 + 2 * 2
    assert len(columns) == 1 + 1 + 1 + 2 * 2
    assert nn.receptive_field(net, (24, 21, 2), position=(0, 0))[0].start == 0
    whole = nn.serial(layers[0], nn.global_avg_pool(), nn.dense(2))
    with unchecked():
        message = message_of(lambda: nn.receptive_field(net, (24, 21, 2), position=(99, 0)))
        assert message.startswith("receptive_field(position): got (99, 0)")
        message = message_of(lambda: nn.receptive_field(nn.threshold(), (4, 2)))
        assert message.startswith("receptive_field(net): got an output without NaN")
    assert nn.receptive_field(whole, (6, 5, 1)) == (range(6), range(5))


def test_attention_sees_all_of_the_sequence():
    assert nn.receptive_field(nn.self_attention(1), (6, 2), position=(2,)) == (range(6),)
