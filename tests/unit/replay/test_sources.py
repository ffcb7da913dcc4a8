"""Each kind of data, opened from local files, and what is said of files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from replay.sources import DataError, Items, open_source
from slipstream.config.job import DataSource

ROWS = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}]


@pytest.fixture(autouse=True)
def no_shared_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def opened(kind: str, **settings: Any) -> Items:
    adapter: TypeAdapter[Any] = TypeAdapter(DataSource)
    return open_source(adapter.validate_python({"kind": kind, **settings}))


def rows(items: Items) -> list[dict[str, Any]]:
    return [dict(items[index]) for index in range(len(items))]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_jsonl(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(row) for row in ROWS)
    for ending in ("", "\n"):
        assert rows(opened("jsonl", path=write(tmp_path / "d.jsonl", text + ending))) == ROWS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": }', r"d\.jsonl:2: not JSON \(Expecting value"),
        ("", r"d\.jsonl:2: an empty line; remove it"),
        ("[1]", r"d\.jsonl:2: expected an object .*, found \[1\]"),
        ('{"a": NaN}', r"d\.jsonl:2: not JSON \(NaN is no JSON number\)"),
    ],
)
def test_jsonl_names_the_line_that_is_wrong(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "d.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    with pytest.raises(DataError, match=message):
        opened("jsonl", path=path)


def test_jsonl_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match=r"d\.jsonl:1: not UTF-8"):
        opened("jsonl", path=path)


def test_jsonl_that_is_missing_or_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        opened("jsonl", path=tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="has no items"):
        opened("jsonl", path=write(tmp_path / "d.jsonl", ""))


def write_parquet(path: Path, part: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), path)


def test_parquet_file_and_directory(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "train-1.parquet", ROWS[1:])
    write_parquet(tmp_path / "data" / "train-0.parquet", ROWS[:1])
    assert rows(opened("parquet", path=tmp_path / "data" / "train-0.parquet")) == ROWS[:1]
    assert rows(opened("parquet", path=tmp_path / "data")) == ROWS


def test_parquet_that_is_missing_or_broken(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.parquet"):
        with pytest.raises(DataError, match="no Parquet file is there"):
            opened("parquet", path=path)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        opened("parquet", path=write(tmp_path / "d.parquet", "text"))


def test_hub_from_a_local_directory(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set" / "data" / "train-0.parquet", ROWS)
    assert rows(opened("hub", name=str(tmp_path / "set"))) == ROWS
    with pytest.raises(DataError, match=r"the split 'test' of the data set .*check name"):
        opened("hub", name=str(tmp_path / "set"), split="test")


def test_hub_from_a_saved_data_set(tmp_path: Path) -> None:
    import datasets

    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": saved}).save_to_disk(tmp_path / "splits")
    assert rows(opened("hub", name=str(tmp_path / "one"))) == ROWS
    assert rows(opened("hub", name=str(tmp_path / "splits"), split="test")) == ROWS


def test_hub_that_cannot_be_reached() -> None:
    with pytest.raises(DataError, match="the data set nobody/nothing"):
        opened("hub", name="nobody/nothing")


def test_reasoning_gym_items_carry_what_the_verifier_needs() -> None:
    settings = {"task": "chain_sum", "size": 5, "seed": 3, "params": {"max_terms": 3}}
    items = opened("reasoning_gym", **settings)
    assert len(items) == 5
    assert items[2]["metadata"]["source_dataset"] == "chain_sum"
    assert json.loads(json.dumps(items[2]["answer"])) == items[2]["answer"]
    assert rows(opened("reasoning_gym", **settings)) == rows(items)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "no_such_task"}, "no_such_task.*not registered"),
        ({"task": "chain_sum", "params": {"no_such": 1}}, "no_such"),
        ({"task": "chain_sum", "params": {"min_terms": -1}}, "min_terms must be positive"),
    ],
)
def test_reasoning_gym_tasks_that_do_not_exist(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        opened("reasoning_gym", size=1, **settings)
