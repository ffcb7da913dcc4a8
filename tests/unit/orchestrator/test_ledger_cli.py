"""`slipstream ledger` as a user meets it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from replay.facts import Accepted, Discarded, Dropped, Killed, Lost, Reissued, Taken, Trained, Use
from replay.journal import FILE_NAME, Journal
from slipstream.records import DropReason
from tests.helpers.groups import accepted, leased, make_group

RULES = {"promise": {"max_uses": 1, "max_staleness": 1}}


def ledger(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["ledger", *map(str, arguments)], env={"COLUMNS": "160"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that trained ordinals 0 and 1, and went back to before 1; it trained again."""
    run = tmp_path / "runs" / "trial"
    run.mkdir(parents=True)
    journal = Journal(run / FILE_NAME, job="trial", durability="flush")
    empty = {"num_issued": 0, "counts": {}, "pending": {}}
    begin = {"version": 0, "ledger": empty, "buffered": [], "running": [], **RULES}
    journal.snapshot("begin", version=0, timeline=0, state=begin)
    step = [Taken(version=0, uses=(Use(ordinal=0, lag=0, use=1),)), Trained(version=1)]
    journal.append([leased(0, 0), accepted(0, 0), *step])
    state = {
        "version": 1,
        "ledger": {"num_issued": 1, "counts": {"trained": 1}, "pending": {}},
        "buffered": [],
        "running": [],
    }
    commit = journal.snapshot("commit", version=1, timeline=0, state=state)
    step = [Taken(version=1, uses=(Use(ordinal=1, lag=0, use=1),)), Trained(version=2)]
    journal.append([leased(1, 1, version=1), accepted(1, 1, 1), *step])
    journal.append([Dropped(ordinal=2, reason=DropReason.PROMPT_TOO_LONG)])
    back = {
        "version": 1,
        "ledger": {"num_issued": 3, "counts": {"trained": 1}, "pending": {"1": [0, 0], "2": []}},
        "buffered": [[1, 1, 0]],
        "running": [],
        "from_seq": commit,
        **RULES,
    }
    journal.snapshot("rollback", version=1, timeline=1, state=back)
    journal.append([Dropped(ordinal=2, reason=DropReason.PROMPT_TOO_LONG), *step])
    journal.append([leased(2, 3, version=2)])
    journal.close()
    return run


def broken(run: Path) -> None:
    with Journal(run / FILE_NAME, job="trial", durability="flush") as journal:
        journal.append([Reissued(ordinal=0, cause="stale"), leased(3, 6)])


def test_a_run_that_keeps_its_promise(run: Path) -> None:
    result = ledger(run)
    assert result.exit_code == 0, result.output
    table = {
        name.strip(): value.strip()
        for name, value in re.findall(r"│ ([\w ]+?) +│ (.*?) +│", result.output)
    }
    assert table == {
        "issued": "4 prompts, all below 3 have their fate",
        "trained": "2 prompts, 2 uses by the journal",
        "dropped": "prompt_too_long: 1",
        "pending": "leased: 1",
        "duplicates": "0",
        "gaps": "0",
        "steps": "2 by the journal (version 2)",
        "went back": "2 -> 1, 1 groups came along",
        "lag": "0: 2",
        "generated": "4, mean length 4.0 tokens, 0.0% cut",
        "trained answers": "4, mean length 4.0 tokens, 0.0% cut",
        "refused groups": "none",
        "issued again": "none",
    }
    assert "The promise holds" in result.output


def test_a_name_below_runs_will_do(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    assert ledger("trial").exit_code == 0


def test_a_broken_promise_is_told_and_exits_with_1(run: Path) -> None:
    broken(run)
    result = ledger(run)
    assert result.exit_code == 1
    assert "The promise is broken:" in result.output
    assert "two_fates: ordinal 0: to be issued again after its fate, trained" in result.output
    assert "gap: ordinal 4: 4, 5 passed over" in result.output
    told = json.loads(ledger(run, "--json").output)
    assert [finding["breach"] for finding in told["findings"]] == ["two_fates", "gap"]
    assert told["holds"] is False


def test_json_has_the_same(run: Path) -> None:
    result = ledger(run, "--json")
    assert result.exit_code == 0
    told = json.loads(result.output)
    assert told["job"] == "trial"
    assert told["holds"] is True
    assert told["fates"] == {"trained": 2, "prompt_too_long": 1}
    assert told["lags"] == {"0": 2}
    assert told["rollbacks"][0]["to_version"] == 1


def test_the_story_of_a_prompt(run: Path) -> None:
    result = ledger(run, "--ordinal", 1)
    assert result.exit_code == 0, result.output
    lines = [re.sub(r"^\S+ \S+  ", "", line) for line in result.output.splitlines()]
    undone = "  (undone, as timeline 1 began)"
    assert lines == [
        f"leased to w0 (incarnation 0) as lease 1, attempt 0, version 1{undone}",
        "accepted from w0 under lease 1, attempt 0: 2 answers of 4 tokens, 0 cut, mean reward 0.5, "
        f"versions 1 to 1{undone}",
        f"taken for the step from version 1, lag 0, use 1{undone}",
        f"trained: version 2 is published{undone}",
        "the run went back from version 2 to 1; its group of lease 1 is in the buffer",
        "taken for the step from version 1, lag 0, use 1",
        "trained: version 2 is published",
    ]
    told = json.loads(ledger(run, "--ordinal", 1, "--json").output)
    assert [line["undone_by"] for line in told["story"]] == [1, 1, 1, 1, None, None, None]


def test_lost_workers_quarantines_and_discarded_batches_are_told(run: Path) -> None:
    with Journal(run / FILE_NAME, job="trial", durability="flush") as journal:
        journal.append([Lost(worker="w0", incarnation=0), Killed(ordinal=3, num_kills=1)])
        journal.append([Reissued(ordinal=3, cause="worker_lost")])
        again = replace(leased(3, 3, version=2, attempt=1), worker="w1")
        journal.append([again, Lost(worker="w1", incarnation=0), Killed(ordinal=3, num_kills=2)])
        journal.append([Dropped(ordinal=3, reason=DropReason.QUARANTINED)])
        later = replace(leased(4, 4, version=2), worker="w2")
        group = replace(make_group(4, 4, versions=(2,)), worker="w2")
        journal.append([later, Accepted(lease_id=4, group=group)])
        use = Use(ordinal=4, lag=0, use=1)
        journal.append([Taken(version=2, uses=(use,)), Discarded(version=2, number=3)])
    story = ledger(run, "--ordinal", 3).output
    assert re.sub(r"(?m)^\S+ \S+  ", "", story).splitlines()[1:] == [
        "its worker's engine died while it ran there, kill 1",
        "to be issued again: its worker was lost",
        "leased to w1 (incarnation 0) as lease 3, attempt 1, version 2",
        "its worker's engine died while it ran there, kill 2",
        "dropped: quarantined",
    ]
    story = ledger(run, "--ordinal", 4).output
    assert "its batch of version 2 gave no finite gradient: not_finite" in story
    result = ledger(run)
    assert result.exit_code == 0, result.output
    assert "prompt_too_long: 1, quarantined: 1, not_finite: 1" in result.output
    assert "worker_lost: 1" in result.output


def test_a_story_is_told_as_it_is_while_the_job_writes(run: Path) -> None:
    with Journal(run / FILE_NAME, job="trial", durability="flush") as journal:
        journal.append([Reissued(ordinal=3, cause="expired")])
        assert "issued again: expired" in ledger(run, "--ordinal", 3).output
        assert "waiting: 1" in ledger(run).output


def test_bad_input_is_one_line_and_exits_with_2(run: Path, tmp_path: Path) -> None:
    def fails(part: str, *arguments: object) -> None:
        result = ledger(*arguments)
        assert result.exit_code == 2
        assert part in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert not result.stdout

    fails("there is no run nowhere", "nowhere")
    fails("this is no run's directory", tmp_path)
    fails("knows nothing of ordinal 7; 4 were issued", run, "--ordinal", 7)
    journal = run / FILE_NAME
    whole = journal.read_bytes()
    journal.write_bytes(b"something else" * 100)
    fails("move it away", run)
    journal.write_bytes(whole[: len(whole) // 2])
    fails(str(journal), run)
    journal.unlink()
    fails("replay.durability was off", run)
