//! Which mounts need the manager, and what it has to do for each.

use model::Mount;

/// What may be done to a mount before it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transformer {
    /// Fills templates in source, target and options.
    Format,
    /// Makes a file with a file system in it.
    Mkfs,
    /// Makes directories.
    Mkdir,
}

impl Transformer {
    fn named(name: &str) -> Option<Self> {
        match name {
            "format" => Some(Self::Format),
            "mkfs" => Some(Self::Mkfs),
            "mkdir" => Some(Self::Mkdir),
            _ => None,
        }
    }
}

/// What is to be done for one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Steps {
    /// From left to right.
    pub(crate) transformers: Vec<Transformer>,
    /// The type without them.
    pub(crate) kind: String,
    /// It is not mounted but handled: a file becomes a device.
    pub(crate) is_loop: bool,
}

impl Steps {
    fn of(kind: &str) -> Self {
        let mut transformers = Vec::new();
        let mut rest = kind;
        while let Some((name, after)) = rest.split_once('/') {
            // An unknown prefix belongs to the type.
            let Some(transformer) = Transformer::named(name) else { break };
            transformers.push(transformer);
            rest = after;
        }
        Self { transformers, is_loop: rest == LOOP, kind: rest.to_owned() }
    }
}

/// The type of mounts that become devices.
const LOOP: &str = "loop";

/// What is to be done for mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Steps>,
    /// So many from the start are made here; the rest is the caller's.
    pub(crate) ours: usize,
    /// The first of the rest is transformed as well.
    pub(crate) transform_next: bool,
}

/// Makes the plan; `None` if nothing needs help. `allowed` are types that the caller handles by itself, as whole types
/// (`mkdir/overlay`) or as `mkdir/*`. A temporary activation makes every mount here.
pub(crate) fn plan(mounts: &[Mount], allowed: &[String], temporary: bool) -> Option<Plan> {
    let steps: Vec<Steps> = mounts.iter().map(|mount| Steps::of(&mount.kind)).collect();
    let mut plan: Option<(usize, bool)> = None;
    for (index, (mount, steps)) in mounts.iter().zip(&steps).enumerate() {
        let wanted = transformed(&mount.kind, allowed) && !steps.transformers.is_empty();
        let handled = steps.is_loop && !allowed.contains(&steps.kind);
        if temporary || handled {
            plan = Some((index + 1, false));
        } else if wanted {
            plan = Some((index, true));
        }
    }
    plan.map(|(ours, transform_next)| Plan { steps, ours, transform_next })
}

/// Whether a type's transformers are ours to apply: at least one of them is not the caller's.
fn transformed(kind: &str, allowed: &[String]) -> bool {
    let mut rest = kind;
    while let Some((name, after)) = rest.split_once('/') {
        if Transformer::named(name).is_none() {
            return false;
        }
        if !allowed.iter().any(|allowed| allowed == kind || *allowed == format!("{name}/*")) {
            return true;
        }
        rest = after;
    }
    false
}

/// Whether any of `mounts` has a type that the manager knows: without one, [`crate::Manager::activate`] has nothing to do.
pub fn needs_help(mounts: &[Mount]) -> bool {
    plan(mounts, &[], false).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_mounts_are_ours() {
        type Case<'a> = (&'a [&'a str], &'a [&'a str], bool, Option<(usize, bool)>);
        let cases: [Case<'_>; 14] = [
            (&[], &[], false, None),
            (&["bind", "overlay"], &[], false, None),
            (&["bind", "xfs", "format/overlay"], &[], false, Some((2, true))),
            (&["format/overlay"], &[], false, Some((0, true))),
            (&["mkfs/ext4", "bind"], &[], false, Some((0, true))),
            (&["mkdir/bind", "bind", "format/mkdir/overlay"], &[], false, Some((2, true))),
            (&["loop", "ext4"], &[], false, Some((1, false))),
            (&["format/loop", "ext4", "overlay"], &[], false, Some((1, false))),
            (&["loop"], &["loop"], false, None),
            (&["format/overlay"], &["format/*"], false, None),
            (&["format/mkdir/overlay"], &["format/*"], false, Some((0, true))),
            (&["format/mkdir/overlay"], &["format/mkdir/overlay"], false, None),
            (&["bind", "overlay"], &[], true, Some((2, false))),
            (&["unknown/overlay", "fuse/format/x"], &[], false, None),
        ];
        for (kinds, allowed, temporary, want) in cases {
            let mounts: Vec<Mount> =
                kinds.iter().map(|kind| Mount { kind: (*kind).to_owned(), ..Mount::default() }).collect();
            let allowed: Vec<String> = allowed.iter().map(|kind| (*kind).to_owned()).collect();
            let plan = plan(&mounts, &allowed, temporary);
            assert_eq!(plan.map(|plan| (plan.ours, plan.transform_next)), want, "{kinds:?} {allowed:?}");
        }
        let steps = Steps::of("format/mkdir/fuse/x");
        assert_eq!(
            (steps.transformers, steps.kind.as_str()),
            (vec![Transformer::Format, Transformer::Mkdir], "fuse/x")
        );
    }
}
