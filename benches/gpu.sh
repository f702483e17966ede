#!/usr/bin/env bash
# Everything about one NVIDIA card, on a machine without cargo.
#
#   benches/gpu.sh pack FOLDER     where there are cargo and nvcc: a folder to copy to the card's machine, some 100 MB;
#                                  RATOON_CUDA_ARCHS=sm_90a makes it half as large, for one kind of card.
#   FOLDER/gpu.sh [STAGE...]       on the card's machine: the named stages, or all that are not done yet; then one table of all in
#                                  FOLDER/results/CARD/gpu.{json,md}. Copy both into benches/results/CARD/ and commit them.
#
# Stages: operations (every kernel against f64), hopper (those of compute capability 9.0), pipelines (passes, generation, training
# against the CPU), memcheck and racecheck (compute-sanitizer over the kernels; memcheck-hopper and racecheck-hopper over those of
# 9.0), and for each of $PRESETS: kernels-P (time of each, by events, beside PyTorch), bench-P (prefill, decode, training), verbs-P
# (score, generate, finetune on random weights), counters-P (FLOPs of the ledger and of ncu).
# A stage ends after $STAGE_SECONDS, fails alone, and can be run again. What a stage needs and does not find (compute-sanitizer, ncu,
# PyTorch), and what does not fit the card, is said in the table. Exit code: 0, or 1 when a stage failed.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)

pack() {
    set -e
    local folder=$1
    cd "$here/.."
    mkdir -p "$folder/fatbins" "$folder/tests/data"
    local binary
    cargo build --release --features cuda
    cp target/release/ratoon "$folder/ratoon"
    for test in "ratoon --features cuda --test cuda pipelines" "ratoon-simt --test kernels operations" \
        "ratoon-simt --test sm90 hopper"; do
        set -- $test
        binary=$(cargo test --release -p "${@:1:$#-1}" --no-run --message-format json | grep '"kind":\["test"\]' | grep -o '"executable":"[^"]*' | tail -1)
        cp "${binary#*:\"}" "$folder/${!#}"
    done
    strip "$folder"/{ratoon,pipelines,operations,hopper}
    # Of the newest build of this feature; another may lie beside it.
    cp "$(dirname "$(ls -t target/release/build/ratoon-*/out/matmul.fatbin | head -1)")"/*.fatbin "$folder/fatbins"
    cp -r tests/data/{tiny,lora} "$folder/tests/data"
    cp benches/gpu.sh benches/gpu_torch.py recipes/data/quickstart/calibration.txt "$folder"
    git describe --always --dirty >"$folder/commit"
    du -sh "$folder"
}
if [ "${1:-}" = pack ]; then
    pack "${2:?a folder}"
    exit
fi

export RATOON_DEVICE=${RATOON_DEVICE:-cuda:0} CARGO_MANIFEST_DIR=$here RATOON_TEST_FATBINS=$here/fatbins
data=$here
[ -f "$data/calibration.txt" ] || data=$here/../recipes/data/quickstart # run from the repository, not packed
ratoon=${RATOON:-$here/ratoon} python=${PYTHON:-python3}
presets=${PRESETS:-smollm2-135m llama-3.2-1b llama-3.1-8b}
# The card as `doctor` describes it, and a folder's name of that: nvidia-h200 of `cuda:0: NVIDIA H200, 9.0, 150.8 GB`.
card=$("$ratoon" --json -q doctor | tr -d '\n' | grep -o '"usable": *\[[^]]*' | grep -o "\"$RATOON_DEVICE:[^\"]*" | head -1 | tr -d '"')
folder=$(sed 's/^cuda:[0-9]*: //; s/,.*//' <<<"$card" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-')
results=${RESULTS:-$here/results/${folder:-no-card}} models=${MODELS:-$here/models} limit=${STAGE_SECONDS:-540}
export RESULTS=$results
# Sizes: tokens of a pass, of a decoded context, sequences side by side, repetitions.
prompt=${PROMPT:-2048} context=${CONTEXT:-1024} batch=${BATCH:-64} repetitions=${REPETITIONS:-20}
generated=${GENERATED:-128} steps=${STEPS:-10}
stages="operations hopper pipelines memcheck racecheck memcheck-hopper racecheck-hopper"
for preset in $presets; do stages+=" kernels-$preset bench-$preset verbs-$preset counters-$preset"; done

# Ends a stage: something that it needs is not on this machine.
missing() { echo "$1" >"$results/$stage.missing"; exit 0; }
# Random weights in a preset's shape, made once.
model() { [ -d "$models/$1" ] || "$ratoon" --device cpu -q init --preset "$1" -o "$models/$1" >&2; }
# The shape alone.
shape() { [ -d "$models/$1" ] || "$ratoon" --device cpu -q init --preset "$1" --layers 1 -o "$models/$1.shape" --overwrite >&2; }
table() { grep '^|'; }
quoted() { printf '"%s"' "$(printf %s "$1" | tr -d '\n' | sed 's/[\\"]/\\&/g')"; }
on_hopper() { [[ $card =~ ^cuda:[0-9]+:\ .*,\ 9\.0, ]] || missing "a card of compute capability 9.0"; }

run_stage() {
    # Of Hopper's tests, those whose kernels are not for the host alone.
    local preset=${stage#*-} out=$results/$stage for_cards="--skip primitives --skip dependent"
    case $stage in
    operations) "${OPERATIONS:-$here/operations}" ;;
    hopper)
        on_hopper
        "${HOPPER:-$here/hopper}" $for_cards
        ;;
    pipelines) RATOON_TEST_DRIVER=nvidia "${PIPELINES:-$here/pipelines}" --skip program --skip gpu_script ;;
    memcheck | racecheck)
        command -v compute-sanitizer >/dev/null || missing "compute-sanitizer"
        compute-sanitizer --tool "$stage" --error-exitcode 1 "${OPERATIONS:-$here/operations}"
        ;;
    memcheck-hopper | racecheck-hopper)
        on_hopper
        command -v compute-sanitizer >/dev/null || missing "compute-sanitizer"
        compute-sanitizer --tool "${stage%-hopper}" --error-exitcode 1 "${HOPPER:-$here/hopper}" $for_cards
        ;;
    kernels-*)
        shape "$preset" || return
        local dir=$models/$preset
        [ -d "$dir" ] || dir=$models/$preset.shape
        "$ratoon" -q bench "$dir" --operations -p "$prompt" -n "$context" -b "$batch" -r "$repetitions" \
            -o json --output-err md >"$out.json" 2>"$out.log" || { cat "$out.log"; return 1; }
        table <"$out.log" >"$out.md"
        "$python" -c 'import torch, sys; sys.exit(sys.argv[1] == "cuda" and not torch.cuda.is_available())' \
            "${TORCH_DEVICE:-cuda}" 2>/dev/null || missing "PyTorch, so its times"
        "$python" "$here/gpu_torch.py" "$out.json" "$out.torch.json" >"$out.md" &&
            mv "$out.torch.json" "$out.json"
        ;;
    bench-*)
        model "$preset" || return
        : >"$out.md"
        local part
        for part in "-p $prompt -n $generated -b 1,8,$batch" "--train --train-tokens 4x$((prompt / 4))" \
            "--train --full --train-tokens 4x$((prompt / 4))"; do
            "$ratoon" -q bench "$models/$preset" $part -r 3 -o jsonl --output-err md >>"$out.jsonl" 2>"$out.log"
            # Full training of the largest shape does not fit every card: said, and no failure.
            case $? in
            0) table <"$out.log" >>"$out.md" ;;
            5) printf '\n`bench %s`: %s\n\n' "$part" "$(tail -1 "$out.log")" >>"$out.md" ;;
            *) cat "$out.log"; return 1 ;;
            esac
        done
        ;;
    verbs-*)
        model "$preset" || return
        local scratch verb
        scratch=$(mktemp -d "$models/verbs.XXXXXX")
        for i in $(seq "$batch"); do echo "{\"prompt\": \"Question $i: what grows from the stubble after a cut?\"}"; done \
            >"$scratch/prompts.jsonl"
        # Longer than any row may be: a token is a byte here.
        for i in $(seq 16); do printf '{"text": "%s"}\n' "$i: $(printf 'a ratoon grows from the stubble %.0s' {1..400})"; done \
            >"$scratch/train.jsonl"
        printf '| verb | work |\n|-|-|\n' >"$out.md"
        : >"$out.jsonl"
        for verb in "score $models/$preset --data $data/calibration.txt --block-size 1,2 -o $scratch/scores.csv" \
            "generate $models/$preset --input $scratch/prompts.jsonl -o $scratch/out.jsonl --max-tokens $generated \
                --max-batch-size $batch" \
            "finetune $models/$preset --data $scratch/train.jsonl -o $scratch/adapter --lora-r 8 --max-steps $steps \
                --max-length $((prompt / 4)) --on-overflow truncate"; do
            "$ratoon" $verb >"$out.log" 2>&1
            case $? in 0 | 5) ;; *) cat "$out.log"; rm -rf "$scratch"; return 1 ;; esac
            # The line that every command ends with, or that it does not fit.
            printf '| %s | %s |\n' "${verb%% *}" "$(tail -1 "$out.log")" >>"$out.md"
            printf '{"verb": "%s", "summary": %s}\n' "${verb%% *}" "$(quoted "$(tail -1 "$out.log")")" >>"$out.jsonl"
        done
        rm -rf "$scratch"
        ;;
    counters-*)
        command -v ncu >/dev/null || missing "ncu"
        model "$preset" || return
        local check="flops $models/$preset --seq-len $((prompt / 4)) --check"
        "$ratoon" --json -q $check >"$out.ledger" || return
        ncu --csv --page raw --print-units base --metrics \
            sm__ops_path_tensor_src_bf16_dst_fp32.sum,sm__ops_path_tensor_src_fp16_dst_fp32.sum,dram__bytes.sum \
            "$ratoon" -q $check >"$out.csv" || return
        # The sums over all kernels of the three columns, found by their names.
        awk -F '","' '/^"ID"/ { for (i = 1; i <= NF; i++) name[i] = $i; n = NF; next }
            n && NF == n && ++row > 1 { for (i = 1; i <= n; i++) { v = $i; gsub(/[",]/, "", v); sum[i] += v } }
            END { for (i = 1; i <= n; i++) if (name[i] ~ /ops_path|dram__bytes/) { sub(/"$/, "", name[i])
                printf "%s\"%s\": %.0f", sep, name[i], sum[i]; sep = ", " } }' "$out.csv" >"$out.sums"
        [ -s "$out.sums" ] || { head -50 "$out.csv"; return 1; }
        printf '{"ncu": {%s}, "ledger": %s}\n' "$(cat "$out.sums")" "$(cat "$out.ledger")" >"$out.json"
        { echo '```'; cat "$out.json"; echo '```'; } >"$out.md"
        ;;
    *) echo "gpu.sh: no stage $stage; there are: $stages" >&2; return 2 ;;
    esac
}

mkdir -p "$results" "$models"
if [ "${1:-}" = --one ]; then
    stage=$2
    run_stage
    exit
fi

# Runs what was asked for, or what is not done.
for stage in ${*:-$stages}; do
    [ $# = 0 ] && [ "$(cut -d ' ' -f 1 "$results/$stage.status" 2>/dev/null)" = ok ] && continue
    rm -f "$results/$stage".*
    echo "== $stage"
    start=$SECONDS
    timeout -k 10 "$limit" "$0" --one "$stage" 2>&1 | tee "$results/$stage.output" | tail -15
    code=${PIPESTATUS[0]}
    case $code in 0) word=ok ;; 124 | 137) word=timeout ;; *) word=failed ;; esac
    echo "$word $((SECONDS - start)) $code" >"$results/$stage.status"
done

# One table of everything that there is.
driver=$(cat /proc/driver/nvidia/version 2>/dev/null | head -1)
commit=$(cat "$here/commit" 2>/dev/null || git -C "$here" describe --always --dirty)
failed=0
{
    printf '{"card": %s, "driver": %s, "commit": %s, "date": "%s", "stages": [' "$(quoted "$card")" "$(quoted "$driver")" \
        "$(quoted "$commit")" "$(date -u +%F)"
    separator=
    for stage in $stages; do
        [ -f "$results/$stage.status" ] || continue
        read -r word seconds code <"$results/$stage.status"
        printf '%s\n{"stage": "%s", "status": "%s", "seconds": %s, "missing": %s, "results": [' "$separator" "$stage" "$word" \
            "$seconds" "$(quoted "$(cat "$results/$stage.missing" 2>/dev/null)")"
        { cat "$results/$stage.json" 2>/dev/null; paste -sd , "$results/$stage.jsonl" 2>/dev/null; } | sed '1s/^\[//;$s/\]$//'
        printf ']}'
        separator=,
    done
    printf ']}\n'
} >"$results/gpu.json"
{
    printf '# %s\n\nCommit %s, %s. %s\nMade by `benches/gpu.sh`; the numbers with all digits are in the JSON beside this file.\n\n' \
        "$card" "$commit" "$(date -u +%F)" "$driver"
    printf '| stage | status | seconds | not on this machine |\n|-|-|-|-|\n'
    for stage in $stages; do
        [ -f "$results/$stage.status" ] || { echo "| $stage | not run | | |"; continue; }
        read -r word seconds code <"$results/$stage.status"
        echo "| $stage | $word | $seconds | $(cat "$results/$stage.missing" 2>/dev/null) |"
    done
    for stage in $stages; do
        [ -s "$results/$stage.md" ] && { printf '\n## %s\n\n' "$stage"; cat "$results/$stage.md"; }
    done
} >"$results/gpu.md"
for stage in ${*:-$stages}; do [ "$(cut -d ' ' -f 1 "$results/$stage.status")" = ok ] || failed=1; done
echo "$results/gpu.md"
exit $failed
