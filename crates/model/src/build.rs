/// How this program was built, for `--version` and for the check of the release binaries: the panic strategy is
/// compiled in, so it can be read from the file.
pub const BUILD: &str =
    if cfg!(panic = "abort") { "gantry-build panic=abort" } else { "gantry-build panic=unwind" };
