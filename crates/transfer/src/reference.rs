//! Names of images as docker writes them, short and long.

/// The whole name of what docker calls `name`: with a host, a repository and a tag or a digest. `None` if docker would not
/// take it (distribution, reference grammar).
pub(crate) fn normalized(name: &str) -> Option<String> {
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<model::Digest>().ok()?)),
        None => (name, None),
    };
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match rest[slash..].rfind(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    let (host, path) = match path.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
        _ => ("docker.io", path.to_owned()),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let path = if host == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
    if !is_host(host) || !path.split('/').all(is_component) || !tag.is_none_or(is_tag) {
        return None;
    }
    Some(match digest {
        // A digest says more than a tag.
        Some(digest) => format!("{host}/{path}@{digest}"),
        None => format!("{host}/{path}:{}", tag.unwrap_or("latest")),
    })
}

/// How docker shows a name. `None` for what is no name to it.
pub(crate) fn familiar(name: &str) -> Option<String> {
    let whole = normalized(name)?;
    let short = whole.strip_prefix("docker.io/").unwrap_or(&whole);
    let short = short.strip_prefix("library/").filter(|rest| !rest.contains('/')).unwrap_or(short);
    Some(short.to_owned())
}

/// What stands in the annotation `org.opencontainers.image.ref.name` of an image: its tag, or its whole name where it has
/// none.
pub(crate) fn ref_name(name: &str) -> &str {
    let Some(slash) = name.find('/') else { return name };
    let Some(mark) = name[slash..].find([':', '@']) else { return name };
    match name[slash + mark..].strip_prefix(':') {
        Some(tag) if !tag.is_empty() => tag,
        _ => name,
    }
}

/// Whether a name stands below a prefix, and not only begins with the same letters.
pub(crate) fn has_prefix(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
}

fn is_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.').all(label) && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Lower-case letters and digits, divided by one dot, one or two underscores or any number of dashes.
fn is_component(component: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().is_some_and(|b| plain(*b)) && bytes.last().is_some_and(|b| plain(*b));
    let separators = || bytes.split(|byte| plain(*byte)).filter(|run| !run.is_empty());
    ends && separators().all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_and_short_names() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let by_digest = format!("docker.io/library/alpine@{digest}");
        for (name, whole, short) in [
            ("alpine", Some("docker.io/library/alpine:latest"), Some("alpine:latest")),
            ("alpine:3", Some("docker.io/library/alpine:3"), Some("alpine:3")),
            ("me/tool", Some("docker.io/me/tool:latest"), Some("me/tool:latest")),
            ("index.docker.io/alpine", Some("docker.io/library/alpine:latest"), Some("alpine:latest")),
            ("localhost/x", Some("localhost/x:latest"), Some("localhost/x:latest")),
            ("r.test:5000/a/b__c:v1.0-x", Some("r.test:5000/a/b__c:v1.0-x"), Some("r.test:5000/a/b__c:v1.0-x")),
            (&format!("alpine:3@{digest}"), Some(&by_digest), Some(&format!("alpine@{digest}"))),
            ("Alpine", None, None),
            ("a//b", None, None),
            ("a:", None, None),
            ("a@sha256:12", None, None),
            ("a b", None, None),
            ("../x", None, None),
            ("", None, None),
        ] {
            assert_eq!(normalized(name).as_deref(), whole, "{name}");
            assert_eq!(familiar(name).as_deref(), short, "{name}");
        }
    }

    #[test]
    fn annotations() {
        let digest = format!("r.test/a@sha256:{}", "0".repeat(64));
        for (name, want) in [
            ("docker.io/library/alpine:3.1", "3.1"),
            ("r.test:5000/a:b", "b"),
            ("r.test:5000/a", "r.test:5000/a"),
            ("alpine:3", "alpine:3"),
            (&digest, &digest),
            ("r.test/a:", "r.test/a:"),
        ] {
            assert_eq!(ref_name(name), want);
        }
        for (name, prefix, below) in
            [("a/b:c", "a/b", true), ("a/b", "a/b", true), ("a/b/c", "a/b", true), ("a/bc:d", "a/b", false)]
        {
            assert_eq!(has_prefix(name, prefix), below);
        }
    }
}
