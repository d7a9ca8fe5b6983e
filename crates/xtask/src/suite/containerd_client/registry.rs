use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::run;

/// Where the registry listens, in the network namespace of the suite.
pub(super) const ADDRESS: &str = "127.9.9.9";

/// The hosts that the suite's image names lead to.
pub(super) const HOSTS: &[&str] = &["ghcr.io", "registry.k8s.io"];

/// Debian's docker-registry with the suite's images; its certificate, signed by `authority.pem`; the file `hosts` of names
/// that lead to it; and `registry.yml`, with which it serves.
#[derive(Debug)]
pub(super) struct Registry {
    directory: PathBuf,
}

impl Registry {
    /// Prepares everything below `directory`, which is made.
    pub(super) fn prepare(directory: &Path) -> Result<Self> {
        let registry = Self { directory: directory.to_owned() };
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        registry.write_certificates()?;
        let names: String = HOSTS.iter().map(|host| format!("{ADDRESS} {host}\n")).collect();
        fs::write(directory.join("hosts"), format!("127.0.0.1 localhost\n{names}"))?;
        let storage = directory.join("storage");
        let [certificate, key] = ["server.pem", "server.key"].map(|name| directory.join(name));
        fs::write(
            registry.configuration(),
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: \"{ADDRESS}:443\", tls: {{certificate: {}, key: {}}}}}\n",
                storage.display(),
                certificate.display(),
                key.display()
            ),
        )?;
        registry.fill()?;
        Ok(registry)
    }

    /// The configuration with which `docker-registry serve` serves the images at [`ADDRESS`].
    pub(super) fn configuration(&self) -> PathBuf {
        self.directory.join("registry.yml")
    }

    fn write_certificates(&self) -> Result<()> {
        let names: Vec<String> = HOSTS.iter().map(|host| format!("DNS:{host}")).collect();
        fs::write(self.directory.join("names"), format!("subjectAltName={},IP:{ADDRESS}\n", names.join(",")))?;
        let openssl = |words: &str| {
            let mut command = Command::new("openssl");
            command.args(words.split(' ')).current_dir(&self.directory).stderr(Stdio::null());
            run(&mut command)
        };
        openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=authority -keyout authority.key -out authority.pem",
        )?;
        openssl("req -newkey rsa:2048 -nodes -subj /CN=registry -keyout server.key -out server.csr")?;
        openssl(
            "x509 -req -in server.csr -CA authority.pem -CAkey authority.key -CAcreateserial -days 30 -extfile names -out server.pem",
        )
    }

    /// Makes the images and pushes them in a network namespace of their own, with the configuration that serves them.
    fn fill(&self) -> Result<()> {
        let layouts = self.directory.join("layouts");
        let mut script =
            String::from("set -e\nip link set lo up\ndocker-registry serve \"$1\" >/dev/null 2>&1 & server=$!\n");
        script.push_str(&format!(
            "tries=0; until curl -sk https://{ADDRESS}/v2/ >/dev/null; do tries=$((tries + 1)); test $tries -lt 200; sleep 0.1; done\n"
        ));
        for (repository, tag) in super::images::write(&layouts)? {
            script.push_str(&format!(
                "skopeo --insecure-policy copy --quiet --all --dest-tls-verify=false oci:{}/{repository}/{tag}:{tag} docker://{ADDRESS}:443/{repository}:{tag}\n",
                layouts.display()
            ));
        }
        script.push_str("kill $server\n");
        run(Command::new("unshare").args(["--net", "--mount", "sh", "-c", &script, "sh"]).arg(self.configuration()))
    }
}
