use crate::image_store::Found;
use crate::{Descriptor, Error, ImageStore, Session};

/// Gives what the image `source` names the names of `destination`. NOT_FOUND if there is no such image, INVALID_ARGUMENT if
/// there would be no name.
pub fn tag(session: &mut Session, source: &ImageStore, destination: &ImageStore) -> Result<(), Error> {
    if destination.name.is_empty() && destination.references.is_empty() {
        return Err(Error::NoImageNamed);
    }
    let image = session.metadata.images().get(&session.scope.namespace, &source.name)?;
    let descriptor = Descriptor {
        media_type: image.target.media_type,
        digest: image.target.digest,
        size: image.target.size,
        annotations: image.target.annotations,
        ..Descriptor::default()
    };
    destination.store(session, &Found::Whole(descriptor))
}
