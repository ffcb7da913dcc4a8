#!/usr/bin/env bash
# An environment of its own for those we are measured beside: their dependencies are not ours.
#     scripts/environment.sh FOLDER REQUIREMENTS [OVERRIDES]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1 requirements=$2 overrides=${3:-}
wanted=$(cat "$requirements" ${overrides:+"$overrides"} | sha256sum)
if [ -f "$folder/.installed" ] && [ "$(cat "$folder/.installed")" = "$wanted" ]; then exit 0; fi
[ -x "$folder/bin/python" ] || .venv/bin/python -m venv "$folder"
places=${PIP_FIND_LINKS:-$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)}
where=()
for place in $places; do where+=(--find-links "$place"); done
if [ -z "$places" ]; then where=(--torch-backend cpu); fi
VIRTUAL_ENV=$PWD/$folder .venv/bin/uv pip install --quiet "${where[@]}" \
    ${overrides:+--override "$overrides"} -r "$requirements"
echo "$wanted" >"$folder/.installed"
