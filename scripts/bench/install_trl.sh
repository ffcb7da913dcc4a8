#!/usr/bin/env bash
# An environment of its own for TRL, in .venv-trl: its dependencies are not ours.
set -euo pipefail
cd "$(dirname "$0")/../.."
wanted=$(sha256sum <scripts/bench/trl_requirements.txt)
if [ -f .venv-trl/.installed ] && [ "$(cat .venv-trl/.installed)" = "$wanted" ]; then exit 0; fi
[ -x .venv-trl/bin/python ] || .venv/bin/python -m venv .venv-trl
places=${PIP_FIND_LINKS:-$(.venv/bin/python -m pip config get global.find-links 2>/dev/null || true)}
where=()
for place in $places; do where+=(--find-links "$place"); done
if [ -z "$places" ]; then where=(--torch-backend cpu); fi
VIRTUAL_ENV=$PWD/.venv-trl .venv/bin/uv pip install --quiet "${where[@]}" -r scripts/bench/trl_requirements.txt
echo "$wanted" >.venv-trl/.installed
