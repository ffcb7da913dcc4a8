"""Colours and layout of a report, for light and dark. The colours can be told apart by people
who see red and green alike (after Okabe and Ito, darkened for text on white)."""

from __future__ import annotations

# name -> (light, dark). A chart is drawn in the light ones; in a page each is a CSS variable.
COLOURS = {
    "ink": ("#1c2430", "#e7ebf1"),
    "muted": ("#5d6878", "#9ba6b6"),
    "grid": ("#e4e8ee", "#2c3542"),
    "blue": ("#1f6fb2", "#62aeea"),
    "amber": ("#d98300", "#f2ae41"),
    "green": ("#0f8f6e", "#43c59e"),
    "purple": ("#8b4f9f", "#c58ad8"),
    "red": ("#c0392f", "#ff8479"),
    "sky": ("#8fbfe6", "#2f6390"),
    "grey": ("#a7b0bc", "#5f6a79"),
}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
SERIES = ("blue", "amber", "green", "purple", "red", "grey")
PHASES = {  # what a role does -> colour; other phases are grey
    "generate": "blue",
    "train": "blue",
    "wait": "amber",
    "adopt": "green",
    "publish": "green",
    "commit": "purple",
    "write": "purple",
    "hand_over": "sky",
    "score": "sky",
    "sleep": "grey",
}


def colour_of_phase(phase: str) -> str:
    return LIGHT[PHASES.get(phase, "grey")]


def to_variables(svg: str) -> str:
    """A chart whose colours follow the page's."""
    for name, light in LIGHT.items():
        svg = svg.replace(light, f"var(--{name})")
    return svg


def _variables(place: int) -> str:
    return "".join(f"--{name}:{pair[place]};" for name, pair in COLOURS.items())


CSS = (
    f":root{{{_variables(0)}--paper:#fff;--card:#fff;--back:#f5f7fa;color-scheme:light dark}}"
    f"@media(prefers-color-scheme:dark){{:root{{{_variables(1)}"
    "--paper:#12171f;--card:#1a212b;--back:#12171f}}"
    """
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1320px;margin:0 auto;padding:24px 24px 64px}
h1{font-size:26px;line-height:1.2;margin:0;overflow-wrap:anywhere}
h2{font-size:18px;margin:40px 0 12px}
h3{font-size:14px;margin:0 0 8px}
p{margin:0 0 8px;max-width:80ch}
a{color:var(--blue)}
code,pre{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:12.5px}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
.muted{color:var(--muted)}
.small{font-size:13px}
.facts{display:flex;flex-wrap:wrap;gap:4px 20px;margin:8px 0 20px;color:var(--muted)}
.facts b{color:var(--ink);font-weight:600;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(4,1fr);gap:16px}
.charts{display:grid;grid-template-columns:repeat(3,1fr);gap:16px}
.card,figure,.box{background:var(--card);border:1px solid var(--grid);border-radius:10px;
  padding:14px 16px;margin:0;min-width:0}
.card .question{color:var(--muted);font-size:13px}
.card .answer{font-size:22px;font-weight:650;line-height:1.25;margin:2px 0}
.card.good{border-top:4px solid var(--green)}
.card.bad{border-top:4px solid var(--red)}
.card.plain{border-top:4px solid var(--grey)}
.card.warn{border-top:4px solid var(--amber)}
figure svg{display:block;width:100%;height:auto}
figure.wide{margin-bottom:16px}
.on-phone{display:none}
figcaption{color:var(--muted);font-size:13px;margin-top:6px}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:13px;margin-bottom:8px}
.legend i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:6px;
  vertical-align:-1px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;width:100%}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--grid);
  vertical-align:top}
th{color:var(--muted);font-weight:600;white-space:nowrap}
td.w{white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
details{background:var(--card);border:1px solid var(--grid);border-radius:10px;margin:0 0 8px}
summary{cursor:pointer;padding:9px 16px;overflow-wrap:anywhere}
details>div{padding:4px 16px 14px}
.answers{display:grid;grid-template-columns:repeat(auto-fill,minmax(260px,1fr));gap:10px}
.answer-box{border:1px solid var(--grid);border-radius:8px;padding:8px 10px;min-width:0}
.reward{font-weight:650}
.versions{display:flex;height:6px;border-radius:3px;overflow:hidden;margin:6px 0 2px}
.versions i{display:block}
@media(max-width:1100px){.charts{grid-template-columns:repeat(2,1fr)}
  .cards{grid-template-columns:repeat(2,1fr)}}
@media(max-width:700px){main{padding:16px 12px 48px}.charts{grid-template-columns:1fr}
  .cards{grid-template-columns:1fr 1fr;gap:10px}.card{padding:10px 12px}
  .card .answer{font-size:19px}h1{font-size:21px}
  .on-desk{display:none}.on-phone{display:block}}
@media print{body{background:#fff}.charts{grid-template-columns:1fr 1fr}}
"""
)
