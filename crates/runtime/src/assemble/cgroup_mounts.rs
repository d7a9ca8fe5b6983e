//! The container's view of its cgroups.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use sys::clone::flags;
use sys::mount::attr;
use sys::undefended::{Defence, left_out};

use super::mounts::{Maker, filesystem_what, propagation, step};
use super::{c_string, detached_mounts, path_string};
use crate::Error;
use crate::child::{Legacy, Link, Step, What};
use crate::plan::MountPlan;

impl Maker<'_> {
    /// The container's view of the cgroups: on version 2 one mount; on version 1 a directory with one per hierarchy.
    pub(super) fn cgroups(&self, mount: &MountPlan, steps: &mut Vec<Step>) -> Result<(), Error> {
        let mut writable = mount.clone();
        writable.options.attributes.set &= !attr::RDONLY;
        let mount = if left_out(Defence::CgroupMounts) { &writable } else { mount };
        let own_view = self.plan.spaces.has(flags::NEWCGROUP);
        match &self.host.cgroups {
            cgroups::Host::V2 { mount: place } => {
                let source = place.join(self.plan.cgroup.as_str());
                if !own_view {
                    steps.push(Step::Mount(Box::new(self.bind(mount, &source)?)));
                    return Ok(());
                }
                let what = filesystem_what(mount, "cgroup2", "cgroup", &mount.options, false)?;
                let mut made = step(mount, what, true);
                made.propagation = propagation(&mount.options);
                made.instead = Some(self.instead(mount, &source)?);
                steps.push(Step::Mount(Box::new(made)));
            }
            cgroups::Host::V1 { controllers } => self.cgroups_v1(mount, controllers, own_view, steps)?,
        }
        Ok(())
    }

    fn cgroups_v1(
        &self,
        mount: &MountPlan,
        controllers: &[(String, PathBuf)],
        own_view: bool,
        steps: &mut Vec<Step>,
    ) -> Result<(), Error> {
        let read_only = mount.options.attributes.set & attr::RDONLY != 0;
        let mut options = mount.options.clone();
        options.attributes.set &= !attr::RDONLY;
        options.data = vec!["mode=755".to_owned()];
        // The attributes come at once for all of them, at the end: what the host has set on its own mounts is not locked.
        let together = detached_mounts() && self.host.mounts && !self.in_user_space();
        if together {
            let mut top = step(mount, filesystem_what(mount, "tmpfs", "tmpfs", &options, true)?, true);
            top.propagation = propagation(&options);
            steps.push(Step::Mount(Box::new(top)));
        } else {
            steps.push(self.filesystem(mount, "tmpfs", "tmpfs", &options)?);
        }
        let below = |name: &str| {
            let target = c_string([mount.target.as_bytes(), b"/", name.as_bytes()].concat())?;
            Ok::<_, Error>(MountPlan { target, destination: mount.destination.join(name), ..mount.clone() })
        };
        let mut links = Vec::new();
        let mut places: Vec<&Path> = Vec::new();
        for (controller, place) in controllers.iter().filter(|(controller, _)| !controller.is_empty()) {
            let directory = place.file_name().and_then(|name| name.to_str()).unwrap_or(controller);
            if controller != directory && !controller.starts_with("name=") {
                links.push(Link { name: c_string(controller.as_str())?, target: c_string(directory)? });
            }
            if places.contains(&place.as_path()) {
                continue;
            }
            places.push(place);
            let part = below(directory)?;
            if own_view {
                let all = controllers.iter().filter(|(_, other)| other == place).map(|(name, _)| name.clone());
                let mut options = part.options.clone();
                options.data = all.collect();
                // A named hierarchy has no controllers.
                if options.data.iter().any(|name| name.starts_with("name=")) {
                    options.data.insert(0, "none".to_owned());
                }
                if together {
                    options.attributes.set &= !attr::RDONLY;
                    options.propagation.clear();
                }
                let what = filesystem_what(&part, "cgroup", "cgroup", &options, false)?;
                steps.push(Step::Mount(Box::new(step(&part, what, true))));
            } else if together {
                let source = path_string(&place.join(self.plan.cgroup.as_str()))?;
                let (data, flags) = (CString::default(), libc::MS_BIND);
                let what = What::Legacy(Legacy { kind: None, source, data, flags, remount: None });
                steps.push(Step::Mount(Box::new(step(&part, what, true))));
            } else {
                let own = place.join(self.plan.cgroup.as_str());
                steps.push(Step::Mount(Box::new(self.bind(&part, &own)?)));
            }
        }
        if !links.is_empty() {
            steps.push(Step::Links { parent: mount.target.clone(), links });
        }
        if together {
            let mut propagation = propagation(&mount.options);
            if self.plan.root_propagation & libc::MS_SHARED == 0 {
                propagation.insert(0, libc::MS_SLAVE);
            }
            let set = mount.options.attributes.set | mount.options.recursive_attributes.set;
            steps.push(Step::Seal { path: mount.target.clone(), set, propagation });
        } else if read_only {
            steps.push(Step::ReadOnlyMount { path: mount.target.clone() });
        }
        Ok(())
    }
}
