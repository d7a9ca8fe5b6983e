//! The document of an exec: arbitrary bytes, and changes to a valid one.
#![no_main]

use libfuzzer_sys::fuzz_target;

fn plan(json: &[u8]) {
    if let Ok(process) = oci::parse_process(json) {
        for in_user_space in [false, true] {
            let _ = runtime::fuzzing::plan_exec(&process, runtime_fuzz::host(), in_user_space);
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    plan(bytes);
    let mut document = runtime_fuzz::full_process();
    runtime_fuzz::mutate(&mut document, bytes);
    plan(document.to_string().as_bytes());
});
