"""The programs of a policy's training, to be compiled for a TPU slice without one; see `preflight`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from scpo_jax import policy_program, policy_stage, sharding
from scpo_jax.data.packing import round_up
from scpo_jax.errors import InputError
from scpo_jax.models import hf, module, weights
from scpo_jax.models.module import RewardModel
from scpo_jax.policy_program import Experience, Parameters, Program
from scpo_jax.sampling import Prompts, Sampling


class Compiled(NamedTuple):
    """A program, what it takes and what else is in memory, as trees of array shapes on the mesh."""

    lower: Callable  # () -> the program, lowered
    arguments: tuple
    kept: tuple
    trips: dict[str, int]  # of its loops, see `hlo`


def programs_of(config, mesh: Mesh) -> dict[str, Compiled]:
    """Generation, reading and gradient step of a policy, by name; without reward models. Raises InputError."""
    model, options = structure(config), policy_stage.options_from(config, "")
    width = int(round_up(np.array(config.policy.max_prompt)))
    axes = sharding.AXES if config.mesh.shard_parameters else ("model",)
    program = policy_program.make_program(model, mesh, options, Sampling((1,), 0), axes)
    parameters, state = shapes_of(program)
    layers, size = module.read_settings(model.config, "config").num_hidden_layers, options.batch_size
    policy = policy_program.policy_of(parameters.trained, parameters.frozen)
    part, steps = size // options.num_mini_batches, options.new_tokens
    prompts, tokens, lengths = of_responses(mesh, part, width, steps)
    floats = [array(mesh, P("data"), jnp.float32, part, steps)] * 4
    number, flag = (array(mesh, P(), dtype) for dtype in (jnp.float32, jnp.bool))
    update = parameters.trained, state, parameters.frozen, Experience(prompts, tokens, lengths, *floats), number, flag
    sampled = policy, of_responses(mesh, size, width, steps)[0], array(mesh, P(), jnp.uint32)
    read = parameters, prompts, tokens, lengths
    trips = {"prefill": layers, "while/body.*while": layers, "": max(steps - 1, 1)}
    return {
        f"policy generates {size}x{steps}": Compiled(
            lambda: program.sample.lower(*sampled, steps), sampled, (parameters.reference, state), trips
        ),
        f"policy reads {part}x{width + steps}": Compiled(
            lambda: program.read.lower(*read), read, (state,), {"": layers}
        ),
        f"policy learns {part}x{width + steps}": Compiled(
            lambda: program.update.lower(*update), update, (parameters.reference,), {"": layers}
        ),
    }


def structure(config) -> RewardModel:
    """The policy without weights: of a folder or hub id with its config.json. Raises InputError."""
    settings = config.policy
    if not settings.name_or_path:
        raise InputError("preflight of a policy from scratch is not available: set config.policy.steps=0")
    folder = hf.resolve(settings.name_or_path, settings.revision, weights_too=False)
    described = weights.read_json(folder / "config.json")
    return module.build(described, str(folder), policy_stage.adapters_of(config), language=True)


def shapes_of(program: Program) -> tuple[Parameters, dict]:
    """(parameters, optimizer state) as shapes on the mesh."""

    def put(leaf, spec):
        return array(program.mesh, spec, leaf.dtype, *leaf.shape)

    state = jax.eval_shape(program.init, program.narrow.trained)
    return jax.tree.map(put, program.narrow, program.specs), jax.tree.map(put, state, program.state_specs)


def of_responses(mesh: Mesh, rows: int, width: int, new_tokens: int) -> tuple:
    """(Prompts, tokens, lengths) as shapes."""
    one = array(mesh, P("data"), jnp.int32, rows)
    prompts = Prompts(array(mesh, P("data"), jnp.int32, rows, width), one, one)
    return prompts, array(mesh, P("data"), jnp.int32, rows, new_tokens), one


def array(mesh: Mesh, spec, dtype, *shape) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
