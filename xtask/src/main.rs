//! Developer tasks of Skep.
fn main() {}
