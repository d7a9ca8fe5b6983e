//! Which operating system and processor something is for, and what that matches.

use serde::{Deserialize, Serialize};

/// A platform as image documents have it (image-spec, image index). All fields are as their author wrote them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Processor, in Go's words.
    #[serde(default)]
    pub architecture: String,
    /// Operating system, in Go's words.
    #[serde(default)]
    pub os: String,
    /// Version of the operating system; only Windows has use for it.
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Features that the operating system must have.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// Variant of the processor.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// The one of this machine.
    pub fn host() -> Self {
        Self { os: "linux".to_owned(), architecture: std::env::consts::ARCH.to_owned(), ..Self::default() }.normalized()
    }

    /// The same platform by the names that all agree on: `x86_64` is `amd64`, the `v8` of `arm64` goes without saying, and
    /// a plain `arm` is `v7`.
    #[must_use]
    pub fn normalized(mut self) -> Self {
        self.os = self.os.to_lowercase();
        if self.os == "macos" {
            self.os = "darwin".to_owned();
        }
        let (architecture, variant) = (self.architecture.to_lowercase(), self.variant.to_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
            ("x86_64" | "x86-64", other) => ("amd64", other),
            ("i386" | "386", _) => ("386", ""),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0" | "") => ("arm64", ""),
            ("aarch64", other) => ("arm64", other),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            (other, variant) => (other, variant),
        };
        (self.architecture, self.variant) = (architecture.to_owned(), variant.to_owned());
        self
    }

    /// Whether something for `candidate` is for this platform: same system, processor and variant, by whatever names.
    pub fn matches(&self, candidate: &Self) -> bool {
        let (want, have) = (self.clone().normalized(), candidate.clone().normalized());
        want.os == have.os
            && want.architecture == have.architecture
            && want.variant == have.variant
            && (want.os_version.is_empty() || want.os_version == have.os_version)
    }
}

/// Platforms in the order of their preference; none at all match everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Platforms(pub(crate) Vec<Platform>);

impl Platforms {
    /// How well something fits that says to be for `platform`, smaller is better; `None` if it does not. What does not say
    /// what it is for fits, after all that do.
    pub(crate) fn rank(&self, platform: Option<&Platform>) -> Option<usize> {
        match platform {
            _ if self.0.is_empty() => Some(0),
            None => Some(usize::MAX),
            Some(candidate) => self.0.iter().position(|wanted| wanted.matches(candidate)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        Platform { os: part(), architecture: part(), variant: part(), ..Platform::default() }
    }

    #[test]
    fn names_of_one_thing() {
        for (wanted, candidate, fits) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/x86_64", "Linux/amd64/v1", true),
            ("linux/amd64", "linux/amd64/v3", false),
            ("linux/amd64", "linux/386", false),
            ("linux/amd64", "windows/amd64", false),
            ("linux/arm64", "linux/aarch64/v8", true),
            ("linux/arm", "linux/arm/v7", true),
            ("linux/arm", "linux/arm/v6", false),
            ("linux/amd64", "unknown/unknown", false),
        ] {
            assert_eq!(platform(wanted).matches(&platform(candidate)), fits, "{wanted} {candidate}");
        }
    }

    #[test]
    fn preference() {
        let two = Platforms(vec![platform("linux/arm64"), platform("linux/amd64")]);
        for (candidate, rank) in
            [(Some("linux/arm64/v8"), Some(0)), (Some("linux/amd64"), Some(1)), (Some("linux/386"), None)]
        {
            assert_eq!(two.rank(candidate.map(platform).as_ref()), rank);
        }
        assert_eq!(two.rank(None), Some(usize::MAX));
        assert_eq!(Platforms::default().rank(Some(&platform("plan9/mips"))), Some(0));
    }
}
