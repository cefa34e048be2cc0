//! Real models through the real ONNX Runtime, with managers of Tilework as its allocator.
//!
//! Where the machine has no libonnxruntime, the first test fetches it; where that is impossible the tests
//! fail with the ways to fix it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tilework::device::limit::Limit;
use tilework::device::{self, Device};
use tilework::manager::{self, Kind, Options};
use tilework_ort::{
    Allocator, Environment, Error, Failure, Library, Output, Place, Session, SessionOptions, Tensor, find,
    fingerprint, inputs,
};

/// The library, and the turn to use it: a process has one environment at a time.
fn turn() -> (Arc<Library>, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    static LIBRARY: OnceLock<Arc<Library>> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let library = LIBRARY.get_or_init(|| match find::find(None, &mut |step| eprintln!("{step}")) {
        Ok(found) => found.library,
        Err(error) => panic!("{error}"),
    });
    (library.clone(), turn)
}

fn allocator(kind: Kind, limit: Option<u64>) -> Allocator {
    let mut device = device::open("host").unwrap();
    if let Some(limit) = limit {
        device = Box::new(Limit::new(device, limit)) as Box<dyn Device>;
    }
    let manager = manager::build(kind, device, &Options::default()).unwrap().manager;
    // SAFETY: the device is the host, so blocks are memory of this process.
    unsafe { Allocator::new(manager) }
}

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// One convolution from 3 to 8 channels and three from 8 to 8, all 3 x 3, bytes.
const WEIGHTS_OF_CONV: u64 = (8 * 3 + 3 * 8 * 8) * 9 * 4;

fn conv(environment: &Arc<Environment>) -> Session {
    Session::load(environment, &model("conv.onnx"), &SessionOptions::default()).unwrap()
}

fn picture(session: &Session, side: u64) -> Vec<(String, Tensor)> {
    let shapes = BTreeMap::from([("x".to_owned(), vec![1, 3, side, side])]);
    inputs::random(session.inputs(), &shapes, 0).unwrap()
}

fn run(session: &Session, side: u64) -> Vec<Output> {
    session.run(&picture(session, side)).unwrap()
}

#[test]
fn every_manager_gives_the_outputs_of_the_runtimes_own_arena() {
    let (library, _turn) = turn();
    let own = {
        let environment = Environment::new(&library, None).unwrap();
        fingerprint(&run(&conv(&environment), 96))
    };
    for kind in Kind::ALL {
        let environment = Environment::new(&library, Some(allocator(kind, None))).unwrap();
        let session = conv(&environment);
        for _ in 0..3 {
            assert_eq!(fingerprint(&run(&session, 96)), own, "{kind}");
        }
        let usage = environment.allocator().unwrap().usage();
        assert!(usage.peak_live >= 2 * 8 * 96 * 96 * 4, "{kind} served {usage:?}");
        environment.allocator().unwrap().check_invariants();
    }
}

#[test]
fn running_out_of_memory_is_told_with_the_managers_figures_and_leaves_everything_usable() {
    let (library, _turn) = turn();
    let environment = Environment::new(&library, Some(allocator(Kind::Tiled, Some(4 << 20)))).unwrap();
    let session = conv(&environment);
    let small = fingerprint(&run(&session, 64));
    let live = environment.allocator().unwrap().usage().live;
    let error = session.run(&picture(&session, 512)).unwrap_err();
    eprintln!("{error}");
    let Error::Run {
        cause: Some(Failure::Manager(tilework::Error::OutOfMemory { request, limit, .. })), ..
    } = &error
    else {
        panic!("{error}")
    };
    // ONNX Runtime rounds the eight channels up to what the processor's vectors hold.
    assert!(*request >= 8 * 512 * 512 * 4, "{error}");
    assert_eq!(*limit, Some(4 << 20));
    assert_eq!(environment.allocator().unwrap().usage().live, live, "the failed run's tensors were freed");
    assert_eq!(fingerprint(&run(&session, 64)), small);
}

#[test]
fn every_element_type_goes_in_and_comes_out() {
    let (library, _turn) = turn();
    let environment = Environment::new(&library, Some(allocator(Kind::Tiled, None))).unwrap();
    let session = Session::load(&environment, &model("types.onnx"), &SessionOptions::default()).unwrap();
    // All inputs share the dimension N, so one shape settles all.
    let shapes = BTreeMap::from([("in_float".to_owned(), vec![2, 3])]);
    let inputs = inputs::random(session.inputs(), &shapes, 0).unwrap();
    let outputs = session.run(&inputs).unwrap();
    assert_eq!(outputs.len(), 12);
    for ((name, input), output) in inputs.iter().zip(&outputs) {
        assert_eq!((output.element(), output.shape()), (input.element(), &[3, 2][..]), "{name}");
        let size = input.element().bytes();
        for (at, element) in output.bytes().chunks_exact(size).enumerate() {
            let from = (at % 2 * 3 + at / 2) * size;
            assert_eq!(element, &input.bytes()[from..from + size], "{name}");
        }
    }
}

#[test]
fn outputs_outlive_their_session_and_then_give_everything_back() {
    let (library, _turn) = turn();
    let environment = Environment::new(&library, Some(allocator(Kind::Committed, None))).unwrap();
    let session = conv(&environment);
    let outputs = run(&session, 64);
    let before = fingerprint(&outputs);
    drop(session);
    assert_eq!(fingerprint(&outputs), before);
    drop(outputs);
    let usage = environment.allocator().unwrap().usage();
    assert_eq!((usage.live, usage.held), (0, 0), "an allocation per request goes back with its request");
}

#[test]
fn changing_shapes_and_several_sessions_share_one_manager() {
    let (library, _turn) = turn();
    let environment = Environment::new(&library, Some(allocator(Kind::Tiled, None))).unwrap();
    let (one, two) = (conv(&environment), conv(&environment));
    let expected: Vec<_> = [32, 160, 96].map(|side| fingerprint(&run(&one, side))).into();
    let alone = environment.allocator().unwrap().usage().peak_held;
    for (side, expected) in [32, 160, 96].into_iter().zip(&expected) {
        assert_eq!(&fingerprint(&run(&two, side)), expected);
    }
    let both = environment.allocator().unwrap().usage().peak_held;
    assert!(both < alone + alone / 2, "the second session runs in what the first has left: {alone} {both}");
}

#[test]
fn sessions_run_at_the_same_time() {
    let (library, _turn) = turn();
    let environment = Environment::new(&library, Some(allocator(Kind::Tiled, None))).unwrap();
    let session = conv(&environment);
    let expected = fingerprint(&run(&session, 80));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert_eq!(fingerprint(&run(&session, 80)), expected);
                }
            });
        }
    });
    environment.allocator().unwrap().check_invariants();
}

#[test]
fn the_arena_tells_what_it_holds() {
    let (library, _turn) = turn();
    let environment = Environment::new(&library, None).unwrap();
    let session = conv(&environment);
    drop(run(&session, 256));
    let stats = session.arena_stats().unwrap();
    if library.api_version() < 23 {
        assert_eq!(stats, None);
        return;
    }
    let stats = stats.unwrap();
    assert!(stats.total_allocated >= stats.max_in_use && stats.max_in_use >= 8 * 256 * 256 * 4, "{stats:?}");
}

#[test]
fn one_environment_at_a_time_and_another_after_it() {
    let (library, _turn) = turn();
    for _ in 0..3 {
        let environment = Environment::new(&library, Some(allocator(Kind::Placed, None))).unwrap();
        assert!(matches!(Environment::new(&library, None), Err(Error::SecondEnvironment)));
        drop(run(&conv(&environment), 16));
    }
}

#[test]
fn what_is_no_model_is_named_with_the_reason() {
    let (library, _turn) = turn();
    let environment = Environment::new(&library, Some(allocator(Kind::Tiled, None))).unwrap();
    let script = model("make_models.py");
    let folder = model("");
    for path in [script.as_path(), &folder, "absent.onnx".as_ref()] {
        let error = Session::load(&environment, path, &SessionOptions::default()).unwrap_err();
        assert!(matches!(&error, Error::Model { .. }), "{error}");
        assert!(error.to_string().starts_with(&format!("{} does not load: ", path.display())), "{error}");
    }
    drop(run(&conv(&environment), 16));
}

#[test]
fn a_run_with_an_input_missing_is_an_error_and_no_more() {
    let (library, _turn) = turn();
    let environment = Environment::new(&library, Some(allocator(Kind::Tiled, None))).unwrap();
    let session = conv(&environment);
    let error = session.run(&[]).unwrap_err();
    assert!(matches!(&error, Error::Run { cause: None, .. }), "{error}");
    drop(run(&session, 16));
}

#[test]
fn a_session_for_a_gpu_needs_the_provider() {
    let (library, _turn) = turn();
    let environment = Environment::new(&library, None).unwrap();
    let options = SessionOptions { place: Place::Cuda(0), ..SessionOptions::default() };
    match Session::load(&environment, &model("conv.onnx"), &options) {
        Err(Error::NoCuda { path, providers }) => {
            assert_eq!(path, library.path());
            assert!(providers.iter().any(|name| name == "CPUExecutionProvider"), "{providers:?}");
        }
        // Where the library found has the provider, and perhaps what it needs.
        other => assert!(library.check_cuda().is_ok(), "{other:?}"),
    }
}

#[test]
fn a_gpus_allocator_is_registered_where_streams_are_told_and_leaves_the_cpus_alone() {
    let (library, _turn) = turn();
    let manager = manager::build(Kind::Tiled, device::open("host").unwrap(), &Options::default()).unwrap();
    // SAFETY: no session here runs on a GPU, so nothing uses its blocks.
    let allocator = unsafe { Allocator::on_gpu(manager.manager, 0, Box::new(|| Ok(()))) };
    assert_eq!(allocator.place(), Place::Cuda(0));
    let environment = match Environment::new(&library, Some(allocator)) {
        Ok(environment) => environment,
        Err(error) => {
            assert!(library.api_version() < 23, "{error}");
            assert!(error.to_string().contains("1.23 or later"), "{error}");
            return;
        }
    };
    run(&conv(&environment), 96);
    assert_eq!(environment.allocator().unwrap().usage().peak_live, 0);
}

#[test]
fn a_converted_model_has_its_weights_in_our_memory_and_the_same_outputs() {
    let (library, _turn) = turn();
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("conv.ort");
    let environment = Environment::new(&library, Some(allocator(Kind::Tiled, None))).unwrap();
    Session::convert(&environment, &model("conv.onnx"), &SessionOptions::default(), &to).unwrap();
    let usage = environment.allocator().unwrap().usage();
    assert_eq!(usage.peak_live, 0, "converting is not served by us: {usage:?}");
    let expected = fingerprint(&run(&conv(&environment), 64));
    assert_eq!(environment.allocator().unwrap().usage().live, 0);
    let session = Session::load(&environment, &to, &SessionOptions::default()).unwrap();
    // Processors with wide vectors may have them padded.
    let live = environment.allocator().unwrap().usage().live;
    assert!(live >= WEIGHTS_OF_CONV, "{live} bytes of weights");
    assert_eq!(fingerprint(&run(&session, 64)), expected);
    let error = Session::convert(&environment, "absent.onnx".as_ref(), &SessionOptions::default(), &to);
    assert!(error.unwrap_err().to_string().contains("absent.onnx does not load"));
}
