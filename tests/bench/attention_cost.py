"""What each form of DeBERTa's attention costs a training step on TPUs, by the compiler's own estimate; needs no TPU.

    pip install 'scpo_jax[tpu]'
    JAX_PLATFORMS=cpu python -m tests.bench.attention_cost --topologies v5e:2x2 v5p:2x2x1 --rows 16 6 --output x.json

A step of DeBERTa-v3-base (12 layers, 8192 words, bfloat16) on 8 pairs, that is 16 texts, in R rows of 512 tokens, with
dropout, on one device. Loops count as often as they run. The compiler does not estimate the fused kernel, so its cycles
are those of its schedule: the kernel alone is compiled with a dump of its instructions, which the machine issues one
bundle a cycle, or the bytes it moves over the bandwidth of the memory if those take longer. A compile takes minutes.

Found with jax 0.10.2, in millions of cycles and as a share of the step without relative terms:

    device, rows    none    fused         gather         skew          one-hot
    v5e, 16         227.2   225.2 0.99    1013.4 4.46    772.4 3.40    412.1 1.81
    v5p, 16         120.3   118.1 0.98     451.8 3.76    362.0 3.01    210.4 1.75
    v5e, 6           95.9    92.9 0.97     393.2 4.10    259.6 2.71    163.1 1.70
    v5p, 6           49.4    51.8 1.05     206.0 4.17    137.5 2.78     95.5 1.93

Of "fused" 42.7, 22.2, 16.0 and 8.3 are the kernel. On v5p two cores share its heads; were it one, the ratios would be
1.17 and 1.22. "gather" needs 19 GB of memory for 16 rows, "none" 11 and "fused" 8.
"""

import argparse
import contextlib
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections import Counter

import jax
import jax.numpy as jnp

from scpo_jax import hlo, sharding, train_step
from scpo_jax.models import disentangled, disentangled_kernel, module, relative
from tests import tpu_helpers

CONFIG = {
    "model_type": "deberta-v2", "vocab_size": 8192, "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "relative_attention": True, "position_buckets": 256,
    "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p", "position_biased_input": False,
}  # fmt: skip
PAIRS, LENGTH, HEADS, SIZE = 8, 512, 12, 64
# of a device: bytes of memory a cycle (bandwidth over clock), and cores that share the heads of a kernel
MACHINES = {"v5e": (819 / 1.5, 1), "v5p": (2765 / 1.75, 2), "v6e": (1640 / 1.75, 1)}
product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def skewed_bias(query, keys, position_key, position_query, index):
    """`relative.attention_bias` without a gather: one product with a row per distance, then a skew by reshaping."""
    length = index.shape[0]

    def term(x, table):  # column j of row i is column j - i + T - 1 of the product
        wide = product("rthd,hod->rhto", x, table)
        flat = wide.reshape(*wide.shape[:2], -1)[..., length - 1 : length - 1 + length * (2 * length - 1)]
        flat = jnp.pad(flat, ((0, 0), (0, 0), (0, length * (2 * length - 1) - flat.shape[-1])))
        return flat.reshape(*wide.shape[:3], 2 * length - 1)[..., :length]

    table_key, table_query = disentangled.expand_tables(position_key, position_query, index, length)
    return term(query, table_key) + term(keys, table_query).swapaxes(-1, -2)


def one_hot_bias(query, keys, position_key, position_query, index):
    """`relative.attention_bias` with a product for the gather: for each query the rows of its keys, one-hot."""

    def term(x, table, index):
        selection = jax.nn.one_hot(index, table.shape[0], dtype=x.dtype)
        narrow = product("rthd,phd->rhtp", x, table).astype(x.dtype)
        return product("rhtp,tsp->rhts", narrow, selection, precision=disentangled_kernel.precision(x.dtype))

    return term(query, position_key, index) + term(keys, position_query, index.T).swapaxes(-1, -2)


BIASES = {"gather": relative.attention_bias, "skew": skewed_bias, "one-hot": one_hot_bias}
FORMS = ("none", "fused", *BIASES)


@contextlib.contextmanager
def form_in_use(form: str):
    """`relative.attention` in this form."""
    kept = relative.attention, relative.attention_bias
    if form in BIASES:
        relative.attention, relative.attention_bias = relative.plain_attention, BIASES[form]
    try:
        yield
    finally:
        relative.attention, relative.attention_bias = kept


def compiled_step(form: str, device, rows: int):
    """The training step compiled for the device, in the form or without relative terms ("none")."""
    model = module.build(CONFIG | {"relative_attention": form != "none"})
    program = train_step.make_program(
        model, sharding.make_mesh(1, 1, 1, [device]),
        dtype="bfloat16", weight_decay=0.0, max_grad_norm=1.0, center_rewards_coefficient=0.0,
    )  # fmt: skip
    arguments = train_step.step_arguments(program, model, 1, PAIRS, (rows, LENGTH))
    with form_in_use(form):
        return program.step.lower(*arguments).compile()


def on_device(shapes, device):
    """The same shapes on that device."""
    place = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


def compile_kernel(name: str, device):
    """Compiles "forward_kernel" or "backward_kernel" alone, for two rows."""
    make = jax.ShapeDtypeStruct
    own, table = make((2, HEADS, LENGTH, SIZE), jnp.bfloat16), make((HEADS, 2 * LENGTH, SIZE), jnp.bfloat16)
    mask, keep = make((2, LENGTH, LENGTH), jnp.int8), make((2, HEADS, LENGTH, LENGTH), jnp.int8)
    operands = disentangled_kernel.Operands(own, own, own, table, table, mask, keep)
    if name == "forward_kernel":
        jax.jit(lambda x: disentangled.fused(x, 0.1, 0.1, False)).lower(on_device(operands, device)).compile()
    else:
        backward = functools.partial(disentangled.fused_backward, 0.1, 0.1, False)
        jax.jit(backward).lower(*on_device((operands, own), device)).compile()


def bundles(name: str, topology: str) -> int:
    """Bundles that one program of the kernel (a head of a row) issues, from the compiler's dump of its schedule.

    Its own process, since the dump is asked for before the compiler is loaded. In the dump a bundle stands in as many
    loops as its line has ">": the first is the grid, the second runs over blocks.
    """
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true --xla_jf_emit_annotations=true"
        command = [sys.executable, "-m", "tests.bench.attention_cost", "--kernel", name, "--topologies", topology]
        subprocess.run(command, check=True, env=os.environ | {"LIBTPU_INIT_ARGS": flags}, stderr=subprocess.DEVNULL)
        (dump,) = pathlib.Path(folder).glob(f"*-{name}*[0-9]-final_bundles.txt")
        lines = re.findall(r"^\s*0x[0-9a-f]+\s+(?:[A-Z]{2})?\s*:\s*(>*)", dump.read_text(), re.M)
    depths = Counter(map(len, lines))
    return depths[1] + depths[2] * LENGTH // disentangled_kernel.BLOCK


def kernel_cycles(name: str, topology: str, rows: int) -> int:
    """Cycles of one call of the kernel: of its schedule, or of its traffic with the memory if that takes longer."""
    bytes_per_cycle, cores = MACHINES[topology.split(":")[0]]
    arrays = 4 if name == "forward_kernel" else 7  # of the size of a head's query, which takes 128 lanes for 64
    traffic = (arrays * LENGTH * 128 * 2 + 2 * LENGTH**2) / bytes_per_cycle
    return int(rows * HEADS * max(bundles(name, topology) / cores, traffic))


def measure(form: str, topology: str, rows: int) -> dict:
    """A row of the table."""
    program = compiled_step(form, tpu_helpers.devices(topology)[0], rows)
    module = hlo.parse(program.as_text())
    trips = {"": CONFIG["num_hidden_layers"] - 1}  # the last layer stands after the loop
    names = ("forward_kernel", "backward_kernel") if form == "fused" else ()
    kernels = {name: kernel_cycles(name, topology, rows) for name in names}
    return {
        "topology": topology, "rows": rows, "form": form, "cycles": hlo.cycles(module, trips, kernels),
        "kernel_cycles": trips[""] * sum(kernels.values()), "product_flops": hlo.product_flops(module, trips),
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", default=["v5e:2x2", "v5p:2x2x1"])
    parser.add_argument("--rows", nargs="+", type=int, default=[16, 6], help="rows that the 16 texts are packed in")
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--output", help="write the table as JSON to this file")
    parser.add_argument("--kernel", help=argparse.SUPPRESS)  # only compile this kernel, see `bundles`
    arguments = parser.parse_args()
    if arguments.kernel:
        compile_kernel(arguments.kernel, tpu_helpers.devices(arguments.topologies[0])[0])
        return
    table = []
    for topology, rows in ((t, r) for t in arguments.topologies for r in arguments.rows):
        for form in arguments.forms:
            found = measure(form, topology, rows)
            base = next((x for x in table if (x["topology"], x["rows"], x["form"]) == (topology, rows, "none")), None)
            found["ratio"] = round(found["cycles"] / base["cycles"], 3) if base else None
            table.append(found)
            print(*(f"{name} {value}" for name, value in found.items()), sep="  ", flush=True)
            if arguments.output:
                pathlib.Path(arguments.output).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
