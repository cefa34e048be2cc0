#!/usr/bin/env python3
"""Tries what PyTorch does with memory on a GPU, feature by feature, under Tilework.

    pip install .                                  # Tilework's wheel, beside torch
    python3 bench/torch_features.py                # the table
    python3 bench/torch_features.py graph oom      # some features, by a part of their names
    python3 bench/torch_features.py --allocator default   # PyTorch's own, to compare
    python3 bench/torch_features.py --json rows.jsonl

Each feature runs in a process of its own. A row says `works` when the contents were right, `refuses` when a
RuntimeError of one sentence came instead of a result (the sentence follows), `skips` where it takes two GPUs and
there is one, and `FAILS` otherwise. Exit code 1 when anything fails. Needs a GPU, torch and tilework.
"""

import argparse
import json
import re
import subprocess
import sys
import time
import warnings

MIB = 1 << 20
FEATURES = {}


def feature(function):
    FEATURES[function.__name__] = function
    return function


class Refused(Exception):
    """The feature said in a sentence that it cannot be had."""


class Skipped(Exception):
    """The machine lacks what it takes."""


def two_gpus(torch):
    if torch.cuda.device_count() < 2:
        raise Skipped("takes two GPUs")


def refusal(body, words):
    """Runs what must be refused, in these words."""
    try:
        body()
    except RuntimeError as error:
        assert words in str(error), error
        raise Refused(str(error)) from error


def tensor(bytes, value=0):
    import torch

    return torch.full((bytes,), value, dtype=torch.uint8, device="cuda")


def busy(torch, milliseconds=30):
    """Queues work on the current stream that takes this long."""
    torch.cuda._sleep(int(milliseconds * 1.5e6))


@feature
def allocate_and_free(torch):
    """1000 tensors of mixed sizes keep their contents"""
    import random

    rng, kept = random.Random(0), []
    for n in range(1000):
        kept.append((n % 251, tensor(rng.choice([1, 100, 4096, 70_001, MIB, 9 * MIB]), n % 251)))
        if len(kept) > 60:
            value, x = kept.pop(rng.randrange(len(kept)))
            assert bool((x == value).all())
    assert all(bool((x == value).all()) for value, x in kept)


@feature
def empty_cache(torch):
    """what is unused goes back to the GPU"""
    x = tensor(256 * MIB)
    del x
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info()[0] - before >= 200 * MIB


@feature
def memory_fraction(torch):
    """set_per_process_memory_fraction limits, and can be raised again"""
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(0.05)
    try:
        tensor(int(total * 0.06))
        raise AssertionError("more than the fraction")
    except torch.OutOfMemoryError:
        pass
    torch.cuda.set_per_process_memory_fraction(1.0)
    tensor(int(total * 0.06))


@feature
def memory_stats(torch):
    """the keys are PyTorch's, the figures follow, peaks reset"""
    x = tensor(64 * MIB)
    stats = torch.cuda.memory_stats()
    assert stats["allocated_bytes.all.current"] >= 64 * MIB and stats["reserved_bytes.all.current"] >= 64 * MIB
    assert torch.cuda.memory_allocated() >= 64 * MIB
    del x
    assert torch.cuda.max_memory_allocated() >= 64 * MIB > torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() < 64 * MIB
    assert torch.accelerator.max_memory_allocated() < 64 * MIB
    assert "CUDA memory summary" in torch.cuda.memory_summary()
    return f"{len(stats)} keys"


@feature
def record_stream(torch):
    """a block that another stream still reads is not given away"""
    side, wrong = torch.cuda.Stream(), 0
    for n in range(20):
        x = tensor(32 * MIB, n)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            busy(torch)
            copy = x.clone()
        x.record_stream(side)
        del x
        others = [tensor(32 * MIB, 255) for _ in range(4)]
        torch.cuda.synchronize()
        wrong += not bool((copy == n).all())
        del others, copy
    assert not wrong, f"{wrong} of 20 copies were overwritten"


@feature
def streams_without_record(torch):
    """blocks go from stream to stream once they are free, contents intact"""
    streams = [torch.cuda.Stream() for _ in range(4)]
    for n in range(100):
        with torch.cuda.stream(streams[n % 4]):
            x = tensor(16 * MIB, n)
            y = x + 1
            del x
            assert bool((y == n + 1).all())


@feature
def cuda_graph(torch):
    """capture and ten replays with other allocations between them"""
    static = torch.zeros(1000, 1000, device="cuda")
    weight = torch.randn(1000, 1000, device="cuda")

    def step():
        x = static @ weight
        return (x.relu() @ weight).sum(dim=0)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for n in range(10):
        static.fill_(n)
        junk = [tensor(3 * MIB, 255) for _ in range(20)]
        graph.replay()
        assert torch.allclose(out, step(), rtol=1e-3, atol=1e-2)
        del junk
        if n == 5:
            torch.cuda.empty_cache()
    del out, graph
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    allocate_and_free(torch)


@feature
def graphs_that_share_a_pool(torch):
    """two graphs in one pool, replayed in turn"""
    x, pool, outs, graphs = torch.ones(MIB, device="cuda"), torch.cuda.graph_pool_handle(), [], []
    for factor in (2, 3):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            outs.append(x * factor)
        graphs.append(graph)
    for graph in graphs:
        graph.replay()
    torch.cuda.synchronize()
    assert [float(out.max()) for out in outs] == [2, 3]


@feature
def make_graphed_callables(torch):
    """a module forward and backward as graphs"""
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 256)).cuda()
    sample = torch.randn(64, 256, device="cuda", requires_grad=True)
    inputs = [torch.randn(64, 256, device="cuda", requires_grad=True) for _ in range(5)]
    with torch.no_grad():  # a graph of autograd that lives on would tie the parameters to this stream
        expected = [plain(x).sum() for x in inputs]
    graphed = torch.cuda.make_graphed_callables(plain, (sample,))
    for x, e in zip(inputs, expected):
        y = graphed(x).sum()
        y.backward()
        assert torch.allclose(y, e, rtol=1e-3) and x.grad is not None


@feature
def mem_pool(torch):
    """tensors made in a MemPool keep their contents; the pool can be dropped"""
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        inside = [tensor(5 * MIB, n) for n in range(5)]
    outside = [tensor(5 * MIB, 255) for _ in range(5)]
    assert all(bool((x == n).all()) for n, x in enumerate(inside))
    del inside, pool
    torch.cuda.empty_cache()
    assert all(bool((x == 255).all()) for x in outside)


@feature
def cudnn_benchmark(torch):
    """convolutions tuned by cuDNN"""
    torch.backends.cudnn.benchmark = True
    conv = torch.nn.Conv2d(32, 64, 3, padding=1).cuda()
    for size in (64, 96):
        x = torch.randn(4, 32, size, size, device="cuda", requires_grad=True)
        y = conv(x)
        y.sum().backward()
        expected = torch.nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)
        assert torch.allclose(y.double(), expected, rtol=1e-2, atol=1e-2)


def compiled(torch, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.GELU(), torch.nn.Linear(1024, 256)).cuda()
    fast = torch.compile(model, **options)
    for n in range(6):
        x = torch.randn(32, 256, device="cuda")
        y = fast(x).clone()
        assert torch.allclose(y, model(x), rtol=1e-2, atol=1e-3)
        y = fast(x)
        y.sum().backward()
        junk = [tensor(3 * MIB, 255) for _ in range(5)]
        del junk


@feature
def compile_default(torch):
    """torch.compile, forward and backward"""
    compiled(torch)


@feature
def compile_reduce_overhead(torch):
    """torch.compile(mode="reduce-overhead"), forward and backward"""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled(torch, mode="reduce-overhead")
    if any("without graph trees" in str(w.message) for w in caught):
        return "graphs without trees"


class Numbers:
    def __len__(self):
        return 64

    def __getitem__(self, n):
        import torch

        return torch.full((1000,), float(n))


@feature
def data_loader(torch):
    """workers by fork, pinned memory, after CUDA was used"""
    kept = tensor(64 * MIB, 3)
    loader = torch.utils.data.DataLoader(Numbers(), batch_size=8, num_workers=2, pin_memory=True)
    for _ in range(2):
        for n, batch in enumerate(loader):
            assert batch.is_pinned()
            moved = batch.to("cuda", non_blocking=True)
            assert moved[:, 0].tolist() == [float(n * 8 + i) for i in range(8)]
    assert bool((kept == 3).all())


@feature
def checkpointing(torch):
    """gradient checkpointing has the gradients of the plain backward"""
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    layers = torch.nn.ModuleList(torch.nn.Linear(512, 512) for _ in range(8)).cuda()
    gradients = []
    for through in (lambda layer, x: layer(x), lambda layer, x: checkpoint(layer, x, use_reentrant=False)):
        x = torch.ones(64, 512, device="cuda", requires_grad=True)
        y = x
        for layer in layers:
            y = through(layer, y).relu()
        y.sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients)


@feature
def out_of_memory(torch):
    """torch.OutOfMemoryError with a report, and the program goes on"""
    total = torch.cuda.mem_get_info()[1]
    for _ in range(3):
        kept = []
        try:
            while True:
                kept.append(tensor(total // 16, len(kept)))
        except torch.OutOfMemoryError as error:
            text = str(error)
        assert len(kept) > 4 and "out of memory" in text
        for n, x in enumerate(kept):  # in pieces: there is no memory for more
            assert all(bool((piece == n).all()) for piece in x.split(16 * MIB))
        del kept, x
    return text


@feature
def out_of_memory_in_backward(torch):
    """raised on autograd's thread, the type kept"""

    class Greedy(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            tensor(torch.cuda.mem_get_info()[1] * 2)
            return gradient

    x = torch.ones(10, device="cuda", requires_grad=True)
    try:
        Greedy.apply(x).sum().backward()
        raise AssertionError("twice the GPU was served")
    except torch.OutOfMemoryError:
        pass
    allocate_and_free(torch)


@feature
def threads(torch):
    """eight threads on eight streams"""
    import threading

    wrong = []

    def work(seed):
        with torch.cuda.stream(torch.cuda.Stream()):
            for n in range(200):
                x = tensor(1 + (seed * 7919 + n * 104_729) % (4 * MIB), seed)
                y = x * 1
                del x
                if not bool((y == seed).all()):
                    wrong.append((seed, n))

    running = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not wrong, wrong[:3]


@feature
def memory_history(torch):
    """torch.cuda.memory._record_memory_history"""
    refusal(lambda: torch.cuda.memory._record_memory_history(), "tilework.torch.record")
    torch.cuda.memory._record_memory_history(None)


@feature
def memory_snapshot(torch):
    """torch.cuda.memory_snapshot"""
    tensor(1)
    refusal(torch.cuda.memory_snapshot, "tilework.torch.record")


@feature
def share_between_processes(torch):
    """a CUDA tensor sent to another process"""
    import torch.multiprocessing as mp

    refusal(lambda: mp.reductions.reduce_tensor(tensor(MIB)), "")


@feature
def recording(torch):
    """tilework.torch.record writes a trace"""
    import gzip
    import os
    import tempfile

    if torch.cuda.get_allocator_backend() != "pluggable":
        raise Refused("only under Tilework")
    import tilework.torch

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.csv.gz")
        with tilework.torch.record(path):
            allocate_and_free(torch)
        with gzip.open(path, "rt") as lines:
            count = sum(1 for _ in lines)
    assert count > 2000
    return f"{count - 1} events"


@feature
def profiler(torch):
    """torch.profiler sees kernels; with profile_memory=True, what it says of CUDA memory"""
    from torch.profiler import ProfilerActivity, profile

    x = torch.randn(1000, 1000, device="cuda")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], profile_memory=True) as profiled:
        y = x @ x
        del y
        torch.cuda.synchronize()
    events = profiled.key_averages()
    assert sum(event.self_device_time_total for event in events) > 0, "no time on the GPU"
    host = sum(abs(event.self_cpu_memory_usage) for event in events)
    cuda = sum(abs(event.self_device_memory_usage) for event in events)
    assert cuda >= 2 * 4_000_000, f"y came and went, and {cuda} bytes are told of"
    return f"{len(events)} kinds of events, {cuda} bytes of CUDA memory and {host} of the host's in them"


@feature
def gpus_side_by_side(torch):
    """tensors on two GPUs, by two threads too; the current GPU stays the caller's"""
    two_gpus(torch)
    import threading

    kept = [torch.full((MIB,), n, dtype=torch.uint8, device=f"cuda:{n % 2}") for n in range(40)]
    with torch.cuda.device(1):
        kept += [torch.full((9 * MIB,), n, dtype=torch.uint8, device=f"cuda:{n % 2}") for n in range(40, 60)]
        assert torch.cuda.current_device() == 1
    assert torch.cuda.current_device() == 0
    assert torch.cuda.memory_allocated(0) == torch.cuda.memory_allocated(1) == 20 * MIB + 10 * 9 * MIB
    wrong = []

    def work(gpu):
        torch.cuda.set_device(gpu)
        for n in range(300):
            x = torch.full((1 + (n * 104_729) % (8 * MIB),), gpu + 1, dtype=torch.uint8, device="cuda")
            if x.device.index != gpu or torch.cuda.current_device() != gpu or not bool((x == gpu + 1).all()):
                wrong.append((gpu, n))

    running = [threading.Thread(target=work, args=(gpu,)) for gpu in (0, 1)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not wrong, wrong[:3]
    assert all(bool((x == n).all()) for n, x in enumerate(kept))


@feature
def copies_between_gpus(torch):
    """Tensor.to, whole and in part, both ways"""
    two_gpus(torch)
    for n in range(50):
        x = torch.arange(n * 5000 + 1, device=f"cuda:{n % 2}")
        y = x.to(f"cuda:{1 - n % 2}", non_blocking=True)
        del x
        assert y.device.index == 1 - n % 2 and bool((y.cpu() == torch.arange(n * 5000 + 1)).all())
    x = torch.zeros(100, device="cuda:1")
    x[10:20] = torch.ones(10, device="cuda:0")
    assert float(x.sum()) == 10


@feature
def kernels_that_use_a_peer(torch):
    """a copy that takes a kernel: strided, to another type; before and after more memory is mapped"""
    two_gpus(torch)
    reached = torch.cuda.can_device_access_peer(0, 1) and torch.cuda.can_device_access_peer(1, 0)
    kept = [torch.zeros(64 * MIB, dtype=torch.uint8, device=f"cuda:{n}") for n in (0, 1)]
    for n in range(1, 9):
        there, here = (0, 1) if n % 2 else (1, 0)
        x = torch.arange(n * 300_000, device=f"cuda:{there}").view(3, -1)
        y = x.t().to(f"cuda:{here}")
        z = torch.empty(x.shape[1], 3, dtype=torch.int64, device=f"cuda:{here}")
        z.t().copy_(x)
        assert bool((y.cpu() == x.cpu().t()).all()) and bool((z.cpu() == x.cpu().t()).all())
        kept.append(torch.full((n * 37 * MIB,), n, dtype=torch.uint8, device=f"cuda:{here}"))
    assert all(bool((x == n).all()) for n, x in enumerate(kept[2:], 1))
    return "peers" if reached else "the GPUs are no peers: through the host"


@feature
def data_parallel(torch):
    """torch.nn.DataParallel over two GPUs has the gradients of one"""
    two_gpus(torch)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 10)).cuda()
    x = torch.randn(256, 512, device="cuda")
    gradients = []
    for model in (net, torch.nn.DataParallel(net, device_ids=[0, 1])):
        for _ in range(3):
            net.zero_grad(set_to_none=True)
            model(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-2) for a, b in zip(*gradients))


def rank(number, store, allocator):
    """One of two processes, each with a GPU of its own."""
    import torch
    import torch.distributed as dist

    if allocator == "tilework":
        import tilework.torch

        tilework.torch.enable()
    torch.cuda.set_device(number)
    device = torch.device("cuda", number)
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=number, world_size=2, device_id=device)
    for n in range(30):
        x = torch.full((1 + (n * 7_919_113) % (64 * MIB),), number + n + 1.0, device=device)
        dist.all_reduce(x)
        assert bool((x == 2 * n + 3).all()), n
        parts = [torch.empty(1000 * n + 1, device=device) for _ in range(2)]
        dist.all_gather(parts, torch.full((1000 * n + 1,), float(number), device=device))
        assert all(bool((part == gpu).all()) for gpu, part in enumerate(parts))
        del x, parts
        if n % 10 == 9:
            torch.cuda.empty_cache()
    torch.manual_seed(number)
    net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2048, 2048).to(device), device_ids=[number])
    for _ in range(5):
        net(torch.randn(64, 2048, device=device)).square().mean().backward()
    mine = net.module.weight.grad
    other = mine.clone()
    dist.all_reduce(other)
    assert torch.allclose(other / 2, mine, rtol=1e-5, atol=1e-7), "gradients differ between the GPUs"
    try:
        pool = torch.cuda.MemPool()
        dist.group.WORLD._get_backend(device).register_mem_pool(pool)
        note = "registered buffers taken"
    except RuntimeError as error:
        note = "registered buffers refused: " + str(error).splitlines()[0]
    dist.barrier()
    dist.destroy_process_group()
    if number == 0:
        with open(f"{store}.note", "w") as file:
            file.write(note)


@feature
def evicted_memory_traps(torch):
    """a kernel that uses an evicted group, or with a trap one that is prefetched, ends with an illegal memory access"""
    program = """
import sys
import tilework.torch
tilework.torch.enable()
import torch
with tilework.torch.group("weights"):
    x = torch.ones(1 << 20, device="cuda")
torch.cuda.synchronize()
tilework.torch.set_trap(True)
tilework.torch.evict("weights")
if sys.argv[1] == "prefetched":
    tilework.torch.prefetch("weights")
if sys.argv[1] == "restored":
    tilework.torch.restore("weights")
try:
    assert x.sum().item() == 1 << 20
    print("right")
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""
    for state, expected in {"restored": "right", "evicted": "illegal memory", "prefetched": "illegal memory"}.items():
        run = subprocess.run([sys.executable, "-c", program, state], capture_output=True, text=True, timeout=120)
        if "no groups here" in run.stderr:
            raise Refused(run.stderr.strip().splitlines()[-1])
        assert expected in run.stdout, (state, run.stdout, run.stderr)


@feature
def executions(torch):
    """with execution(): around requests, one of which is captured; what a long one took is given back beside a graph"""
    if torch.cuda.get_allocator_backend() != "pluggable":
        raise Skipped("is Tilework's own")
    import tilework.torch

    weight = torch.randn(1000, 1000, device="cuda")

    def request(rows):
        with tilework.torch.execution():
            x = torch.ones(rows, 1000, device="cuda")
            for _ in range(4):
                x = (x @ weight).relu().div(100)
            return x.sum(dim=0)

    request(1000)
    expected = request(1000)
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        request(1000)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        captured = request(1000)
    graph.replay()
    before = torch.cuda.memory_reserved()
    request(1_000_000)
    high = torch.cuda.memory_reserved()
    for _ in range(10):
        assert torch.equal(request(1000), expected)
        graph.replay()
        assert torch.allclose(captured, expected, rtol=1e-3)
    torch.cuda.synchronize()
    # A thread of its own gives it back.
    for _ in range(100):
        if torch.cuda.memory_reserved() <= 2 * before:
            break
        time.sleep(0.05)
    after = torch.cuda.memory_reserved()
    assert high > 4000 * MIB and after <= 2 * before, (before, high, after)
    return f"{before >> 20} MiB held, {high >> 20} with the long one, {after >> 20} afterwards"


@feature
def nccl(torch):
    """two processes, a GPU each: all_reduce and all_gather of many sizes, DistributedDataParallel, registered buffers"""
    two_gpus(torch)
    import os
    import tempfile

    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        allocator = "tilework" if torch.cuda.get_allocator_backend() == "pluggable" else "default"
        mp.spawn(rank, (store, allocator), nprocs=2)
        with open(f"{store}.note") as file:
            return file.read()


def child(name, allocator):
    import torch

    if allocator == "tilework":
        import tilework.torch

        tilework.torch.enable()
    began, row = time.perf_counter(), {"feature": name}
    try:
        row["note"] = FEATURES[name](torch) or ""
        torch.cuda.synchronize()
        row["result"] = "works"
    except Refused as refused:
        row.update(result="refuses", note=str(refused))
    except Skipped as skipped:
        row.update(result="skips", note=str(skipped))
    except BaseException as error:
        sentence = isinstance(error, RuntimeError) and re.search("Tilework|luggable|pytorch", str(error))
        row.update(result="refuses" if sentence else "FAILS", note=f"{type(error).__name__}: {error}")
    row["seconds"] = round(time.perf_counter() - began, 2)
    print(json.dumps(row))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", nargs="*", help="parts of names; all when none is given")
    parser.add_argument("--allocator", choices=["tilework", "default"], default="tilework")
    parser.add_argument("--json", help="append the rows to this file, one object a line")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.allocator)

    chosen = [n for n in FEATURES if not options.features or any(part in n for part in options.features)]
    failed = False
    print(f"{'feature':28}{'result':10}{'seconds':>8}  note")
    for name in chosen:
        command = [sys.executable, __file__, "--child", name, "--allocator", options.allocator]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=180)
            row = json.loads(run.stdout.strip().splitlines()[-1])
        except (IndexError, ValueError):
            tail = " ".join(run.stderr.split()[-30:])
            row = {"feature": name, "result": "FAILS", "seconds": 0, "note": f"ended with {run.returncode}: {tail}"}
        except subprocess.TimeoutExpired:
            row = {"feature": name, "result": "FAILS", "seconds": 180, "note": "did not end"}
        row["allocator"], row["what"] = options.allocator, FEATURES[name].__doc__
        failed |= row["result"] == "FAILS"
        print(f"{name:28}{row['result']:10}{row['seconds']:8.1f}  {row['note'].splitlines()[0][:150] if row['note'] else ''}", flush=True)
        if options.json:
            with open(options.json, "a") as rows:
                rows.write(json.dumps(row) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
