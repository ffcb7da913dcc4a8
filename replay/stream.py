"""The prompt stream: seeded, endless, shuffled anew each epoch, addressed by ordinal.

Ordinal o is position o mod n of epoch o div n, whoever asks and in whatever order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from slipstream.errors import SlipstreamError
from slipstream.records import Prompt, TokenIds

Render = Callable[[Mapping[str, Any], int], tuple[str, TokenIds]]


class PromptStream:
    """Prompts by ordinal.

    `render(item, item_index)` makes the text and token ids of an item.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        render: Render,
        *,
        seed: int,
        shuffle: bool,
        max_prompt_tokens: int,
    ) -> None:
        if not items:
            raise SlipstreamError("the training data has no items")
        self._items = items
        self._render = render
        self._seed = seed
        self._shuffle = shuffle
        self._max_prompt_tokens = max_prompt_tokens
        self._orders: dict[int, npt.NDArray[np.int64]] = {}
        self._too_long_in_a_row = 0

    def prompt(self, ordinal: int) -> Prompt | None:
        """The prompt at `ordinal`, or None where it is longer than `max_prompt_tokens`.

        Raises SlipstreamError once a whole epoch's worth of prompts in a row was too long.
        """
        epoch, position = divmod(ordinal, len(self._items))
        item_index = int(self._order(epoch)[position])
        item = self._items[item_index]
        text, token_ids = self._render(item, item_index)
        if len(token_ids) > self._max_prompt_tokens:
            self._count_too_long()
            return None
        self._too_long_in_a_row = 0
        return Prompt(
            ordinal=ordinal,
            epoch=epoch,
            item_index=item_index,
            item=item,
            text=text,
            token_ids=token_ids,
        )

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The item indices of an epoch; a few epochs are kept, for re-issued ordinals."""
        if epoch not in self._orders:
            num_items = len(self._items)
            self._orders[epoch] = (
                np.random.default_rng([self._seed, epoch]).permutation(num_items)
                if self._shuffle
                else np.arange(num_items)
            )
            while len(self._orders) > 3:
                del self._orders[min(self._orders.keys() - {epoch})]
        return self._orders[epoch]

    def _count_too_long(self) -> None:
        self._too_long_in_a_row += 1
        if self._too_long_in_a_row >= len(self._items):
            raise SlipstreamError(
                f"all {len(self._items)} prompts of the training data are longer than "
                f"data.max_prompt_tokens ({self._max_prompt_tokens}); raise it, or use shorter ones"
            )
