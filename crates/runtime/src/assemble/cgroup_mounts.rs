//! The container's view of its cgroups.

use std::path::{Path, PathBuf};

use sys::clone::flags;
use sys::mount::attr;
use sys::undefended::{Defence, left_out};

use super::c_string;
use super::mounts::{Maker, filesystem_what, propagation, step};
use crate::Error;
use crate::child::{Link, Step};
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
                let what = filesystem_what(mount, "cgroup2", "cgroup", &mount.options)?;
                let mut made = step(mount, what, true);
                made.propagation = propagation(&mount.options);
                made.instead = Some(self.bind(mount, &source)?.what);
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
        steps.push(self.filesystem(mount, "tmpfs", "tmpfs", &options)?);
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
                let together = controllers.iter().filter(|(_, other)| other == place).map(|(name, _)| name.clone());
                let mut options = part.options.clone();
                options.data = together.collect();
                // A named hierarchy has no controllers.
                if options.data.iter().any(|name| name.starts_with("name=")) {
                    options.data.insert(0, "none".to_owned());
                }
                let what = filesystem_what(&part, "cgroup", "cgroup", &options)?;
                steps.push(Step::Mount(Box::new(step(&part, what, true))));
            } else {
                let own = place.join(self.plan.cgroup.as_str());
                steps.push(Step::Mount(Box::new(self.bind(&part, &own)?)));
            }
        }
        if !links.is_empty() {
            steps.push(Step::Links { parent: mount.target.clone(), links });
        }
        if read_only {
            steps.push(Step::ReadOnlyMount { path: mount.target.clone() });
        }
        Ok(())
    }
}
