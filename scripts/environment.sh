# Sourced by scripts/quickstart and scripts/test: makes the Python environment they run in.
#
#   ROOT                 the checkout
#   VENV                 the environment's folder (default: .venv in the checkout)
#   PYTHON               the interpreter to make it with (default: the first of python3, python3.13 ... 3.10 that fits)
#   make_environment X   makes VENV and installs the package into it, with the extras X (may be empty)

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$ROOT/.venv}"
case "$VENV" in /*) ;; *) VENV="$PWD/$VENV" ;; esac
VERSIONS="3.10 3.11 3.12 3.13"
# TensorFlow's start-up notes on CPU features say nothing that a newcomer can use.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"

say() { printf '== %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

supported() { case " $VERSIONS " in *" $1 "*) [ -n "$1" ] ;; *) false ;; esac; }

# Sets PYTHON to an interpreter that TensorFlow has packages for.
choose_python() {
    local found candidate
    if [ -n "${PYTHON:-}" ]; then
        found="$(version_of "$PYTHON")" || fail "PYTHON=$PYTHON cannot be run." "Give the name or path of a Python interpreter."
        supported "$found" || fail "PYTHON=$PYTHON is Python $found; needed is one of $VERSIONS (TensorFlow has no packages for others)."
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        found="$(version_of "$candidate")" || continue
        if supported "$found"; then
            PYTHON="$candidate"
            return
        fi
    done
    found="$(version_of python3)" || found="not there"
    fail "no fitting Python was found: python3 is $found, needed is one of $VERSIONS." \
        "Install one of them, and name it if it is not in the PATH: PYTHON=/path/to/python3.12 $0"
}

# Makes an empty environment at VENV, also where Debian's python3 comes without its venv package.
create_environment() {
    local log="$1"
    if "$PYTHON" -m venv "$VENV" >"$log" 2>&1 && "$VENV/bin/python" -m pip --version >>"$log" 2>&1; then return; fi
    rm -rf "$VENV"
    # --target is known to every pip and allowed where the system's own packages are protected.
    if "$PYTHON" -m venv --without-pip "$VENV" >>"$log" 2>&1 &&
        "$PYTHON" -m pip install -q --target "$("$VENV/bin/python" -c 'import site; print(site.getsitepackages()[0])')" \
            pip >>"$log" 2>&1; then return; fi
    rm -rf "$VENV"
    cat "$log" >&2
    fail "$PYTHON could not make a virtual environment (its own words stand above)." \
        "On Debian and Ubuntu: sudo apt-get install python3-venv" \
        "Elsewhere: $PYTHON -m pip install --upgrade pip, then try again."
}

# What an installation depends on: a change in any of it makes the next run install again.
fingerprint() { (cat "$ROOT/setup.py" "$ROOT/pyproject.toml"; echo "$ROOT"; version_of "$VENV/bin/python") | cksum; }

make_environment() {
    local extras="$1" have stamp log reason=""
    log="$(mktemp)"
    have="$(version_of "$VENV/bin/python")" || have=""
    if [ -z "$have" ] || ! supported "$have"; then
        reason="none there"
    elif [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON")" != "$have" ]; then
        reason="the one there is of Python $have"
    fi
    if [ -n "$reason" ]; then
        choose_python
        say "making the environment $VENV with $PYTHON ($(version_of "$PYTHON")): $reason"
        # Only what a virtual environment looks like is ever removed.
        if [ -e "$VENV" ] && [ ! -e "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
            fail "$VENV is there and is no Python environment. Move it away, or name another folder: VENV=/path $0"
        fi
        rm -rf "$VENV"
        create_environment "$log"
    fi
    stamp="$(fingerprint)"
    if grep -qsF "$stamp" "$VENV/installed-dev" || { [ -z "$extras" ] && grep -qsF "$stamp" "$VENV/installed"; }; then
        say "environment: $VENV (as installed before)"
    else
        say "installing TensorFlow and the rest into $VENV (some minutes, about 3 GB)"
        "$VENV/bin/python" -m pip install --disable-pip-version-check -e "$ROOT${extras:+[$extras]}" >"$log" 2>&1 || {
            tail -n 25 "$log" >&2
            fail "the installation failed; the end of what pip said stands above." \
                "Is the package index reachable, and is there room on the disk?"
        }
        echo "$stamp" >"$VENV/installed${extras:+-$extras}"
    fi
    rm -f "$log"
}
