/// The version and how this program was built, for `--version` and for the check of the release binaries: the panic
/// strategy is compiled in, so it can be read from the file.
#[cfg(panic = "abort")]
pub const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), " (gantry-build panic=abort)");

/// The version and how this program was built, for `--version` and for the check of the release binaries: the panic
/// strategy is compiled in, so it can be read from the file.
#[cfg(not(panic = "abort"))]
pub const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), " (gantry-build panic=unwind)");
