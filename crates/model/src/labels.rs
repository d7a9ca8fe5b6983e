use std::collections::BTreeMap;

/// Labels of an object, sorted by key.
pub type Labels = BTreeMap<String, String>;

/// Key and value together may have this many bytes.
const LABEL_MAX_BYTES: usize = 4096;

/// A label is too long.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("label key and value length ({length} bytes) greater than maximum size ({LABEL_MAX_BYTES} bytes), key: {key}")]
pub struct LabelError {
    /// The beginning of the key.
    pub key: String,
    /// Bytes of key and value.
    pub length: usize,
}

/// Checks one label against the limit on key and value together.
pub fn check_label(key: &str, value: &str) -> Result<(), LabelError> {
    let length = key.len() + value.len();
    if length > LABEL_MAX_BYTES {
        return Err(LabelError { key: key.chars().take(64).collect(), length });
    }
    Ok(())
}

/// Writes `changes` over `labels`; a label whose new value is empty is removed, because empty values are never stored.
pub fn merge_labels(labels: &mut Labels, changes: impl IntoIterator<Item = (String, String)>) {
    for (key, value) in changes {
        if value.is_empty() {
            labels.remove(&key);
        } else {
            labels.insert(key, value);
        }
    }
}
