//! The documents that benchmarks of the runtime and of the daemon have in common.

pub mod spec;
