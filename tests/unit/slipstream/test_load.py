"""Job files: what is right is read, what is wrong is said with its line, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slipstream.config.load import load_job
from slipstream.errors import JobFileError

ROOT = Path(__file__).parents[3]
SHIPPED = sorted(ROOT.glob("examples/*/*.yaml"))

GOOD = """\
name: small
mode: buffered
model:
  path: some/model
data:
  train:
    kind: jsonl
    path: train.jsonl
reward:
  kind: exact_match
rollout:
  group_size: 4
learner:
  num_steps: 10
  groups_per_batch: 8
  learning_rate: 2e-5
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        load_job(path, list(overrides))
    return [str(problem).replace(str(path), "job.yaml") for problem in caught.value.problems]


def test_the_four_job_files_are_shipped() -> None:
    names = {path.stem for path in SHIPPED if path.parent.name == "arithmetic"}
    assert names >= {"sync", "split", "buffered", "multinode"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_shipped_job_file_parses(path: Path) -> None:
    job = load_job(path)
    assert job.mode in path.stem or path.parent.name != "arithmetic"


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, GOOD), ["algorithm.loss.clip_high=28e-2"])
    assert job.learner.learning_rate == 2e-5
    assert job.algorithm.loss.clip_high == 0.28


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    job = load_job(write(tmp_path, GOOD.replace("some/model", "base")))
    assert job.model.path == str(tmp_path / "base")
    assert job.data.train.path == tmp_path / "train.jsonl"  # type: ignore[union-attr]
    assert load_job(write(tmp_path, GOOD)).model.path == "some/model", "a name on the hub"


def test_held_out_sets_have_names_and_paths_of_the_file(tmp_path: Path) -> None:
    more = "  eval_sets: {hard: {kind: jsonl, path: hard.jsonl}}\n  eval: {kind: jsonl, path: a}\n"
    job = load_job(write(tmp_path, GOOD.replace("reward:\n", f"{more}reward:\n")))
    found = {name: source.path for name, source in job.data.held_out.items()}  # type: ignore[union-attr]
    assert list(found.items()) == [("eval", tmp_path / "a"), ("hard", tmp_path / "hard.jsonl")]
    assert job.best_set is None
    kept = load_job(tmp_path / "job.yaml", ["checkpoint.keep_best=greedy_accuracy"])
    assert kept.best_set == "eval"


@pytest.mark.parametrize(
    ("mode", "colocate", "max_staleness", "whole_batches"),
    [
        ("sync", True, 0, True),
        ("split", False, 1, True),
        ("buffered", False, 1, False),
        ("multinode", False, 1, False),
    ],
)
def test_a_mode_is_a_preset(
    tmp_path: Path, mode: str, colocate: bool, max_staleness: int, whole_batches: bool
) -> None:
    job = load_job(write(tmp_path, GOOD), [f"mode={mode}"])
    assert job.rollout.colocate is colocate
    assert job.replay.max_staleness == max_staleness
    assert job.replay.whole_batches is whole_batches


def test_what_is_set_by_hand_wins_over_the_preset(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "replay:\n  max_staleness: 2\n")
    assert load_job(path).replay.max_staleness == 2
    assert load_job(path, ["replay.max_staleness=7"]).replay.max_staleness == 7
    assert load_job(path).replay.on_stale == "wait"


BROKEN: list[tuple[str, str, str, list[str]]] = [
    # what is wrong, old text, new text, parts of the one message
    (
        "unknown top key",
        "reward:",
        "rewards: 1\nreward:",
        ["job.yaml:9:1", "did you mean 'reward'"],
    ),
    ("unknown key", "group_size", "groupsize", ["job.yaml:12:3", "did you mean 'group_size'"]),
    ("wrong type", "num_steps: 10", "num_steps: ten", ["job.yaml:14:3", "whole number", "'ten'"]),
    ("below range", "group_size: 4", "group_size: 0", ["job.yaml:12:3", "1 or more", "not 0"]),
    ("not finite", "2e-5", ".nan", ["job.yaml:16:3", "learning_rate"]),
    ("bad mode", "buffered", "bufered", ["job.yaml:2:1", "did you mean 'buffered'"]),
    (
        "bad kind",
        "kind: jsonl",
        "kind: json",
        ["job.yaml:6:3", "jsonl, parquet", "did you mean 'jsonl'"],
    ),
    ("no kind", "    kind: jsonl\n", "", ["data.train", "needs a kind", "jsonl"]),
    ("missing key", "    path: train.jsonl\n", "", ["job.yaml:6:3", "data.train.path", "missing"]),
    ("missing section", "model:\n  path: some/model\n", "", ["job.yaml:1", "model", "missing"]),
    ("section is a value", "reward:\n  kind: exact_match", "reward: 3", ["job.yaml:9:1", "reward"]),
    ("bad name", "name: small", "name: a/b", ["job.yaml:1:1", "name", "'a/b'"]),
    (
        "key of another kind",
        "kind: exact_match",
        "kind: exact_match\n  path: a:b",
        ["job.yaml:11:3", "reward.path", "of kind function"],
    ),
    ("grpo of one", "group_size: 4", "group_size: 1", ["job.yaml:12:3", "grpo"]),
    (
        "a lease shorter than its scoring",
        "reward:\n  kind: exact_match",
        "replay:\n  lease_timeout_s: 40\nreward:\n  kind: exact_match",
        ["job.yaml:10:3", "50 s"],
    ),
    (
        "calls shorter than they are held",
        "reward:",
        "replay:\n  call_timeout_s: 1\nreward:",
        ["job.yaml:10:3", "5 or more"],
    ),
    (
        "a weight board killed at once",
        "reward:",
        "health:\n  call_timeout_s: 2\nreward:",
        ["job.yaml:10:3", "5 or more"],
    ),
    (
        "a choice that whole batches do not have",
        "mode: buffered",
        "mode: split\nreplay: {select: random}",
        ["job.yaml:3:10", "fifo"],
    ),
    (
        "stale groups without correction",
        "reward:",
        "algorithm: {correction: {kind: none}}\nreplay: {on_stale: clip}\nreward:",
        ["job.yaml:10:10", "truncated"],
    ),
    (
        "placement of shared devices",
        "group_size: 4",
        "colocate: true\n  placement: {labels: {a: b}}",
        ["job.yaml:13:3", "learner.placement"],
    ),
    (
        "more workers than autoscale allows",
        "group_size: 4",
        "num_workers: 5\n  autoscale: {min_workers: 1, max_workers: 4}",
        ["rollout.autoscale", "num_workers, 5", "1 to 4"],
    ),
    (
        "autoscale bounds the wrong way round",
        "group_size: 4",
        "num_workers: 3\n  autoscale: {min_workers: 4, max_workers: 2}",
        ["job.yaml:13:3", "4 to 2"],
    ),
    (
        "autoscale without an upper bound",
        "group_size: 4",
        "group_size: 4\n  autoscale: {min_workers: 1}",
        ["job.yaml:13:3", "rollout.autoscale.max_workers", "missing"],
    ),
    (
        "autoscale on shared devices",
        "group_size: 4",
        "colocate: true\n  autoscale: {min_workers: 1, max_workers: 2}",
        ["job.yaml:13:3", "shared devices"],
    ),
    (
        "engines on several GPUs without nccl",
        "group_size: 4",
        "group_size: 4\n  gpus: 2",
        ["job.yaml", "weights.transport", "nccl"],
    ),
    (
        "a scripted engine's log-probs",
        "group_size: 4",
        "group_size: 4\n  engine: scripted",
        ["job.yaml", "weights.probe", "no model"],
    ),
    (
        "a scripted engine on GPUs",
        "group_size: 4",
        "group_size: 4\n  engine: scripted\n  gpus: 1\nweights: {probe: false}",
        ["job.yaml:14:3", "rollout.gpus", "set it to 0"],
    ),
    ("few slots", "group_size: 4", "group_size: 4\n  num_slots: 2", ["job.yaml:13:3", "slots"]),
    (
        "nccl without GPUs",
        "reward:",
        "weights:\n  transport: nccl\nreward:",
        ["job.yaml:10:3", "object_store"],
    ),
    (
        "warm-up too long",
        "num_steps: 10",
        "num_steps: 10\n  warmup_steps: 10",
        ["job.yaml:15:3", "warm-up"],
    ),
    (
        "too many minibatches",
        "reward:",
        "algorithm:\n  minibatches: 9\nreward:",
        ["job.yaml:10:3", "groups"],
    ),
    (
        "a learned entropy bonus of nothing",
        "reward:",
        "algorithm:\n  entropy: {target: 0.5}\nreward:",
        ["job.yaml:10:13", "coefficient"],
    ),
    (
        "a KL target without a coefficient",
        "reward:",
        "algorithm:\n  kl: {adaptive: {target: 0.01}}\nreward:",
        ["job.yaml:10:8", "coefficient"],
    ),
    (
        "a KL term without a gradient",
        "reward:",
        "algorithm:\n  kl: {coefficient: 0.1, estimator: k1}\nreward:",
        ["job.yaml:10:26", "no gradient"],
    ),
    (
        "a horizon shorter than a step",
        "reward:",
        "algorithm:\n  kl: {coefficient: 0.1, adaptive: {target: 1, horizon: 1}}\nreward:",
        ["job.yaml:10:48", "raise it"],
    ),
    (
        "KL of answers that are not computed",
        "reward:",
        "algorithm:\n  kl: {coefficient: 0.1, place: reward}\n  overlong: {filter: true}\nreward:",
        ["job.yaml:10:26", "overlong.filter"],
    ),
    (
        "priorities that nothing draws by",
        "reward:",
        "replay:\n  priority: {alpha: 1}\nreward:",
        ["job.yaml:10:3", "replay.select: fifo"],
    ),
    (
        "a critic that nothing asks",
        "reward:",
        "algorithm:\n  critic: {clip: 0.1}\nreward:",
        ["job.yaml:10:3", "grpo has no critic"],
    ),
    (
        "a mask of nothing",
        "reward:",
        "algorithm:\n  old_logprobs: behaviour\n  mask: {kind: geometric}\nreward:",
        ["job.yaml:11:3", "set that to learner"],
    ),
    (
        "a plain gradient of samples that are not corrected",
        "reward:",
        "algorithm:\n  old_logprobs: behaviour\n  loss: {kind: policy_gradient}\nreward:",
        ["job.yaml:11:3", "set that to learner"],
    ),
    (
        "a penalty steered by a KL of 0",
        "reward:",
        "algorithm:\n  loss: {kind: ppo_kl, target: 0.1}\nreward:",
        ["job.yaml:10:24", "minibatches"],
    ),
    (
        "opo of one",
        "group_size: 4",
        "group_size: 1\nalgorithm:\n  advantage: {kind: reinforce, baseline: optimal}",
        ["job.yaml:12:3", "batch_mean"],
    ),
    (
        "a band that is empty",
        "reward:",
        "algorithm:\n  correction: {kind: icepop, low: 2, high: 1}\nreward:",
        ["job.yaml:10:30", "not below high"],
    ),
    (
        "an early stop with nothing to stop",
        "reward:",
        "algorithm:\n  max_kl: 0.1\nreward:",
        ["job.yaml:10:3", "algorithm.max_kl", "algorithm.epochs"],
    ),
    (
        "a penalty on more than an answer",
        "reward:",
        "algorithm:\n  overlong: {buffer_tokens: 9999}\nreward:",
        ["job.yaml:10:14", "max_new_tokens"],
    ),
    (
        "impatient watchdog",
        "reward:",
        "telemetry:\n  watchdog_s: 60\nreward:",
        ["job.yaml:10:3", "lease_timeout_s"],
    ),
    (
        "trackers that get nothing",
        "reward:",
        "telemetry: {enabled: false, trackers: [wandb]}\nreward:",
        ["job.yaml:9:29", "telemetry.trackers", "telemetry.enabled"],
    ),
    (
        "tight bfloat16 probe",
        "path: some/model",
        "path: some/model\n  dtype: bfloat16",
        ["max_probe_error", "bfloat16"],
    ),
    ("bad YAML", "mode: buffered", "mode: [buffered", ["job.yaml:2:7", "not valid YAML"]),
    (
        "duplicate key",
        "mode: buffered",
        "mode: buffered\nmode: sync",
        ["job.yaml:3:1", "written twice"],
    ),
    (
        "pass@k of too few answers",
        "reward:",
        "eval:\n  pass_at: [1, 8]\nreward:",
        ["job.yaml:10:3", "pass@8", "eval.num_samples"],
    ),
    (
        "the best of nothing",
        "reward:",
        "checkpoint: {keep_best: greedy_reward}\nreward:",
        ["job.yaml:9:14", "no held-out set", "data.eval"],
    ),
    (
        "the best of a set that is not there",
        "reward:",
        "  eval: {kind: jsonl, path: a}\n"
        "checkpoint: {keep_best: greedy_reward, best_set: b}\nreward:",
        ["job.yaml:10:40", "named b; there is eval"],
    ),
    (
        "a set for no best",
        "reward:",
        "checkpoint: {best_set: eval}\nreward:",
        ["job.yaml:9:14", "needs checkpoint.keep_best"],
    ),
    (
        "two sets of one name",
        "reward:",
        "  eval_sets: {eval: {kind: jsonl, path: a}}\nreward:",
        ["job.yaml:9:3", "choose another"],
    ),
    (
        "a set's kind",
        "reward:",
        "  eval_sets: {jsonl: {kind: jsnl, path: a}}\nreward:",
        ["job.yaml:9:15", "data.eval_sets.jsonl: kind 'jsnl'", "did you mean 'jsonl'?"],
    ),
    (
        "a set's key",
        "reward:",
        "  eval_sets: {hard: {kind: jsonl, pth: a}}\nreward:",
        ["job.yaml:9:35", "data.eval_sets.hard.pth: unknown key, did you mean 'path'?"],
    ),
    (
        "a set's key of another kind",
        "reward:",
        "  eval_sets: {hard: {kind: jsonl, path: a, task: b}}\nreward:",
        ["data.eval_sets.hard.task: is a key of kind reasoning_gym, and the kind here is jsonl"],
    ),
    (
        "a set's name",
        "reward:",
        "  eval_sets: {a b: {kind: jsonl, path: a}}\nreward:",
        ["job.yaml:9:15: data.eval_sets.a b: 'a b' cannot be taken; use letters, digits"],
    ),
    (
        "no such day",
        "name: small",
        "name: 2026-02-30 #",
        ["job.yaml:1:7: '2026-02-30' is no", "quotes"],
    ),
    ("no number", "name: small", "name: !!int t #", ["job.yaml:1:7: 't' is no int"]),
    ("no truth", "name: small", "name: !!bool t #", ["job.yaml:1:7: 't' is no bool"]),
    ("tab", "  group_size", "\tgroup_size", ["job.yaml:12", "not valid YAML"]),
]


@pytest.mark.parametrize(("what", "old", "new", "parts"), BROKEN, ids=[row[0] for row in BROKEN])
def test_every_mistake_has_its_line_and_its_remedy(
    tmp_path: Path, what: str, old: str, new: str, parts: list[str]
) -> None:
    assert old in GOOD
    found = problems(write(tmp_path, GOOD.replace(old, new, 1)))
    text = "\n".join(found)
    for part in parts:
        assert part in text, text
    assert "pydantic" not in text
    assert "Input should" not in text


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("group_size", "groupsize").replace("10", "ten").replace("small", "'?'")
    found = problems(write(tmp_path, text), "learner.zero_stage=7")
    assert len(found) == 4
    assert any(line.startswith("command line: learner.zero_stage=7") for line in found)


@pytest.mark.parametrize(
    ("override", "part"),
    [("learner", "key=value"), ("name.x=1", "is a value"), ("seed=[", "not valid YAML")],
)
def test_overrides_that_make_no_sense(tmp_path: Path, override: str, part: str) -> None:
    (line,) = problems(write(tmp_path, GOOD), override)
    assert line.startswith("command line")
    assert part in line


@pytest.mark.parametrize(
    ("content", "part"), [(None, "does not exist"), ("", "empty"), ("- a", "no job")]
)
def test_files_that_are_no_job(tmp_path: Path, content: str | None, part: str) -> None:
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_text(content)
    (line,) = problems(path)
    assert part in line


def test_dump_and_load_give_the_same_job(tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    job = load_job(write(tmp_path, GOOD))
    dumped: dict[str, Any] = job.model_dump(mode="json")
    with (tmp_path / "again.yaml").open("w") as file:
        YAML().dump(dumped, file)
    assert load_job(tmp_path / "again.yaml") == job


def test_merge_keys_are_read(tmp_path: Path) -> None:
    text = GOOD.replace("rollout:\n", "rollout:\n  <<: &common {max_new_tokens: 9}\n")
    assert load_job(write(tmp_path, text)).rollout.max_new_tokens == 9
    with pytest.raises(JobFileError, match="max_new_tokens"):
        load_job(write(tmp_path, text.replace("9}", "-9}")))


@pytest.mark.parametrize("raw", [b"name: \xff\xfe", b"name: a\x00b"])
def test_bytes_that_are_no_text_are_said(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(raw)
    with pytest.raises(JobFileError, match="UTF-8|not valid YAML"):
        load_job(path)


def test_an_override_that_is_no_yaml_is_said(tmp_path: Path) -> None:
    for value in ("a\x00b", "[1", "2026-02-30", "!!bool x", "&a {b: *a}", "{a: 1, a: 2}"):
        with pytest.raises(JobFileError, match="command line: name"):
            load_job(write(tmp_path, GOOD), [f"name={value}"])
