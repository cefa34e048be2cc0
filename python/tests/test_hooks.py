"""The hooks as PyTorch calls them, without PyTorch: on the device "host", in C's terms."""

import ctypes
import os
import tempfile
import threading
import unittest
from pathlib import Path

from tilework._library import Error, LIB, Options, call

MIB = 1 << 20
VOID = ctypes.c_void_p

alloc = LIB.tilework_torch_alloc
alloc.restype, alloc.argtypes = VOID, [ctypes.c_size_t, ctypes.c_int, VOID]
free = LIB.tilework_torch_free
free.restype, free.argtypes = None, [VOID, ctypes.c_size_t, ctypes.c_int, VOID]
base = LIB.tilework_torch_base_alloc
base.restype, base.argtypes = VOID, [VOID, ctypes.POINTER(ctypes.c_size_t)]
LIB.tilework_torch_record_stream.argtypes = [VOID, VOID]
for name in ("begin_allocate_to_pool", "end_allocate_to_pool", "release_pool"):
    pool = [ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64]
    getattr(LIB, f"tilework_torch_{name}").argtypes = pool + [VOID] * (name[0] == "b")


def setUpModule():
    options = Options(size=ctypes.sizeof(Options), device=b"host")
    call("tilework_torch_configure", ctypes.byref(options))
    LIB.tilework_torch_init(2)


class Function(ctypes.Structure):
    """std::function<bool(cudaStream_t)> in libstdc++, with its functions in Python."""

    MANAGER = ctypes.CFUNCTYPE(ctypes.c_bool, VOID, VOID, ctypes.c_int)
    INVOKER = ctypes.CFUNCTYPE(ctypes.c_bool, VOID, ctypes.POINTER(VOID))
    _fields_ = [("functor", VOID * 2), ("manager", MANAGER), ("invoker", INVOKER)]

    def __init__(self, accepts):
        super().__init__()
        self.copies, self.asked, self.functor[0] = 0, [], 42

        def manage(to, source, operation):
            if operation == 2:
                Function.from_address(to).functor[0] = Function.from_address(source).functor[0]
                self.copies += 1
            elif operation == 3:
                self.copies -= 1
            return False

        def invoke(function, stream):
            self.asked.append((Function.from_address(function).functor[0], stream[0]))
            return accepts(stream[0])

        self.manager, self.invoker = self.MANAGER(manage), self.INVOKER(invoke)


class Hooks(unittest.TestCase):
    def figures(self):
        numbers = (ctypes.c_int64 * 122)()
        call("tilework_torch_stats", 0, numbers, 122)
        return numbers

    def test_blocks_keep_their_contents_until_they_are_freed(self):
        blocks = []
        for n in range(1, 40):
            at, size = alloc(n * 70_001, 0, n % 3), n * 70_001
            ctypes.memset(at, n, size)
            blocks.append((at, size, n))
        for at, size, n in blocks:
            self.assertEqual(ctypes.string_at(at, size), bytes([n]) * size)
            free(at, size, 0, n % 3)

    def test_nothing_is_asked_for_and_given_back(self):
        self.assertIsNone(alloc(0, 0, None))
        free(None, 0, 0, None)

    def test_the_figures_follow_requests(self):
        before = list(self.figures())
        at = alloc(3 * MIB, 0, None)
        during = list(self.figures())
        free(at, 3 * MIB, 0, None)
        after = list(self.figures())
        # allocation.all, then allocated_bytes.all and .large_pool.
        self.assertEqual(during[0] - before[0], 1)
        self.assertEqual(during[48] - before[48], 3 * MIB)
        self.assertEqual(during[56] - before[56], 3 * MIB)
        self.assertEqual(after[48], before[48])
        self.assertGreaterEqual(after[49], before[48] + 3 * MIB)
        self.assertGreaterEqual(during[60], 3 * MIB, "reserved")
        self.assertEqual(after[121], -1)
        with self.assertRaisesRegex(Error, "122"):
            call("tilework_torch_stats", 0, self.figures(), 100)

    def test_the_figures_of_a_gpu_that_is_not_there_are_refused(self):
        numbers = (ctypes.c_int64 * 122)()
        for device in (-1, 2, 127, 128, 2**31 - 1):
            words = f"Invalid device argument {device}: did you call init. PyTorch has 2 GPUs"
            for name, out in (("stats", (numbers, 122)), ("reset_peaks", ()), ("reset_accumulated", ())):
                with self.assertRaisesRegex(Error, words):
                    call(f"tilework_torch_{name}", device, *out)
            with self.assertRaisesRegex(Error, words):
                call("tilework_torch_fraction", device, ctypes.byref(ctypes.c_double()))

    def test_an_address_inside_a_block_leads_to_its_start(self):
        at, size = alloc(MIB, 0, None), ctypes.c_size_t()
        self.assertEqual(base(at + 5000, ctypes.byref(size)), at)
        self.assertEqual(size.value, MIB)
        LIB.tilework_torch_record_stream(at, 7)
        free(at, MIB, 0, None)
        LIB.tilework_torch_record_stream(at, 7)

    def test_what_is_freed_twice_or_is_not_ours_does_nothing(self):
        kept, freed = alloc(MIB, 0, None), alloc(MIB, 0, None)
        ctypes.memset(kept, 7, MIB)
        free(freed, MIB, 0, None)
        before = list(self.figures())
        ours = ctypes.create_string_buffer(b"not Tilework's", 4096)
        foreign = ctypes.addressof(ours)
        # The last one is a block, of another GPU.
        for at, device in ((freed, 0), (foreign, 0), (16, 0), (kept + 4096, 0), (2**64 - 1, 0), (kept, 1)):
            free(at, MIB, device, None)
            if at != kept:
                LIB.tilework_torch_record_stream(at, 7)
        self.assertEqual(list(self.figures()), before)
        size = ctypes.c_size_t(5)
        self.assertEqual((base(foreign, ctypes.byref(size)), size.value), (foreign, 5))
        self.assertEqual(base(foreign, None), foreign)
        self.assertEqual(ours.value, b"not Tilework's")
        again = alloc(MIB, 0, None)
        ctypes.memset(again, 8, MIB)
        self.assertEqual(ctypes.string_at(kept, MIB), bytes([7]) * MIB)
        for at in (again, kept):
            free(at, MIB, 0, None)

    def test_a_filter_is_copied_asked_and_destroyed(self):
        function = Function(lambda stream: stream == 7)
        LIB.tilework_torch_begin_allocate_to_pool(0, 5, 6, ctypes.byref(function))
        self.assertEqual(function.copies, 1)
        inside, outside = alloc(MIB, 0, 7), alloc(MIB, 0, 8)
        self.assertEqual(function.asked, [(42, 7), (42, 8)])
        LIB.tilework_torch_end_allocate_to_pool(0, 5, 6)
        free(inside, MIB, 0, 7)
        free(outside, MIB, 0, 8)
        self.assertEqual(LIB.tilework_torch_pool_uses(0, 5, 6), 1)
        LIB.tilework_torch_release_pool(0, 5, 6)
        self.assertEqual(LIB.tilework_torch_pool_uses(0, 5, 6), 0)
        self.assertEqual(function.copies, 0)

    def test_an_empty_filter_and_none_let_everything_in(self):
        for filter in (None, ctypes.byref(ctypes.create_string_buffer(32))):
            LIB.tilework_torch_begin_allocate_to_pool(0, 9, 9, filter)
            free(alloc(MIB, 0, None), MIB, 0, None)
            LIB.tilework_torch_end_allocate_to_pool(0, 9, 9)
            LIB.tilework_torch_release_pool(0, 9, 9)

    def test_threads_allocate_at_once(self):
        wrong = []

        def work(seed):
            for n in range(300):
                size = 1 + (seed * 7919 + n * 104729) % 300_000
                at = alloc(size, 0, seed)
                ctypes.memset(at, seed, size)
                if ctypes.string_at(at, size) != bytes([seed]) * size:
                    wrong.append((seed, n))
                free(at, size, 0, seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def test_a_forked_child_does_nothing(self):
        at = alloc(MIB, 0, None)
        child = os.fork()
        if child == 0:
            free(at, MIB, 0, None)
            LIB.tilework_torch_reset()
            numbers = (ctypes.c_int64 * 122)()
            os._exit(LIB.tilework_torch_stats(0, numbers, 122))
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 6)
        free(at, MIB, 0, None)

    def test_each_gpu_is_recorded_in_a_trace_of_its_own(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.csv.gz"
            call("tilework_torch_record_start", os.fsencode(path))
            with self.assertRaisesRegex(Error, "already"):
                call("tilework_torch_record_start", os.fsencode(path))
            for device in (0, 1):
                free(alloc(MIB, device, None), MIB, device, None)
            call("tilework_torch_record_stop")
            call("tilework_torch_record_stop")
            self.assertEqual({p.name for p in Path(folder).iterdir()}, {"run.csv.gz", "run.gpu1.csv.gz"})

    def test_options_come_before_the_first_tensor(self):
        free(alloc(1, 0, None), 1, 0, None)
        options = Options(size=ctypes.sizeof(Options), device=b"host", limit_bytes=MIB)
        with self.assertRaisesRegex(Error, "before the first tensor"):
            call("tilework_torch_configure", ctypes.byref(options))


if __name__ == "__main__":
    unittest.main()
