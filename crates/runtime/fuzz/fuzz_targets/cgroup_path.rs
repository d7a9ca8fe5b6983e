//! A cgroup path: what is accepted stays below the hierarchies, and is itself again when it is read again.
#![no_main]

use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(path) = cgroups::CgroupPath::new(&text) {
        let shown = path.to_string();
        let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        assert!(Path::new(&shown).components().all(plain), "{shown:?}");
        assert!(!shown.contains('\0'), "{shown:?}");
        let again = cgroups::CgroupPath::new(&shown).map(|path| path.to_string());
        assert_eq!(again.ok().as_deref(), Some(shown.as_str()));
    }
    let mut document = runtime_fuzz::full_spec();
    document["linux"]["cgroupsPath"] = json!(text);
    if let Ok(spec) = oci::parse_spec(document.to_string().as_bytes()) {
        runtime_fuzz::plan(&spec);
    }
});
