"""Neural networks as mathematical objects: pure functions, their kernels, curvature and theorems."""

from jaxnn import compatibility  # first: it refuses a jaxlib that computes wrong numbers

from jaxnn import linalg, nn, tree  # isort: skip
