#!/usr/bin/env python3
"""Replays every trace on a device under several heap sizes or managers and prints a Markdown table.

    cargo build --release
    python3 bench/replays.py traces/*.csv.gz                          # tiled, default heaps
    python3 bench/replays.py --heap 2MiB --heap 64MiB traces/*.csv.gz # one column for each heap size
    python3 bench/replays.py --manager placed --manager tiled ...     # one column for each manager
    python3 bench/replays.py --scale 0.5 --scale 1.3 ...              # one column for each factor on all sizes

A cell is peak held / peak live over all passes, the device's time in the first pass (charged, on a simulated
device), and the device calls of the third. Needs nothing but Python and the built command.
"""
import argparse, json, pathlib, subprocess

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("traces", nargs="+")
parser.add_argument("--device", default="sim-h200")
parser.add_argument("--heap", action="append", help="heap size; may be given several times")
parser.add_argument("--manager", action="append", help="manager; may be given several times")
parser.add_argument("--scale", action="append", help="factor on all sizes; may be given several times")
parser.add_argument("--tilework", default="target/release/tilework")
options = parser.parse_args()

columns = [
    (m, h, s)
    for m in options.manager or ["tiled"]
    for h in options.heap or [None]
    for s in options.scale or [None]
]


def cell(trace, manager, heap, scale):
    command = [options.tilework, "replay", trace, "--manager", manager, "--device", options.device, "--repeat", "3"]
    command += ["--heap-size", heap] if heap else []
    command += ["--scale", scale] if scale else []
    report = json.loads(subprocess.run([*command, "--json"], check=True, capture_output=True, text=True).stdout)
    first, third = report["passes"][0], report["passes"][2]
    ratio = report["peak_held_bytes"] / report["peak_live_bytes"]
    calls = sum(third["device_calls"].values())
    return report["peak_live_bytes"], f"{ratio:.4f}, {first['device_us'] / 1000:.1f} ms, {calls}"


heads = [" ".join(filter(None, (m if options.manager else "", h or "", f"x{s}" if s else ""))) or m for m, h, s in columns]
print(f"Device {options.device}. Cells: peak held / peak live, device time of the first pass, device calls of the third.\n")
print("| trace | live MiB | " + " | ".join(heads) + " |")
print("|---" * (len(columns) + 2) + "|")
for trace in options.traces:
    cells = [cell(trace, *column) for column in columns]
    name = pathlib.Path(trace).name.removesuffix(".csv.gz")
    print(f"| {name} | {cells[0][0] / 2**20:.1f} | " + " | ".join(text for _, text in cells) + " |", flush=True)
