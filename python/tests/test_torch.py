"""PyTorch itself under Tilework, its GPUs faked: each test is a program of its own."""

import os
import tempfile
import textwrap
import unittest
from pathlib import Path

import fake_cuda

MISSING = fake_cuda.missing()

START = """
import sys, threading, warnings
import torch, tilework.torch
from tilework import _library
MIB = 1 << 20
def refused(kind, words, body):
    try:
        body()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"no {kind.__name__}: {words}")
def tensor(bytes):
    return torch.empty(bytes, dtype=torch.uint8, device="cuda")
"""
# As on a version of PyTorch whose tables look different.
UNPATCHED = "_library.LIB.tilework_torch_patch = lambda: 0\n"


@unittest.skipIf(MISSING, MISSING)
class Torch(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.environment = fake_cuda.build(Path(cls.folder.name))

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def program(self, body, start="", environment=None):
        source = START + start + textwrap.dedent(body) + "\nprint('done')\n"
        result = fake_cuda.run(source, environment or self.environment)
        self.assertEqual((result.returncode, result.stdout[-5:]), (0, "done\n"), result.stdout + result.stderr)

    def both(self, body):
        """With the virtual table and without."""
        for start in ("", UNPATCHED):
            with self.subTest(start=start):
                self.program(body, start)

    def test_everything_is_patched_on_the_version_it_was_written_for(self):
        self.program(
            """
            if torch.__version__.startswith("2.11."):
                real = _library.LIB.tilework_torch_patch
                done = []
                _library.LIB.tilework_torch_patch = lambda: done.append(real()) or done[0]
                tilework.torch.enable(device="host")
                assert done == [31], done
                assert _library.LIB.tilework_torch_throws_out_of_memory()
            """
        )

    def test_enabling(self):
        self.program(
            """
            refused(RuntimeError, "enable() was not called", tilework.torch.stats)
            refused(RuntimeError, "nowhere", lambda: tilework.torch.enable(manager="nowhere"))
            tilework.torch.enable(device="host", limit=64 * MIB)
            tilework.torch.enable(device="host", limit=64 * MIB)
            refused(RuntimeError, "other arguments", tilework.torch.enable)
            assert torch.cuda.get_allocator_backend() == "pluggable"
            assert tilework.torch.serving().manager == "tiled"
            assert not torch.cuda.is_initialized()
            """
        )
        self.program(
            """
            torch.empty(1, device="cuda")
            refused(RuntimeError, "before the first CUDA tensor", tilework.torch.enable)
            """
        )

    def test_options(self):
        for heap_age, executions in ((1, 2), (3, 4), (None, 6)):
            self.program(
                f"""
                tilework.torch.enable(device="host", heap_size=8 * MIB, heap_age={heap_age})
                kept, burst = tensor(1), tensor(20 * MIB)
                assert tilework.torch.stats()["held"] < 24 * MIB, "grown by what lacks, not by what heaps are long by default"
                del burst
                count = 0
                while tilework.torch.stats()["held"] > 8 * MIB:
                    tilework.torch.end_of_execution()
                    count += 1
                assert count == {executions}, count
                """
            )
        self.program(
            """
            from tilework import _managers
            for wrong in ({"limit": 0}, {"heap_size": -1}, {"heap_age": 0}, {"mapping_age": 1 << 32}):
                refused(ValueError, next(iter(wrong)) + " is to be from 1", lambda: tilework.torch.enable(device="host", **wrong))
            refused(TypeError, "float", lambda: tilework.torch.enable(device="host", limit=1e9))
            tilework.torch.enable(device="host", mapping_age=7)
            refused(RuntimeError, "other arguments", lambda: tilework.torch.enable(device="host", mapping_age=8))
            def given(age):
                options = _managers.options(None, None, None, age)
                options.device = b"host"
                _library.call("tilework_torch_configure", options)
            given(7)
            refused(RuntimeError, "with other options already", lambda: given(8))
            refused(ValueError, "limit is to be from 1", lambda: tilework.torch.set_limit(-1))
            """
        )

    def test_an_unchanged_training_program_gives_a_burst_back(self):
        self.program(
            """
            def burst_and_steps(steps, *optimizers):
                kept, burst = tensor(1), tensor(20 * MIB)
                del burst
                count = 0
                while tilework.torch.stats()["held"] > 8 * MIB and count < 99:
                    for optimizer in optimizers: optimizer.step()
                    count += 1
                    steps()
                return count
            def optimizer():
                parameter = torch.nn.Parameter(torch.ones(4))
                parameter.grad = torch.ones(4)
                return torch.optim.SGD([parameter], lr=0.1)
            nothing = lambda: None
            refused(ValueError, "steps is to be from 1", lambda: tilework.torch.enable(device="host", steps=0))
            tilework.torch.enable(device="host", heap_size=8 * MIB, heap_age=2, steps=4)
            one = optimizer()
            for _ in range(9): one.step()
            tilework.torch.end_of_execution()
            # Three executions, each over with the next one's first step.
            assert burst_and_steps(nothing, one) == 13
            tilework.torch.end_of_execution()
            # Two by turns, and one for each parameter.
            assert burst_and_steps(nothing, one, *(optimizer() for _ in range(30))) == 13
            # Who tells the clock himself has no other.
            tilework.torch.end_of_execution()
            told = iter(range(99))
            assert burst_and_steps(lambda: next(told) % 3 == 2 and tilework.torch.end_of_execution(), one) == 9
            # A compiled step is not counted, and compiles as without.
            tilework.torch.end_of_execution()
            compiled = torch.compile(lambda: one.step(), backend="eager")
            before = one.param_groups[0]["params"][0].clone()
            assert burst_and_steps(compiled) == 99
            assert not torch.equal(before, one.param_groups[0]["params"][0])
            """
        )
        self.program(
            """
            tilework.torch.enable(device="host", heap_size=8 * MIB, heap_age=1, steps=None)
            from torch.optim import optimizer
            assert not optimizer._global_optimizer_post_hooks
            """
        )

    def test_executions_are_blocks_or_functions(self):
        self.program(
            """
            import os
            def age(body):
                kept, burst = tensor(1), tensor(20 * MIB)
                del burst
                count = 0
                while tilework.torch.stats()["held"] > 8 * MIB and count < 9:
                    body()
                    count += 1
                return count
            @tilework.torch.execution()
            def request():
                return 7
            refused(RuntimeError, "enable() was not called", request)
            tilework.torch.enable(device="host", heap_size=8 * MIB, heap_age=2)
            with tilework.torch.execution():
                assert not torch.cuda.is_initialized()
            def fails():
                try: tilework.torch.execution()(lambda: 1 / 0)()
                except ZeroDivisionError: pass
            def nested():
                with tilework.torch.execution():
                    for _ in range(5): assert request() == 7
            for body in (request, nested, fails):
                assert age(body) == 3, body
            # On every GPU.
            away = torch.empty(20 * MIB, dtype=torch.uint8, device="cuda:1")
            del away
            for _ in range(3): request()
            assert tilework.torch.stats(1)["held"] == 0
            # Threads, and what runs by turns on one, have executions of their own.
            import asyncio
            async def overlapping():
                async def one(naps):
                    with tilework.torch.execution():
                        for _ in range(naps): await asyncio.sleep(0)
                await asyncio.gather(one(1), one(3))
            assert age(lambda: asyncio.run(overlapping())) == 2
            # Not while a graph is captured.
            calls = []
            real = _library.LIB.tilework_end_of_execution
            _library.LIB.tilework_end_of_execution = lambda manager: calls.append(real(manager)) or calls[-1]
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                request()
                assert not calls
            request()
            assert calls == [0, 0]
            # A GPU that has failed is told of by what needs it.
            _library.LIB.tilework_end_of_execution = lambda manager: 4
            assert request() == 7
            child = os.fork()
            if child == 0:
                _library.LIB.tilework_end_of_execution = calls.append
                os._exit(0 if request() == 7 and len(calls) == 2 else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            """
        )

    def test_the_profiler_is_told_of_memory(self):
        self.both(
            """
            from torch.profiler import ProfilerActivity, profile
            tilework.torch.enable(device="host")
            kept = [tensor(1000)]
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                kept.append(tensor(3 * MIB))
                tensor(5 * MIB)
            usage = {event.key: event.self_device_memory_usage for event in profiled.key_averages()}
            assert usage["aten::empty"] == 8 * MIB and usage["[memory]"] == -5 * MIB, usage
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                tensor(5 * MIB)
            assert not any(event.self_device_memory_usage for event in profiled.key_averages())
            """
        )

    def test_groups_leave_and_come_back(self):
        self.program(
            """
            import tempfile
            tilework.torch.enable(device="host", limit=40 * MIB)
            group = tilework.torch.group("unet")
            assert tilework.torch.group("unet") is group
            pattern = torch.arange(12 * MIB, dtype=torch.int64).to(torch.uint8)
            with group:
                weights = tensor(12 * MIB)
            weights.copy_(pattern)
            other = tensor(MIB)
            def contents():
                return torch.equal(weights.cpu(), pattern)
            for hosting in ({}, {"pinned": 64 * MIB}, {"directory": tempfile.gettempdir()}):
                tilework.torch.set_hosting(**hosting)
                assert tilework.torch.evict("unet") >= 12 * MIB
                stats = group.stats()
                assert (stats["residence"], stats["held"], stats["live"]) == ("evicted", 0, 12 * MIB), stats
                assert tilework.torch.evict("unet") == 0
                group.prefetch()
                assert tilework.torch.restore("unet") >= 12 * MIB and contents()
                assert tilework.torch.restore("unet") == 0
            with group:
                more = tensor(MIB)
                group.evict()
                refused(RuntimeError, "restore it first", lambda: tensor(1))
            refused(torch.OutOfMemoryError, "CUDA out of memory", lambda: tensor(41 * MIB))
            big = tensor(30 * MIB)
            refused(torch.OutOfMemoryError, "out of memory", group.restore)
            del big
            group.restore()
            assert contents()
            refused(RuntimeError, "pinned", lambda: tilework.torch.set_limit(MIB))
            # Nothing of what was not let go is evicted for want of memory.
            refused(torch.OutOfMemoryError, "CUDA out of memory", lambda: tensor(30 * MIB))
            with group.resident():
                refused(RuntimeError, "pinned", group.evict)
            assert group.stats()["residence"] == "resident" and contents()
            group.evict()
            del weights, more
            assert group.stats()["kept"] == 0
            """
        )

    def test_managed_modules_make_room_for_each_other(self):
        self.program(
            """
            from torch import nn
            tilework.torch.enable(device="host", limit=20 * MIB)
            class Part(nn.Module):
                def __init__(self, value):
                    super().__init__()
                    self.weights = nn.Parameter(torch.full((3 * MIB,), float(value)))
                def forward(self):
                    return self.weights.cpu()[:: MIB // 2]
                def decode(self):
                    return self()
            parts = [Part(value) for value in range(4)]
            kept = [part.weights for part in parts]
            groups = [tilework.torch.manage(part) for part in parts]
            assert [group.name for group in groups] == ["Part-0", "Part-1", "Part-2", "Part-3"]
            assert all(part.weights is weight and weight.is_cuda for part, weight in zip(parts, kept))
            for _ in range(3):
                for value, part in enumerate(parts):
                    with torch.no_grad():
                        assert torch.equal(part.decode(), torch.full((6,), float(value)))
            stats = [group.stats() for group in groups]
            assert all(figures["restores"] >= 2 and figures["pins"] == 0 for figures in stats), stats
            assert sum(figures["residence"] == "resident" for figures in stats) == 1, stats
            assert tilework.torch.stats()["held"] <= 20 * MIB
            refused(RuntimeError, "backward", parts[0])
            refused(KeyError, "no group 'typo'", lambda: tilework.torch.evict("typo"))
            import copy
            tilework.torch.set_limit(30 * MIB)
            with torch.no_grad():
                with groups[2].resident():
                    twin = copy.deepcopy(parts[2])
                twin.weights.copy_(torch.full((3 * MIB,), 9.0))
                assert twin()[0] == 9 and parts[2]()[0] == 2
                del twin
            class Frozen(nn.Linear):
                def encode(self, count):
                    for _ in range(count):
                        yield self.weight
                async def decode(self):
                    pass
            refused(RuntimeError, "coroutine", lambda: tilework.torch.manage(Frozen(2, 2), "frozen"))
            frozen = Frozen(2, 2).requires_grad_(False)
            group = tilework.torch.manage(frozen, "frozen", methods=("forward", "encode"))
            refused(RuntimeError, "backward", lambda: frozen(torch.ones(2, requires_grad=True)))
            assert [group.stats()["pins"] for _ in frozen.encode(2)] == [1, 1] and group.stats()["pins"] == 0
            with group.resident():
                refused(RuntimeError, "pinned", group.evict)
            assert group.stats()["pins"] == 0
            with torch.inference_mode():
                with tilework.torch.group("made in place"):
                    part = Part(7).cuda()
                there = part.weights.data_ptr()
                group = tilework.torch.manage(part, "made in place")
                moved = tilework.torch.manage(Part(8))
                assert part.weights.data_ptr() == there and group.stats()["live"] == 12 * MIB
                assert part()[0] == 7 and moved.name == "Part-4"
            """
        )

    def test_a_group_is_removed_and_its_name_used_again(self):
        self.program(
            """
            tilework.torch.enable(device="host")
            group = tilework.torch.group("unet")
            with group:
                here, there = tensor(MIB), torch.empty(MIB, dtype=torch.uint8, device="cuda:1")
            refused(RuntimeError, "unet", group.remove)
            group.release()
            del here
            # Gone from one GPU, and in use on the other.
            refused(RuntimeError, "unet", group.remove)
            assert group.stats("cuda:1")["live"] == MIB and tilework.torch.group("unet") is group
            assert group.evict("cuda:1") >= MIB
            refused(RuntimeError, "unet", group.remove)
            del there
            with group.resident():
                refused(RuntimeError, "pinned", group.remove)
            group.release()
            for _ in range(2):
                group.remove()
            assert tilework.torch.stats("cuda:1")["kept"] == 0
            refused(RuntimeError, "group('unet') was removed", group.stats)
            refused(RuntimeError, "was removed", group.__enter__)
            refused(KeyError, "no group 'unet'", lambda: tilework.torch.evict("unet"))
            again = tilework.torch.group("unet")
            assert again is not group and again.stats()["pins"] == 1, again.stats()
            for round in range(3):
                with again:
                    x = torch.full((MIB,), round, dtype=torch.int32).cuda()
                assert again.evict() >= 4 * MIB and again.restore() >= 4 * MIB
                assert (x.cpu() == round).all() and again.stats()["evictions"] == 1, again.stats()
                del x
                again.remove()
                again = tilework.torch.group("unet")
            """
        )

    def test_a_managed_module_takes_its_group_along(self):
        self.program(
            """
            import copy, gc
            from torch import nn
            tilework.torch.enable(device="host")
            def module():
                return nn.Linear(512, 512, bias=False).requires_grad_(False)
            names = []
            for _ in range(3):
                part = module()
                values = part.weight.clone()
                group = tilework.torch.manage(part)
                names.append(group.name)
                group.evict()
                with group.resident():
                    assert torch.equal(part.weight.cpu(), values)
                group.evict()
                del part
                gc.collect()
            assert names == ["Linear-0"] * 3, names
            assert tilework.torch.stats()["live"] == 0 == tilework.torch.stats()["kept"], tilework.torch.stats()
            refused(KeyError, "no group", lambda: tilework.torch.evict("Linear-0"))
            refused(RuntimeError, "was removed", group.stats)
            # What is live of the group keeps its name, and can still be brought back.
            part = module()
            group, weight = tilework.torch.manage(part, "unet"), part.weight
            refused(ValueError, "a managed module 'unet' already", lambda: tilework.torch.manage(module(), "unet"))
            group.evict()
            del part
            gc.collect()
            refused(ValueError, "or something of one", lambda: tilework.torch.manage(module(), "unet"))
            assert group.restore() == MIB
            del weight
            class Half(nn.Linear):
                def forward(self, x):
                    return self.weight.cpu()[: x]
            # A copy lives on by itself.
            part = Half(512, 512, bias=False).requires_grad_(False)
            other = tilework.torch.manage(part, "unet")
            assert group.removed and other.stats()["live"] == MIB
            with other.resident():
                twin = copy.deepcopy(part)
            values = part(256)
            del part
            gc.collect()
            tilework.torch.group("another")
            assert other.removed and torch.equal(twin(256), values)
            import inspect
            assert list(inspect.signature(twin.forward).parameters) == ["x"]
            # Made by hand, it stays.
            by_hand = tilework.torch.group("by hand")
            with by_hand:
                part = module().cuda()
            assert tilework.torch.manage(part, "by hand") is by_hand
            del part
            gc.collect()
            assert tilework.torch.group("by hand") is by_hand and not by_hand.removed
            """
        )

    def test_contents_may_be_dropped_or_are_constant(self):
        self.program(
            """
            from torch import nn
            tilework.torch.enable(device="host")
            group = tilework.torch.group("cache")
            with group:
                cache = tensor(4 * MIB)
            place = cache.data_ptr()
            assert tilework.torch.discard("cache") >= 4 * MIB
            figures = group.stats()
            assert (figures["residence"], figures["kept"], figures["bytes_out"]) == ("evicted", 0, 0), figures
            assert tilework.torch.discard(group) == 0 == tilework.torch.restore("cache")
            assert cache.data_ptr() == place and group.stats()["live"] == 4 * MIB
            cache.copy_(torch.full((4 * MIB,), 7, dtype=torch.uint8))
            assert group.evict() >= 4 * MIB and group.restore() >= 4 * MIB and (cache.cpu() == 7).all()
            class Part(nn.Linear):
                def forward(self):
                    return self.weight.cpu()
            for constant in (True, False):
                part = Part(512, 512, bias=False).requires_grad_(False)
                values = part.weight.clone()
                group = tilework.torch.manage(part, constant=constant)
                for round in range(1, 4):
                    assert group.evict() >= MIB and torch.equal(part(), values)
                    figures = group.stats()
                    assert figures["bytes_out"] == (MIB if constant else round * MIB), figures
                    assert figures["kept"] == (MIB if constant else 0) and figures["restores"] == round, figures
            """
        )

    def test_memory_of_the_host_where_nothing_else_is_left(self):
        self.program(
            """
            tilework.torch.enable(device="host", limit=16 * MIB)
            first = tensor(12 * MIB)
            refused(torch.OutOfMemoryError, "CUDA out of memory", lambda: tensor(12 * MIB))
            tilework.torch.set_spill()
            second = tensor(12 * MIB)
            pattern = torch.arange(12 * MIB, dtype=torch.int64).to(torch.uint8)
            for x in (first, second): x.copy_(pattern)
            figures = tilework.torch.stats()
            assert figures["spilled"] >= 8 * MIB and figures["held"] <= 16 * MIB, figures
            assert all(torch.equal(x.cpu(), pattern) for x in (first, second))
            del second, x
            tilework.torch.trim()
            assert tilework.torch.stats()["spilled"] == 0
            tilework.torch.set_spill(False)
            refused(torch.OutOfMemoryError, "CUDA out of memory", lambda: tensor(12 * MIB))
            assert torch.equal(first.cpu(), pattern)
            """
        )

    def test_memory_comes_in_heaps_as_long_as_was_said(self):
        for heap_size, held in (("2 * MIB", 2), ("None", 16)):
            self.program(
                f"""
                tilework.torch.enable(device="host", heap_size={heap_size})
                tensor(16 * MIB)
                kept = tensor(MIB)
                # A heap goes when nothing of it is in use.
                tilework.torch.trim()
                assert tilework.torch.stats()["held"] == {held} * MIB, tilework.torch.stats()
                """
            )

    def test_a_gpu_that_is_not_there(self):
        self.program(
            """
            tilework.torch.enable(device="host")
            for device, name in (("cuda:9", "cuda:9"), (2, "cuda:2"), (-1, "cuda:-1"), (200, "cuda:200")):
                words = f"there is no {name}: the number of GPUs that PyTorch sees is 2"
                refused(ValueError, words, lambda: tilework.torch.stats(device))
            refused(ValueError, "there is no cuda:2", lambda: tilework.torch.manage(torch.nn.Linear(1, 1), device="cuda:2"))
            refused(ValueError, "there is no cuda:2", lambda: tilework.torch.group("a").stats("cuda:2"))
            refused(ValueError, "expected a cuda device", lambda: tilework.torch.trim("cpu"))
            for device in ("cuda:1", 1, torch.device("cuda", 1), torch.cuda.device(1)):
                assert tilework.torch.stats(device)["live"] == 0
            refused(ValueError, "there is no cuda:9", lambda: tilework.torch.stats(torch.cuda.device(9)))
            """
        )

    def test_no_gpu(self):
        # PyTorch for CUDA, with nothing preloaded: here is neither a driver nor a GPU.
        source = """
            tilework.torch.enable()
            assert torch.ones(3).sum() == 3 and not torch.cuda.is_available()
            refused(RuntimeError, "driver", lambda: tensor(1))
            for body in (tilework.torch.stats, tilework.torch.trim, lambda: tilework.torch.stats("cuda:9")):
                refused(RuntimeError, "no NVIDIA driver was found", body)
            with tilework.torch.execution(): pass
            """
        self.program(source, environment=dict(os.environ))
        # PyTorch for the CPU only.
        self.program(
            """
            del torch._C._cuda_customAllocator
            refused(RuntimeError, "this build of PyTorch has no CUDA", tilework.torch.enable)
            refused(RuntimeError, "enable() was not called", tilework.torch.stats)
            """
        )

    def test_statistics(self):
        self.both(
            """
            from tilework import _hooks
            tilework.torch.enable(device="host")
            small, large = tensor(1000), tensor(3 * MIB)
            stats = torch.cuda.memory_stats()
            assert len(stats) == 122, len(stats)
            # The keys are PyTorch's also where the Python side makes them.
            assert _hooks.memory_stats(0) == torch._C._cuda_memoryStats(0)
            assert stats["allocated_bytes.all.current"] == 1000 + 3 * MIB
            assert stats["allocated_bytes.small_pool.current"] == 1000
            assert stats["allocation.large_pool.current"] == 1
            assert torch.cuda.memory_allocated() == 1000 + 3 * MIB
            assert torch.cuda.memory_reserved() == tilework.torch.stats()["held"] >= 3 * MIB
            del large
            assert torch.cuda.max_memory_allocated() == 1000 + 3 * MIB
            torch.cuda.reset_peak_memory_stats()
            assert torch.cuda.max_memory_allocated() == 1000
            torch.cuda.reset_accumulated_memory_stats()
            counted = torch.cuda.memory_stats()
            keys = [key for key in counted if key.endswith(("allocated", "freed")) or key.startswith("num_")]
            assert len(keys) == 63 and not any(counted[key] for key in keys), counted
            assert "CUDA memory summary" in torch.cuda.memory_summary()
            assert torch.accelerator.memory_allocated() == 1000
            torch.accelerator.reset_peak_memory_stats()
            torch.accelerator.empty_cache()
            torch.cuda.empty_cache()
            assert torch.cuda.memory_reserved() < 3 * MIB
            assert tilework.torch.trim() == 0
            tilework.torch.end_of_execution("cuda:0")
            """
        )

    def test_figures_of_a_gpu_that_is_not_there_or_not_used(self):
        self.both(
            """
            cuda, accelerator = torch.cuda, torch.accelerator
            figures = (cuda.memory_stats, cuda.memory_allocated, cuda.max_memory_allocated, cuda.memory_reserved,
                       cuda.max_memory_reserved, accelerator.memory_stats, accelerator.memory_reserved)
            resets = (cuda.reset_peak_memory_stats, cuda.reset_accumulated_memory_stats,
                      accelerator.reset_peak_memory_stats, accelerator.reset_accumulated_memory_stats)
            fractions = (cuda.get_per_process_memory_fraction,
                         lambda device: cuda.set_per_process_memory_fraction(0.5, device))
            def refused_by(functions, *devices):
                for function in functions:
                    for device in devices:
                        words = f"Invalid device argument {device}: did you call init?"
                        refused(RuntimeError, words, lambda: function(device))
            tilework.torch.enable(device="host")
            # As PyTorch's own allocator, before anything is initialised.
            assert not any(figure(9) for figure in figures)
            refused_by(resets, 0, 9)
            cuda.init()
            refused_by((*figures, cuda.memory_summary, *resets, *fractions), 2, 9, -1)
            # One that is there and was not used.
            stats = cuda.memory_stats(1)
            assert len(stats) == 122 and stats.pop("max_split_size") == -1 and not any(stats.values()), stats
            assert cuda.memory_summary(1) and cuda.get_per_process_memory_fraction(1) == 1.0
            for reset in resets: reset(1)
            # Nobody has opened it: it has no trace.
            import pathlib, tempfile
            with tempfile.TemporaryDirectory() as folder:
                with tilework.torch.record(f"{folder}/a.csv"):
                    x = tensor(MIB)
                    assert cuda.memory_allocated(0) == MIB and cuda.memory_allocated(1) == 0
                assert [path.name for path in pathlib.Path(folder).iterdir()] == ["a.csv"]
            """
        )

    def test_out_of_memory_is_torchs_own_error_and_passes(self):
        self.program(
            """
            tilework.torch.enable(device="host", limit=8 * MIB)
            kept = tensor(MIB)
            def ask(): tensor(64 * MIB)
            refused(torch.OutOfMemoryError, "CUDA out of memory", ask)
            raised = []
            def on_a_thread():
                try: ask()
                except torch.OutOfMemoryError as error: raised.append(error)
            thread = threading.Thread(target=on_a_thread); thread.start(); thread.join()
            assert len(raised) == 1
            tensor(4 * MIB)
            assert torch.cuda.memory_stats()["num_ooms"] == 2
            """
        )

    def test_the_fraction_of_memory(self):
        self.both(
            """
            tilework.torch.enable(device="host")
            torch.empty(1, device="cuda")
            torch.cuda.set_per_process_memory_fraction(0.5)
            assert torch.cuda.get_per_process_memory_fraction() == 0.5
            refused(RuntimeError, "from 0 to 1", lambda: torch._C._cuda_setMemoryFraction(2.0, 0))
            """
        )

    def test_a_fraction_leaves_a_limit_in_force(self):
        self.program(
            """
            tilework.torch.enable(device="host", limit=64 * MIB)
            tensor(32 * MIB)
            tilework.torch.set_limit(8 * MIB)
            torch.cuda.set_per_process_memory_fraction(1.0)
            refused(torch.OutOfMemoryError, "limit 8388608", lambda: tensor(48 * MIB))
            tilework.torch.set_limit(None)
            tensor(96 * MIB)
            """
        )

    def test_streams_and_two_gpus(self):
        self.program(
            """
            tilework.torch.enable(device="host")
            x = tensor(MIB)
            stream = torch.cuda.Stream()
            x.record_stream(stream)
            with torch.cuda.stream(stream):
                y = tensor(2 * MIB)
            del x, y
            z = torch.empty(MIB, dtype=torch.uint8, device="cuda:1")
            assert torch.cuda.memory_allocated(1) == MIB and torch.cuda.memory_allocated(0) == 0
            """
        )

    def test_a_stream_that_is_forgotten_leaves_its_memory_to_others(self):
        self.program(
            """
            import ctypes
            refused(RuntimeError, "enable() was not called", lambda: tilework.torch.forget_stream(None))
            tilework.torch.enable(device="host")
            tensor(1)
            queue = ctypes.create_string_buffer(1)
            stream = torch.cuda.ExternalStream(ctypes.addressof(queue))
            with torch.cuda.stream(stream):
                x = tensor(64 * MIB)
                del x
            assert tilework.torch.stats()["stock"] == 0
            tilework.torch.forget_stream(stream)
            assert tilework.torch.stats()["stock"] >= 64 * MIB
            """
        )

    def test_copies_arrive(self):
        self.program(
            """
            tilework.torch.enable(device="host")
            kept = []
            for n in range(50):
                x = torch.full((n * 5000 + 1,), n, dtype=torch.int32)
                kept.append((n, x.to("cuda")))
                if n % 3 == 0: kept.pop(0)
            for n, x in kept:
                assert (x.cpu() == n).all()
                assert (x.to("cuda:1").cpu() == n).all()
                assert (x.to("cuda:0", copy=True).cpu() == n).all()
            """
        )

    def test_memory_pools(self):
        self.program(
            """
            import inspect
            signature = inspect.signature(torch.cuda.MemPool)
            tilework.torch.enable(device="host")
            assert inspect.signature(torch.cuda.MemPool) == signature
            pool = torch.cuda.MemPool()
            assert pool.use_count() == 1
            with torch.cuda.use_mem_pool(pool):
                x = tensor(MIB)
            del x, pool
            plug = torch._C._cuda_getAllocator()
            refused(RuntimeError, "allocator of its own", lambda: torch.cuda.MemPool(plug))
            """
        )
        self.program(
            """
            tilework.torch.enable(device="host")
            refused(RuntimeError, "MemPool", torch.cuda.MemPool)
            """,
            UNPATCHED,
        )

    def test_a_graph_keeps_its_memory_until_it_is_gone(self):
        self.program(
            """
            import gc
            tilework.torch.enable(device="host")
            outside = tensor(MIB)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                x = tensor(MIB)
                place = x.data_ptr()
                del x
                out = tensor(2 * MIB)
            uses = lambda: _library.LIB.tilework_torch_pool_uses(0, *pool)
            pool = graph.pool()
            assert uses() == 1
            # What the graph used and freed is written again by every replay.
            others = [tensor(MIB) for _ in range(8)]
            assert all(y.data_ptr() != place for y in others)
            graph.replay()
            del out
            torch.cuda.empty_cache()
            assert torch.cuda.memory_reserved() >= 11 * MIB
            del graph
            gc.collect()
            assert uses() == 0
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            assert torch.cuda.memory_reserved() == 9 * MIB
            """
        )

    def test_benchmarks_of_convolutions(self):
        self.program(
            """
            tilework.torch.enable(device="host")
            torch.backends.cudnn.benchmark = True
            """
        )
        self.program(
            """
            tilework.torch.enable(device="host")
            def switch_on(): torch.backends.cudnn.benchmark = True
            refused(RuntimeError, "leave it off", switch_on)
            with torch.backends.cudnn.flags(enabled=True): pass
            torch.backends.cudnn.benchmark = False
            """,
            UNPATCHED,
        )

    def test_what_refuses_says_what_to_use(self):
        self.both(
            """
            tilework.torch.enable(device="host")
            torch.empty(1, device="cuda")
            refused(RuntimeError, "tilework.torch.record", torch.cuda.memory_snapshot)
            refused(RuntimeError, "tilework.torch.record", torch.cuda.memory._record_memory_history)
            torch.cuda.memory._record_memory_history(None)
            """
        )

    def test_recording(self):
        self.program(
            f"""
            from pathlib import Path
            path = Path({self.folder.name!r}) / "trace.csv.gz"
            tilework.torch.enable(device="host")
            with tilework.torch.record(path):
                tensor(MIB)
                assert not path.exists()
            assert path.exists()
            """
        )
        path = Path(self.folder.name) / "whole.csv.gz"
        self.program(
            f"""
            tilework.torch.enable(device="host", record={str(path)!r})
            tensor(MIB)
            """
        )
        self.assertTrue(path.exists(), "completed at the end of the process")

    def test_compiling_needs_no_trees(self):
        self.program(
            """
            tilework.torch.enable(device="host")
            assert "torch._inductor.compile_fx" not in sys.modules
            import torch._inductor.compile_fx as compile_fx
            assert not compile_fx.config.triton.cudagraph_trees
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for _ in range(2):
                    try: compile_fx.cudagraphify_impl(None, None)
                    except Exception: pass
            assert sum("graph trees" in str(w.message) for w in caught) == 1
            """
        )

    def test_a_forked_child_leaves_tensors_alone(self):
        self.program(
            """
            import os
            tilework.torch.enable(device="host")
            x = tensor(MIB)
            child = os.fork()
            if child == 0:
                del x
                torch._C._cuda_emptyCache()
                refused(RuntimeError, "forked", lambda: torch._C._cuda_cudaCachingAllocator_raw_alloc(64, 0))
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            """
        )


if __name__ == "__main__":
    unittest.main()
