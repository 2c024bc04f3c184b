"""Whole passes where the wavefront fails: a model's own code may do with a block alone what nobody foresaw."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from hpcmpq.errors import raise_if_no_room
from hpcmpq.models.outputs import Inputs
from hpcmpq.response.whole_model import WholeModel

log = logging.getLogger(__name__)

Responses = tuple[Tensor, Iterator[tuple[list[int], Tensor]]]
"""See `Engine.respond`."""


@dataclass
class Fallback:
    """Runs what another engine could not, batch by batch, so that a unit's numbers depend on the unit alone.

    Attributes:
        whole: What runs instead.
    """

    whole: WholeModel
    _told: bool = False

    def respond(
        self, first: Callable[[Inputs, Sequence[int]], Responses], inputs: Inputs, options: Sequence[int]
    ) -> Responses:
        """What `first` responds, and whole passes for what is missing when it raises.

        Raises:
            Exception: If it was memory that `first` lacked.
        """
        try:
            z0_NTV, outputs = first(inputs, options)
        except Exception as error:  # the model's own code: it may fail in any way
            self._tell(error)
            return self.whole.respond(inputs, options)
        return z0_NTV, self._completed(outputs, inputs, options)

    def _completed(
        self, outputs: Iterator[tuple[list[int], Tensor]], inputs: Inputs, options: Sequence[int]
    ) -> Iterator[tuple[list[int], Tensor]]:
        missing = dict.fromkeys(options)
        try:
            for members, z_QNTV in outputs:
                yield members, z_QNTV
                for p in members:
                    del missing[p]
            return
        except Exception as error:
            self._tell(error)
        yield from self.whole.respond(inputs, list(missing))[1]

    def _tell(self, error: Exception) -> None:
        raise_if_no_room(error)
        if not self._told:
            reason = str(error).strip().split("\n")[0]
            log.info(
                "the model's blocks cannot run apart from it (%s: %s); running one whole forward pass per option",
                type(error).__name__,
                reason,
            )
        self._told = True
