"""A number for the bits of an array, the same on whatever devices and in whatever parts it is."""

import jax
import jax.numpy as jnp


@jax.jit
def checksum(leaf: jax.Array) -> jax.Array:
    """uint32 of any array of numbers: the sum of its bits as integers, the i-th times 2 i + 1, modulo 2^32.

    Integers add up to the same in any order. Any change within one number is seen, for odd numbers have an inverse.
    """
    bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * size + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)


def of_tree(tree: dict) -> dict[str, int]:
    """Path of each leaf -> its checksum, one after the other: on CPUs many sums under way wait for each other."""
    return {jax.tree_util.keystr(path): int(checksum(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
