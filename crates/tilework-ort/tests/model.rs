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
    Allocator, Environment, Error, Failure, Library, Output, Session, SessionOptions, Tensor, find,
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
        environment.allocator().unwrap().with(|m| m.check_invariants());
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
    assert_eq!((*request, *limit), (8 * 512 * 512 * 4, Some(4 << 20)));
    assert_eq!(environment.allocator().unwrap().usage().live, live, "the failed run's tensors were freed");
    assert_eq!(fingerprint(&run(&session, 64)), small);
}
