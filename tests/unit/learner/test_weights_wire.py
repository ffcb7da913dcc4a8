"""From the publisher's buckets to the receiver's tensors."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from learner.weights import ObjectStorePublisher, _packed, _spec
from rollout_worker.receiver import ObjectStoreReceiver, unpack
from slipstream.errors import UpdateLost
from slipstream.records import WeightUpdate


def update(
    version: int, *buckets: list[tuple[str, torch.Tensor]], timeline: int = 0
) -> WeightUpdate:
    return WeightUpdate(
        timeline=timeline,
        version=version,
        bucket_specs=tuple(tuple(_spec(*named) for named in bucket) for bucket in buckets),
        buckets=tuple(_packed(bucket) for bucket in buckets),
        probe=None,
        published_at_s=0.0,
    )


def test_every_bit_arrives() -> None:
    generator = torch.Generator().manual_seed(0)
    sent = [
        [
            ("odd", torch.randn(3, 5, generator=generator).to(torch.bfloat16)),  # 30 bytes
            ("transposed", torch.randn(4, 2, generator=generator).T),
            ("scalar", torch.tensor(float("nan"))),
        ],
        [("half", torch.randn(2, generator=generator).half())],
    ]
    receiver = ObjectStoreReceiver(lambda version: Future(), lambda reference: reference)
    received = dict(receiver.tensors(update(1, *sent)))
    for bucket in sent:
        for name, tensor in bucket:
            assert received[name].dtype == tensor.dtype
            assert torch.equal(received[name].nan_to_num(), tensor.nan_to_num())


@pytest.mark.parametrize("rank", [0, 1])
def test_a_reminder_announces_the_newest_version_again(rank: int) -> None:
    announced: list[WeightUpdate] = []
    model = torch.nn.Module()
    model.hf = torch.nn.Linear(2, 2)
    publisher = ObjectStorePublisher(
        SimpleNamespace(rank=rank, model=model, gathered=nullcontext),  # type: ignore[arg-type]
        bucket_bytes=8,
        put=lambda array: array,
        announce=announced.append,
    )
    publisher.remind()
    assert announced == [], "nothing is published yet"
    publisher.publish(1, 4, None)
    publisher.publish(1, 5, None)
    publisher.remind()
    assert [update.order for update in announced] == ([] if rank else [(1, 4), (1, 5), (1, 5)])
    assert len(announced) == 0 or announced[2] is announced[1]


def test_a_bucket_of_another_size_is_refused() -> None:
    whole = update(1, [("a", torch.zeros(4))])
    with pytest.raises(ValueError, match="17 bytes for tensors of 16"):
        list(unpack(whole.bucket_specs[0], torch.zeros(17, dtype=torch.uint8).numpy()))


def test_poll_asks_once_and_never_goes_back() -> None:
    asked: list[tuple[int, int]] = []
    futures: list[Future[Any]] = []

    def wait_newer(held: tuple[int, int]) -> Future[Any]:
        asked.append(held)
        futures.append(Future())
        return futures[-1]

    receiver = ObjectStoreReceiver(wait_newer, lambda reference: reference)
    assert receiver.poll((0, -1)) is None
    assert receiver.poll((0, -1)) is None
    assert asked == [(0, -1)]
    futures[0].set_result(update(3))
    newest = receiver.poll((0, -1))
    assert newest is not None
    assert newest.version == 3
    receiver.poll((0, 3))
    futures[1].set_result(None)  # nothing newer within the board's patience
    assert receiver.poll((0, 3)) is None
    receiver.poll((0, 3))
    futures[2].set_result(update(2))
    assert receiver.poll((0, 3)) is None
    assert asked == [(0, -1), (0, 3), (0, 3)]
    receiver.poll((0, 3))
    futures[3].set_result(update(2, timeline=1))  # the run went back
    newest = receiver.poll((0, 3))
    assert newest is not None
    assert newest.order == (1, 2)


def test_an_update_whose_publisher_died_is_waited_past() -> None:
    asked: list[tuple[int, int]] = []

    def wait_newer(held: tuple[int, int]) -> Future[Any]:
        asked.append(held)
        answer: Future[Any] = Future()
        answer.set_result(update(3, [("a", torch.zeros(4))]))
        return answer

    def get(reference: Any) -> Any:
        raise UpdateLost("its owner died")

    receiver = ObjectStoreReceiver(wait_newer, get)
    newest = receiver.poll((0, 2))
    assert newest is not None
    with pytest.raises(UpdateLost):
        receiver.tensors(newest)
    assert receiver.poll((0, 2)) is None
    assert asked == [(0, 2), (0, 3)]
