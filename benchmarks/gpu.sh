#!/usr/bin/env sh
# The first minute on a GPU: what works there, how fast, and how far from a CPU. At most nine minutes; safe to run anywhere.
#
#   sh benchmarks/gpu.sh [FOLDER] [--tiny] [--parts NAME ...] [--seconds 540]
#
# FOLDER (default: $OUT, or gpu-figures/) gets figures.jsonl, table.md and log.txt. What cannot run says why in the table.
# --tiny runs every part on small nets, on a CPU too. Nothing is fetched and nothing is changed here: packages that are
# missing are unpacked for this run alone from wheels in $WHEELS (default: .whl/), if there are any. PYTHON names another
# interpreter.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
wheels=${WHEELS:-$root/.whl}

export PYTHONPATH="$work/site:$root${PYTHONPATH:+:$PYTHONPATH}"
lacking=$("$python" "$root/benchmarks/gpu_packages.py") || lacking=
if [ -n "$lacking" ] && [ -d "$wheels" ]; then
    echo "from $wheels, for this run alone: $lacking"
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$wheels"/*.whl || true
elif [ -n "$lacking" ]; then
    echo "missing: $lacking; \`pip install .\` installs them"
fi

export NAS_PRUNE_CACHE="$work/cache" TORCHINDUCTOR_CACHE_DIR="$work/inductor" WANDB_MODE=disabled TMPDIR="$work"
"$python" "$root/benchmarks/gpu.py" "$@"
