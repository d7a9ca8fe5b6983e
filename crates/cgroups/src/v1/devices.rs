//! Rules for devices as lines of version 1.

use oci::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::Result;
use crate::v2::devices::Rule;

/// File and line for each rule, in order.
///
/// The kernel reads the type `a` as "everything", whatever numbers and access follow it; so a rule for all types with
/// a number or less than all access becomes one rule for block and one for character devices.
pub(crate) fn lines(rules: &[LinuxDeviceCgroup]) -> Result<Vec<(&'static str, String)>> {
    let mut lines = Vec::with_capacity(rules.len());
    for rule in rules {
        let rule = Rule::parse(rule)?;
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        if rule.kind.is_none() && rule.major.is_none() && rule.minor.is_none() && rule.is_all_access() {
            lines.push((file, "a".to_owned()));
            continue;
        }
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let (major, minor, access) = (number(rule.major), number(rule.minor), rule.access_text());
        for (kind, letter) in [(LinuxDeviceType::B, 'b'), (LinuxDeviceType::C, 'c')] {
            if rule.kind.is_none_or(|only| only == kind) {
                lines.push((file, format!("{letter} {major}:{minor} {access}")));
            }
        }
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
}
