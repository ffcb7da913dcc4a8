"""The live progress line and the closing table. Plain lines where the output is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.run_state import RunState
from orchestrator.status import duration
from slipstream.config.job import MAIN_SET
from slipstream.secrets import redact

PLAIN_LINE_EVERY_S = 10.0


class Progress:
    """Shows a run. `show` is cheap and may be called often; it paces plain lines itself."""

    def __init__(self, console: Console) -> None:
        self.log: Callable[[str], None] = lambda _line: None  # hears what is shown, too
        self._console = console
        self._live = Live(console=console, transient=True, auto_refresh=False)
        self._next_plain_s = 0.0
        self._last_line = ""
        self._told_version = -1

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            with _unheard():
                self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            with _unheard():
                self._live.stop()

    def note(self, message: str) -> None:
        """A line that stays, without secrets."""
        message = redact(message)
        self.log(message)
        self._print(message)

    def close(self, table: Table) -> None:
        """The last word, which may be said once this is left."""
        with _unheard():
            self._console.print(table)

    def show(self, state: RunState) -> None:
        line = progress_line(state, time.time())
        if self._console.is_terminal:
            with _unheard():
                self._live.update(Text(line), refresh=True)
        due = time.monotonic() >= self._next_plain_s
        is_last = state.version == state.num_steps and self._told_version != state.num_steps
        if line != self._last_line and (due or is_last):
            self._last_line, self._told_version = line, state.version
            self._next_plain_s = time.monotonic() + PLAIN_LINE_EVERY_S
            self.log(line)
            if not self._console.is_terminal:
                self._print(line)

    def _print(self, line: str) -> None:
        with _unheard():
            self._console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)


@contextmanager
def _unheard() -> Iterator[None]:
    """Where stdout is full or closed, the job goes on. Rich makes SystemExit of a closed pipe."""
    with suppress(OSError, SystemExit):
        yield


def progress_line(state: RunState, now_s: float) -> str:
    """One line: step, reward, held-out accuracy, lag, tokens/s, queue depth, ETA."""
    wall_s = max(1e-9, now_s - (state.training_started_at_s or now_s))
    newest_eval = state.evals[max(state.evals)] if state.evals else None
    parts = [
        f"step {state.version}/{state.num_steps}",
        f"reward {_number(state.reward)}",
        f"held-out {_percent(newest_eval['greedy_accuracy'] if newest_eval else None)}",
        f"lag {mean_lag(state):.2f}",
        f"generated {state.num_generated_tokens / wall_s:,.0f} tok/s",
        f"trained {state.num_trained_tokens / wall_s:,.0f} tok/s",
        f"queue {state.replay.get('num_buffered', 0)}",
        f"ETA {_duration(state.eta_s(now_s))}",
    ]
    return "  ".join(parts)


def closing_table(state: RunState, *, wall_s: float, model_dir: str, metrics_file: str) -> Table:
    """The figures of this launch. `wall_s`: seconds from launch to end, start-up included."""
    table = Table(show_header=False, title="Result", title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in closing_rows(state, wall_s):
        table.add_row(name, value)
    table.add_row("trained model", model_dir)
    table.add_row("metrics", metrics_file)
    return table


def closing_rows(state: RunState, wall_s: float) -> list[tuple[str, str]]:
    """(name, text) of every figure in the closing table."""
    training_s = max(1e-9, state.training_wall_s)
    steps = f"{state.num_steps_done} (version {state.version})"
    return [
        *_eval_rows(state),
        ("steps", steps),
        ("wall time", f"{_duration(wall_s)}, of which training {_duration(state.training_wall_s)}"),
        ("generated", f"{state.num_generated_tokens / training_s:,.0f} tokens/s"),
        ("trained", f"{state.num_trained_tokens / training_s:,.0f} tokens/s"),
        ("lag", _lag_histogram(state)),
        ("answers", _answers(state.replay.get("lengths", {}))),
        ("bias", _bias(state)),
        ("busy", ", ".join(f"{role} {share:.0%}" for role, share in state.busy_share().items())),
        ("dropped prompts", _counts(state.replay.get("drops", {}))),
        ("failed rollouts", _counts(state.replay.get("failures", {}))),
        ("refused groups", _counts(state.replay.get("refusals", {}))),
        ("largest probe error", f"{state.max_probe_error:.1e} ({state.num_adoptions} adoptions)"),
    ]


def _eval_rows(state: RunState) -> list[tuple[str, str]]:
    rows = [
        (f"{_set_label(name)} {label}", text)
        for name, evals in state.evals_by_set.items()
        for label, text in _set_rows(evals)
    ]
    if state.best is not None:
        best = state.best
        what = f"{best['metric']} {best['value']:.3f} on {best['set']}"
        rows.append(("best commit", f"version {best['version']}, {what}: {best['path']}"))
    return rows or [("held-out", "no held-out data in the job file")]


def _set_rows(evals: Mapping[int, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(label, text) from the first version evaluated to the last one."""
    if not evals:
        return []
    first, last = evals[min(evals)], evals[max(evals)]
    of_what = f"{last['num_prompts']} prompts, versions {first['version']} -> {last['version']}"
    figures = [
        ("accuracy (greedy)", first["greedy_accuracy"], last["greedy_accuracy"]),
        ("reward (sampled)", first["sampled_reward"], last["sampled_reward"]),
    ]
    before, after = first.get("pass_at", {}), last.get("pass_at", {})
    figures += [(f"pass@{k}", before[k], after[k]) for k in after if k > 1 and k in before]
    return [
        (label, f"{old:.1%} -> {new:.1%}  ({100 * (new - old):+.1f} points, {of_what})")
        for label, old, new in figures
        if old is not None and new is not None  # no answer had a reward
    ]


def _set_label(name: str) -> str:
    return "held-out" if name == MAIN_SET else f"held-out {name}"


def mean_lag(state: RunState) -> float:
    groups = sum(state.lags.values())
    return sum(lag * count for lag, count in state.lags.items()) / groups if groups else 0.0


def _lag_histogram(state: RunState) -> str:
    groups = sum(state.lags.values())
    if not groups:
        return "-"
    shares = (f"{lag}: {count / groups:.0%}" for lag, count in sorted(state.lags.items()))
    return f"mean {mean_lag(state):.2f} versions ({', '.join(shares)})"


def _answers(lengths: Mapping[str, int]) -> str:
    """Mean length of what was generated and of what was trained: apart, long ones got lost."""
    if not lengths.get("generated_rollouts"):
        return "-"
    generated, trained = (
        lengths.get(f"{which}_tokens", 0) / max(1, lengths.get(f"{which}_rollouts", 0))
        for which in ("generated", "trained")
    )
    cut = lengths["generated_cut"] / lengths["generated_rollouts"]
    return f"mean {generated:.1f} tokens (of the trained {trained:.1f}), {cut:.0%} cut by length"


def _bias(state: RunState) -> str:
    """How what was trained differs from what was generated, in words."""
    bias = state.bias()
    if not bias:
        return "-"
    longer, better = bias["length_ratio"] - 1.0, bias["reward_difference"]
    dropped = ", and were dropped" if state.replay.get("drops", {}).get("zero_variance") else ""
    return (
        f"trained answers are {abs(longer):.1%} {'longer' if longer > 0 else 'shorter'} than "
        f"generated ones, their mean reward {abs(better):.3f} "
        f"{'higher' if better > 0 else 'lower'}; {bias['equal_share']:.0%} of generated groups had "
        f"equal rewards{dropped}"
    )


def _counts(counts: Mapping[str, Any]) -> str:
    shown = {reason: count for reason, count in counts.items() if count}
    return ", ".join(f"{reason} {count}" for reason, count in sorted(shown.items())) or "none"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)
