//! `format/…`: templates that name mounts which are active already.
//!
//! `{{ source N }}`, `{{ target N }}` and `{{ mount N }}` are the source, the target and the mount point of mount N;
//! `{{ overlay A B }}` joins the mount points from A to B, upwards or downwards, as `lowerdir` wants them.

use model::Mount;
use model::template::{self, Argument};

use crate::{ActiveMount, Error};

/// Fills the templates of a mount.
pub(crate) fn format(mount: &mut Mount, active: &[ActiveMount]) -> Result<(), Error> {
    let texts = [&mut mount.source, &mut mount.target].into_iter().chain(&mut mount.options);
    for text in texts {
        if text.contains("{{") {
            *text = template::render(text, |name, arguments| call(name, arguments, active))?;
        }
    }
    Ok(())
}

fn call(name: &str, arguments: &[Argument], active: &[ActiveMount]) -> Result<String, Error> {
    let find = |index: u64| {
        let found = usize::try_from(index).ok().and_then(|index| active.get(index));
        found.ok_or(Error::Index { index, active: active.len() })
    };
    match (name, arguments) {
        ("source", [Argument::Number(index)]) => Ok(find(*index)?.mount.source.clone()),
        ("target", [Argument::Number(index)]) => Ok(find(*index)?.mount.target.clone()),
        ("mount", [Argument::Number(index)]) => Ok(find(*index)?.mount_point.clone()),
        ("overlay", [Argument::Number(first), Argument::Number(last)]) => {
            // Both ends are looked up first, so what is between them is bounded by what is active.
            find(*first)?;
            find(*last)?;
            let range = *first.min(last)..=*first.max(last);
            let points = range.map(|index| find(index).map(|active| active.mount_point.clone()));
            let mut points = points.collect::<Result<Vec<_>, _>>()?;
            if first > last {
                points.reverse();
            }
            Ok(points.join(":"))
        }
        _ => Err(Error::Function { name: name.to_owned(), arguments: arguments.len() }),
    }
}

#[cfg(test)]
mod tests {
    use model::Timestamp;

    use super::*;

    fn active(count: usize) -> Vec<ActiveMount> {
        let one = |index| ActiveMount {
            mount: Mount { source: format!("s{index}"), target: format!("t{index}"), ..Mount::default() },
            mount_point: format!("/m/{index}"),
            mounted_at: Timestamp::ZERO,
        };
        (0..count).map(one).collect()
    }

    fn formatted(text: &str) -> Result<String, Error> {
        let mut mount = Mount { options: vec![text.to_owned()], ..Mount::default() };
        format(&mut mount, &active(3))?;
        Ok(mount.options.remove(0))
    }

    #[test]
    fn templates() {
        for (text, want) in [
            ("index=off", "index=off"),
            ("upperdir={{ mount 1 }}/up", "upperdir=/m/1/up"),
            ("lowerdir={{ overlay 0 2 }}", "lowerdir=/m/0:/m/1:/m/2"),
            ("lowerdir={{overlay 2 0}}", "lowerdir=/m/2:/m/1:/m/0"),
            ("{{ overlay 1 1 }}:{{ source 0 }}:{{ target 2 }}", "/m/1:s0:t2"),
        ] {
            assert_eq!(formatted(text).unwrap(), want, "{text}");
        }
        for text in [
            "{{ mount 3 }}",
            "{{ mount 18446744073709551615 }}",
            "{{ overlay 0 3 }}",
            "{{ overlay 18446744073709551615 0 }}",
            "{{ mount }}",
            "{{ mount \"1\" }}",
            "{{ nothing 1 }}",
            "{{ mount",
        ] {
            assert!(formatted(text).is_err(), "{text}");
        }
    }
}
