//! What a shim says about itself: `<shim> -info`, with the runtime options on standard input.
//!
//! **Invariant:** the answer is data of a stranger: bounded, decoded, and passed on.

use api_grpc::types::RuntimeInfo;
use model::Any;
use prost::Message as _;

use crate::program::{self, Errors, Finished};
use crate::{Config, Error, launch, runtimes};

/// So much of what a shim printed instead of an answer is shown.
const SHOWN_CHARACTERS: usize = 512;

/// Runs the shim that `runtime` means. Not bound to the caller: the shim is reaped even if the future is dropped.
pub(crate) async fn ask(config: &Config, runtime: &str, options: Option<Any>) -> Result<RuntimeInfo, Error> {
    let program = runtimes::resolve(config, std::env::var_os("PATH").as_deref(), runtime)?.path;
    let input = options.map(|options| api_grpc::encode::any(options).encode_to_vec()).unwrap_or_default();
    let run = async |errors| {
        let command = launch::command(config, "", &program).arg("-info");
        let ended = program::run(command, input.clone(), errors, config.timeouts.request).await;
        ended.map_err(|source| Error::Launch { operation: "run -info of", path: program.clone(), source })
    };
    let Finished { status, output } = run(Errors::File(None)).await?;
    if status == 0 {
        return RuntimeInfo::decode(output.as_slice())
            .map_err(|source| Error::ShimInfoReply { program: program.clone(), source });
    }
    // What it says of its failure goes another way than the answer; it has nothing to answer now.
    let Finished { status, output } = run(Errors::Output).await?;
    let output = String::from_utf8_lossy(&output).trim().chars().take(SHOWN_CHARACTERS).collect();
    Err(Error::ShimInfo { program: program.clone(), status, output })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use model::render;

    use super::*;

    fn shim(directory: &Path, script: &str) -> Config {
        let path = directory.join("containerd-shim-test-v1");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Config::new("/s".into(), "/r".into(), path, "/a".into())
    }

    #[tokio::test]
    async fn answers() {
        let bin = tempfile::tempdir().unwrap();
        let options = Some(Any { type_url: "x.Options".into(), value: vec![1] });
        // The name is the first field, with what the shim was asked by as its value.
        let config = shim(bin.path(), "echo noise >&2; test \"$1\" = -info && printf '\\n\\016' && head -c 14");
        let info = ask(&config, "io.containerd.test.v1", options.clone()).await.unwrap();
        assert_eq!(info.name, "\n\tx.Options\u{12}\u{1}\u{1}");
        for (script, want) in [
            ("echo cannot >&2; exit 3", "exit status 3 (stderr: \"cannot\")"),
            ("printf '\\377\\377'", "failed to unmarshal what"),
        ] {
            let config = shim(bin.path(), script);
            let error = render(&ask(&config, "io.containerd.test.v1", options.clone()).await.unwrap_err());
            assert!(error.contains(want), "{error}");
        }
        let missing = ask(&config, "io.containerd.none.v1", None).await.unwrap_err();
        assert!(render(&missing).contains("not installed"));
    }
}
