"""Where arrays live: a mesh of devices with the axes group, data and model, and rules from parameter names to axes.

Arrays of a training have the groups first, `[G, ...]`; batches then have the shares of the data axis, `[G, N, ...]`.
"""

import math
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scpo_jax.errors import InputError
from scpo_jax.models.layers import GATHERED

AXES = ("group", "data", "model")

# Which dimensions of which parameters are shared out, the first regex that is found in the name decides. A dimension
# that its axis does not divide stays whole. Over `model` the heads and the inner width are shared out: the first maps
# of attention and feed-forward by their outputs, the second ones by their inputs (Megatron-LM, arXiv 1909.08053).
RULES = (
    (r"lora_[ab]$", P("group")),  # [G, L, in, r], [G, L, r, out]
    (r"layers/.*output/kernel$", P("group", None, "model", "data")),  # [G, L, in, out]
    (r"layers/.*kernel$", P("group", None, "data", "model")),  # [G, L, in, out]
    (r"layers/.*(query|key|value|gate|input)/bias$", P("group", None, "model")),  # [G, L, out]
    (r"embedding$", P("group", None, "data")),  # [G, V, D]
    (r"pooler/kernel$", P("group", "data")),  # [G, D, D]
    (r"", P("group")),
)


def make_mesh(group: int, data: int, model: int, devices: list | None = None) -> Mesh:
    """A mesh of all devices; one of the sizes may be -1, which takes what is left. Raises InputError."""
    devices = jax.devices() if devices is None else devices
    sizes = {"group": group, "data": data, "model": model}
    named = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    taken = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise InputError(f"{named}: sizes are 1 or more, and one of them may be -1")
    if len(devices) % taken or (not free and taken != len(devices)):
        raise InputError(f"{named}: they do not make up the {len(devices)} devices there are")
    sizes |= {axis: len(devices) // taken for axis in free}
    shape = tuple(sizes[axis] for axis in AXES)
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def specs(tree, mesh: Mesh, axes: tuple[str, ...] = AXES):
    """The PartitionSpec of every leaf of a tree of parameters, or of what is built like them (optimizer states).

    `axes` are those that the leaves are shared over; over the others every device has them whole.
    """

    def spec(path, leaf) -> P:
        name = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        rule = next(rule for pattern, rule in RULES if re.search(pattern, name))
        sizes = zip(leaf.shape, rule, strict=False)
        return P(*(axis if axis in axes and size % mesh.shape[axis] == 0 else None for size, axis in sizes))

    return jax.tree.map_with_path(spec, tree)


def specs_of_one(tree, mesh: Mesh, axes: tuple[str, ...] = AXES):
    """As `specs`, of leaves without a group axis, which all groups share."""
    stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), tree)
    return jax.tree.map(lambda spec: P(*spec[1:]), specs(stacked, mesh, axes))


def over(axes: tuple[str, ...], tree):
    """PartitionSpecs with these axes only."""
    return jax.tree.map(lambda spec: P(*(axis if axis in axes else None for axis in spec)), tree)


def place(tree, mesh: Mesh, specs):
    """A tree of host arrays as arrays on the mesh, by their PartitionSpecs; every process holds the same `tree`."""

    def put(leaf, spec):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, NamedSharding(mesh, spec), lambda index: leaf[index])

    return jax.tree.map(put, tree, specs)


def shares_of(build: Callable[[int, int], tuple], mesh: Mesh, groups: int):
    """A tree of arrays `[G, N, ...]` on the mesh from `build(g, n)`, called once for each share of this process."""
    sharding, shape = NamedSharding(mesh, P("group", "data")), (groups, mesh.shape["data"])
    places = {
        (g, n)
        for rows, columns in sharding.addressable_devices_indices_map(shape).values()
        for g in range(groups)[rows]
        for n in range(shape[1])[columns]
    }
    shares = {place: jax.tree.flatten(build(*place)) for place in sorted(places)}
    leaves, structure = next(iter(shares.values()))

    def array(i: int):
        def part(index):
            rows, columns = (range(size)[part] for size, part in zip(shape, index[:2], strict=True))
            return np.stack([np.stack([shares[g, n][0][i] for n in columns]) for g in rows])

        return jax.make_array_from_callback(shape + np.shape(leaves[i]), sharding, part)

    return structure.unflatten([array(i) for i in range(len(leaves))])


def gather(tree, whole, dtype=None):
    """Whole parameters from this device's shares, in `shard_map`: dimensions smaller than in `whole` are gathered.

    What is gathered comes in `dtype`, by default its own.
    """
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(
        [_gathered(leaf, full.shape, dtype) for leaf, full in zip(leaves, jax.tree.leaves(whole), strict=True)]
    )


def _gathered(leaf, shape: tuple[int, ...], dtype):
    axis = next((i for i, (own, full) in enumerate(zip(leaf.shape, shape, strict=True)) if own != full), None)
    if axis is None:
        return leaf
    whole = checkpoint_name(jax.lax.all_gather(leaf, "data", axis=axis, tiled=True), GATHERED)
    return checkpoint_name(whole.astype(dtype or whole.dtype), GATHERED)


def global_norm(tree, shared):
    """Norm of all leaves, within `shard_map`; `shared` tells of each whether the devices hold shares of it."""
    squares = jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), tree)
    parts = [
        jax.lax.psum(square, "data") if own else square
        for square, own in zip(jax.tree.leaves(squares), jax.tree.leaves(shared), strict=True)
    ]
    return jnp.sqrt(sum(parts))
