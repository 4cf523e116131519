//! The `clawmatrix` command.

fn main() {}
