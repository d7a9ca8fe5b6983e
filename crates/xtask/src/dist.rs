//! The four release binaries, by two builds: panic strategy and static linking cannot be set per package.
//!
//! gantryd and gantryctl unwind and use the system's libc, because name resolution breaks without it. The shim and
//! gantry-oci abort and are static without being position independent: no relocation touches their pages, so a
//! thousand shims share them.

use std::path::{Path, PathBuf};
use std::{fs, str};

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, root, run};

/// What must be true of a binary, read from its own bytes.
struct Expected {
    name: &'static str,
    static_link: bool,
    panic: &'static str,
}

const BINARIES: &[Expected] = &[
    Expected { name: "gantryd", static_link: false, panic: "unwind" },
    Expected { name: "gantryctl", static_link: false, panic: "unwind" },
    Expected { name: "containerd-shim-gantry-v2", static_link: true, panic: "abort" },
    Expected { name: "gantry-oci", static_link: true, panic: "abort" },
];

/// Where the binaries end up.
pub(crate) fn directory() -> PathBuf {
    root().join("dist/bin")
}

/// Builds, installs into `dist/bin`, and looks at the result.
pub(crate) fn dist() -> Result<()> {
    run(cargo().args(["build", "--release", "--locked", "--quiet", "-p", "gantryd", "-p", "gantryctl"]))?;
    let static_directory = build_static(&["-p", "shim"])?;
    fs::create_dir_all(directory())?;
    for binary in BINARIES {
        let from = match binary.static_link {
            false => target_directory().join("release"),
            true => static_directory.clone(),
        }
        .join(binary.name);
        let to = directory().join(binary.name);
        install(&from, &to)?;
        inspect(&to, binary)?;
    }
    println!("dist: {} in {}", BINARIES.iter().map(|b| b.name).collect::<Vec<_>>().join(", "), directory().display());
    Ok(())
}

/// Builds what `selection` names as the shim is built; gives the directory of the results.
pub(crate) fn build_static(selection: &[&str]) -> Result<PathBuf> {
    let host = host_triple()?;
    let flags = "-C target-feature=+crt-static -C relocation-model=static";
    let variable = format!("CARGO_TARGET_{}_RUSTFLAGS", host.to_uppercase().replace('-', "_"));
    run(cargo()
        .args(["build", "--profile", "shim", "--locked", "--quiet", "--target", &host])
        .args(selection)
        .env(variable, flags)
        .env_remove("RUSTFLAGS"))?;
    Ok(target_directory().join(host).join("shim"))
}

/// Replaces the file by a rename, so that a running program keeps its own.
pub(crate) fn install(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    fs::copy(from, &new).with_context(|| format!("copy {}", from.display()))?;
    fs::rename(&new, to).with_context(|| format!("install {}", to.display()))
}

/// Asserts the link mode (a program interpreter or none) and the panic strategy (the mark `model::build` leaves).
fn inspect(path: &Path, expected: &Expected) -> Result<()> {
    let bytes = fs::read(path)?;
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    ensure!(
        interpreter(&bytes).is_none() == expected.static_link,
        "{}: want static linking = {}, its interpreter is {:?}",
        path.display(),
        expected.static_link,
        interpreter(&bytes)
    );
    ensure!(!is_undefended(&bytes), "{}: built without defences", path.display());
    ensure!(!has_crash_points(&bytes), "{}: built with crash points", path.display());
    let mark = format!("gantry-build panic={}", expected.panic);
    ensure!(has(&mark), "{}: the mark {mark:?} is missing", path.display());
    Ok(())
}

/// Whether a program was built with the feature that lets a defence be left out (`sys::undefended`).
pub(crate) fn is_undefended(program: &[u8]) -> bool {
    const MARK: &[u8] = b"gantry-undefended-build";
    program.windows(MARK.len()).any(|window| window == MARK)
}

/// Whether a program was built with the feature that lets it die at named places (`sys::crash`).
pub(crate) fn has_crash_points(program: &[u8]) -> bool {
    const MARK: &[u8] = b"gantry-crash-points-build";
    program.windows(MARK.len()).any(|window| window == MARK)
}

/// The program interpreter that an ELF64 file of this byte order names, if any.
fn interpreter(elf: &[u8]) -> Option<&str> {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, size: usize| -> Option<u64> {
        let raw = elf.get(at..at + size)?;
        Some(raw.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let table = usize::try_from(number(32, 8)?).ok()?;
    let size = usize::try_from(number(54, 2)?).ok()?;
    for index in 0..usize::try_from(number(56, 2)?).ok()? {
        let entry = table + index * size;
        if number(entry, 4)? == u64::from(PT_INTERP) {
            let offset = usize::try_from(number(entry + 8, 8)?).ok()?;
            let length = usize::try_from(number(entry + 32, 8)?).ok()?;
            return str::from_utf8(elf.get(offset..offset + length)?).ok();
        }
    }
    None
}

/// The triple of the compiler's own machine.
fn host_triple() -> Result<String> {
    let output = std::process::Command::new("rustc").arg("-vV").output().context("run rustc")?;
    let text = String::from_utf8(output.stdout)?;
    text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned).context("rustc names no host")
}

/// Where cargo builds.
pub(crate) fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}
