"""`slipstream report`: a run, or several beside each other, as one HTML page and its charts.

<run>/* ──read──▶ RunRecord ──┬─ numbers ──▶ --json, the cards at the top
  metrics.jsonl ─ history ─┘  ├─ charts, timeline ──▶ PNG files, and SVG for
                              └─ page, compare ─────▶ report.html

The page needs no network and runs no script; what a model wrote is escaped (`markup`).
"""
