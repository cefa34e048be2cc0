use super::*;

#[test]
fn names_mean_ordinals() {
    for (name, ordinal) in [
        ("cuda", Some(0)),
        ("cuda:0", Some(0)),
        ("cuda:12", Some(12)),
        ("cuda:", None),
        ("cuda:x", None),
        ("cuda:-1", None),
        ("cuda1", None),
        ("host", None),
        ("", None),
    ] {
        assert_eq!(super::ordinal(name), ordinal, "{name:?}");
    }
}

#[cfg(target_os = "linux")]
mod on_the_fake {
    use tilework::manager::{Kind, Options, build};

    use super::*;
    use crate::fake::{Config, Fake};

    fn open(config: Config) -> Box<dyn Device> {
        open_on(Gpu::open(Fake::new(config).driver(), 1).unwrap()).unwrap()
    }

    #[test]
    fn a_gpu_that_maps_memory_tiles() {
        let device = open(Config::default());
        assert_eq!((device.name(), device.caps().tiling), ("cuda:1", true));
        let built = build(Kind::Tiled, device, &Options::default()).unwrap();
        assert_eq!((built.manager.kind(), built.serving.fallback()), (Kind::Tiled, None));
    }

    #[test]
    fn on_a_gpu_that_does_not_tiled_falls_back_and_says_so() {
        let device = open(Config { maps_memory: false, ..Config::default() });
        assert_eq!((device.name(), device.caps().tiling), ("cuda:1", false));
        let built = build(Kind::Tiled, device, &Options::default()).unwrap();
        assert_eq!(built.manager.kind(), Kind::Placed);
        let fallback = built.serving.fallback().unwrap();
        for part in ["cuda:1", "cannot map tiles", "placed", "tiled"] {
            assert!(fallback.contains(part), "{fallback}");
        }
    }
}
