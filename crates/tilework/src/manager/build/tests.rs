use super::*;
use crate::device::null::Null;
use crate::device::sim::Sim;

#[test]
fn tiled_on_a_device_without_tiling_becomes_placed_and_says_so() {
    let device = Sim::h200().without_tiling();
    let (kind, sentence) = serving(Kind::Tiled, &device);
    assert_eq!(kind, Kind::Placed);
    let sentence = sentence.expect("a sentence");
    for word in ["sim-h200", "tiled", "placed"] {
        assert!(sentence.contains(word), "{sentence:?} does not name {word}");
    }
}

#[test]
fn every_other_choice_serves_as_it_is() {
    for kind in Kind::ALL {
        assert_eq!(serving(kind, &Null::new()), (kind, None));
    }
    for kind in [Kind::Placed, Kind::Bucketized, Kind::Committed] {
        assert_eq!(serving(kind, &Sim::h200().without_tiling()), (kind, None));
    }
}

#[test]
fn what_was_built_is_what_was_asked_for() {
    for kind in Kind::ALL {
        let built = build(kind, Box::new(Null::new()), &Options::default()).unwrap();
        assert_eq!((built.manager.kind(), built.fallback), (kind, None));
    }
}
