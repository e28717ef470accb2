#!/usr/bin/env bash
# Tests and measures the worker on this machine's GPU. Needs a driver; the full-size check needs Python with PyTorch and
# transformers, and `sanitizer` NVIDIA's compute-sanitizer. Neither Rust nor a network.
#
#   bash run.sh [STEP...]      op-tests gpu-tests haiku storm soak full-size bench http sanitizer; without any, all, in this order
#                              bench-quantised, only on request: the same weights in F16, Q8_0, Q4_0 and Q4_K_M
#
# Logs go to $OUT (default: out), one a step, and a table to $OUT/summary.txt. Exit status: 0 if every step passed.
#
#   OP_FILTER         only kernels' tests whose names contain one of these words
#   TEST_FILTER       only Rust tests whose names contain this
#   SANITIZER_TOOLS   default: memcheck racecheck initcheck synccheck
#   SANITIZER_FILTER  as OP_FILTER, for the sanitizer, under which tests take many times as long and leave out cases that
#                     differ in numbers alone (ORCD_FEW_CASES=1)
#   SANITIZER_SHARDS  processes that share a tool's tests; default: as many as there are cores, at most 16
#   DEVICE            where the worker is to compute; default: cuda
#   MODEL             a GGUF file to measure; default: one with random weights, written to $WORK by the first step that needs it
#                     (for full-size another, with large biases and activations)
#   WORK              where large files go; default: /tmp/worker-orcd
#   RANDOM_ARGS       for `xtask make-random`
#   FULL_SIZE_ARGS    for full_size.py; default: --device $DEVICE --tokens 16385 --positions 240
#   BENCH_ARGS        for `worker-orcd bench`; bench-quantised: default -n 128 -b 1,32 -p 512 -r 3
#   HTTP_ARGS         for http_speed
#   SOAK_ARGS         for the soak; default: --seconds 60
#   STEP_TIMEOUT      seconds that a step may take; default: 1200
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${OUT:-out}"
out=$(cd "${OUT:-out}" && pwd)
export OUT=$out
work=${WORK:-/tmp/worker-orcd}
mkdir -p "$work"
cd "$here" || exit 2
[ -n "${BUNDLE_STEP:-}" ] || tar -xJf programs.tar.xz 2>/dev/null || python3 -m tarfile -e programs.tar.xz . || exit 2
device=${DEVICE:-cuda}
export WORKER_TEST_ROOT=$here
# Test libraries look for a checkout to write to.
export INSTA_WORKSPACE_ROOT=$here INSTA_UPDATE=no PROPTEST_FAILURE_PERSISTENCE=off
export WORKER_REQUIRE_GPU=${WORKER_REQUIRE_GPU:-1} WORKER_TEST_DEVICE=$device
golden=crates/transformer/golden

# Shows a command, then runs it.
say() {
    echo "\$ $*"
    "$@"
}

model() {
    if [ -z "${MODEL:-}" ]; then
        MODEL=$work/random-f16.gguf
        # shellcheck disable=SC2086
        [ -s "$MODEL" ] || say bin/xtask make-random "$MODEL" ${RANDOM_ARGS:-} || return 1
    fi
}

op_tests() {
    # shellcheck disable=SC2086
    say bin/op-tests ${OP_FILTER:-}
}

gpu_tests() {
    local failed=0 test
    for test in tests/*; do
        case $test in tests/tests.storm | tests/worker-orcd.process) continue ;; esac # a step of its own; below
        # shellcheck disable=SC2086
        say "$test" ${TEST_FILTER:-} --nocapture || failed=1
    done
    # One worker at a time: they look at the GPU's free memory.
    WORKER_ORCD_BIN=$here/bin/worker-orcd-faults \
        say tests/worker-orcd.process "${TEST_FILTER:-faults::}" --nocapture --test-threads=1 || failed=1
    return $failed
}

haiku() {
    say bin/xtask e2e-haiku --worker "$here/bin/worker-orcd" --runner "$here/bin/haiku" --device "$device"
    local status=$?
    local report
    report=$(ls -td .test-results/haiku/*/ 2>/dev/null | head -1)
    [ -z "$report" ] || cat "$report"/verification.json "$report"/test_report.md
    return $status
}

storm() {
    WORKER_ORCD_BIN=$here/bin/worker-orcd say tests/tests.storm --nocapture
}

soak() {
    # shellcheck disable=SC2086
    say bin/soak --worker "$here/bin/worker-orcd" --device "$device" --model models/haiku/haiku-qwen2-5.8m-f16.gguf \
        ${SOAK_ARGS:---seconds 60}
}

# Logits against transformers' in float64, and that a request's bits are its own, of a model that is hard on arithmetic.
full_size() {
    local model=${MODEL:-$work/hard-f16.gguf} name failed=0
    [ -s "$model" ] || say bin/xtask make-random --hard "$model" || return 1
    name=$work/full-size-$(basename "$model" .gguf)
    # shellcheck disable=SC2086
    [ -s "$name.json" ] || say python3 "$golden/full_size.py" "$model" --out "$name" \
        ${FULL_SIZE_ARGS:---device $device --tokens 16385 --positions 240} || return 1
    say bin/compare_logits "$model" "$name.json" --device "$device" || failed=1
    WORKER_TEST_MODEL=$model say tests/transformer.correctness long_contexts --nocapture || failed=1
    return $failed
}

bench() {
    model || return 1
    # shellcheck disable=SC2086
    say bin/worker-orcd bench --device "$device" --model "$MODEL" ${BENCH_ARGS:-}
}

# Decoding and prompts of one model in several types, each measured as `bench` does; then their medians in one table.
bench_quantised() {
    model || return 1
    local type file log failed=0
    for type in F16 Q8_0 Q4_0 Q4_K_M; do
        file=$MODEL
        if [ "$type" != F16 ]; then
            file=$work/$(basename "$MODEL" .gguf)-$type.gguf
            [ -s "$file" ] || say bin/worker-orcd quantize "$MODEL" "$file" "$type" || return 1
        fi
        log=$out/bench-$type.txt
        # shellcheck disable=SC2086
        say bin/worker-orcd bench --device "$device" --model "$file" ${BENCH_ARGS:--n 128 -b 1,32 -p 512 -r 3} >"$log" || failed=1
        cat "$log"
    done
    printf '\n%-8s %-14s %7s %7s %12s\n' type test depth batch tokens/s
    for type in F16 Q8_0 Q4_0 Q4_K_M; do
        awk -v type="$type" '/^(prompt|decode) [0-9]/ { printf "%-8s %-14s %7s %7s %12s\n", type, $1 " " $2, $3, $4, $5 }' \
            "$out/bench-$type.txt"
    done
    return $failed
}

http() {
    model || return 1
    # shellcheck disable=SC2086
    say bin/http_speed --worker "$here/bin/worker-orcd" --device "$device" --model "$MODEL" ${HTTP_ARGS:-}
}

sanitizer() {
    local failed=0 tool
    command -v compute-sanitizer || export PATH=$PATH:/usr/local/cuda/bin
    for tool in ${SANITIZER_TOOLS:-memcheck racecheck initcheck synccheck}; do
        sanitized "$tool" || failed=1
    done
    return $failed
}

# All tests under one of the sanitizer's tools, in shards that run at the same time: racecheck takes most of a minute for a dozen
# tests. Shows each shard's words once it and those before it are done; until then they are in files.
sanitized() {
    local tool=$1 n=${SANITIZER_SHARDS:-$(nproc)} failed=0 shard port running=()
    [ -n "${SANITIZER_SHARDS:-}" ] || [ "$n" -le 16 ] || n=16
    for ((shard = 1; shard <= n; shard++)); do
        # Ports of its own, where it can be told.
        port=
        ! compute-sanitizer --help | grep -q -e --base-port || port="--base-port $((49152 + 16 * shard))"
        # shellcheck disable=SC2086
        ORCD_FEW_CASES=1 say compute-sanitizer --tool "$tool" --error-exitcode 9 $port bin/op-tests --shard "$shard/$n" \
            ${SANITIZER_FILTER:-} >"$out/sanitizer-$tool-$shard.log" 2>&1 &
        running+=($!)
    done
    for ((shard = 1; shard <= n; shard++)); do
        wait "${running[shard - 1]}" || failed=1
        cat "$out/sanitizer-$tool-$shard.log"
        rm "$out/sanitizer-$tool-$shard.log"
    done
    return $failed
}

# What a step's log says in a few words: sums of tests, errors that the sanitizer counts, the last line otherwise.
note() {
    awk '/^test result: / { for (i = 2; i <= NF; i++) { if ($i ~ /^passed/) p += $(i-1); if ($i ~ /^failed/) f += $(i-1) } tests = 1 }
         / ERROR SUMMARY: | RACECHECK SUMMARY: / { found += $4; checks++ } # after "========="
         /^all [0-9]+ positions: / { split($0, part, ";"); s = s "; " part[1] }
         /SKIPPED/ { skipped++ }
         NF > 1 && !verdict { last = $0 }
         /^(passed|FAILED): / { verdict = 1 } # of the haiku run, before its report
         END { if (tests) printf "%d passed, %d failed", p, f; else printf "%s", substr(last, 1, 90)
               if (skipped) printf ", %d SKIPPED", skipped
               if (checks) printf ", %d errors or hazards in %d runs of the sanitizer", found, checks
               print s }' "$1"
}

all="op-tests gpu-tests haiku storm soak full-size bench http sanitizer"
on_request="bench-quantised"
steps=${*:-$all}
for step in $steps; do
    case " $all $on_request " in *" $step "*) ;; *) echo "no step \"$step\"; there are: $all $on_request" >&2; exit 2 ;; esac
done
if [ "${BUNDLE_STEP:-}" != "" ]; then # one step, below a time limit: see the loop
    "${BUNDLE_STEP//-/_}"
    exit
fi

summary=$out/summary.txt
{
    cat bundle.txt
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo "nvidia-smi does not run"
    echo
} | tee "$summary"
failures=0
rows=
for step in $steps; do
    echo "==> $step"
    began=$SECONDS
    BUNDLE_STEP=$step timeout --kill-after=10 "${STEP_TIMEOUT:-1200}" bash "$here/run.sh" 2>&1 | tee "$out/$step.log"
    status=${PIPESTATUS[0]}
    case $status in 0) verdict=ok ;; 124 | 137) verdict="TIME IS UP" ;; *) verdict=FAILED ;; esac
    [ "$status" = 0 ] || failures=$((failures + 1))
    rows+=$(printf '%-15s %-10s %5d s  %s' "$step" "$verdict" $((SECONDS - began)) "$(note "$out/$step.log")")$'\n'
done
printf '\n%s' "$rows" | tee -a "$summary"
[ "$failures" = 0 ]
