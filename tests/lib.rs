//! Scenarios against the built binaries and unmodified real clients; each file beside this one is a test of its own.
//! See `crates/testkit` for what a scenario gets and what it may not leave behind.
