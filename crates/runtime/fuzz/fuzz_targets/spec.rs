//! A `config.json`: arbitrary bytes, and changes to a valid one. Parsing, validation and planning end in a value or an
//! error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(spec) = oci::parse_spec(bytes) {
        runtime_fuzz::plan(&spec);
    }
    let mut document = runtime_fuzz::full_spec();
    runtime_fuzz::mutate(&mut document, bytes);
    if let Ok(spec) = oci::parse_spec(document.to_string().as_bytes()) {
        runtime_fuzz::plan(&spec);
    }
});
