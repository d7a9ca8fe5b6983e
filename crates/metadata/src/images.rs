use model::filter::Filters;
use model::{Digest, Namespace, Timestamp};
use store::{Durability, View};

use crate::db::{Inner, Tx, clean_labels, mask_map, rows};
use crate::encoding::{ImageRecord, decode};
use crate::gc::EXPIRE_LABEL;
use crate::keys::{NAME_BYTES_MAX, Table, check_name};
use crate::{Error, Image, Scope, payload};

/// The images of all namespaces.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a>(&'a Inner);

impl<'a> Images<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        Self(inner)
    }

    /// One image. NOT_FOUND if there is none.
    pub fn get(&self, namespace: &Namespace, name: &str) -> Result<Image, Error> {
        let found = self.0.store.read(|view| find(view, namespace, name))?;
        found.ok_or_else(|| Error::NoImage(name.to_owned()))
    }

    /// Those that match, in order of their names. Fields: `name`, `target.digest`, `target.mediatype`, `labels.*`,
    /// `annotations.*`.
    pub fn list(&self, namespace: &Namespace, filters: &Filters) -> Result<Vec<Image>, Error> {
        self.0.store.read(|view| {
            let mut found = Vec::new();
            rows(view, Table::Image, namespace.as_str(), |name, value| {
                let image = decode::<ImageRecord>("image", name, value)?.image(name);
                if filters.matches(|path| field(&image, path)) {
                    found.push(image);
                }
                Ok(())
            })?;
            Ok(found)
        })
    }

    /// Creates one. Its timestamps become `epoch`, or now. ALREADY_EXISTS if the name is taken.
    pub fn create(&self, scope: &Scope, mut image: Image, epoch: Option<Timestamp>) -> Result<Image, Error> {
        validate(&mut image)?;
        let key = Table::Image.key(scope.namespace.as_str(), &image.name);
        self.0.write(Durability::OnDisk, |tx| {
            if tx.get(&key)?.is_some() {
                return Err(Error::ImageExists(image.name));
            }
            image.created_at = epoch.unwrap_or(tx.now);
            image.updated_at = image.created_at;
            tx.touch_namespace(&scope.namespace)?;
            lease(tx, scope, &image)?;
            tx.put_record(&key, &ImageRecord::new(&image))?;
            tx.event(scope.namespace.as_str(), "/images/create", payload::image_create(&image.name, &image.labels));
            Ok(image)
        })
    }

    /// Changes the fields that `mask` names: `target`, `labels`, `labels.<key>`, `annotations`, `annotations.<key>`; an
    /// empty mask replaces all. NOT_FOUND if there is no such image.
    pub fn update(
        &self,
        scope: &Scope,
        image: &Image,
        mask: &[String],
        epoch: Option<Timestamp>,
    ) -> Result<Image, Error> {
        check_name("image name", &image.name, NAME_BYTES_MAX)?;
        let key = Table::Image.key(scope.namespace.as_str(), &image.name);
        self.0.write(Durability::OnDisk, |tx| {
            let stored = find(tx, &scope.namespace, &image.name)?;
            let mut updated = stored.ok_or_else(|| Error::NoImage(image.name.clone()))?;
            apply(&mut updated, image, mask)?;
            validate(&mut updated)?;
            updated.updated_at = epoch.unwrap_or(tx.now);
            lease(tx, scope, &updated)?;
            tx.put_record(&key, &ImageRecord::new(&updated))?;
            let payload = payload::image_update(&updated.name, &updated.labels);
            tx.event(scope.namespace.as_str(), "/images/update", payload);
            Ok(updated)
        })
    }

    /// Deletes one; its content goes when nothing else refers to it ([`crate::Metadata::collect_and_wait`] waits for
    /// that). NOT_FOUND if there is none, or if it has another target than `target` (a digest; empty for any).
    pub fn delete(&self, scope: &Scope, name: &str, target: &str) -> Result<(), Error> {
        let key = Table::Image.key(scope.namespace.as_str(), name);
        self.0.write(Durability::OnDisk, |tx| {
            let stored = find(tx, &scope.namespace, name)?.ok_or_else(|| Error::NoImage(name.to_owned()))?;
            if !target.is_empty() && stored.target.digest != target {
                return Err(Error::ImageTarget {
                    name: name.to_owned(),
                    have: stored.target.digest,
                    want: target.to_owned(),
                });
            }
            tx.delete(&key);
            tx.unlease(scope, "images", name);
            tx.event(scope.namespace.as_str(), "/images/delete", payload::image_delete(name));
            Ok(())
        })?;
        self.0.gc.mark_dirty();
        Ok(())
    }
}

/// An image that can expire lives as long as the lease of whoever made it.
fn lease(tx: &mut Tx<'_>, scope: &Scope, image: &Image) -> Result<(), Error> {
    if image.labels.contains_key(EXPIRE_LABEL) {
        tx.lease(scope, "images", &image.name)?;
    }
    Ok(())
}

fn find(view: &View, namespace: &Namespace, name: &str) -> Result<Option<Image>, Error> {
    let Some(stored) = view.get(&Table::Image.key(namespace.as_str(), name))? else { return Ok(None) };
    Ok(Some(decode::<ImageRecord>("image", name, &stored)?.image(name)))
}

fn apply(stored: &mut Image, wanted: &Image, mask: &[String]) -> Result<(), Error> {
    if mask.is_empty() {
        stored.labels.clone_from(&wanted.labels);
        stored.target.clone_from(&wanted.target);
    }
    for path in mask {
        if mask_map(path, "labels", &mut stored.labels, &wanted.labels)
            || mask_map(path, "annotations", &mut stored.target.annotations, &wanted.target.annotations)
        {
            continue;
        }
        if path != "target" {
            return Err(Error::Mask { path: path.clone(), subject: format!("image {:?}", wanted.name) });
        }
        stored.target.clone_from(&wanted.target);
    }
    Ok(())
}

/// Checks an image, and drops labels and annotations without a value.
fn validate(image: &mut Image) -> Result<(), Error> {
    check_name("image name", &image.name, NAME_BYTES_MAX)?;
    clean_labels("image", &mut image.labels)?;
    image.target.digest.parse::<Digest>().map_err(|source| Error::Digest { field: "target.Digest invalid", source })?;
    if image.target.size <= 0 {
        return Err(Error::TargetSize);
    }
    if image.target.media_type.is_empty() {
        return Err(Error::Required("target.MediaType"));
    }
    image.target.annotations.retain(|_, value| !value.is_empty());
    Ok(())
}

fn field(image: &Image, path: &[&str]) -> Option<String> {
    let present = |text: &String| (!text.is_empty()).then(|| text.clone());
    match path {
        ["name"] => present(&image.name),
        ["target", "digest"] => present(&image.target.digest),
        ["target", "mediatype"] => present(&image.target.media_type),
        ["labels", rest @ ..] => model::filter::label(&image.labels, rest).map(str::to_owned),
        ["annotations", rest @ ..] => model::filter::label(&image.target.annotations, rest).map(str::to_owned),
        _ => None,
    }
}
