"""What each weight is, said once, where it is declared (layers.py, model.py), in its metadata.

Weight decay, Muon's matrices, FLOPs, freezing, sharding and conversion read it here and know no weight by its name.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
from flax import nnx

Kind = Literal["matrix", "table", "norm", "bias"]


@dataclass(frozen=True)
class Role:
    """A weight's kind and the logical names of its axes, which lie in memory as stacked, outputs, inputs.

    Attributes:
        kind: `matrix`; `table` (rows of a vocabulary: embedding, output head); `norm` (a scale, drawn as ones) or
            `bias` (zeros).
        outputs: axes of what comes out; all axes of a weight that nothing is multiplied with.
        inputs: axes that an activation is contracted with; none where a weight is looked up, scaled with or added.
        stacked: axes along which single weights of the kind lie side by side, such as `layers` and `experts`.
        active: how many along the last stacked axis each token is multiplied with; None: all.
    """

    kind: Kind
    outputs: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    active: int | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """The logical name of every axis."""
        return (*self.stacked, *self.outputs, *self.inputs)

    @property
    def output_dims(self) -> tuple[int, ...]:
        """Numbers of the axes of outputs."""
        return tuple(range(len(self.stacked), len(self.stacked + self.outputs)))

    @property
    def input_dims(self) -> tuple[int, ...]:
        """Numbers of the axes of inputs."""
        return tuple(range(len(self.stacked + self.outputs), len(self.axes)))

    def multiplied(self, shape: tuple[int, ...]) -> int:
        """Numbers of a weight of this shape that each token is multiplied with."""
        if not self.inputs:
            return 0
        total = math.prod(shape)
        return total if self.active is None else total // shape[len(self.stacked) - 1] * self.active


def roles_of(network: nnx.Module) -> dict[str, Any]:
    """The roles of a model's weights, a tree like its parameters."""
    state = nnx.state(network, nnx.Param)
    roles = jax.tree.map(lambda p: p.get_metadata("role"), state, is_leaf=lambda p: isinstance(p, nnx.Variable))
    return nnx.to_pure_dict(roles)


def by_role(roles: Any, work: Callable[[Role, Any], Any]) -> Callable[..., Any]:
    """A function of a tree of some of the parameters: `work(role, x)` in place of each array x.

    Args:
        roles: those of all parameters, as `roles_of` gives them.
    """

    def one(path: Any, x: Any) -> Any:
        role = roles
        for key in path:
            role = role[key.key]
        return work(role, x)

    return lambda tree, *_: jax.tree_util.tree_map_with_path(one, tree)
