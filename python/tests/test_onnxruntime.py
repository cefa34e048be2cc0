"""Stock ONNX Runtime under Tilework, on the CPU and, where there is one, on a GPU: each test is a program of its own."""

import ctypes
import os
import subprocess
import sys
import tempfile
import textwrap
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

try:
    import numpy  # noqa: F401
    import onnxruntime

    MISSING = None
    OLD = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 23)
except ImportError as error:
    MISSING, OLD = f"{error}: pip install onnxruntime", False



def no_gpu():
    """Why ONNX Runtime cannot run anything on a GPU here, if so."""
    if MISSING or OLD:
        return MISSING or "this ONNX Runtime is not served"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has no CUDA provider: pip install 'onnxruntime-gpu[cuda,cudnn]'"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver"
    return "the driver does not start" if driver.cuInit(0) else None


START = f"""
import gc, sys, threading
import numpy as np, onnxruntime as ort, tilework.onnxruntime as tw
CONV = {str(ROOT / "crates/tilework-ort/tests/data/conv.onnx")!r}
VAE = {str(ROOT / "models/sdxl-vae-decoder.onnx")!r}
MIB = 1 << 20
def session(model=CONV, options=None):
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
def picture(side):
    return {{"x": np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)}}
def refused(kind, words, body):
    try:
        body()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"no {{kind.__name__}}: {{words}}")
"""

# With kernels that give the same bits each time.
ON_A_GPU = """
if hasattr(ort, "preload_dlls"):
    ort.preload_dlls()
def gpu():
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.use_deterministic_compute = True
    provider = {"cudnn_conv_algo_search": "HEURISTIC"}
    return ort.InferenceSession(VAE, options, providers=[("CUDAExecutionProvider", provider)])
def latent(side):
    return {"latent": np.random.default_rng(0).standard_normal((1, 4, side, side)).astype(np.float32)}
"""


def run(program):
    return subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(program) + "\nprint('done')\n"],
        capture_output=True,
        text=True,
        timeout=180,
    )


class Programs(unittest.TestCase):
    def program(self, body):
        result = run(body)
        seen = (result.returncode, result.stdout[-5:], result.stderr)
        self.assertEqual(seen, (0, "done\n", ""), result.stdout + result.stderr)


@unittest.skipIf(MISSING, MISSING)
@unittest.skipUnless(OLD, "this ONNX Runtime is served")
class TooOld(Programs):
    def test_it_is_refused_with_the_version_that_does(self):
        self.program("refused(RuntimeError, '1.23 or later', tw.enable)")


@unittest.skipIf(MISSING, MISSING)
@unittest.skipIf(OLD, "this ONNX Runtime is too old to be served")
class Sessions(Programs):
    def test_outputs_are_the_same_to_the_bit_and_sessions_from_before_stay(self):
        self.program(
            """
            before = session()
            expected = before.run(None, picture(96))[0]
            tw.enable()
            # A session from before keeps what it has.
            before.run(None, picture(96))
            assert tw.stats()["allocations"] == 0
            served = session()
            for _ in range(4):
                assert served.run(None, picture(96))[0].tobytes() == expected.tobytes()
            figures = tw.stats("cpu")
            assert figures["peak_live"] >= 2 * 8 * 96 * 96 * 4, figures
            """
        )

    def test_the_vae_decoder(self):
        self.program(
            """
            latent = {"latent": np.random.default_rng(0).standard_normal((1, 4, 16, 16)).astype(np.float32)}
            # One at a time: the model's weights are large.
            plain = session(VAE)
            expected = plain.run(None, latent)[0]
            del plain
            tw.enable()
            served = session(VAE)
            for _ in range(2):
                assert served.run(None, latent)[0].tobytes() == expected.tobytes()
            figures = tw.stats()
            assert figures["peak_live"] > 40 * MIB, figures
            assert figures["peak_held"] < 1.05 * figures["peak_live"], figures
            """
        )

    def test_sessions_share_one_pool_and_give_everything_back(self):
        self.program(
            """
            tw.enable()
            first, second = session(), session()
            for _ in range(3):
                first.run(None, picture(128))
            alone = tw.stats()["peak_held"]
            for _ in range(3):
                second.run(None, picture(128))
                first.run(None, picture(128))
            assert tw.stats()["peak_held"] <= 1.1 * alone, (alone, tw.stats())
            output = first.run(None, picture(128))[0]
            before = output.tobytes()
            del first, second
            gc.collect()
            assert output.tobytes() == before
            del output
            gc.collect()
            tw.trim()
            assert tw.stats()["live"] == 0 == tw.stats()["held"], tw.stats()
            """
        )

    def test_running_out_of_memory_says_why_and_the_session_goes_on(self):
        self.program(
            """
            options = ort.SessionOptions()
            options.log_severity_level = 4
            tw.enable(limit=4 * MIB)
            served = session(options=options)
            small = served.run(None, picture(64))[0].tobytes()
            refused(Exception, "Tilework: out of memory", lambda: served.run(None, picture(512)))
            assert tw.stats()["ooms"] > 0
            assert served.run(None, picture(64))[0].tobytes() == small
            """
        )

    def test_threads_make_and_run_sessions(self):
        self.program(
            """
            expected = {side: session().run(None, picture(side))[0].tobytes() for side in (32, 64, 96)}
            tw.enable()
            wrong = []
            def work(side):
                for _ in range(3):
                    served = session()
                    wrong.extend(1 for _ in range(3) if served.run(None, picture(side))[0].tobytes() != expected[side])
            threads = [threading.Thread(target=work, args=(side,)) for side in expected for _ in range(2)]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            assert not wrong
            assert tw.stats()["allocations"] > 100
            """
        )

    def test_options_of_the_users_without_wrapping_anything(self):
        self.program(
            """
            tw.configure(cuda=[], heap_size=2 * MIB)
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            assert tw.session_options(options) is options
            session().run(None, picture(32))
            assert tw.stats()["allocations"] == 0
            for _ in range(2):
                session(options=tw.session_options(options)).run(None, picture(32))
            tw.end_of_execution()
            assert tw.stats()["allocations"] > 0
            """
        )

    def test_a_binding(self):
        self.program(
            """
            tw.enable()
            served = session()
            binding = served.io_binding()
            binding.bind_cpu_input("x", picture(64)["x"])
            binding.bind_output("y")
            served.run_with_iobinding(binding)
            expected = served.run(None, picture(64))[0]
            assert binding.copy_outputs_to_cpu()[0].tobytes() == expected.tobytes()
            """
        )

    def test_gpus_are_registered_beside_the_host(self):
        self.program(
            """
            import ctypes
            from tilework._library import Options, call
            # The device stands in for both, so that no GPU is needed; no session here uses them.
            options = Options(size=ctypes.sizeof(Options), device=b"host")
            call("tilework_ort_configure", ctypes.byref(options), True, (ctypes.c_int * 2)(0, 1), 2)
            tw._configured, tw._devices[:] = (), [0, 1, -1]
            for _ in range(2):
                session(options=tw.session_options()).run(None, picture(32))
            assert tw.stats("cpu")["allocations"] > 0
            assert tw.serving("cpu") == ("tiled", "tiled serves, since the device host maps tiles")
            assert tw.stats()["allocations"] == tw.stats("cuda:1")["allocations"] == 0
            tw.end_of_execution()
            """
        )

    def test_gpus_that_are_not_there_are_refused_before_any_session(self):
        self.program(
            """
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                refused(ValueError, "no GPU 7 for ONNX Runtime: this package has no CUDA provider", lambda: tw.enable(cuda=[7]))
            real = ort.get_available_providers
            ort.get_available_providers = lambda: ["CUDAExecutionProvider", *real()]
            tw._gpus = lambda _: []
            refused(ValueError, "no GPU 0 for ONNX Runtime: no NVIDIA driver", lambda: tw.configure(cuda=[0]))
            tw._gpus = lambda _: [0, 1]
            refused(ValueError, "no GPU 7 for ONNX Runtime: the number of GPUs is 2", lambda: tw.enable(cuda=[0, 7]))
            refused(ValueError, "no GPU -1", lambda: tw.enable(cuda=[-1]))
            # Nothing is settled by what was refused.
            tw.enable(cuda=[])
            session().run(None, picture(32))
            assert tw.stats()["allocations"] > 0
            """
        )

    def test_what_is_refused(self):
        self.program(
            """
            refused(RuntimeError, "enable() was not called", tw.stats)
            refused(RuntimeError, "nothing is to be served", lambda: tw.enable(cuda=[], cpu=False))
            tw.enable(cuda=[])
            tw.enable(cuda=[])
            refused(RuntimeError, "other arguments", lambda: tw.enable(cuda=[], limit=MIB))
            refused(ValueError, "it serves cpu", lambda: tw.stats("cuda:0"))
            refused(ValueError, "limit is to be from 1", lambda: tw.set_limit(0))
            """
        )

    def test_a_forked_child_is_refused(self):
        self.program(
            """
            import os
            tw.enable(cuda=[])
            before = session()
            expected = before.run(None, picture(32))
            child = os.fork()
            if child == 0:
                for body in (lambda: before.run(None, picture(32)), session, tw.stats, tw.trim, tw.end_of_execution):
                    refused(Exception, "this process was forked from the one that has the memory", body)
                # Not to the end: ONNX Runtime waits there for threads that a child does not have.
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert all(map(np.array_equal, before.run(None, picture(32)), expected))
            """
        )

    def test_unused_memory_is_given_back_after_as_many_runs_as_was_said(self):
        for options, runs in (("heap_age=2", 3), ("mapping_age=9", 6)):
            self.program(
                f"""
                refused(ValueError, "heap_age is to be from 1", lambda: tw.configure(heap_age=0))
                refused(ValueError, "mapping_age is to be from 1", lambda: tw.enable(mapping_age=0))
                tw.enable(cuda=[], heap_size=MIB, {options})
                refused(RuntimeError, "other arguments", lambda: tw.configure(cuda=[], heap_size=MIB))
                served = session()
                served.run(None, picture(512))
                burst, runs = tw.stats()["held"], 0
                while tw.stats()["held"] == burst:
                    assert runs < 99
                    served.run(None, picture(32))
                    runs += 1
                assert runs == {runs}, runs
                """
            )

    def test_a_session_that_captures_graphs_keeps_its_own_memory(self):
        self.program(
            """
            import warnings
            tw.enable()
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                own = ort.InferenceSession(CONV, providers=["CPUExecutionProvider"], provider_options=[{"enable_cuda_graph": "1"}])
            assert "enable_cuda_graph" in str(seen[0].message)
            own.run(None, picture(32))
            assert tw.stats()["allocations"] == 0
            """
        )

    def test_a_trace_is_recorded_and_completed_at_the_end(self):
        with tempfile.TemporaryDirectory() as folder:
            self.program(
                f"""
                tw.enable()
                served = session()
                with tw.record({os.path.join(folder, "one.csv.gz")!r}):
                    served.run(None, picture(32))
                tw.record({os.path.join(folder, "two.csv.gz")!r})
                served.run(None, picture(32))
                """
            )
            self.assertEqual(sorted(os.listdir(folder)), ["one.csv.gz", "two.csv.gz"])


@unittest.skipIf(MISSING, MISSING)
@unittest.skipIf(OLD, "this ONNX Runtime is too old to be served")
class Managed(Programs):
    def test_sessions_that_do_not_fit_together_run_by_turns(self):
        self.program(
            """
            latent = {"latent": np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)}
            plain = session(VAE)
            expected = plain.run(None, latent)[0].tobytes()
            del plain
            tw.enable(limit=300 * MIB)
            sessions = [tw.manage(VAE, providers=["CPUExecutionProvider"], name=name) for name in ("one", "two")]
            weights = [tw.group(served).stats() for served in sessions]
            assert all(180 * MIB < figures["live"] for figures in weights), weights
            assert [figures["residence"] for figures in weights] == ["evicted", "resident"], weights
            for _ in range(2):
                for at, served in enumerate(sessions):
                    assert served.run(None, latent)[0].tobytes() == expected
                    assert tw.group(served).stats()["residence"] == "resident"
                    assert tw.group(sessions[1 - at]).stats()["residence"] == "evicted"
            figures = tw.group("one").stats()
            assert figures["evictions"] >= 2 and figures["bytes_in"] >= 2 * figures["live"], figures
            assert tw.stats()["peak_held"] <= 300 * MIB and tw.stats()["live"] > 360 * MIB, tw.stats()
            # Only the first time was anything copied out, and that is still there.
            all_figures = [tw.group(served).stats() for served in sessions]
            assert all(f["bytes_out"] == f["kept"] >= f["live"] for f in all_figures), all_figures
            assert all(f["bytes_out"] < 1.01 * f["live"] for f in all_figures), all_figures
            assert tw.stats()["kept"] == sum(f["kept"] for f in all_figures), (tw.stats(), all_figures)
            """
        )

    def test_every_session_is_managed_where_enable_says_so(self):
        self.program(
            """
            latent = {"latent": np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)}
            before = session()
            small = before.run(None, picture(32))[0].tobytes()
            plain = session(VAE)
            expected = plain.run(None, latent)[0].tobytes()
            del plain
            tw.enable(limit=300 * MIB, manage=True)
            tw.enable(limit=300 * MIB, manage=True)
            refused(RuntimeError, "manage=True", lambda: tw.enable(limit=300 * MIB))
            # An unchanged program from here on.
            class Own(ort.InferenceSession):
                pass
            one = session(VAE)
            two = Own(path_or_bytes=VAE, sess_options=ort.SessionOptions(), providers=["CPUExecutionProvider"])
            sessions = [one, two]
            for _ in range(2):
                for at, served in enumerate(sessions):
                    assert served.run(None, latent)[0].tobytes() == expected
                    states = [tw.group(each).stats()["residence"] for each in (served, sessions[1 - at])]
                    assert states == ["resident", "evicted"], states
            assert tw.stats()["peak_held"] <= 300 * MIB and tw.stats()["live"] > 360 * MIB, tw.stats()
            figures = [tw.group(served).stats() for served in sessions]
            assert all(f["pins"] == 0 and f["bytes_out"] == f["kept"] > 180 * MIB for f in figures), figures
            names = [tw.group(served).name for served in sessions]
            assert names == ["sdxl-vae-decoder.onnx-0", "sdxl-vae-decoder.onnx-1"], names
            binding = one.io_binding()
            binding.bind_cpu_input("latent", latent["latent"])
            binding.bind_output("out")
            tw.evict(names[0])
            one.run_with_iobinding(binding)
            assert binding.copy_outputs_to_cpu()[0].tobytes() == expected
            refused(RuntimeError, "does not run_async", lambda: two.run_async(None, latent, print, None))
            # By hand as well, and from before as before.
            conv = tw.manage(CONV, providers=["CPUExecutionProvider"], name="conv")
            tw.evict("conv")
            assert conv.run(None, picture(32))[0].tobytes() == small == before.run(None, picture(32))[0].tobytes()
            assert tw.group("conv").stats()["pins"] == 0
            refused(ValueError, "is no managed session", lambda: tw.group(before))
            refused(Exception, "absent.onnx", lambda: session("absent.onnx"))
            del one, two, served, sessions, binding, conv
            gc.collect()
            again = session(VAE)
            assert tw.group(again).name == names[0] and again.run(None, latent)[0].tobytes() == expected
            """
        )

    def test_what_is_not_served_is_as_it_was_where_enable_manages(self):
        self.program(
            """
            before = session().run(None, picture(32))[0].tobytes()
            tw.enable(manage=True)
            asked, tw._asked = tw._asked, lambda *_: 7
            other = session()
            assert other.run(None, picture(32))[0].tobytes() == before
            refused(ValueError, "is no managed session", lambda: tw.group(other))
            refused(ValueError, "does not serve 7", lambda: tw.manage(CONV))
            tw._asked = asked
            assert tw.group(session()).stats()["residence"] == "resident"
            """
        )

    def test_a_managed_session_leaves_the_program_its_options(self):
        self.program(
            """
            import os, tempfile, warnings
            tw.enable(manage=True)
            with tempfile.TemporaryDirectory() as folder:
                wanted = os.path.join(folder, "wanted.onnx")
                options = ort.SessionOptions()
                options.optimized_model_filepath = wanted
                # That such a file is for this machine only.
                options.log_severity_level = 3
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    ort.InferenceSession(CONV, options, providers=["CPUExecutionProvider"])
                assert os.path.getsize(wanted) > 0 and options.optimized_model_filepath == wanted
                assert ["where an optimized model is asked for" in str(each.message) for each in told] == [True], told
            """
        )

    def test_by_hand_and_by_name(self):
        self.program(
            """
            tw.enable()
            expected = session().run(None, picture(64))[0].tobytes()
            served = tw.manage(CONV, providers=["CPUExecutionProvider"], name="conv")
            assert isinstance(served, ort.InferenceSession) and tw.group(served) is tw.group("conv")
            live = tw.group("conv").stats()["live"]
            assert live >= (8 * 3 + 3 * 8 * 8) * 9 * 4, live
            # What a run allocates is not the group's.
            output = served.run(None, picture(64))[0]
            assert tw.group("conv").stats()["live"] == live
            assert tw.evict("conv") > 0 == tw.evict(served)
            assert tw.stats()["kept"] == tw.group(served).stats()["kept"] >= live
            assert output.tobytes() == expected
            tw.prefetch("conv")
            assert tw.group("conv").stats()["residence"] == "arriving"
            assert tw.restore("conv") >= live and tw.group("conv").stats()["pins"] == 1
            for _ in range(2):
                tw.evict("conv")
                assert served.run(None, picture(64))[0].tobytes() == expected
            binding = served.io_binding()
            binding.bind_cpu_input("x", picture(64)["x"])
            binding.bind_output("y")
            tw.evict("conv")
            served.run_with_iobinding(binding)
            assert binding.copy_outputs_to_cpu()[0].tobytes() == expected
            tw.evict("conv")
            tw.trim()
            tw.set_limit(1)
            refused(MemoryError, "the weights of 'conv' do not fit", lambda: served.run(None, picture(64)))
            tw.set_limit(None)
            assert served.run(None, picture(64))[0].tobytes() == expected
            """
        )

    def test_weights_are_copied_out_once(self):
        self.program(
            """
            tw.enable()
            expected = session().run(None, picture(64))[0].tobytes()
            cpu = ["CPUExecutionProvider"]
            once, each = tw.manage(CONV, providers=cpu), tw.manage(CONV, providers=cpu, constant=False)
            def moved(served):
                assert tw.evict(served) > 0
                out = tw.group(served).stats()["bytes_out"]
                assert served.run(None, picture(64))[0].tobytes() == expected
                return out, tw.group(served).stats()["kept"]
            (first, kept), (second, still_kept), (third, _) = moved(once), moved(once), moved(once)
            assert 0 < first == second == third == kept == still_kept, (first, second, third, kept, still_kept)
            (first, kept), (second, _) = moved(each), moved(each)
            assert 0 < first and second == 2 * first and kept == 0, (first, second, kept)
            # While it is there, a session takes its copy along when it goes.
            del once
            gc.collect()
            assert tw.stats()["kept"] == 0, tw.stats()
            """
        )

    def test_contents_in_files_and_without_wrapping_anything(self):
        with tempfile.TemporaryDirectory() as folder:
            self.program(
                f"""
                tw.configure(cuda=[])
                tw.set_hosting(directory={folder!r})
                served = tw.manage(CONV, providers=["CPUExecutionProvider"])
                expected = session().run(None, picture(64))[0].tobytes()
                before = tw.stats()["allocations"]
                session().run(None, picture(64))
                assert tw.stats()["allocations"] == before
                tw.evict(served)
                assert served.run(None, picture(64))[0].tobytes() == expected
                """
            )

    def test_weights_of_a_gpus_session_are_a_group_of_the_gpus(self):
        self.program(
            """
            import ctypes
            from tilework._library import Options, call
            # The host's memory stands in for the GPU's, so that no GPU is needed; a session on the CPU has none of it.
            options = Options(size=ctypes.sizeof(Options), device=b"host")
            call("tilework_ort_configure", ctypes.byref(options), True, (ctypes.c_int * 1)(0), 1)
            tw._configured, tw._devices[:] = (), [0, -1]
            assert tw._asked([("CUDAExecutionProvider", {"device_id": "0"}), "CPUExecutionProvider"], None) == 0
            assert tw._asked(["CUDAExecutionProvider"], [{"device_id": 1}]) == 1
            assert tw._asked(["CPUExecutionProvider"], None) == tw._asked(None, None) == -1
            refused(ValueError, "it serves cuda:0, cpu", lambda: tw._served(1))
            from tilework._sessions import SessionGroup
            member = SessionGroup("gpu", 0, tw._number_manager)
            with member:
                session(options=tw.session_options()).run(None, picture(32))
            assert member.stats()["live"] == 0, "the session was on the CPU"
            assert member.restore() == 0 and member.evict() == 0 and member.restore() == 0
            assert tw.stats("cpu")["allocations"] > 0
            """
        )

    def test_a_group_goes_with_its_session(self):
        self.program(
            """
            tw.enable()
            for _ in range(3):
                served = tw.manage(CONV, providers=["CPUExecutionProvider"], name="conv")
                refused(ValueError, "there is a managed session 'conv' already", lambda: tw.manage(CONV, name="conv"))
                served.run(None, picture(32))
                tw.evict(served)
                del served
                gc.collect()
                assert tw.stats()["live"] == 0 == tw.stats()["kept"], tw.stats()
            refused(ValueError, "is no managed session", lambda: tw.evict("conv"))
            graphs = [("CPUExecutionProvider", {"enable_cuda_graph": "1"})]
            refused(ValueError, "cannot be managed", lambda: tw.manage(CONV, providers=graphs))
            refused(Exception, "absent.onnx", lambda: tw.manage("absent.onnx", providers=["CPUExecutionProvider"]))
            names = [tw.group(tw.manage(CONV, providers=["CPUExecutionProvider"])).name for _ in range(2)]
            assert names[0] == "conv.onnx-0", names
            other = tw.manage(CONV, providers=["CPUExecutionProvider"])
            refused(RuntimeError, "does not run_async", lambda: other.run_async(None, picture(32), print, None))
            """
        )


class OnAGpu(Programs):
    """Skipped without a GPU. ONNX Runtime's log may say what it likes: the provider has its warnings."""

    def program(self, body):
        reason = no_gpu()
        if reason:
            self.skipTest(reason)
        result = run(ON_A_GPU + textwrap.dedent(body))
        self.assertEqual((result.returncode, result.stdout[-5:]), (0, "done\n"), result.stdout + result.stderr)

    def test_outputs_are_the_same_to_the_bit_and_little_is_held(self):
        self.program(
            """
            plain = gpu()
            expected = plain.run(None, latent(32))[0].tobytes()
            del plain
            tw.enable()
            served = gpu()
            # Two of them for the mappings that later ones find.
            for number in range(4):
                assert served.run(None, latent(32))[0].tobytes() == expected
                if number == 1:
                    calls = tw.stats("cuda:0")["device_calls"]
            figures = tw.stats("cuda:0")
            assert figures["device_calls"] == calls, (calls, figures)
            assert figures["peak_live"] > 150 * MIB, figures
            assert figures["peak_held"] < 1.05 * figures["peak_live"], figures
            """
        )

    def test_sessions_by_turns_share_and_give_everything_back(self):
        self.program(
            """
            tw.enable()
            first, second = gpu(), gpu()
            weights = tw.stats("cuda:0")["live"]
            first.run(None, latent(32))
            alone = tw.stats("cuda:0")["peak_held"] - weights
            for _ in range(3):
                second.run(None, latent(32))
                first.run(None, latent(32))
            assert tw.stats("cuda:0")["peak_held"] - weights < 1.1 * alone, (alone, weights, tw.stats("cuda:0"))
            del first, second
            gc.collect()
            tw.trim("cuda:0")
            assert tw.stats("cuda:0")["live"] == 0 == tw.stats("cuda:0")["held"], tw.stats("cuda:0")
            """
        )

    def test_every_session_is_managed_where_enable_says_so(self):
        self.program(
            """
            plain = gpu()
            expected = plain.run(None, latent(32))[0].tobytes()
            del plain
            tw.enable(limit=480 * MIB, manage=True)
            sessions = [gpu(), gpu()]
            names = [tw.group(served).name for served in sessions]
            for _ in range(3):
                for at, served in enumerate(sessions):
                    assert served.run(None, latent(32))[0].tobytes() == expected
                    states = [tw.group(each).stats()["residence"] for each in (served, sessions[1 - at])]
                    assert states == ["resident", "evicted"], states
            figures = tw.stats("cuda:0")
            assert figures["peak_held"] <= 480 * MIB, figures
            del served, sessions
            gc.collect()
            assert tw.stats("cuda:0")["live"] == 0 == tw.stats("cuda:0")["kept"], (names, tw.stats("cuda:0"))
            """
        )

    def test_threads_at_the_same_time(self):
        self.program(
            """
            plain = gpu()
            expected = {side: plain.run(None, latent(side))[0].tobytes() for side in (8, 16, 24)}
            del plain
            tw.enable()
            shared, wrong = gpu(), []
            def work(side):
                own = gpu()
                for _ in range(4):
                    for served in (own, shared):
                        if served.run(None, latent(side))[0].tobytes() != expected[side]:
                            wrong.append(side)
            threads = [threading.Thread(target=work, args=(side,)) for side in expected]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            assert not wrong, wrong
            """
        )

    def test_managed_sessions_that_do_not_fit_together(self):
        self.program(
            """
            plain = gpu()
            expected = plain.run(None, latent(16))[0].tobytes()
            del plain
            tw.enable(limit=340 * MIB)
            tw.set_hosting(pinned=512 * MIB)
            options = ort.SessionOptions()
            options.log_severity_level = 3
            options.use_deterministic_compute = True
            providers = [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"})]
            sessions = [tw.manage(VAE, options, providers) for _ in range(2)]
            assert all(tw.group(served).stats()["live"] > 180 * MIB for served in sessions)
            for _ in range(3):
                for at, served in enumerate(sessions):
                    assert served.run(None, latent(16))[0].tobytes() == expected
                    assert tw.group(sessions[1 - at]).stats()["residence"] == "evicted"
            tw.evict(sessions[1])
            tw.prefetch(sessions[0])
            assert sessions[0].run(None, latent(16))[0].tobytes() == expected
            assert tw.stats("cuda:0")["peak_held"] <= 340 * MIB, tw.stats("cuda:0")
            for served in sessions:
                figures = tw.group(served).stats()
                assert figures["evictions"] >= 3 and figures["bytes_out"] == figures["kept"], figures
            """
        )

    def test_running_out_of_memory_says_why_and_the_session_goes_on(self):
        self.program(
            """
            tw.enable(limit=400 * MIB)
            served = gpu()
            small = served.run(None, latent(16))[0].tobytes()
            refused(Exception, "Tilework: out of memory", lambda: served.run(None, latent(64)))
            assert served.run(None, latent(16))[0].tobytes() == small
            """
        )

    def test_outputs_may_stay_on_the_gpu(self):
        self.program(
            """
            tw.enable()
            served = gpu()
            expected = served.run(None, latent(16))[0].tobytes()
            kept = []
            for _ in range(3):
                binding = served.io_binding()
                binding.bind_cpu_input("latent", latent(16)["latent"])
                binding.bind_output("out", "cuda")
                served.run_with_iobinding(binding)
                kept.append(binding.get_outputs()[0])
            del served, binding
            gc.collect()
            assert all(output.numpy().tobytes() == expected for output in kept)
            """
        )


class Missing(unittest.TestCase):
    def test_a_missing_onnxruntime_is_named(self):
        program = "import sys; sys.modules['onnxruntime'] = None\nimport tilework.onnxruntime as t\n"
        program += "try: t.enable()\nexcept RuntimeError as e: assert 'pip install' in str(e)\nelse: assert 0\n"
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


if __name__ == "__main__":
    unittest.main()
