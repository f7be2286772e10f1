"""The parameters of every profile that a service is asked for: blends of the RMs of a workdir, the latest ones kept."""

import collections

import jax
import numpy as np

from scpo_jax import checkpoint, steering
from scpo_jax.checkpoint import Loaded
from scpo_jax.judge import Judge
from scpo_jax.models import lora, module
from scpo_jax.models.module import RewardModel
from scpo_jax.steering import Profile

BYTES_KEPT = 4 * 2**30  # of blends on the devices; two are kept in any case
MOST_KEPT = 16


class Blends:
    """Parameters by profile, as the score function takes them.

    All RMs are read once and stay in the host's memory; of LoRA the adapters and of heads these, beside one base.
    """

    def __init__(self, judge: Judge):
        self._function = judge.default.function
        self._base = [], {}  # the frozen part that was read last: its leaves, and the same on the host
        self._start = self._on_host(judge.default.loaded)
        self._groups = {group: self._on_host(checkpoint.load(folder)) for group, folder in judge.groups.items()}
        self._base = [], {}
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._function.params))
        self.capacity = int(np.clip(BYTES_KEPT // size, 2, MOST_KEPT))
        self._kept = collections.OrderedDict()

    @property
    def groups(self) -> list[str]:
        """Groups that a profile may name."""
        return sorted(self._groups)

    @property
    def kept(self) -> list[Profile]:
        """Profiles whose parameters are at hand, the latest last."""
        return [dict(key) for key in tuple(self._kept)]

    def __call__(self, profile: Profile) -> dict:
        """The parameters of a profile, on the devices."""
        key = tuple(profile.items())
        if key not in self._kept:
            while len(self._kept) >= self.capacity:
                self._kept.popitem(last=False)
            self._kept[key] = self._place(steering.blend(self._start[1], profile, self._params_of))
        self._kept.move_to_end(key)
        return self._kept[key]

    def _params_of(self, group: str) -> dict:
        return module.merge(*self._groups[group])[1]

    def _on_host(self, loaded: Loaded) -> tuple[RewardModel, dict]:
        """(model, parameters as numpy arrays); models that share a base still do."""
        trained, frozen = lora.parts(loaded.params) if "base" in loaded.card else (loaded.params, {})
        leaves = jax.tree.leaves(frozen)
        if [id(leaf) for leaf in leaves] != [id(leaf) for leaf in self._base[0]]:
            self._base = leaves, jax.device_get(frozen)
        return loaded.model, lora.join(jax.device_get(trained), self._base[1])

    def _place(self, params: dict) -> dict:
        """On the devices, and bound to them: what is not compiles another program."""
        placed = self._function.place(params)
        return placed if self._function.mesh else jax.device_put(placed, jax.local_devices()[0])
