"""Says "torch" if the model of a config can be read only with torch, and there is none yet; else nothing.

    python launch/needs_torch.py --config=CONFIG [--config.KEY=VALUE ...]

Fetches a model of the hub, as the run would. Exit code 2 and a line for a user's mistake.
"""

import importlib.util
import sys
from collections.abc import Sequence

from absl import flags

from scpo_jax import checkpoint, configuration
from scpo_jax.errors import InputError
from scpo_jax.models import hf


def main(argv: Sequence[str]) -> int:
    """Answers for the arguments `argv`, with the program's name first; the exit code."""
    values = flags.FlagValues()
    flags.DEFINE_string("config", "", "config file", flag_values=values)
    configuration.define_flags(values)
    try:
        values(list(argv))
        if importlib.util.find_spec("torch") is None and is_torch_only(configuration.load(values.config, values).model):
            print("torch")
    except (flags.Error, InputError) as error:
        print(f"needs_torch.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def is_torch_only(model) -> bool:
    """Whether of a model, `config.model`, there are no other weights than `pytorch_model.bin`."""
    if not model.name_or_path or checkpoint.is_checkpoint(model.name_or_path):
        return False
    folder = hf.resolve(model.name_or_path, model.revision)
    return any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors"))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
