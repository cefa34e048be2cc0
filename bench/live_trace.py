#!/usr/bin/env python3
"""Writes a trace that keeps many blocks live, to see what an operation costs among a thousand and among a million.

    cargo build --release
    for live in 1000 1000000; do for kind in churn scattered teardown; do
        python3 bench/live_trace.py --live $live --kind $kind $kind-$live.csv.gz
        target/release/tilework replay $kind-$live.csv.gz --device null --repeat 4 --json
    done; done

LIVE blocks are made, of 512 bytes to 64 KiB. Then, by --kind: *churn*, sixteen further ones come and go, over and
over; *scattered*, one of the blocks, anywhere, is freed and another made; *teardown*, all are freed in no order and
made again. At least OPERATIONS operations follow on the first LIVE, and the more of them the less these weigh in the
figure of a pass. Needs nothing but Python.
"""
import argparse, gzip, random

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("trace")
parser.add_argument("--live", type=int, required=True, help="blocks that are live together")
parser.add_argument("--kind", choices=["churn", "scattered", "teardown"], required=True)
parser.add_argument("--operations", type=int, default=4_000_000, help="after the first LIVE (default 4 million)")
options = parser.parse_args()
draw = random.Random(1)

with gzip.open(options.trace, "wt", compresslevel=1) as out:
    out.write("time_us,op,id,bytes,stream\n")
    written = made = 0

    def write(op, block):
        global written
        out.write(f"{written},{op},{block[0]},{block[1]},0\n")
        written += 1

    def alloc():
        global made
        block = (made, draw.randint(512, 65536))
        made += 1
        write("alloc", block)
        return block

    blocks = [alloc() for _ in range(options.live)]
    while written < options.live + options.operations:
        if options.kind == "churn":
            some = [alloc() for _ in range(16)]
            draw.shuffle(some)
            for block in some:
                write("free", block)
        elif options.kind == "scattered":
            at = draw.randrange(options.live)
            write("free", blocks[at])
            blocks[at] = alloc()
        else:
            draw.shuffle(blocks)
            for block in blocks:
                write("free", block)
            blocks = [alloc() for _ in range(options.live)]
