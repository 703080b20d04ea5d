#!/usr/bin/env bash
# What to do with ten minutes on a machine with a GPU: build, test there what can only be tested there, and measure.
#
#   tools/gpu_session.sh [folder for results, default bench/results]
#   REHEARSE=1 tools/gpu_session.sh /tmp/rehearsal    the same without a GPU: sizes are tiny, and numbers mean nothing
#
# Uses the Python that has torch (PYTHON=...), fetches nothing, and goes on past a part that fails: each has a time limit
# of its own, so that the last still has its minutes. Packages that Python lacks can lie as wheels in ./wheels.
set -u
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${1:-bench/results}
WHEELS=${WHEELS:-wheels}
SITE=$(mktemp -d)
BEGIN=$SECONDS
FAILED=0
mkdir -p "$OUT"

part() {  # name, limit in seconds, command...
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  echo "== $name ($((SECONDS - BEGIN)) s in)"
  timeout "$limit" "$@" 2>&1 | tee "$OUT/$name.log"
  local code=${PIPESTATUS[0]}
  [ "$code" -eq 0 ] || FAILED=1
  echo "== $name ended with $code after $((SECONDS - start)) s"
  return "$code"
}

export PYTHONPATH=$SITE PYTHONUNBUFFERED=1
if compgen -G "$WHEELS/*.whl" >/dev/null; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$SITE" "$WHEELS"/*.whl
fi
for needed in torch triton pytest hypothesis xxhash psutil; do
  "$PYTHON" -c "import $needed" || echo "missing: $needed; put its wheel into ./$WHEELS"
done

# What is tested is what a user installs; without a C++ compiler the sources do, as GPUs need no extension.
part install 100 "$PYTHON" -m pip install -q --no-build-isolation --no-deps --no-index --target "$SITE" . ||
  { echo "the package cannot be built here: going on from src"; export PYTHONPATH=$SITE:$PWD/src; }

"$PYTHON" - <<'PY' | tee "$OUT/machine.log"
import torch, pagedopt
device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
print("torch", torch.__version__, "device", device, torch.cuda.get_device_name() if torch.cuda.is_available() else "")
for backend in pagedopt.backends():
    print(backend)
PY

part test-gpu 200 make test-gpu GPU_PYTHON="$PYTHON"
part bench-gpu 290 "$PYTHON" -m bench gpu --out "$OUT" ${REHEARSE:+--quick --device cpu}

echo "== all ended $((SECONDS - BEGIN)) s after the start; logs and results are in $OUT"
exit "$FAILED"
