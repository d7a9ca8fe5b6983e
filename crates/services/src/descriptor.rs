use api_grpc::types;
use metadata::Descriptor;

pub(crate) fn decode_descriptor(descriptor: types::Descriptor) -> Descriptor {
    let types::Descriptor { media_type, digest, size, annotations } = descriptor;
    Descriptor { media_type, digest, size, annotations }
}

pub(crate) fn encode_descriptor(descriptor: Descriptor) -> types::Descriptor {
    let Descriptor { media_type, digest, size, annotations } = descriptor;
    types::Descriptor { media_type, digest, size, annotations }
}
