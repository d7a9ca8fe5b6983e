//! Groups as transient scopes of systemd.
//!
//! The manager is asked over D-Bus by a blocking client of our own: one connection for one operation, one thread, one
//! deadline. zbus would do it in more than [`bus`] and [`wire`] together need, and its executor in a process that must
//! have one thread; see the figures in `crates/README.md`. A host without the driver in use is never asked anything.
//!
//! ```text
//! start ──▶ active, its group limited ──▶ stop ──▶ unloaded
//!   └─ a failed unit of the same name is reset first
//! ```
//!
//! A scope cannot be empty, so whoever makes one gives it a process; it ends when its last process does.

mod annotation;
mod bus;
mod name;
pub(crate) mod properties;
mod wire;

use std::borrow::Cow;
use std::path::Path;

use crate::{CgroupPath, Error, Result};
use bus::{Bus, Failure, property};
use name::ScopeName;
use wire::Value;

/// A directory that exists where systemd runs (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Which systemd is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// The one of the host.
    System,
    /// That of the user, for those who are not root.
    User,
}

impl Manager {
    /// The one that the caller may ask: root of the host its own, everybody else that of the user.
    pub fn of_caller() -> Self {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let initial = map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
        if rustix::process::geteuid().is_root() && initial { Self::System } else { Self::User }
    }

    /// The slice for a scope that names none, as runc has it.
    fn usual_slice(self) -> &'static str {
        match self {
            Self::System => "system.slice",
            Self::User => "user.slice",
        }
    }
}

/// A property of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Property {
    pub(crate) name: Cow<'static, str>,
    pub(crate) value: Value,
}

/// A unit that exists, or once did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    name: String,
    manager: Manager,
}

impl Unit {
    /// A unit that was recorded by its name.
    pub fn new(name: &str, manager: Manager) -> Result<Self> {
        if name::is_unit_name(name) && name.ends_with(".scope") {
            return Ok(Self { name: name.to_owned(), manager });
        }
        let path = name.chars().take(200).collect();
        Err(Error::ScopePath { path, reason: "does not give a valid unit name" })
    }

    /// Its name: `gantry-x.scope`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whose unit it is.
    pub fn manager(&self) -> Manager {
        self.manager
    }

    /// Connects, and gives the version of the manager, too.
    fn open(&self, doing: &str) -> Result<Bus> {
        Bus::open(self.manager, format!("{doing} {}", self.name))
    }

    /// Sets properties until the next boot. `list` is given the version of systemd.
    pub(crate) fn set(&self, list: impl FnOnce(u32) -> Result<Vec<Property>>) -> Result<()> {
        let mut bus = self.open("setting the properties of")?;
        let version = bus.version().map_err(|failure| bus.error(failure))?;
        let list = list(version)?;
        if list.is_empty() {
            return Ok(());
        }
        let set = bus.manager("SetUnitProperties", "sba(sv)", |writer| {
            writer.text(&self.name);
            writer.bool(true);
            bus::properties(writer, &list);
        });
        set.map(drop).map_err(|failure| bus.error(failure))
    }

    /// Ends the unit with all its processes, and has it forgotten if it has failed. One that is gone is fine.
    pub fn stop(&self) -> Result<()> {
        let mut bus = self.open("stopping")?;
        let stopped = bus.job("StopUnit", "ss", |writer| {
            writer.text(&self.name);
            writer.text("replace");
        });
        match stopped {
            Ok(_) => {}
            Err(failure) if failure.is("NoSuchUnit") => return Ok(()),
            Err(failure) => return Err(bus.error(failure)),
        }
        // Only a failed unit is still there; of any other the manager knows nothing.
        let _ = bus.manager("ResetFailedUnit", "s", |writer| writer.text(&self.name));
        Ok(())
    }
}

/// A scope to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    name: ScopeName,
    manager: Manager,
    id: String,
    /// What annotations ask for.
    asked: Vec<Property>,
}

impl Scope {
    /// Reads `linux.cgroupsPath` as `slice:prefix:name` (nothing: a scope `gantry-<id>` in the usual slice) and the
    /// annotations `org.systemd.property.*`. Asks nobody.
    pub fn new<'text>(
        cgroups_path: &str,
        id: &str,
        manager: Manager,
        annotations: impl Iterator<Item = (&'text str, &'text str)>,
    ) -> Result<Self> {
        let name = ScopeName::parse(cgroups_path, id, manager)?;
        Ok(Self { name, manager, id: id.to_owned(), asked: annotation::properties(annotations)? })
    }

    /// Where the group will be, below that of its manager.
    pub fn path(&self) -> Result<CgroupPath> {
        self.name.path()
    }

    /// Starts it with the process `first` in it; waits at most 30 s. A failed unit of that name is reset once.
    pub(crate) fn start(&self, is_v2: bool, first: u32) -> Result<Unit> {
        if !Path::new(BOOTED).is_dir() {
            return Err(Error::NoSystemd);
        }
        let unit = Unit { name: self.name.unit.clone(), manager: self.manager };
        let mut bus = unit.open("starting")?;
        let list = self.properties(is_v2, first);
        let mut started = start(&mut bus, &unit.name, &list);
        if started.as_ref().is_err_and(|failure| failure.is("UnitExists")) {
            let _ = bus.manager("ResetFailedUnit", "s", |writer| writer.text(&unit.name));
            started = start(&mut bus, &unit.name, &list);
        }
        match started {
            Ok(result) if result == "done" => Ok(unit),
            Ok(result) => {
                let _ = bus.manager("ResetFailedUnit", "s", |writer| writer.text(&unit.name));
                Err(Error::Job { unit: unit.name, result })
            }
            Err(failure) => Err(bus.error(failure)),
        }
    }

    /// What a container's scope is: a part of its slice that rules over itself, counted from the beginning, and not tied
    /// to the targets that end ordinary units early at a shutdown. Annotations come last and have the last word.
    fn properties(&self, is_v2: bool, first: u32) -> Vec<Property> {
        let mut list = vec![
            property("Description", Value::Text(format!("gantry container {}", self.id))),
            property("Slice", Value::Text(self.name.slice.clone())),
            property("Delegate", Value::Bool(true)),
            property("PIDs", Value::U32s(vec![first])),
            property("MemoryAccounting", Value::Bool(true)),
            property("CPUAccounting", Value::Bool(true)),
            property(if is_v2 { "IOAccounting" } else { "BlockIOAccounting" }, Value::Bool(true)),
            property("TasksAccounting", Value::Bool(true)),
            property("DefaultDependencies", Value::Bool(false)),
        ];
        list.extend(self.asked.iter().cloned());
        list
    }
}

fn start(bus: &mut Bus, unit: &str, list: &[Property]) -> std::result::Result<String, Failure> {
    bus.job("StartTransientUnit", "ssa(sv)a(sa(sv))", |writer| {
        writer.text(unit);
        // The word is about other jobs: a unit that runs is never replaced.
        writer.text("replace");
        bus::properties(writer, list);
        // No units beside it.
        writer.array(8, |_| {});
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_is_a_delegated_part_of_its_slice() {
        let annotations = [("org.systemd.property.CollectMode", "'inactive-or-failed'"), ("other", "x")];
        let scope = Scope::new("machine.slice:libpod:x", "id", Manager::System, annotations.into_iter()).unwrap();
        assert_eq!(scope.path().unwrap().as_str(), "machine.slice/libpod-x.scope");
        let list = scope.properties(true, 17);
        let value = |name: &str| list.iter().find(|property| property.name == name).map(|property| &property.value);
        assert_eq!(value("Slice"), Some(&Value::Text("machine.slice".to_owned())));
        assert_eq!(value("Delegate"), Some(&Value::Bool(true)));
        assert_eq!(value("PIDs"), Some(&Value::U32s(vec![17])));
        assert_eq!(value("CollectMode"), Some(&Value::Text("inactive-or-failed".to_owned())));
        assert!(value("BlockIOAccounting").is_none() && scope.properties(false, 1)[6].name == "BlockIOAccounting");
    }

    #[test]
    fn recorded_units_are_checked() {
        assert_eq!(Unit::new("runc-x.scope", Manager::User).unwrap().name(), "runc-x.scope");
        for name in ["", "x", "x.service", "a/b.scope", "../x.scope", "a b.scope"] {
            assert!(Unit::new(name, Manager::System).is_err(), "{name}");
        }
    }
}
