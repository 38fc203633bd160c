#!/usr/bin/env bash
# Makes the virtual environment .venv with everything that the project and its tests need.
#
# A run that finds nothing to do ends at once. An interrupted run is started over by the next one.
#   PYTHON=/path/to/python   the Python to use (default: the first of 3.11 to 3.14 on PATH)
#   EXTRA=cpu|gpu            the vLLM engine to install (default: gpu where there is an NVIDIA GPU)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'set-up: %s\n' "$*"; }
fail() { printf 'set-up: %s\n' "$*" >&2; exit 1; }

# --- What to install -------------------------------------------------------------------------

has_gpu() { nvidia-smi -L >/dev/null 2>&1 || [ -e /proc/driver/nvidia/version ]; }

extra=${EXTRA:-}
[ -n "$extra" ] || { has_gpu && extra=gpu || extra=cpu; }
lock=requirements/$extra.lock
[ -f "$lock" ] || fail "EXTRA=$extra is not known: say EXTRA=cpu or EXTRA=gpu."

# The state is "busy" while a run is at work, and "done EXTRA HASH" once it has ended well.
state=.venv/.setup-state
was=$(cat $state 2>/dev/null || true)
want="done $extra $(cat "$lock" pyproject.toml dev/setup.sh | sha256sum | cut -d ' ' -f 1)"
[ "$was" = "$want" ] && [ -x .venv/bin/python ] && exit 0

# --- What the machine must have --------------------------------------------------------------

case "$(uname -s) $(uname -m)" in
    "Linux x86_64" | "Linux aarch64") ;;
    *) fail "vLLM runs on Linux (x86_64 or aarch64) only, and this is $(uname -s) $(uname -m)." ;;
esac
command -v git >/dev/null || fail "git is missing: install it (Debian, Ubuntu: apt install git)."

python=
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "no Python 3.11 to 3.14 found as ${PYTHON:-python3}:" \
    "install one, or name it (PYTHON=/path/to/python3.12 make ...)."
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make virtual environments:" \
    "install its venv module (Debian, Ubuntu: apt install python3-venv)."

# --- The environment -------------------------------------------------------------------------

if [ -e .venv ] && [ -z "$was" ]; then
    fail ".venv is there but this script did not make it: move it away and start again."
fi
# Start over after an interrupted run, for the other engine, or when the Python behind it is gone.
if [[ $was != "done $extra "* ]] || [ ! -x .venv/bin/python ]; then
    rm -rf .venv
fi
mkdir -p .venv
echo busy >$state
if [ ! -x .venv/bin/python ]; then
    say "making .venv with $("$python" --version)"
    "$python" -m venv .venv
fi

pip() { .venv/bin/python -m pip --disable-pip-version-check -qq "$@"; }

# The CPU build of torch has a name of its own (+cpu), so that no CUDA build can slip in. It is
# taken from pip's configured sources if they hold it, and from PyTorch's CPU index if not. It
# comes first: the lock's "torch==X" is then met, and its hashes (of the CUDA build) are not asked.
if [ "$extra" = cpu ]; then
    torch=$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' "$lock")+cpu
    say "installing $torch"
    pip install --no-deps "$torch" 2>/dev/null ||
        pip install --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch" ||
        fail "no $torch found: it comes from download.pytorch.org, or from a source in pip's configuration."
fi

say "installing the packages of $lock (minutes, the first time)"
pip install --no-deps --no-compile --require-hashes -r "$lock" ||
    fail "pip could not install $lock (see above): put it right and start again."

say "installing rerank-actor itself"
pip install --no-deps --no-build-isolation -e . || fail "pip could not install the project (see above)."

# Where PYTHONDONTWRITEBYTECODE is set, as in many images, each process would compile what it imports anew: five seconds
# for one with vLLM. Files that do not compile are meant for other Pythons.
say "compiling"
.venv/bin/python -m compileall -q -j 0 .venv/lib/python*/site-packages >/dev/null 2>&1 || true

echo "$want" >$state
say "done ($extra)"
