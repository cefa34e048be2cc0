#!/bin/sh
# Runs small workloads under compute-sanitizer: the stress program, and the training of a small net in PyTorch.
#
#   pip install .                  # Tilework's wheel, beside torch
#   sh bench/sanitizer.sh ./stress
#
# ./stress is bench/stress.cu, built. memcheck looks for uses of memory that is not there, initcheck for reads of
# memory that was never written. What PyTorch's own kernels do shows under its own allocator too, so that runs as
# well. All run at once; the last lines of each are printed: "ERROR SUMMARY: 0 errors" when nothing was found.
stress=$1
outputs=$(dirname "$0")/torch_outputs.py
logs=$(mktemp -d)

check() {
    log=$logs/$1-$2
    tool=$1
    shift 2
    { echo "== $tool: $*"; timeout "${LIMIT:-540}" compute-sanitizer --tool "$tool" "$@" 2>&1 | tail -n 12; } >"$log" &
}

for tool in memcheck initcheck; do
    check $tool 1 "$stress" 5 --longest 1048576
    check $tool 2 python3 "$outputs" --child convnet tilework
    check $tool 3 python3 "$outputs" --child convnet default
done
wait
cat "$logs"/*
rm -r "$logs"
