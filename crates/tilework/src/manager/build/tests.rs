use super::*;
use crate::device::null::Null;
use crate::device::sim::Sim;

#[test]
fn what_was_built_is_what_was_asked_for() {
    for kind in Kind::ALL {
        let built = build(kind, Box::new(Null::new()), &Options::default()).unwrap();
        assert_eq!((built.manager.kind(), built.serving.fallback()), (kind, None));
    }
}

#[test]
fn what_was_built_is_what_the_choice_says() {
    for choice in Kind::ALL.map(Choice::Of).into_iter().chain([Choice::Auto]) {
        for device in [Sim::h200(), Sim::h200().without_tiling()] {
            let serving = choice.serving(&device);
            let built = build(choice, Box::new(device), &Options::default()).unwrap();
            assert_eq!((built.manager.kind(), built.serving), (serving.kind, serving));
        }
    }
}
