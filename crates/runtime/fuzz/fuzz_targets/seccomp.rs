//! A profile made of the bytes: the compiled filter beside libseccomp's and beside a plain reading of the profile.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match runtime::fuzzing::seccomp_beside_library(bytes) {
        Ok(Some(_)) => {}
        Ok(None) => panic!("libseccomp.so.2 is not installed"),
        Err(difference) => panic!("{difference}"),
    }
});
