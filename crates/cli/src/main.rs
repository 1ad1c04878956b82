//! The `metal-marlin` command.
fn main() {}
