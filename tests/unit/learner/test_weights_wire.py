"""From the publisher's buckets to the receiver's tensors."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from learner.weights import ObjectStorePublisher, _packed, _spec
from rollout_worker.receiver import ObjectStoreReceiver, unpack
from slipstream.errors import UpdateLost, UpdateStalled
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


def polled(receiver: ObjectStoreReceiver, held: tuple[int, int]) -> WeightUpdate:
    """What `poll` gives once its buckets are here."""
    deadline_s = time.monotonic() + 10.0
    while time.monotonic() < deadline_s:
        if (newer := receiver.poll(held)) is not None:
            return newer
        time.sleep(0.001)
    raise AssertionError("no update came")


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
    told: Future[WeightUpdate | None] = Future()
    told.set_result(update(1, *sent))

    def get(buckets: Sequence[Any]) -> Sequence[Any]:
        time.sleep(0.02)
        return buckets

    receiver = ObjectStoreReceiver(lambda held: told, get)
    received = dict(receiver.tensors(polled(receiver, (0, 0))))
    assert 0.02 <= receiver.wire_s < 1
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
    figures = publisher.publish(1, 5, None)
    # A 2 x 2 weight and two biases in float32.
    assert figures["num_bytes"] == (0 if rank else 24)
    assert 0 <= figures["gather_s"] < 1
    assert 0 <= figures["publish_s"] < 1
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

    receiver = ObjectStoreReceiver(wait_newer, lambda buckets: buckets)
    assert receiver.poll((0, -1)) is None
    assert receiver.poll((0, -1)) is None
    assert asked == [(0, -1)]
    futures[0].set_result(update(3))
    newest = polled(receiver, (0, -1))
    assert newest.version == 3
    receiver.tensors(newest)
    receiver.poll((0, 3))
    futures[1].set_result(None)  # nothing newer within the board's patience
    assert receiver.poll((0, 3)) is None
    receiver.poll((0, 3))
    futures[2].set_result(update(2))
    assert receiver.poll((0, 3)) is None
    assert asked == [(0, -1), (0, 3), (0, 3)]
    receiver.poll((0, 3))
    futures[3].set_result(update(2, timeline=1))  # the run went back
    assert polled(receiver, (0, 3)).order == (1, 2)


class Board:
    """Tells at once of version 3, which has one bucket."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.published_at_s = 0.0

    def wait_newer(self, held: tuple[int, int]) -> Future[Any]:
        self.asked.append(held)
        answer: Future[Any] = Future()
        told = update(3, [("a", torch.ones(4))])
        answer.set_result(replace(told, published_at_s=self.published_at_s))
        return answer


def test_an_update_whose_publisher_died_is_waited_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the same version is published again, by a learner that was built anew."""
    monkeypatch.setattr("rollout_worker.receiver.ASK_AGAIN_S", 0.01)
    is_alive = False

    def get(buckets: Sequence[Any]) -> Any:
        if not is_alive:
            raise UpdateLost("its owner died")
        return buckets

    board = Board()
    receiver = ObjectStoreReceiver(board.wait_newer, get)
    with pytest.raises(UpdateLost):
        receiver.tensors(polled(receiver, (0, 2)))
    for _ in range(20):
        assert receiver.poll((0, 2)) is None
        time.sleep(0.001)
    assert 2 <= len(board.asked) < 10, "now and then"
    is_alive, board.published_at_s = True, 1.0
    again = polled(receiver, (0, 2))
    assert again.order == (0, 3)
    receiver.tensors(again)


def test_an_update_that_did_not_come_in_time_is_asked_for_again() -> None:
    num_asked = 0

    def get(buckets: Sequence[Any]) -> Any:
        nonlocal num_asked
        num_asked += 1
        if num_asked == 1:
            raise UpdateStalled("late")
        return buckets

    board = Board()
    receiver = ObjectStoreReceiver(board.wait_newer, get)
    with pytest.raises(UpdateStalled):
        receiver.tensors(polled(receiver, (0, 2)))
    again = polled(receiver, (0, 2))
    assert again.order == (0, 3)
    assert [tensor.tolist() for _, tensor in receiver.tensors(again)] == [[1.0] * 4]
    assert board.asked == [(0, 2), (0, 2)]


def test_nothing_is_there_to_load_until_every_bucket_is() -> None:
    may_come = threading.Event()

    def get(buckets: Sequence[Any]) -> Any:
        assert may_come.wait(10)
        return buckets

    receiver = ObjectStoreReceiver(Board().wait_newer, get)
    for _ in range(20):
        assert receiver.poll((0, 2)) is None
        time.sleep(0.001)
    may_come.set()
    assert polled(receiver, (0, 2)).version == 3
