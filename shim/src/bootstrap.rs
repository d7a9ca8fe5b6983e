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

/// The runtime options in an `Any`, if they are of a type we know.
pub(crate) fn decode_options(any: &Any) -> Option<Options> {
    match type_name(&any.type_url) {
        "containerd.runc.v1.Options" => Options::parse_from_bytes(&any.value).ok(),
        "containerd.linux.runc.CreateOptions" => decode_create_options(&any.value).ok(),
        _ => None,
    }
}

/// The options of the first generation of shims: Go clients up to 1.7 send them to every runtime whose name does not
/// begin with `io.containerd.runc`. Fields about checkpoints are left out.
fn decode_create_options(bytes: &[u8]) -> protobuf::Result<Options> {
    // Tags: field number times 8 plus the wire type, 0 for numbers and 2 for texts.
    const NO_PIVOT_ROOT: u32 = 1 << 3;
    const NO_NEW_KEYRING: u32 = 8 << 3;
    const SHIM_CGROUP: u32 = (9 << 3) | 2;
    const IO_UID: u32 = 10 << 3;
    const IO_GID: u32 = 11 << 3;
    let mut options = Options::new();
    let mut input = protobuf::CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag {
            NO_PIVOT_ROOT => options.no_pivot_root = input.read_bool()?,
            NO_NEW_KEYRING => options.no_new_keyring = input.read_bool()?,
            SHIM_CGROUP => options.shim_cgroup = input.read_string()?,
            IO_UID => options.io_uid = input.read_uint32()?,
            IO_GID => options.io_gid = input.read_uint32()?,
            other => protobuf::rt::skip_field_for_tag(other, &mut input)?,
        }
    }
    Ok(options)
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
    fn options_of_old_clients() {
        // no_pivot_root, cgroups_mode "x", io_uid and io_gid 100000.
        let value = b"\x08\x01\x3a\x01x\x50\xa0\x8d\x06\x58\xa0\x8d\x06".to_vec();
        let mut any = Any::new();
        any.type_url = "containerd.linux.runc.CreateOptions".to_owned();
        any.value = value;
        let options = decode_options(&any).unwrap();
        assert_eq!((options.no_pivot_root, options.io_uid, options.io_gid), (true, 100_000, 100_000));
        any.value = b"\x50".to_vec();
        assert!(decode_options(&any).is_none());
        any.type_url = "other.Options".to_owned();
        assert!(decode_options(&any).is_none());
    }

    #[test]
    fn replies() {
        assert_eq!(Bootstrap::default().reply("unix:///s/1"), "unix:///s/1");
        let modern = Bootstrap { modern: true, ..Bootstrap::default() };
        let json: serde_json::Value = serde_json::from_str(&modern.reply("unix:///s/1")).unwrap();
        assert_eq!(json, serde_json::json!({"version": 3, "address": "unix:///s/1", "protocol": "ttrpc"}));
    }
}
