use super::*;
use crate::device;
use crate::device::limit::Limit;
use crate::device::sim::Sim;

#[test]
fn auto_takes_tiled_where_tiles_map() {
    for name in device::NAMES.into_iter().filter(|&name| name != "host" || cfg!(target_os = "linux")) {
        let device = device::open(name).unwrap();
        let serving = Choice::Auto.serving(&*device);
        let why = format!("tiled serves, since the device {name} maps tiles");
        assert_eq!(serving, Serving { kind: Kind::Tiled, why, fell_back: false });
    }
}

#[test]
fn auto_takes_placed_elsewhere_and_so_does_tiled() {
    let device = Sim::h200().without_tiling();
    let auto = Choice::Auto.serving(&device);
    assert_eq!((auto.kind, auto.fell_back), (Kind::Placed, true));
    assert_eq!(auto.why, "the device sim-h200 cannot map tiles: the manager placed serves in place of tiled");
    assert_eq!(Choice::Of(Kind::Tiled).serving(&device), auto);
}

#[test]
fn tiled_serves_what_auto_takes_on_every_device() {
    for name in device::NAMES.into_iter().filter(|&name| name != "host" || cfg!(target_os = "linux")) {
        let device = Limit::new(device::open(name).unwrap(), 1 << 20);
        assert_eq!(Choice::Auto.serving(&device), Choice::Of(Kind::Tiled).serving(&device), "{name}");
    }
}

#[test]
fn every_other_choice_serves_as_it_is() {
    for kind in [Kind::Placed, Kind::Bucketized, Kind::Committed] {
        for device in [Sim::h200(), Sim::h200().without_tiling()] {
            let serving = Choice::Of(kind).serving(&device);
            assert_eq!((serving.kind, serving.fell_back), (kind, false));
            assert_eq!(serving.why, format!("{kind} serves, since it was asked for"));
        }
    }
}

#[test]
fn names_are_read_as_they_are_shown() {
    for choice in Kind::ALL.map(Choice::Of).into_iter().chain([Choice::Auto]) {
        assert_eq!(choice.to_string().parse(), Ok(choice));
    }
    let error = "buddy".parse::<Choice>().unwrap_err();
    assert_eq!(
        error,
        "unknown manager \"buddy\": the managers are tiled, placed, bucketized, committed; or auto, which chooses"
    );
    assert_eq!(format!("{:>6}|{:<6}|", Choice::Auto, Choice::Of(Kind::Tiled)), "  auto|tiled |");
}
