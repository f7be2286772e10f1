"""Steps that change nothing because their loss or gradient is not finite: named, and too many of them an end."""

from collections.abc import Sequence

import numpy as np

from scpo_jax import logs
from scpo_jax.errors import InputError


class Watch:
    """Follows trainings that run at once, step by step.

    Args:
      names: of the trainings.
      ids: of each training, what its pairs are called; () for their numbers.
      plan: the pairs of each step, `batches.Plan.pairs`.
      most: skipped steps in a row of one training that end all.
      rate: the config key of their learning rate.
    """

    def __init__(
        self,
        names: Sequence[str],
        ids: Sequence[Sequence[str]],
        plan: np.ndarray,
        most: int,
        rate: str = "config.train.learning_rate",
    ):
        self._names, self._ids, self._plan, self._most, self._rate = names, ids, plan, most, rate
        self._in_a_row = np.zeros(len(names), int)

    def see(self, step: int, g: int, loss: float, grad_norm: float) -> None:
        """Takes note of a step of training `g`, the first being 1. Raises InputError."""
        if np.isfinite(loss) and np.isfinite(grad_norm):
            self._in_a_row[g] = 0
            return
        self._in_a_row[g] += 1
        logs.say(
            f"train {self._names[g]}: step {step} is skipped, its loss is {loss} and its gradient norm {grad_norm}; "
            f"its pairs: {', '.join(self._pairs(step, g))}"
        )
        if self._in_a_row[g] >= self._most:
            raise InputError(
                f"train {self._names[g]}: {self._in_a_row[g]} steps in a row up to step {step} had no finite loss and "
                "gradient (config.train.max_skipped); their pairs are named above. Look at these, and at the model's "
                f"parameters; a lower {self._rate} may help. What was saved before is kept"
            )

    def _pairs(self, step: int, g: int) -> list[str]:
        indices = self._plan[step - 1, g]
        return [self._ids[g][i] if self._ids[g] else str(i) for i in indices[indices >= 0]]
