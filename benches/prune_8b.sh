#!/bin/sh
# Time and memory of cutting 6 of 32 blocks out of a model in the shape of Llama-3.1-8B (16 GB), against `cp` of the kept bytes.
# Usage: benches/prune_8b.sh SCRATCH_DIR [PRESET] [BLOCKS], for instance `benches/prune_8b.sh /tmp/prune-8b llama-3.1-8b 13-18`.
# Needs about 3 x the model in SCRATCH_DIR; writes benches/results/MACHINE/prune.md. Uses GNU time.
set -eu
scratch=$1 preset=${2:-llama-3.1-8b} blocks=${3:-13-18}
cd "$(dirname "$0")/.."
cargo build --release --quiet
ratoon=target/release/ratoon
mkdir -p "$scratch"
trap 'rm -rf "$scratch/model" "$scratch/cut" "$scratch/copy" "$scratch"/*.time' EXIT
"$ratoon" init --preset "$preset" -o "$scratch/model" --seed 0

# Each is timed with its bytes on disk: the cut syncs its files itself, `cp` is followed by `sync`.
seconds() { /usr/bin/time -o "$scratch/$1.time" -f '%e %M' sh -c "$2"; }
rows=
for round in 1 2 3; do
    rm -rf "$scratch/cut" "$scratch/copy"; sync
    seconds prune "'$ratoon' prune -q '$scratch/model' --drop $blocks -o '$scratch/cut'"
    mkdir "$scratch/copy"; sync
    seconds cp "cp --reflink=auto '$scratch'/cut/*.safetensors '$scratch/copy' && sync '$scratch'/copy/*"
    read -r prune memory < "$scratch/prune.time"
    read -r copy _ < "$scratch/cp.time"
    ratio=$(awk "BEGIN { printf \"%.2f\", $prune / $copy }")
    rows="$rows| $round | $prune | $copy | $ratio | $((memory / 1024)) |
"
done
bytes=$(cat "$scratch"/cut/*.safetensors | wc -c)
machine=$(uname -m)-$(nproc)-cores
out=benches/results/$machine
mkdir -p "$out"
{
    echo "# Cutting blocks $blocks out of $preset"
    echo
    echo "Command: \`benches/prune_8b.sh $scratch $preset $blocks\`, commit $(git rev-parse --short HEAD),"
    echo "$(uname -sr), $(nproc) cores, $(stat -f -c %T "$scratch") file system. $bytes bytes kept. Floor: 1.2 x cp, under 100 MB."
    echo
    echo "| round | prune s | cp + sync s | ratio | peak MB |"
    echo "|-|-|-|-|-|"
    printf '%s' "$rows"
} | tee "$out/prune.md"
