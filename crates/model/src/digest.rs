use std::fmt;
use std::str::FromStr;

/// A content digest, `<algorithm>:<lower-case hex>`, of one of the registered algorithms sha256, sha384 and sha512
/// (image-spec, descriptor digests). Its text is safe as a path component pair.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

/// The text is no digest of a registered algorithm.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} failed validation: want sha256, sha384 or sha512, a colon and lower-case hex of that length")]
pub struct DigestError(pub String);

impl Digest {
    /// The digest of already computed sha256 bytes.
    pub fn from_sha256(bytes: &[u8; 32]) -> Self {
        Self::from_bytes("sha256:", bytes)
    }

    /// The digest of already computed sha384 bytes.
    pub fn from_sha384(bytes: &[u8; 48]) -> Self {
        Self::from_bytes("sha384:", bytes)
    }

    /// The digest of already computed sha512 bytes.
    pub fn from_sha512(bytes: &[u8; 64]) -> Self {
        Self::from_bytes("sha512:", bytes)
    }

    fn from_bytes(prefix: &str, bytes: &[u8]) -> Self {
        let mut text = String::with_capacity(prefix.len() + 2 * bytes.len());
        text.push_str(prefix);
        for byte in bytes {
            text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
            text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
        }
        Self(text)
    }

    /// The part before the colon.
    pub fn algorithm(&self) -> &str {
        self.0.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }

    /// The part behind the colon.
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        // A hostile text can be long; the error quotes its beginning only.
        let refuse = || DigestError(text.chars().take(128).collect());
        let (algorithm, hex) = text.split_once(':').ok_or_else(refuse)?;
        let want = match algorithm {
            "sha256" => 64,
            "sha384" => 96,
            "sha512" => 128,
            _ => return Err(refuse()),
        };
        if hex.len() == want && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(refuse())
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
