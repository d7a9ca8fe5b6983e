use serde_json::json;

use crate::Case;
use crate::fixture::Bundle;

pub(crate) const CASES: &[Case] = &[("exit codes", exit_codes), ("output", output), ("missing program", missing)];

fn exit_codes() {
    for code in [0, 1, 42, 255] {
        assert_eq!(Bundle::new(&format!("exit {code}")).run().unwrap().status, code);
    }
    assert_eq!(Bundle::new("kill -9 $$; sleep 1").run().unwrap().status, 0, "init ignores its own signals");
}

fn output() {
    assert_eq!(Bundle::new("echo out; echo err >&2").output(), "out\nerr\n");
}

fn missing() {
    for (program, want) in [
        ("nope", r#"exec: "nope": executable file not found in $PATH"#),
        ("/nope", r#"exec: "/nope": stat /nope: no such file or directory"#),
        ("/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
        ("/etc", r#"exec: "/etc": is a directory"#),
        ("/proc/self/exe", r#"exec: "/proc/self/exe": permission denied"#),
    ] {
        let error = Bundle::new("").with(|spec| spec["process"]["args"] = json!([program])).error();
        assert!(error.contains(want), "{error}");
    }
}
