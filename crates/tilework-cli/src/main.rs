//! The `tilework` command.
fn main() {}
