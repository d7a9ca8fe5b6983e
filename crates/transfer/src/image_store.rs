//! The images of the daemon as a source or a destination: what a transfer reads, and the names that what it brings gets.

use ::metadata::Image;
use model::{Code, Coded as _, Labels, Timestamp};

use crate::document::{IMAGE_NAME, REF_NAME};
use crate::reference::has_prefix;
use crate::{Descriptor, Error, Platform, Session};

/// Attempts to store a name that others create and delete meanwhile.
const ATTEMPTS: usize = 16;

/// A selection of images.
#[derive(Clone, Debug, Default)]
pub struct ImageStore {
    /// The one to read, or the name that the whole gets; may be empty.
    pub name: String,
    /// Labels of what is stored.
    pub labels: Labels,
    /// Parts of an index that count, best first; all, if there are none.
    pub platforms: Vec<Platform>,
    /// Manifests of other platforms count as well, without their layers.
    pub all_metadata: bool,
    /// Most manifests that an index gives; 0 for no limit.
    pub manifest_limit: usize,
    /// Further names.
    pub references: Vec<Reference>,
    /// Where layers are unpacked to.
    pub unpacks: Vec<Unpack>,
}

/// A further name.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// It, or what names begin with.
    pub name: String,
    /// It is a prefix, to which a tag or a digest is added.
    pub is_prefix: bool,
    /// A whole name in the image wins over the prefix, whatever it begins with.
    pub allow_overwrite: bool,
    /// `<prefix>@<digest>` is stored, too.
    pub add_digest: bool,
    /// Not for an image that has got a name by the prefix.
    pub skip_named_digest: bool,
}

/// Where layers are unpacked to.
#[derive(Clone, Debug, Default)]
pub struct Unpack {
    /// Images of this platform; `None` for this machine's.
    pub platform: Option<Platform>,
    /// Empty for the default.
    pub snapshotter: String,
}

/// What is given names.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// What the transfer is about.
    Whole(Descriptor),
    /// A part that may have a name of its own in its annotations.
    Part(Descriptor),
}

impl ImageStore {
    /// The images that are to be read, as they are stored. NOT_FOUND for a missing one; UNIMPLEMENTED for prefixes.
    pub(crate) fn lookup(&self, session: &Session) -> Result<Vec<Image>, Error> {
        let mut found = Vec::new();
        let get = |name: &str| session.metadata.images().get(&session.scope.namespace, name);
        if !self.name.is_empty() {
            found.push(get(&self.name)?);
        }
        for reference in &self.references {
            if reference.is_prefix {
                return Err(Error::PrefixLookup);
            }
            found.push(get(&reference.name)?);
        }
        if found.is_empty() {
            return Err(Error::NoImageNamed);
        }
        Ok(found)
    }

    /// The names of something, and whether each is a further one.
    fn names(&self, found: &Found) -> Vec<(String, bool)> {
        let mut names = Vec::new();
        match found {
            Found::Whole(descriptor) => {
                if !self.name.is_empty() {
                    names.push((self.name.clone(), false));
                }
                for reference in &self.references {
                    if reference.add_digest {
                        names.push((format!("{}@{}", reference.name, descriptor.digest), true));
                    } else if !reference.is_prefix {
                        names.push((reference.name.clone(), true));
                    }
                }
            }
            Found::Part(descriptor) => {
                for reference in self.references.iter().filter(|reference| reference.is_prefix) {
                    let name = reference.name_of(descriptor);
                    let named = name.is_some();
                    names.extend(name.map(|name| (name, true)));
                    if reference.add_digest && !(named && reference.skip_named_digest) {
                        names.push((format!("{}@{}", reference.name, descriptor.digest), true));
                    }
                }
            }
        }
        names
    }

    /// Stores something under its names, over what they named before. Tells each name as saved.
    pub(crate) fn store(&self, session: &mut Session, found: &Found) -> Result<(), Error> {
        let (Found::Whole(descriptor) | Found::Part(descriptor)) = found;
        for (name, further) in self.names(found) {
            let mut labels = self.labels.clone();
            if further && !self.name.is_empty() {
                // Collected with the image that it belongs to, and by nothing else.
                labels.insert("containerd.io/gc.bref.image".to_owned(), self.name.clone());
                let now = crate::time::rfc3339(Timestamp::now().seconds);
                labels.insert("containerd.io/gc.expire".to_owned(), now);
            }
            let target = ::metadata::Descriptor {
                media_type: descriptor.media_type.clone(),
                digest: descriptor.digest.clone(),
                size: descriptor.size,
                annotations: descriptor.annotations.clone(),
            };
            put(session, Image { name: name.clone(), labels, target, ..Image::default() })?;
            session.tell("saved", &name, Some(descriptor));
        }
        Ok(())
    }
}

impl Reference {
    /// The name that the annotations give a part below this prefix.
    fn name_of(&self, descriptor: &Descriptor) -> Option<String> {
        let of = |key: &str| descriptor.annotations.get(key).filter(|text| !text.is_empty());
        if let Some(whole) = of(IMAGE_NAME) {
            // It is taken as it is or not at all.
            return self.complete(whole).filter(|name| name == whole);
        }
        of(REF_NAME).and_then(|text| self.complete(text))
    }

    /// A tag gets the prefix; a whole name must stand below it, unless it may be another one.
    fn complete(&self, text: &str) -> Option<String> {
        if self.name.is_empty() {
            return None;
        }
        if !text.contains(['/', ':', '@']) {
            return Some(format!("{}:{text}", self.name));
        }
        (self.allow_overwrite || has_prefix(text, &self.name)).then(|| text.to_owned())
    }
}

fn put(session: &Session, image: Image) -> Result<(), Error> {
    let images = session.metadata.images();
    let mut failed = None;
    for _ in 0..ATTEMPTS {
        match images.create(&session.scope, image.clone(), None) {
            Err(error) if error.code() == Code::AlreadyExists => {}
            other => return other.map(drop).map_err(Error::from),
        }
        match images.update(&session.scope, &image, &[], None) {
            // Deleted meanwhile.
            Err(error) if error.code() == Code::NotFound => failed = Some(error),
            other => return other.map(drop).map_err(Error::from),
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(name: &str, allow_overwrite: bool, add_digest: bool, skip_named_digest: bool) -> Reference {
        Reference { name: name.into(), is_prefix: true, allow_overwrite, add_digest, skip_named_digest }
    }

    fn annotated(key: &str, value: &str) -> Found {
        let annotations = Labels::from([(key.to_owned(), value.to_owned())]);
        Found::Part(Descriptor { digest: "sha256:d".into(), annotations, ..Descriptor::default() })
    }

    #[test]
    fn names_of_parts() {
        let whole = annotated(IMAGE_NAME, "r.test/all:1");
        let tag = annotated(REF_NAME, "best");
        let nothing = annotated("other", "x");
        for (reference, found, want) in [
            (prefix("unused", true, false, false), &whole, vec!["r.test/all:1"]),
            (prefix("unused", false, false, false), &whole, vec![]),
            (prefix("r.test/all", false, false, false), &whole, vec!["r.test/all:1"]),
            (prefix("r.test/al", false, false, false), &whole, vec![]),
            (prefix("r.test/all", false, true, false), &whole, vec!["r.test/all:1", "r.test/all@sha256:d"]),
            (prefix("r.test/all", false, true, true), &whole, vec!["r.test/all:1"]),
            (prefix("r.test/my", false, false, false), &tag, vec!["r.test/my:best"]),
            (prefix("r.test/my", true, true, false), &tag, vec!["r.test/my:best", "r.test/my@sha256:d"]),
            (prefix("r.test/my", false, true, true), &nothing, vec!["r.test/my@sha256:d"]),
            (prefix("", true, false, false), &whole, vec![]),
            (Reference { name: "plain".into(), ..Reference::default() }, &whole, vec![]),
        ] {
            let store = ImageStore { references: vec![reference.clone()], ..ImageStore::default() };
            let names: Vec<String> = store.names(found).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, want, "{reference:?} {found:?}");
        }
    }

    #[test]
    fn names_of_the_whole() {
        let store = ImageStore {
            name: "a".into(),
            references: vec![
                Reference { name: "b".into(), ..Reference::default() },
                prefix("c", false, false, false),
                prefix("d", false, true, true),
            ],
            ..ImageStore::default()
        };
        let whole = Found::Whole(Descriptor { digest: "sha256:d".into(), ..Descriptor::default() });
        let want = [("a", false), ("b", true), ("d@sha256:d", true)].map(|(name, further)| (name.to_owned(), further));
        assert_eq!(store.names(&whole), want);
    }
}
