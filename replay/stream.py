"""The prompt stream: seeded, endless, shuffled anew each epoch, addressed by ordinal.

Ordinal o is position o mod n of epoch o div n, whoever asks and in whatever order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.sources import DataError, Items
from slipstream.records import Prompt, TokenIds

Render = Callable[[Mapping[str, Any], int], tuple[str, TokenIds]]

NUM_KEPT_EPOCHS = 3  # their orders; an ordinal issued again may be of an earlier epoch


class PromptStream:
    """Prompts by ordinal. `render(item, item_index)` makes the text and token ids of an item."""

    def __init__(
        self,
        items: Items,
        render: Render,
        *,
        seed: int,
        shuffle: bool,
        max_prompt_tokens: int,
    ) -> None:
        self._items = items
        self._render = render
        self._seed = seed
        self._shuffle = shuffle
        self._max_prompt_tokens = max_prompt_tokens
        self._orders: dict[int, npt.NDArray[np.int64]] = {}  # by epoch: item indices
        self._num_too_long_in_a_row = 0

    def prompt(self, ordinal: int) -> Prompt | None:
        """The prompt at `ordinal`, or None where it is longer than `max_prompt_tokens`.

        Raises DataError once as many in a row were too long as there are items.
        """
        epoch, position = divmod(ordinal, len(self._items))
        item_index = int(self._order(epoch)[position])
        item = self._items[item_index]
        text, token_ids = self._render(item, item_index)
        if len(token_ids) > self._max_prompt_tokens:
            self._count_too_long()
            return None
        self._num_too_long_in_a_row = 0
        return Prompt(
            ordinal=ordinal,
            epoch=epoch,
            item_index=item_index,
            item=item,
            text=text,
            token_ids=token_ids,
        )

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            if len(self._orders) == NUM_KEPT_EPOCHS:
                del self._orders[min(self._orders)]
            self._orders[epoch] = self._permutation(epoch)
        return self._orders[epoch]

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        """Of seed and epoch alone; the bit generator is named, as numpy's default may change."""
        if not self._shuffle:
            return np.arange(len(self._items))
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        return generator.permutation(len(self._items))

    def _count_too_long(self) -> None:
        self._num_too_long_in_a_row += 1
        # A run that crosses from one epoch to the next can count items twice.
        if self._num_too_long_in_a_row >= 2 * len(self._items):
            raise DataError(
                f"all {len(self._items)} prompts of the data are longer than "
                f"data.max_prompt_tokens ({self._max_prompt_tokens}): raise it, or shorten them"
            )
