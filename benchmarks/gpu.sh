#!/usr/bin/env sh
# The first minute on a GPU: what works there, how fast, and how far from a CPU. At most nine minutes; safe to run anywhere.
#
#   sh benchmarks/gpu.sh [FOLDER] [--tiny] [--parts NAME ...] [--seconds 540]
#
# FOLDER (default: $OUT, or gpu-figures/) gets figures.jsonl, table.md and log.txt. What cannot run says why in the table.
# --tiny runs every part on small nets, on a CPU too. Python packages that are missing are put into a folder of their
# own, from wheels in $WHEELS (default: .whl/) where there are any, else from the package index; PYTHON names another
# interpreter.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
wheels=${WHEELS:-$root/.whl}

export PYTHONPATH="$work/site:$root${PYTHONPATH:+:$PYTHONPATH}"
lacking=$("$python" "$root/benchmarks/gpu_packages.py") || exit 1
if [ -n "$lacking" ]; then
    echo "installing for this run alone: $lacking"
    if [ -d "$wheels" ]; then
        "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$wheels"/*.whl
    else
        # shellcheck disable=SC2086
        timeout 100 "$python" -m pip install -q --retries 0 --timeout 10 --target "$work/site" $lacking
    fi || echo "not installed; the table says what cannot run without"
fi

export NAS_PRUNE_CACHE="$work/cache" TORCHINDUCTOR_CACHE_DIR="$work/inductor" WANDB_MODE=disabled TMPDIR="$work"
"$python" "$root/benchmarks/gpu.py" "$@"
