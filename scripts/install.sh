#!/usr/bin/env bash
# Makes .venv with everything for a machine without a GPU; does nothing when that is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/.installed
wanted=$(cat pyproject.toml scripts/install.sh scripts/overrides.txt | sha256sum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

if command -v nvidia-smi >/dev/null 2>&1; then
    cat >&2 <<'TEXT'
This machine has an NVIDIA GPU. `make` installs the CPU build, which runs the examples and
the tests. To train on the GPU, make an environment of your own:
    pip install -e '.[rollout,learner]'
and set rollout.gpus and learner.gpus_per_rank in the job file.
TEXT
fi

python=$(command -v python3.11 || command -v python3.12 || command -v python3 || true)
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'; then
    echo "Slipstream needs Python 3.11 or 3.12 on the PATH" >&2
    exit 1
fi

# vLLM compiles small kernels with it on first use.
if ! command -v g++ >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        apt-get update -qq && apt-get install -qq -y g++
    else
        echo "a C++ compiler is missing: install g++ (Debian: apt-get install g++)" >&2
        exit 1
    fi
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet uv
# uv does not read pip's settings. Without a place of one's own, torch's CPU build has its own index.
places=${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null || true)}
find_links=()
for place in $places; do find_links+=(--find-links "$place"); done
if [ -z "$places" ]; then find_links=(--torch-backend cpu); fi
# Compiled here once: where Python may not write bytecode, every start would take a minute more.
VIRTUAL_ENV=$PWD/.venv .venv/bin/uv pip install --quiet --compile-bytecode "${find_links[@]}" \
    --override scripts/overrides.txt -e '.[cpu,dev]'
echo "$wanted" >"$stamp"
