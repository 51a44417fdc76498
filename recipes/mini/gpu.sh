#!/bin/bash
# All of a GPU run in one command: `bash recipes/mini/gpu.sh train|probe [SECONDS]`, from the repository's root, into $OUT.
# The machine may lack a network: `pack.py` packs into .whl what would be fetched, Python packages and icons.
set -eo pipefail
start=$(date +%s)
site=$(mktemp -d)
export PYTHONPATH=$site:src:recipes/mini PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 OUT=${OUT:-recipes/mini/work/gpu}
work=recipes/mini/work package=src/cones2/mini
mkdir -p "$OUT" $work/icons $work/mini $work/vae
unpack='import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="fully_trusted")'
python3 -c "$unpack" .whl/icons.tar.xz $work/icons
python3 -c "$unpack" .whl/site.tar.xz "$site"
python3 recipes/mini/prepare.py &
cp -r $package/* $work/mini/
cp $package/vae/* $work/vae/
cp recipes/mini/training_heads.safetensors $work/mini/
nvidia-smi --query-gpu=name,memory.total --format=csv,noheader || true
echo "$(nproc) cores, unpacked after $(($(date +%s) - start)) s"
wait
script=train_gpu.py
[ "$1" = probe ] && script=probe_gpu.py
python3 recipes/mini/$script --seconds "${2:-540}" --began "$start" --out "$OUT" "${@:3}" 2>&1 | tee "$OUT/log.txt"
