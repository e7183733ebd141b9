# Sourced by the other scripts: gives the checkout an environment of its own in .venv, from pinned versions.
# shellcheck shell=bash

set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or newer is needed" >&2
    echo "hint: install it, or name it: PYTHON=/path/to/python3 $0" >&2
    return 1
}

# ensure_environment REQUIREMENT…: install them beside modelvault, once; again when the pins or the project file change.
ensure_environment() {
    local stamp="$VENV/.installed" wanted
    wanted="$(cat "$ROOT/pyproject.toml" "$ROOT/scripts/constraints.txt" | cksum) $*"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    # An environment whose making was interrupted may have a python and no pip.
    "$VENV/bin/python" -m pip --version > /dev/null 2>&1 || { rm -rf "$VENV"; "$(find_python)" -m venv "$VENV"; }
    echo "setting up $VENV" >&2
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
        --constraint "$ROOT/scripts/constraints.txt" "$@"
    echo "$wanted" > "$stamp"
}
