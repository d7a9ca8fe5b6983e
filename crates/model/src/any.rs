/// A typed blob as it travels on the wire: a type URL and bytes that only its owner decodes.
///
/// The bytes are stored and returned verbatim; nobody re-encodes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Any {
    /// The type's URL, without a `type.googleapis.com/` prefix when we emit it.
    pub type_url: String,
    /// The encoded value.
    pub value: Vec<u8>,
}

impl Any {
    /// The type name behind the last `/` of the usual `type.googleapis.com/` prefix; URLs of containerd's JSON types
    /// (`types.containerd.io/…`) are returned whole.
    pub fn type_name(&self) -> &str {
        self.type_url.strip_prefix("type.googleapis.com/").unwrap_or(&self.type_url)
    }
}
