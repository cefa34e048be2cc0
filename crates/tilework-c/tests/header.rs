//! The header that is committed says what the library exports.

use std::path::Path;

#[test]
fn the_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let builder = cbindgen::Builder::new().with_src(root.join("tests/header/exports.rs"));
    let mut header = Vec::new();
    builder.with_config(config).generate().unwrap().write(&mut header);
    let header = String::from_utf8(header).unwrap();

    let path = root.join("include/tilework.h");
    if std::env::var_os("TILEWORK_BLESS").is_some() {
        std::fs::write(&path, &header).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == header,
        "include/tilework.h is not what the library exports: write it with\n\
         TILEWORK_BLESS=1 cargo test -p tilework-c --test header"
    );
}
