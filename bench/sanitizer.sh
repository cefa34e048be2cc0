#!/bin/sh
# Runs small workloads under compute-sanitizer: the stress program, and the training of a small net in PyTorch.
#
#   pip install .                  # Tilework's wheel, beside torch
#   sh bench/sanitizer.sh ./stress
#
# ./stress is bench/stress.cu, built. memcheck looks for uses of memory that is not there, initcheck for reads of
# memory that was never written. What PyTorch's own kernels do shows under its own allocator too, so that runs as
# well. initcheck is not run on the stress program: it takes what kernels wrote for unwritten where memory was mapped
# while others ran, whoever mapped it (bench/stress_control.cpp, docs/results/sanitizer.txt). All run at once; the last
# lines of each are printed: "ERROR SUMMARY: 0 errors" when nothing was found. Calls that the driver answers with an error,
# such as a request for more than there is, are no finding.
stress=$1
outputs=$(dirname "$0")/torch_outputs.py
logs=$(mktemp -d)

check() {
    log=$logs/$1-$2
    tool=$1
    shift 2
    { echo "== $tool: $*"; timeout "${LIMIT:-540}" compute-sanitizer --report-api-errors no --tool "$tool" "$@" 2>&1 | tail -n 12; } >"$log" &
}

check memcheck 1 "$stress" 5 --longest 1048576
for tool in memcheck initcheck; do
    check $tool 2 python3 "$outputs" --child convnet tilework
    check $tool 3 python3 "$outputs" --child convnet default
done
wait
cat "$logs"/*
rm -r "$logs"
