use super::*;

#[test]
fn names_mean_indices() {
    for (name, index) in [
        ("d3d12", Some(0)),
        ("d3d12:0", Some(0)),
        ("d3d12:12", Some(12)),
        ("d3d12:", None),
        ("d3d12:x", None),
        ("d3d12:-1", None),
        ("d3d121", None),
        ("sim-d3d12", None),
        ("vulkan", None),
        ("", None),
    ] {
        assert_eq!(super::index(name), index, "{name:?}");
    }
}

#[cfg(not(windows))]
#[test]
fn without_windows_there_is_no_device_and_that_is_said() {
    let error = open(2).err().unwrap();
    assert_eq!(error, D3d12Error::NotWindows { index: 2 });
    for word in ["adapter 2", "not Windows", "another device"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    assert_eq!(list(), Err(D3d12Error::NotWindows { index: 0 }));
}

#[test]
fn codes_have_their_names() {
    let text = |code: u32| Hresult(code as i32).to_string();
    assert_eq!(text(0x8007_000e), "E_OUTOFMEMORY");
    assert_eq!(Hresult::OUT_OF_MEMORY.to_string(), "E_OUTOFMEMORY");
    assert_eq!(Hresult::NOT_FOUND.to_string(), "DXGI_ERROR_NOT_FOUND");
    assert_eq!(Hresult::DEVICE_REMOVED.to_string(), "DXGI_ERROR_DEVICE_REMOVED");
    assert_eq!(text(0x8123_4567), "0x81234567");
    let lost = D3d12Error::Removed { reason: Hresult(0x887a_0006_u32 as i32) };
    assert!(lost.to_string().contains("DXGI_ERROR_DEVICE_HUNG"), "{lost}");
    assert!(D3d12Error::Refused { function: "CreateHeap", code: Hresult::OUT_OF_MEMORY }.is_out_of_memory());
    assert!(!lost.is_out_of_memory());
}
