"""A program being written: its lines, its parameters, and the value h that steps transform."""

import math
import random
import string

from expressions import PRELUDE

Shape = tuple[int, ...]


class Writer:
    """Lines of f(p, x) so far.

    h       the name of the current value, whose axis 0 holds the examples
    shape   its other axes
    older   (name, shape) of the values before it
    params  name of a parameter -> its shape
    kind    "independent"; "placed" once a step treats example i by its number i; "coupled" once
            examples meet. A claim about what was written, which the checks do not rely on
    fixed   whether f takes batches of one length only
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.lines: list[str] = []
        self.params: dict[str, str] = {}
        self.shapes: dict[str, Shape] = {}
        self.h, self.shape = "x", ()
        self.older: list[tuple[str, Shape]] = []
        self.kind, self.fixed = "independent", False
        self.rng, self.depth = random.Random(0), 0

    def let(self, expression: str, shape: Shape) -> str:
        """The next value h."""
        if self.h != "x":
            self.older.append((self.h, self.shape))
        self.h, self.shape = f"h{len(self.lines)}", shape
        self.lines.append(f"{self.h} = {expression}")
        return self.h

    def name(self, expression: str) -> str:
        """A name for something that is used more than once."""
        name = f"w{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        return name

    def param(self, *shape: int, tied: float = 0.3) -> str:
        """A parameter of this shape: sometimes one that is there already."""
        equal = [name for name, other in self.shapes.items() if other == shape]
        if equal and self.rng.random() < tied:
            name = self.rng.choice(equal)
        else:
            name = f"{string.ascii_lowercase[len(self.shapes) % 26]}{len(self.shapes) // 26 or ''}"
            self.shapes[name] = shape
            self.params[name] = f"normal({', '.join(map(str, shape))})"
        return f'p["{name}"]'

    def become(self, kind: str) -> None:
        """Note that examples meet, or are treated by their number."""
        if self.kind != "coupled":
            self.kind = kind

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def vector(self) -> int:
        """Make h a vector per example; its length."""
        if len(self.shape) != 1:
            length = self.rng.choice(["n", "-1"])
            self.let(f"{self.h}.reshape({length}, {self.size})", (self.size,))
        return self.size

    def sequence(self) -> Shape:
        """Make h a sequence of vectors per example; (T, D)."""
        if len(self.shape) != 2:
            steps = next(k for k in (2, 3, 1) if self.size % k == 0)
            shape = (steps, self.size // steps)
            self.let(f"{self.h}.reshape(n, {steps}, {shape[1]})", shape)
        return self.shape

    def image(self, height: int = 3, width: int = 3) -> Shape:
        """Make h an image per example, repeated or cut to (height, width, channels)."""
        if len(self.shape) != 3:
            size, whole = self.size, height * width * 2
            indices = f"np.arange({whole}) % {size}"
            self.let(f"{self.h}.reshape(n, {size})[:, {indices}]", (whole,))
            self.let(f"{self.h}.reshape(n, {height}, {width}, 2)", (height, width, 2))
        return self.shape

    def matrix(self, order: int = 2) -> Shape:
        """Make h a square matrix per example."""
        if self.shape != (order, order):
            size = self.size
            indices = f"np.arange({order * order}) % {size}"
            self.let(f"{self.h}.reshape(n, {size})[:, {indices}]", (order * order,))
            self.let(f"{self.h}.reshape(n, {order}, {order})", (order, order))
        return self.shape

    def definitions(self) -> str:
        """What f uses and has to be defined before it."""
        body = "\n".join(self.lines)
        return "\n\n".join(code for name, code in PRELUDE.items() if f"{name}(" in body)
