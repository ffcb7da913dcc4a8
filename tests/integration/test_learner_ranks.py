"""Ranks, ZeRO stages and microbatches change how a step is computed, never what it is. Steps
without a finite gradient change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.jobs import make_model
from tests.helpers.ranks import run_ranks

PROGRAM = Path(__file__).with_name("learner_ranks.py")
WHOLE, MANY = 4096, 40  # padded tokens: one microbatch, and about eight
KINDS = ("critic", "head", "region")
PLAIN = [*(f"{stage}:{MANY}" for stage in range(4)), f"3:{MANY}:recompute"]
MORE = [f"{stage}:{MANY}:{what}" for what in KINDS for stage in range(4)]
BFLOAT16 = [f"{stage}:{MANY}:bf16" for stage in (1, 2, 3)]  # compared with nothing
UNEVEN = [f"{stage}:{MANY}" for stage in (1, 2, 3)]  # three ranks: the last one's part is padded
UNDISTURBED = "undisturbed"  # by steps without a finite gradient, as all others are


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """`ranks/setting` -> name -> array, after 5 steps."""
    directory = tmp_path_factory.mktemp("ranks")
    model = make_model(directory / "model")
    kinds = ("", *(f":{kind}" for kind in KINDS))
    whole = [f"0:{WHOLE}{kind}:{UNDISTURBED}" for kind in kinds]
    settings = {1: [*whole, *PLAIN], 2: [*PLAIN, *MORE, *BFLOAT16], 3: UNEVEN}
    for num_ranks, of_these in settings.items():
        out = directory / str(num_ranks)
        run_ranks(PROGRAM, num_ranks, out, str(model), str(out), *of_these)
    return {
        f"{ranks}/{path.stem}": dict(np.load(path))
        for ranks in ("1", "2", "3")
        for path in (directory / ranks).glob("*.npz")
    }


@pytest.mark.parametrize(
    ("num_ranks", "setting"),
    [
        *((1, setting) for setting in PLAIN),
        *((2, setting) for setting in [*PLAIN, *MORE]),
        *((3, setting) for setting in UNEVEN),
    ],
)
def test_the_weights_after_five_steps_are_the_same(
    weights: dict[str, dict[str, np.ndarray]], num_ranks: int, setting: str
) -> None:
    kind = setting[setting.rindex(":") :] if setting.endswith(KINDS) else ""
    expected = weights[f"1/0:{WHOLE}{kind}:{UNDISTURBED}"]
    found = weights[f"{num_ranks}/{setting}"]
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5, rtol=0, err_msg=name)


def test_training_changed_the_weights(weights: dict[str, dict[str, np.ndarray]]) -> None:
    for setting, found in weights.items():
        assert found["moved"] > 1e-4, setting


def test_clipping_was_exercised(weights: dict[str, dict[str, np.ndarray]]) -> None:
    assert (weights[f"1/0:{WHOLE}:{UNDISTURBED}"]["grad_norms"] > 0.1).all()
