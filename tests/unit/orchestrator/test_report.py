"""`slipstream report` as a user meets it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli import app
from orchestrator.report.charts import thinned
from orchestrator.report.compare import differing
from orchestrator.report.markup import tag
from orchestrator.report.read import MAX_SAMPLES, read_run
from tests.helpers.run_files import (
    JOB,
    START_S,
    about_worker,
    busy,
    evaluated,
    run_directory,
    step,
    went_back,
)

EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(1)> & \x1b[31m \u202e"
EVENTS = (
    *(step(1, 10, 0.2), step(2, 12, 0.4)),
    *(busy(11), busy(13, 1, seconds={"generate": 1.0, "wait": 3.0})),
    evaluated(0, 9, 0.25),
    evaluated(2, 13, 0.75, pass_at={"4": 0.9}),
    about_worker("worker_died", 12, 1, cause="killed"),
)
SAMPLE = {
    "kind": "sample",
    "ordinal": 7,
    "prompt": EVIL,
    "answers": [
        {
            "text": EVIL,
            "reward": 0.5,
            "finish_reason": "eos",
            "num_tokens": 5,
            "spans": [[1, 3], [2, 2]],
        },
        {"text": "", "reward": None, "finish_reason": EVIL, "num_tokens": 0, "spans": []},
    ],
}


def report(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)], env={"COLUMNS": "160"})
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_directory(tmp_path / "trial", EVENTS, samples=[SAMPLE])


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a report, which its tests only read."""
    directory = tmp_path_factory.mktemp("reported")
    done = report(run_directory(directory / "trial", EVENTS, samples=[SAMPLE]))
    assert done.exit_code == 0, done.output
    return directory / "trial" / "report"


def test_the_figures_are_those_of_the_events(run: Path) -> None:
    done = report(run, "--json")
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["runs"]
    assert (found["name"], found["mode"], found["version"]) == ("trial", "buffered", 2)
    assert found["reward"] == {"first": 0.2, "last": 0.4, "steps_averaged": 1}
    assert found["evals"]["held-out"]["first"] == 0.25
    assert found["evals"]["held-out"]["last"] == 0.75
    assert found["training_s"] == 2.0
    assert found["trained_tokens_per_s"] == 50.0  # of the second step, in its 2 s
    assert found["generated_tokens_per_s"] == 25.0  # 50 by then, and 50 later
    assert found["lag"] == {"mean": 0.5, "max": 1, "bound": 2, "groups": {"0": 2, "1": 2}}
    # From 10 to 12: the second step took its last second, a quarter of it to wait; worker 0 made
    # tokens from 10 to 11; worker 1 spent 9 to 13, three quarters of it waiting.
    assert found["wait_share"] == pytest.approx(
        {"learner-0": 0.25, "rollout-0": 0, "rollout-1": 0.75}
    )
    assert found["faults"] == {"worker_died": 1}
    assert found["ledger"] is None


def test_a_page_and_its_charts_are_written(reported: Path) -> None:
    page = Page(reported / "report.html")
    assert page.open == []  # every element is closed, in its order
    for heading in ("Does it learn?", "Is anybody waiting?", "Was anything lost?", "pass@4"):
        assert heading in page.text
    charts = {path.name for path in reported.glob("*.png")}
    assert {"reward.png", "held_out.png", "lag.png", "timeline.png", "throughput.png"} <= charts
    assert all((reported / name).read_bytes()[:4] == b"\x89PNG" for name in charts)


def test_what_a_model_wrote_stays_text(reported: Path) -> None:
    page = Page(reported / "report.html")
    names = [name for name, _ in page.tags]
    assert "script" not in names
    assert "img" not in names
    assert page.text.count("<script>alert(1)</script>") == 4  # a title, a prompt, two in answers
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text


def test_the_page_needs_no_network(reported: Path) -> None:
    page = Page(reported / "report.html")
    policies = [a.get("content") for _, a in page.tags if a.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    for name, attributes in page.tags:
        for key in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(key) or "#").startswith("#"), (name, attributes)
        assert not any(key.startswith("on") for key in attributes), attributes
    html = (reported / "report.html").read_text()
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html


def test_every_id_that_is_drawn_with_is_there_once(reported: Path) -> None:
    html = (reported / "report.html").read_text()
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w-]+)", html))
    ids = [found for found in re.findall(r'\bid="([\w-]+)"', html) if found in used]
    assert sorted(ids) == sorted(used)


@pytest.mark.parametrize("events", [(), (busy(1),), (step(1, 1),), (went_back(0, 1, 1),)])
def test_a_run_that_has_hardly_begun_is_told_in_sentences(tmp_path: Path, events: tuple) -> None:
    run = run_directory(tmp_path / "trial", events)
    done = report(run)
    assert done.exit_code == 0, done.output
    text = Page(run / "report" / "report.html").text
    assert "No answers were kept" in text
    assert "There is no samples.jsonl" in text
    assert "status.json cannot be read" in text


def test_figures_that_are_no_numbers_do_not_hurt(tmp_path: Path) -> None:
    events = (step(1, 1, float("nan")), step(2, 2, float("inf")), step(3, 3, reward=None))
    done = report(run_directory(tmp_path / "trial", events), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["runs"][0]["reward"] is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("job.yaml", "date: 2024-99-99\n"),
        ("job.yaml", "replay: {max_staleness: [}"),
        ("result.json", '{"replay": null}'),
        ("result.json", '{"replay": {"drops": 3}}'),
        ("result.json", '{"replay": {"lengths": {"generated_rollouts": 1}}}'),
    ],
)
def test_a_damaged_file_is_named(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    done = report(run, "--json")
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["runs"]
    assert any(name in note for note in found["missing"])


def test_drops_are_taken_as_replay_tells_them(run: Path) -> None:
    figures = {"drops": {"failed": 3}, "failures": {}, "reissues": {"expired": 2}}
    (run / "result.json").write_text(json.dumps({"replay": figures}))
    (found,) = json.loads(report(run, "--json").stdout)["runs"]
    assert found["drops"] == {"failed": 3}
    assert found["reissues"] == {"expired": 2}
    assert not any("damaged" in note for note in found["missing"])


def test_a_setting_of_another_type_does_not_hurt(run: Path) -> None:
    (run / "job.yaml").write_text("replay: {max_staleness: some}")
    assert report(run).exit_code == 0


def test_a_dollar_in_a_name_is_no_formula(tmp_path: Path) -> None:
    events = (step(1, 1), evaluated(0, 1, 0.5, set="$\\frac$ <b>"), evaluated(1, 2, 0.5, set="x"))
    run = run_directory(tmp_path / "trial", events)
    done = report(run)
    assert done.exit_code == 0, done.output
    assert "$\\frac$ <b>" in Page(run / "report" / "report.html").text


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    done = report(tmp_path)
    assert done.exit_code == 2
    assert "no run's directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_where_nothing_can_be_written_is_said(run: Path) -> None:
    (run / "report").write_text("a file")
    done = report(run)
    assert done.exit_code == 2
    assert "--out" in done.stderr


def test_samples_are_spread_over_the_run_and_end_with_the_newest(tmp_path: Path) -> None:
    samples = [{**SAMPLE, "ordinal": ordinal} for ordinal in range(1000)]
    run = run_directory(tmp_path / "trial", (), samples=samples)
    with (run / "samples.jsonl").open("a") as file:
        file.write('{"ordinal": 1000, "ans')
    ordinals = [sample["ordinal"] for sample in read_run(run).samples]
    assert ordinals == list(range(0, 1000, 32))
    assert len(ordinals) <= MAX_SAMPLES


def test_runs_are_compared(tmp_path: Path, run: Path) -> None:
    slower = JOB.replace("0.001", "0.0005").replace("trial", "slower")
    other = run_directory(tmp_path / "other", (step(1, 5, 0.1), step(2, 9, 0.15)), job=slower)
    done = report(run, other, "--out", tmp_path / "both", "--json")
    assert done.exit_code == 0, done.output
    assert [found["name"] for found in json.loads(done.stdout)["runs"]] == ["trial", "slower"]
    page = Page(tmp_path / "both" / "report.html")
    assert page.open == []
    for text in ("learner.learning_rate", "0.0005", "slower", "trained tokens/s"):
        assert text in page.text
    assert "replay.max_staleness" not in page.text  # it is the same in both
    assert (tmp_path / "both" / "compare_reward.png").exists()


def test_an_evaluation_without_rewards_is_told(tmp_path: Path) -> None:
    nothing = {"greedy_accuracy": None, "greedy_reward": None, "sampled_reward": None}
    events = (step(1, 1), evaluated(0, 1, 0.5, **nothing), step(2, 2), evaluated(2, 3, 0.5))
    for name, kept in (("some", events), ("none", events[:3])):
        job = JOB.replace("trial", name)
        done = report(run_directory(tmp_path / name, kept, job=job), "--json")
        assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["runs"][0]["evals"]["held-out"]["best"] is None
    done = report(tmp_path / "some", tmp_path / "none", "--out", tmp_path / "both")
    assert done.exit_code == 0, done.output


def test_keys_that_differ() -> None:
    jobs = [{"a": {"b": 1, "c": [1, 2]}, "d": None}, {"a": {"b": 2, "c": [1, 2]}}]
    assert differing(jobs) == {"a.b": ["1", "2"], "d": ["", "not set"]}


def test_text_is_escaped_and_html_is_not() -> None:
    inner = tag("b", "<", class_="x", title='"')
    assert tag("p", inner, 3, None, ["&"]) == ('<p><b class="x" title="&quot;">&lt;</b>3&amp;</p>')


def test_long_curves_are_thinned_to_their_ends() -> None:
    kept = thinned(200_000)
    assert (kept[0], kept[-1], len(kept)) == (0, 199_999, 1000)
    assert list(thinned(3)) == [0, 1, 2]


def test_the_start_of_a_run_is_told(reported: Path) -> None:
    assert START_S == 1_000_000.0
    assert "1970-01-12 13:46 UTC" in Page(reported / "report.html").text
