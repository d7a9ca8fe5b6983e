//! `-info` and `-v`: what this shim is, for daemons that ask before they use it.

use std::path::Path;

use api_shim::convert;
use api_shim::messages::Any;
use api_shim::messages::info::{RuntimeInfo, RuntimeVersion};
use protobuf::{Message as _, MessageField};

use crate::bootstrap::decode_options;
use crate::error::Error;
use crate::foreign;

const NAME: &str = "io.containerd.gantry.v2";
const FEATURES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints `RuntimeInfo`, protobuf. Standard input may hold the runtime options, as an `Any`: then the features are those
/// of the runtime that they name.
pub(crate) fn run() -> Result<(), Error> {
    let input = super::read_input()?;
    let options = Any::parse_from_bytes(&input).ok().filter(|any| !any.value.is_empty());
    let bytes = info(options)?.write_to_bytes().map_err(|source| Error::Encode { what: "runtime info", source })?;
    super::print(&bytes)
}

/// Prints the version as text.
pub(crate) fn version() -> Result<(), Error> {
    super::print(format!("containerd-shim-gantry-v2:\n  Version:  {}\n", model::BUILD).as_bytes())
}

fn info(any: Option<Any>) -> Result<RuntimeInfo, Error> {
    let mut version = RuntimeVersion::new();
    version.version = env!("CARGO_PKG_VERSION").to_owned();
    let mut info = RuntimeInfo::new();
    info.name = NAME.to_owned();
    info.version = MessageField::some(version);
    let options = any.as_ref().and_then(decode_options).filter(foreign::is_foreign);
    let features = match options {
        Some(options) => foreign::Runtime::new(&options, "", Path::new("/"))?.features_now()?,
        None => runtime::features().to_string(),
    };
    info.features = convert::any(FEATURES_URL, features.into_bytes());
    if let Some(any) = any {
        info.options = MessageField::some(any);
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_is_what_clients_look_for() {
        let info = RuntimeInfo::parse_from_bytes(&info(None).unwrap().write_to_bytes().unwrap()).unwrap();
        assert_eq!((info.name.as_str(), info.features.type_url.as_str()), (NAME, FEATURES_URL));
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert!(features["mountOptions"].as_array().unwrap().contains(&"rro".into()));
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
    }
}
