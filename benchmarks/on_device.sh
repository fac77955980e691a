#!/usr/bin/env bash
# Measures an accelerator in two slices, each complete in itself and at most ten minutes long. No network is needed.
#
#   benchmarks/on_device.sh kernels OUT     errors, times and memory of every attention, forward and backward
#   benchmarks/on_device.sh speed OUT       ViT-L against PyTorch eager and torch.compile; batch 4, 8, 16; a profile
#
# WHEELS=FOLDER installs packages that the machine lacks from a folder of wheels; PYTHON chooses an interpreter.
# REHEARSE=1 does the same with the tiny network, to find typos on a CPU.
set -euo pipefail
cd "$(dirname "$0")/.."
SLICE=${1:?kernels or speed} OUT=$(mkdir -p "${2:?folder for results}" && cd "$2" && pwd)
PYTHON=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
  "$PYTHON" -m pip install -q --no-index --no-deps --target "$OUT/../site" "$WHEELS"/*.whl
  export PYTHONPATH="$OUT/../site:${PYTHONPATH:-}"
fi
export PYTHONPATH="$PWD:${PYTHONPATH:-}" PYTHONUNBUFFERED=1 XLA_PYTHON_CLIENT_PREALLOCATE=false
run() { echo "+ $*" >&2; "$PYTHON" "$@"; }
seggpt() { run -m seggpt_jax "$@"; }
run -c 'import jax, sys; print(sys.version.split()[0], "jax", jax.__version__, jax.devices())' | tee "$OUT/$SLICE.versions"

case $SLICE in
kernels)
  if [ -n "${REHEARSE:-}" ]; then sizes=(--variants=tiny --batch_sizes=1); else
    sizes=(--variants=small,vit_large --batch_sizes=1,4,16)
  fi
  run -m benchmarks.attention "${sizes[@]}" --dtypes=float32,bfloat16 --rounds=3 --keep | tee "$OUT/kernels.txt"
  cp benchmarks/results/attention.json "$OUT/"
  ;;
speed)
  if [ -n "${REHEARSE:-}" ]; then sizes=(--variants=tiny --batch_sizes=2) model=(--config.model.variant=tiny); else
    sizes=(--variants=vit_large --batch_sizes=4,8,16) model=(--config.batch_size=4 --config.model.remat=dots)
  fi
  {
    run -m benchmarks.model "${sizes[@]}" --work=train --dtypes=bfloat16 --remat=dots --rounds=3 --keep
    run -m benchmarks.model "${sizes[@]}" --work=forward,predict --dtypes=bfloat16 --rounds=3 --keep
  } | tee "$OUT/speed.txt"
  cp benchmarks/results/model.json "$OUT/"
  seggpt boards "$OUT/../boards" --num-train 64 --num-val 16
  seggpt train --config base --workdir "$OUT/../profiled" --config.data.path="$OUT/../boards" --config.data.resize=0 \
    --config.model.init_from= --config.num_steps=20 --config.profile_steps=3 --config.eval_every=20 --config.eval_pairs=4 "${model[@]}"
  tar -C "$OUT/../profiled" -czf "$OUT/profile.tgz" profile
  ;;
*)
  echo "found $SLICE, expected kernels or speed" >&2
  exit 2
  ;;
esac
