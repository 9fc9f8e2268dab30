"""Generative models of binary units, and adversarial networks: how to sample, score and fit them.

`rbm`, `dbm` and `dbn` are Boltzmann machines, restricted, deep, and stacked to a belief network;
`greedy` trains stacks of them and
`partition` holds their normalization, exact or annealed; `gan` trains two networks against each
other.
"""

from jaxnn.generative import dbm, dbn, gan, greedy, iteration, partition, rbm, units

__all__ = ["dbm", "dbn", "gan", "greedy", "iteration", "partition", "rbm", "units"]
