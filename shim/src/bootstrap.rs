//! The dialects in which daemons talk to the `start` command.
//!
//! | daemon | standard input | understands as reply |
//! |---|---|---|
//! | containerd 1.x to 2.2 | nothing, or the runtime options as a bare `Any` | the address as plain text; 1.7 and later JSON too |
//! | containerd 2.3 and later | `BootstrapParams` | protobuf, JSON of version 2 and 3, plain text |
//!
//! **Invariant:** the reply depends only on what came in, so a daemon never gets a form it cannot read: plain text is
//! what all of them read, and it means version 2 of the task service, which we serve under both names.

use api_shim::convert::type_name;
use api_shim::messages::bootstrap::BootstrapParams;
use api_shim::messages::{Any, Options};
use protobuf::Message;

/// What a daemon said on standard input, as far as we use it.
#[derive(Debug, Default)]
pub(crate) struct Bootstrap {
    /// It speaks `BootstrapParams`.
    pub(crate) modern: bool,
    /// Directory for our socket; empty for the default.
    pub(crate) socket_dir: String,
    /// The daemon's ttrpc socket; empty if it did not say.
    pub(crate) ttrpc_address: String,
    /// Runtime options, if they were ours.
    pub(crate) options: Option<Options>,
}

impl Bootstrap {
    /// Reads standard input of `start`. Input that makes no sense is no input: a daemon's options are a convenience,
    /// and the task's own come again with Create.
    ///
    /// `id` is the flag `-id`: the bytes of a bare `Any` also parse as `BootstrapParams`, whose first field is the
    /// instance id then and would hold a type URL.
    pub(crate) fn parse(input: &[u8], id: &str) -> Self {
        if input.is_empty() {
            return Self::default();
        }
        if let Ok(params) = BootstrapParams::parse_from_bytes(input)
            && params.instance_id == id
        {
            let options =
                params.extensions.iter().find_map(|extension| extension.value.as_ref().and_then(decode_options));
            return Self {
                modern: true,
                socket_dir: params.socket_dir.unwrap_or_default(),
                ttrpc_address: params.containerd_ttrpc_address,
                options,
            };
        }
        let options = Any::parse_from_bytes(input).ok().as_ref().and_then(decode_options);
        Self { options, ..Self::default() }
    }

    /// What `start` prints.
    pub(crate) fn reply(&self, address: &str) -> String {
        if self.modern {
            // Addresses are our own: no character that JSON would escape.
            format!("{{\"version\":3,\"address\":\"{address}\",\"protocol\":\"ttrpc\"}}")
        } else {
            address.to_owned()
        }
    }
}

/// The runtime options in an `Any`, if they are ours.
pub(crate) fn decode_options(any: &Any) -> Option<Options> {
    if type_name(&any.type_url) == "containerd.runc.v1.Options" {
        Options::parse_from_bytes(&any.value).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use api_shim::messages::bootstrap::Extension;

    use super::*;

    fn options_any() -> Any {
        let mut options = Options::new();
        options.shim_cgroup = "/x".to_owned();
        let mut any = Any::new();
        any.type_url = "type.googleapis.com/containerd.runc.v1.Options".to_owned();
        any.value = options.write_to_bytes().unwrap();
        any
    }

    #[test]
    fn every_dialect() {
        let mut params = BootstrapParams::new();
        params.instance_id = "c1".to_owned();
        params.namespace = "default".to_owned();
        params.socket_dir = Some("/run/x".to_owned());
        let mut extension = Extension::new();
        extension.value = protobuf::MessageField::some(options_any());
        params.extensions.push(extension);
        let modern = params.write_to_bytes().unwrap();
        let bare = options_any().write_to_bytes().unwrap();
        let cases: [(&[u8], bool, &str, bool); 4] = [
            (&[], false, "", false),
            (&modern, true, "/run/x", true),
            (&bare, false, "", true),
            (b"\xff\xff?", false, "", false),
        ];
        for (input, is_modern, dir, has_options) in cases {
            let parsed = Bootstrap::parse(input, "c1");
            assert_eq!((parsed.modern, parsed.socket_dir.as_str()), (is_modern, dir));
            assert_eq!(parsed.options.map(|options| options.shim_cgroup), has_options.then(|| "/x".to_owned()));
        }
    }

    #[test]
    fn replies() {
        assert_eq!(Bootstrap::default().reply("unix:///s/1"), "unix:///s/1");
        let modern = Bootstrap { modern: true, ..Bootstrap::default() };
        let json: serde_json::Value = serde_json::from_str(&modern.reply("unix:///s/1")).unwrap();
        assert_eq!(json, serde_json::json!({"version": 3, "address": "unix:///s/1", "protocol": "ttrpc"}));
    }
}
