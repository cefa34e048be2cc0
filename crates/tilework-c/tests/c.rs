//! A program in C uses the library.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the library and tells in which folder it lies: tests of a package do not depend on its cdylib.
fn library() -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "--package", "tilework-c", "--lib"]);
    assert!(cargo.status().unwrap().success());
    // The test lies in TARGET/PROFILE/deps, the library in TARGET/debug.
    let test = env::current_exe().unwrap();
    test.ancestors().nth(3).unwrap().join("debug")
}

#[test]
fn a_c_program_uses_the_library_and_its_errors() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let library = library();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("use");
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let driver = Command::new(&compiler)
        .args(["-w", "-shared", "-fPIC", "-o"])
        .arg(folder.path().join("libcuda.so.1"))
        .arg(root.join("../tilework-cli/tests/data/libcuda.c"))
        .status();
    assert!(driver.unwrap().success());
    let compiled = Command::new(compiler)
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread"])
        .arg(root.join("tests/use.c"))
        .arg("-I")
        .arg(root.join("include"))
        .arg("-L")
        .arg(&library)
        .arg("-ltilework")
        .arg("-o")
        .arg(&program)
        .status()
        .unwrap();
    assert!(compiled.success());
    let output = Command::new(&program)
        .arg(folder.path().join("trace.csv.gz"))
        .env("LD_LIBRARY_PATH", env::join_paths([folder.path(), &library]).unwrap())
        .env("GPUS", "1")
        .output();
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "the library prints nothing");
    assert!(folder.path().join("trace.csv.gz").is_file());
}
