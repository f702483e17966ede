#!/bin/sh
# Time and memory of cutting 6 of 32 blocks out of a model in the shape of Llama-3.1-8B (16 GB), against `cp` of as many bytes.
# Usage: benches/prune_8b.sh SCRATCH_DIR [PRESET] [BLOCKS], for instance `benches/prune_8b.sh /tmp/prune-8b llama-3.1-8b 13-18`.
# Needs about 2 x the model in SCRATCH_DIR; writes benches/results/MACHINE/prune.md. Uses GNU time. $BEFORE is put before each timed
# command, for instance one that waits for other users of the machine.
set -eu
scratch=$1 preset=${2:-llama-3.1-8b} blocks=${3:-13-18}
cd "$(dirname "$0")/.."
cargo build --release --quiet
ratoon=target/release/ratoon
mkdir -p "$scratch"
trap 'rm -rf "$scratch/model" "$scratch/cut" "$scratch/copy" "$scratch"/*.time' EXIT
# Small shards, so that some of them are as many bytes as the cut keeps.
"$ratoon" init -q --preset "$preset" -o "$scratch/model" --seed 0 --max-shard-size 256MB

# Both read the same files and start with none of them in memory (where the system lets us drop them). Each is timed with its bytes
# on disk: the cut syncs its files itself, `cp` is followed by `sync`.
forget='sync; echo 3 > /proc/sys/vm/drop_caches'
cold="page cache dropped before each"
(sh -c "$forget") 2>/dev/null || { forget=sync; cold="the page cache was not dropped"; }
# Seconds and peak kilobytes of a command, into NAME.time.
seconds() { ${BEFORE:-} sh -c "$forget; exec /usr/bin/time -o '$scratch/$1.time' -f '%e %M' sh -c \"$2\""; }
rows=
for round in 1 2 3 4 5; do
    rm -rf "$scratch/cut" "$scratch/copy"
    seconds prune "'$ratoon' prune -q '$scratch/model' --drop $blocks -o '$scratch/cut'"
    bytes=$(cat "$scratch"/cut/*.safetensors | wc -c)
    rm -rf "$scratch/cut"; mkdir "$scratch/copy"
    files= copied=0
    for file in "$scratch"/model/*.safetensors; do
        [ "$copied" -ge "$bytes" ] || { files="$files '$file'"; copied=$((copied + $(stat -c %s "$file"))); }
    done
    seconds cp "cp --reflink=auto $files '$scratch/copy' && sync '$scratch'/copy/*"
    read -r prune memory < "$scratch/prune.time"
    read -r copy _ < "$scratch/cp.time"
    rows="$rows$(awk "BEGIN { a = $bytes / $prune / 1e6; b = $copied / $copy / 1e6
        printf \"| $round | $prune | %.0f | $copy | %.0f | %.2f | %d |\", a, b, b / a, $memory / 1024 }")
"
done
cpu=$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1)
machine=$(echo "$cpu" | tr 'A-Z ()' 'a-z---' | tr -s -)-$(nproc)core
out=${RESULTS:-benches/results/$machine}
mkdir -p "$out"
{
    echo "# Cutting blocks $blocks out of $preset"
    echo
    echo "Command: \`benches/prune_8b.sh $scratch $preset $blocks\`, commit $(git rev-parse --short HEAD),"
    echo "$cpu, $(uname -sr), $(stat -f -c %T "$scratch") file system, $cold."
    echo "$bytes bytes kept, $copied copied by \`cp\`. Goal: 1.2 x the time of cp for as many bytes, under 100 MB."
    echo
    echo "| round | prune s | MB/s | cp + sync s | MB/s | ratio | peak MB of prune |"
    echo "|-|-|-|-|-|-|-|"
    printf '%s' "$rows"
} | tee "$out/prune.md"
