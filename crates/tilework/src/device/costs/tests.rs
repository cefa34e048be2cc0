use super::*;

const KIB: u64 = 1 << 10;

fn handles() -> (Curve, PerPiece, PerPiece) {
    match H200.map {
        MapCosts::Handles { map, set_access, unmap } => (map, set_access, unmap),
        MapCosts::Tiles(_) => unreachable!("the H200 maps handles"),
    }
}

#[test]
fn a_curve_meets_its_points_and_is_linear_between_them() {
    assert_eq!(H200.create.at(2 * MIB), 7_200);
    assert_eq!(H200.create.at(64 * KIB), 7_200);
    assert_eq!(H200.create.at(256 * MIB), 20_800);
    assert_eq!(H200.create.at(160 * MIB), (7_700 + 20_800) / 2);
    assert_eq!(H200.create.at(1792 * MIB), 25_900 + 5_100);
    assert_eq!(H200.release.at(1024 * MIB), 258_000);
    assert_eq!(handles().0.at(9 * MIB), 650);
}

#[test]
fn a_curve_takes_any_size() {
    for curve in [H200.create, H200.release, handles().0] {
        curve.at(0);
        curve.at(u64::MAX);
    }
}

/// The measured figures that the terms were fitted to come out again, within rounding.
#[test]
fn batches_cost_what_was_measured() {
    let (_, set_access, unmap) = handles();
    assert_eq!(set_access.of([2 * MIB].into_iter()), 32_700);
    assert_eq!(unmap.of([1024 * MIB].into_iter()), 29_400);
    let millis = |nanos: u64| nanos as f64 / 1e6;
    let four_gib = || std::iter::repeat_n(2 * MIB, 2048);
    assert!((millis(set_access.of(four_gib())) - 54.0).abs() < 1.0);
    assert!((millis(unmap.of(four_gib())) - 34.0).abs() < 0.5);

    let MapCosts::Tiles(tiles) = D3D12.map else { unreachable!("D3D12 maps tiles") };
    assert_eq!(tiles.of(1, 1), 25_000);
    assert!((millis(tiles.of(1000, 1000)) - 4.1).abs() < 0.01);
    assert!((millis(tiles.of(1, 1000)) - 1.5).abs() < 0.01);
}
