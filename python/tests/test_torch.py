"""PyTorch itself under Tilework, its GPUs faked: each test is a program of its own."""

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

    def program(self, body, start=""):
        source = START + start + textwrap.dedent(body) + "\nprint('done')\n"
        result = fake_cuda.run(source, self.environment)
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
            assert not torch.cuda.is_initialized()
            """
        )
        self.program(
            """
            torch.empty(1, device="cuda")
            refused(RuntimeError, "before the first CUDA tensor", tilework.torch.enable)
            """
        )

    def test_statistics(self):
        self.both(
            """
            native = torch.cuda.memory_stats
            tilework.torch.enable(device="host")
            small, large = tensor(1000), tensor(3 * MIB)
            stats = torch.cuda.memory_stats()
            assert len(stats) == 122, len(stats)
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
            assert torch.cuda.memory_stats()["allocation.all.allocated"] == 0
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
            tilework.torch.enable(device="host")
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
