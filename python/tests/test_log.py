"""What the library logs, in Python: each test is a program of its own."""

import os
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

START = """
import ctypes, logging, os, sys, threading, time
from tilework import _log, _managers
from tilework._library import Error, LIB, Options, call
MIB = 1 << 20
def gpu(device=None, limit=0):
    options = Options(size=ctypes.sizeof(Options), device=device, limit_bytes=limit)
    call("tilework_torch_configure", ctypes.byref(options))
    manager = ctypes.c_void_p()
    call("tilework_torch_manager", 0, ctypes.byref(manager))
    return manager
def until(seen):
    while not seen():
        time.sleep(0.001)
class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []
    def emit(self, record):
        self.lines.append((record.levelname, record.getMessage()))
"""


class Log(unittest.TestCase):
    def program(self, body, *arguments, **environment):
        """Runs it to its end, and returns what it wrote to stderr."""
        program = START + textwrap.dedent(body) + "\nprint('done')\n"
        result = subprocess.run(
            [sys.executable, *arguments, "-c", program],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.assertEqual((result.returncode, result.stdout[-5:]), (0, "done\n"), result.stdout + result.stderr)
        return result.stderr

    def test_what_happens_reaches_the_logger_by_its_level(self):
        told = self.program(
            """
            log = Lines()
            logging.getLogger("tilework").addHandler(log)
            logging.getLogger("tilework").setLevel(logging.INFO)
            _log.start()
            _log.start()
            assert [thread.name for thread in threading.enumerate()].count("tilework-log") == 1
            manager = gpu(b"host", 8 * MIB)
            until(lambda: log.lines)
            assert log.lines == [("INFO", "tiled serves, since the device host maps tiles")], log.lines
            assert _managers.serving(manager) == ("tiled", "tiled serves, since the device host maps tiles")
            trimmed = _managers.trim(manager)
            LIB.tilework_torch_alloc.restype = ctypes.c_void_p
            address = ctypes.c_void_p(LIB.tilework_torch_alloc(ctypes.c_size_t(4 * MIB), 0, None))
            LIB.tilework_torch_free(address, ctypes.c_size_t(4 * MIB), 0, None)
            logging.getLogger("tilework").setLevel(logging.DEBUG)
            released = _managers.trim(manager)
            line = ("DEBUG", f"trimmed: {released} bytes released")
            until(lambda: line in log.lines)
            stats = _managers.stats(manager)
            assert (stats["evictions"], stats["give_backs"], stats["spills"]) == (0, 0, 0), stats
            """
        )
        self.assertEqual(told, "")

    def test_a_filter_that_raises_ends_nothing(self):
        told = self.program(
            """
            def once(record, raised=[]):
                if not raised:
                    raised.append(True)
                    raise RuntimeError("a filter of the program's")
                return True
            logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
            logging.getLogger("tilework").addFilter(once)
            _log.start()
            manager = gpu(b"host")
            LIB.tilework_torch_alloc.restype = ctypes.c_void_p
            address = ctypes.c_void_p(LIB.tilework_torch_alloc(ctypes.c_size_t(4 * MIB), 0, None))
            LIB.tilework_torch_free(address, ctypes.c_size_t(4 * MIB), 0, None)
            _managers.trim(manager)
            """
        )
        self.assertIn("RuntimeError: a filter of the program's", told)
        self.assertRegex(told, r"tilework: trimmed: \d+ bytes released\n$")

    def test_nothing_is_printed_that_nobody_asked_for(self):
        self.assertEqual(self.program("_log.start(); gpu(b'host')"), "")

    def test_the_last_lines_are_told_at_the_end(self):
        told = self.program(
            """
            logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
            _log.start()
            gpu(b"host")
            """
        )
        self.assertEqual(told, "tilework: tiled serves, since the device host maps tiles\n")

    def test_a_gpu_that_is_not_tiled_is_warned_of_once(self):
        with tempfile.TemporaryDirectory() as folder:
            driver = ROOT / "crates/tilework-cli/tests/data/libcuda.c"
            library = Path(folder) / "libcuda.so.1"
            subprocess.run(["cc", "-w", "-shared", "-fPIC", "-o", str(library), str(driver)], check=True)
            program = """
                _log.start()
                manager = gpu()
                call("tilework_torch_manager", 0, ctypes.byref(manager))
                assert _managers.serving(manager).manager == "placed"
                """
            sentence = "RuntimeWarning: tilework: the device cuda cannot map tiles: the manager placed serves in place of tiled"
            environment = {"LD_LIBRARY_PATH": folder, "GPUS": "1"}
            self.assertEqual(self.program(program, **environment).count(sentence), 1)
            self.assertEqual(self.program(program, "-W", "error", **environment), "")

    def test_who_logs_waits_for_nobody(self):
        # The handler has the lock that it would deadlock with if it were called where memory is ordered.
        self.program(
            """
            class Allocates(logging.Handler):
                seen = 0
                def emit(self, record):
                    self.seen += record.getMessage().startswith("trimmed")
                    _managers.stats(manager)
                    with lock:
                        pass
            lock, handler = threading.Lock(), Allocates()
            logging.getLogger("tilework").addHandler(handler)
            logging.getLogger("tilework").setLevel(logging.DEBUG)
            manager = gpu(b"host")
            _log.start()
            LIB.tilework_torch_alloc.restype = ctypes.c_void_p
            def work():
                for _ in range(200):
                    address = ctypes.c_void_p(LIB.tilework_torch_alloc(ctypes.c_size_t(MIB), 0, None))
                    with lock:
                        LIB.tilework_torch_free(address, ctypes.c_size_t(MIB), 0, None)
                        _managers.trim(manager)
            threads = [threading.Thread(target=work) for _ in range(4)]
            [thread.start() for thread in threads]
            [thread.join() for thread in threads]
            until(lambda: handler.seen)
            """
        )

    def test_a_forked_child_has_no_log_and_ends(self):
        told = self.program(
            """
            logging.basicConfig(format="%(message)s")
            _log.start()
            child = os.fork()
            if child == 0:
                _log.start()
                try:
                    call("tilework_set_log", 4)
                except Error as error:
                    assert "forked" in str(error)
                    sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            """
        )
        self.assertEqual(told, "")


if __name__ == "__main__":
    unittest.main()
