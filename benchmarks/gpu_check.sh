#!/usr/bin/env bash
# What only a real GPU can tell, in one prepared command of at most eight minutes, on a machine without a network. The
# first run there installs the wheels before, which takes minutes of its own.
#
#     bash benchmarks/gpu_check.sh pack FOLDER      # here, with a network: wheels and scripts into FOLDER (gigabytes)
#     bash FOLDER/gpu_check.sh run                  # there: an environment from the wheels, then all measurements
#     bash benchmarks/gpu_check.sh run --dry-run    # here: the same on the CPU, small, in seconds
#
# `run` takes the options of gpu_check.py and writes gpu_check.json and gpu_check.md. Images are random, so no data have
# to travel. With PYTHON set, or in a checkout with its .venv, that Python is taken and nothing is installed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
action=${1:?"pack FOLDER or run"}
shift

if [ "$action" = pack ]; then
    folder=${1:?folder}
    mkdir -p "$folder/wheels"
    # Built and collected for the Python that runs here; the other machine needs the same version.
    "${PYTHON:-python3}" -m pip wheel --wheel-dir "$folder/wheels" "$here/.."
    cp "$here/gpu_check.sh" "$here/gpu_check.py" "$folder"
    echo "Copy $folder to the other machine, with $("${PYTHON:-python3}" --version), and run there: bash gpu_check.sh run"
    exit
fi

if [ -z "${PYTHON:-}" ] && [ -d "$here/wheels" ]; then
    [ -x "$here/venv/bin/nnunet-plugins" ] || {
        python3 -m venv --clear "$here/venv"
        "$here/venv/bin/python" -m pip install --quiet --no-index --find-links "$here/wheels" nnunet-plugins
    }
    PYTHON=$here/venv/bin/python
fi
PYTHON=${PYTHON:-$here/../.venv/bin/python}
command -v "$PYTHON" > /dev/null || { echo "There is no $PYTHON; set PYTHON to one that has nnunet-plugins." >&2; exit 1; }
# The script stops by itself after --minutes; this is for a kernel that hangs.
exec timeout --signal=INT --kill-after=10 480 "$PYTHON" "$here/gpu_check.py" "$@"
