//! Labels of security modules: whether this host has the module, and what a process writes to get its label.

use std::ffi::CString;

use rustix::fs::{CWD, StatVfsMountFlags};

use crate::child::Step;
use crate::{Error, Plan};

/// Labels that a document asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    pub(crate) apparmor: Option<String>,
    pub(crate) selinux: Option<String>,
}

const NO_APPARMOR: &str = "apparmor: config provided but apparmor not supported";
const NO_SELINUX: &str = "selinux label is specified in config, but selinux is disabled or not supported";

impl Labels {
    /// What the document of a process says. `unconfined` is what everything is without AppArmor.
    pub(crate) fn of_process(field: &str, process: &oci::Process) -> Result<Self, Error> {
        let given = |name: &str, text: &Option<String>| match text.as_deref().filter(|text| !text.is_empty()) {
            // One line, which the kernel parses.
            Some(text) if text.len() > 4000 || text.chars().any(char::is_control) => {
                Err(Error::invalid(format!("{field}.{name}"), "must be one line of at most 4000 bytes"))
            }
            text => Ok(text.map(str::to_owned)),
        };
        Ok(Self {
            apparmor: given("apparmorProfile", process.apparmor_profile())?,
            selinux: given("selinuxLabel", process.selinux_label())?,
        })
    }

    /// An additional process has what its container's first one has, unless its own document says otherwise.
    pub(crate) fn inherit(&mut self, of: &Self) {
        self.apparmor = self.apparmor.take().or_else(|| of.apparmor.clone());
        self.selinux = self.selinux.take().or_else(|| of.selinux.clone());
    }

    /// What the process does to be labelled at its next exec. An error names the field if this host has no such module.
    pub(crate) fn steps(&self, new_keyring: bool) -> Result<Vec<Step>, Error> {
        self.steps_on(new_keyring, has_apparmor, has_selinux)
    }

    fn steps_on(
        &self,
        new_keyring: bool,
        has_apparmor: impl Fn() -> bool,
        has_selinux: impl Fn() -> bool,
    ) -> Result<Vec<Step>, Error> {
        let mut steps = Vec::new();
        if let Some(label) = &self.selinux {
            if !has_selinux() {
                return Err(Error::unsupported("process.selinuxLabel", NO_SELINUX));
            }
            let names: &[&std::ffi::CStr] = if new_keyring {
                &[c"thread-self/attr/keycreate", c"thread-self/attr/exec"]
            } else {
                &[c"thread-self/attr/exec"]
            };
            steps.extend(names.iter().map(|name| Step::Label {
                field: "process.selinuxLabel",
                path: CString::from(*name),
                otherwise: None,
                value: label.clone().into_bytes(),
            }));
        }
        if let Some(profile) = &self.apparmor {
            if has_apparmor() {
                steps.push(Step::Label {
                    field: "process.apparmorProfile",
                    path: CString::from(c"thread-self/attr/apparmor/exec"),
                    otherwise: Some(CString::from(c"thread-self/attr/exec")),
                    value: format!("exec {profile}").into_bytes(),
                });
            } else if profile != "unconfined" {
                return Err(Error::unsupported("process.apparmorProfile", NO_APPARMOR));
            }
        }
        Ok(steps)
    }
}

/// Gives the mounts of `plan` its label. Where no file has a label there is nothing to protect by it: a warning says so.
/// The label of a process is different: who asks for it relies on being confined.
pub(crate) fn label_mounts(plan: &mut Plan) {
    let Some(label) = &plan.mount_label else { return };
    if has_selinux() {
        crate::plan::label_mounts(&mut plan.mounts, label);
    } else {
        plan.process.warnings.push(format!("ignoring linux.mountLabel {label:?}: {NO_SELINUX}"));
    }
}

fn has_apparmor() -> bool {
    std::path::Path::new("/sys/kernel/security/apparmor").exists()
        && sys::fs::read_small(CWD, "/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// Mounted, writable, and with a policy: without one every process is `kernel`.
fn has_selinux() -> bool {
    const SELINUX_MAGIC: u32 = 0xf97c_ff8c;
    let mounted = rustix::fs::statfs("/sys/fs/selinux").is_ok_and(|found| found.f_type as u32 == SELINUX_MAGIC)
        && rustix::fs::statvfs("/sys/fs/selinux").is_ok_and(|found| !found.f_flag.contains(StatVfsMountFlags::RDONLY));
    let label = || sys::fs::read_small(CWD, "/proc/thread-self/attr/current").unwrap_or_default();
    mounted && label().trim_end_matches(['\0', '\n']) != "kernel"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(apparmor: Option<&str>, selinux: Option<&str>) -> Labels {
        Labels { apparmor: apparmor.map(str::to_owned), selinux: selinux.map(str::to_owned) }
    }

    fn written(labels: &Labels, keyring: bool) -> Vec<(String, String)> {
        let steps = labels.steps_on(keyring, || true, || true).unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        steps
            .iter()
            .map(|step| {
                let Step::Label { path, value, .. } = step else { panic!("{step:?}") };
                (text(path.as_bytes()), text(value))
            })
            .collect()
    }

    #[test]
    fn what_is_written() {
        let pair = |path: &str, value: &str| (format!("thread-self/attr/{path}"), value.to_owned());
        assert_eq!(written(&labels(Some("p"), None), true), [pair("apparmor/exec", "exec p")]);
        assert_eq!(written(&labels(Some("unconfined"), None), true), [pair("apparmor/exec", "exec unconfined")]);
        assert_eq!(written(&labels(None, Some("l")), true), [pair("keycreate", "l"), pair("exec", "l")]);
        assert_eq!(written(&labels(None, Some("l")), false), [pair("exec", "l")]);
        assert!(written(&labels(None, None), true).is_empty());
    }

    #[test]
    fn without_the_module_the_field_is_refused() {
        let refused = |labels: Labels| labels.steps_on(true, || false, || false).unwrap_err().to_string();
        assert!(refused(labels(Some("p"), None)).starts_with("process.apparmorProfile: apparmor"));
        assert!(refused(labels(None, Some("l"))).starts_with("process.selinuxLabel: selinux"));
        assert!(labels(Some("unconfined"), None).steps_on(true, || false, || false).unwrap().is_empty());
    }

    #[test]
    fn labels_are_one_line() {
        for text in ["a\nb", "a\0", "\t", &"x".repeat(5000)] {
            let document = serde_json::json!({"args": ["x"], "cwd": "/", "apparmorProfile": text});
            let process = oci::parse_process(document.to_string().as_bytes()).unwrap();
            assert!(Labels::of_process("process", &process).is_err(), "{text:?}");
        }
    }
}
