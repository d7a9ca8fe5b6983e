//! Rules for devices as lines of version 1.

use oci::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use std::collections::BTreeMap;

use crate::Result;
use crate::v2::devices::Rule;

/// A device as version 1 knows it: letter, major and minor number; no number means all.
type Device = (char, Option<u32>, Option<u32>);

/// Lines that put `rules` in the place of what the group allows now (`devices.list`).
///
/// Where both are plain lists of what is allowed, the difference is written, first what is new: at no moment is
/// something refused that the old and the new rules allow. Otherwise the rules are written as they are.
pub(crate) fn replacement(now: &str, rules: &[LinuxDeviceCgroup]) -> Result<Vec<(&'static str, String)>> {
    let parsed = rules.iter().map(Rule::parse).collect::<Result<Vec<_>>>()?;
    let (Some(old), Some(new)) = (listed(now), allowed(&parsed)) else { return lines(rules) };
    let mut writes = Vec::new();
    for (file, from, to) in [("devices.allow", &old, &new), ("devices.deny", &new, &old)] {
        for (device, access) in to {
            let more = access & !from.get(device).copied().unwrap_or(0);
            if more != 0 {
                writes.push((file, line(*device, &Rule::access_letters(more))));
            }
        }
    }
    Ok(writes)
}

/// Lines for a group that is new, in which nobody is and everything is allowed that is in its parent.
pub(crate) fn first(rules: &[LinuxDeviceCgroup]) -> Result<Vec<(&'static str, String)>> {
    let parsed = rules.iter().map(Rule::parse).collect::<Result<Vec<_>>>()?;
    let Some(list) = allowed(&parsed) else { return lines(rules) };
    let allow = |(device, access): (Device, u8)| ("devices.allow", line(device, &Rule::access_letters(access)));
    let nothing = ("devices.deny", "a".to_owned());
    Ok(std::iter::once(nothing).chain(list.into_iter().filter(|(_, access)| *access != 0).map(allow)).collect())
}

/// What `devices.list` says; `None` where everything is allowed.
fn listed(text: &str) -> Option<BTreeMap<Device, u8>> {
    let mut list = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let letter = words.next()?.chars().next().filter(|letter| matches!(letter, 'b' | 'c'))?;
        let (major, minor) = words.next()?.split_once(':')?;
        let number = |text: &str| if text == "*" { Some(None) } else { text.parse().ok().map(Some) };
        let access = Rule::access_bits(words.next()?)?;
        *list.entry((letter, number(major)?, number(minor)?)).or_insert(0) |= access;
    }
    Some(list)
}

/// What the rules allow, if they begin with nothing and what they deny later is what they allowed before.
fn allowed(rules: &[Rule]) -> Option<BTreeMap<Device, u8>> {
    let begin = rules.iter().rposition(Rule::matches_everything).filter(|begin| !rules[*begin].allow)?;
    let mut list: BTreeMap<Device, u8> = BTreeMap::new();
    for rule in &rules[begin + 1..] {
        for device in devices(rule) {
            if rule.allow {
                *list.entry(device).or_insert(0) |= rule.access();
                continue;
            }
            // A denial of part of what another entry allows cannot be said by a list.
            let related = |other: &Device| {
                let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
                other.0 == device.0 && meet(other.1, device.1) && meet(other.2, device.2) && *other != device
            };
            if list.iter().any(|(other, access)| related(other) && access & rule.access() != 0) {
                return None;
            }
            if let Some(access) = list.get_mut(&device) {
                *access &= !rule.access();
            }
        }
    }
    Some(list)
}

fn devices(rule: &Rule) -> impl Iterator<Item = Device> {
    let (kind, major, minor) = (rule.kind, rule.major, rule.minor);
    [(LinuxDeviceType::B, 'b'), (LinuxDeviceType::C, 'c')]
        .into_iter()
        .filter(move |(only, _)| kind.is_none_or(|kind| kind == *only))
        .map(move |(_, letter)| (letter, major, minor))
}

fn line((letter, major, minor): Device, access: &str) -> String {
    let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    format!("{letter} {}:{} {access}", number(major), number(minor))
}

/// File and line for each rule, in order.
///
/// The kernel reads the type `a` as "everything", whatever numbers and access follow it; so a rule for all types with
/// a number or less than all access becomes one rule for block and one for character devices.
pub(crate) fn lines(rules: &[LinuxDeviceCgroup]) -> Result<Vec<(&'static str, String)>> {
    let mut lines = Vec::with_capacity(rules.len());
    for rule in rules {
        let rule = Rule::parse(rule)?;
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        if rule.matches_everything() {
            lines.push((file, "a".to_owned()));
            continue;
        }
        lines.extend(devices(&rule).map(|device| (file, line(device, &rule.access_text()))));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_lines() {
        for (rule, expected) in [
            (r#"{"allow":false,"access":"rwm"}"#, &["devices.deny=a"][..]),
            (r#"{"allow":true,"type":"a"}"#, &["devices.allow=a"]),
            (r#"{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}"#, &["devices.allow=c 1:3 rwm"]),
            (r#"{"allow":true,"type":"b","major":8,"access":"mr"}"#, &["devices.allow=b 8:* rm"]),
            (r#"{"allow":true,"type":"c","major":-1,"minor":-1,"access":"m"}"#, &["devices.allow=c *:* m"]),
            (r#"{"allow":false,"type":"a","major":10}"#, &["devices.deny=b 10:* rwm", "devices.deny=c 10:* rwm"]),
            (r#"{"allow":true,"access":"r"}"#, &["devices.allow=b *:* r", "devices.allow=c *:* r"]),
        ] {
            let rule: LinuxDeviceCgroup = serde_json::from_str(rule).unwrap();
            let found: Vec<String> = lines(std::slice::from_ref(&rule))
                .unwrap()
                .iter()
                .map(|(file, line)| format!("{file}={line}"))
                .collect();
            assert_eq!(found, expected, "{rule:?}");
        }
    }

    #[test]
    fn a_new_group_gets_each_device_once() {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(
            r#"[{"allow":true,"type":"c","major":9},{"allow":false},{"allow":true,"type":"c","major":1,"minor":3,"access":"r"},
                {"allow":true,"type":"c","major":1,"minor":3,"access":"w"},{"allow":false,"type":"c","major":7},
                {"allow":true,"type":"b","access":"m"},{"allow":true,"type":"c","major":5},
                {"allow":false,"type":"c","major":5}]"#,
        )
        .unwrap();
        let found: Vec<String> = first(&rules).unwrap().iter().map(|(file, line)| format!("{file}={line}")).collect();
        assert_eq!(found, ["devices.deny=a", "devices.allow=b *:* m", "devices.allow=c 1:3 rw"]);
        // What no list says is written as it is.
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(r#"[{"allow":true,"type":"c","major":9}]"#).unwrap();
        assert_eq!(first(&rules).unwrap(), [("devices.allow", "c 9:* rwm".to_owned())]);
    }

    #[test]
    fn rules_replace_others_without_a_gap() {
        let rules = |documents: &[&str]| -> Vec<LinuxDeviceCgroup> {
            documents.iter().map(|document| serde_json::from_str(document).unwrap()).collect()
        };
        let nothing = r#"{"allow":false,"access":"rwm"}"#;
        let null = r#"{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}"#;
        let tty = r#"{"allow":true,"type":"c","major":5,"access":"rwm"}"#;
        let no_tty = r#"{"allow":false,"type":"c","major":5,"access":"m"}"#;
        let part = r#"{"allow":false,"type":"c","major":5,"minor":1}"#;
        let all = r#"{"allow":true}"#;
        for (now, list, expected) in [
            ("c 1:3 rw\nc 1:5 rwm\n", &[nothing, null][..], &["devices.deny=c 1:5 rwm"][..]),
            ("c 1:3 rwm\n", &[nothing, null, tty], &["devices.allow=c 5:* rwm", "devices.deny=c 1:3 m"]),
            ("c 1:3 rw\nc 5:* rw\n", &[nothing, null, tty, no_tty], &[]),
            ("", &[tty, nothing, null], &["devices.allow=c 1:3 rw"]),
            // Everything now, or everything then, or what no list says: as they are.
            ("a *:* rwm\n", &[nothing, null], &["devices.deny=a", "devices.allow=c 1:3 rw"]),
            ("c 1:3 rw\n", &[all], &["devices.allow=a"]),
            ("", &[nothing, tty, part], &["devices.deny=a", "devices.allow=c 5:* rwm", "devices.deny=c 5:1 rwm"]),
        ] {
            let found: Vec<String> =
                replacement(now, &rules(list)).unwrap().iter().map(|(file, line)| format!("{file}={line}")).collect();
            assert_eq!(found, expected, "{now} {list:?}");
        }
    }
}
