use std::str::FromStr;

use metadata::Scope;
use model::Namespace;
use tonic::{Extensions, Request};

use crate::Error;

/// Header that names the namespace of a request.
pub(crate) const NAMESPACE_HEADER: &str = "containerd-namespace";
/// Header that names the lease of a request.
pub(crate) const LEASE_HEADER: &str = "containerd-lease";

/// Header of a subscriber that keeps account of what it has seen: `now`, or the cursor that it received last.
pub(crate) const SINCE_HEADER: &str = "gantry-events-since";
/// Header of the answer to such a subscriber: where its stream begins.
pub(crate) const CURSOR_HEADER: &str = "gantry-events-cursor";

/// What the headers of a request say, put into its extensions by the layer. Whether it matters is the service's
/// business: some need no namespace, and reads ignore the lease.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    namespace: Header,
    lease: Header,
}

#[derive(Clone, Debug, Default)]
enum Header {
    #[default]
    Absent,
    NotText,
    Text(String),
}

impl Header {
    /// The first value wins: clients put the newest first.
    fn read(headers: &http::HeaderMap, name: &str) -> Self {
        match headers.get(name).map(http::HeaderValue::to_str) {
            None | Some(Ok("")) => Self::Absent,
            Some(Ok(text)) => Self::Text(text.to_owned()),
            Some(Err(_)) => Self::NotText,
        }
    }
}

impl Caller {
    pub(crate) fn read(headers: &http::HeaderMap) -> Self {
        Self { namespace: Header::read(headers, NAMESPACE_HEADER), lease: Header::read(headers, LEASE_HEADER) }
    }

    fn namespace(&self) -> Result<Namespace, Error> {
        match &self.namespace {
            Header::Absent => Err(Error::NamespaceRequired),
            Header::NotText => Err(Error::Header(NAMESPACE_HEADER)),
            Header::Text(text) => Namespace::from_str(text).map_err(Error::Namespace),
        }
    }

    fn scope(&self) -> Result<Scope, Error> {
        let namespace = self.namespace()?;
        let lease = match &self.lease {
            Header::Absent => None,
            Header::NotText => return Err(Error::Header(LEASE_HEADER)),
            Header::Text(text) => Some(text.clone()),
        };
        Ok(Scope { namespace, lease })
    }
}

/// The namespace and lease of a request. FAILED_PRECONDITION without a namespace, INVALID_ARGUMENT with a malformed
/// one.
pub(crate) fn scope(extensions: &Extensions) -> Result<Scope, Error> {
    extensions.get::<Caller>().ok_or(Error::NamespaceRequired)?.scope()
}

/// Splits a request into its scope and its message.
pub(crate) fn scoped<T>(request: Request<T>) -> Result<(Scope, T), Error> {
    let scope = scope(request.extensions())?;
    Ok((scope, request.into_inner()))
}

/// Splits a request into its namespace and its message, for services that know no leases.
pub(crate) fn namespaced<T>(request: Request<T>) -> Result<(Namespace, T), Error> {
    let namespace = request.extensions().get::<Caller>().ok_or(Error::NamespaceRequired)?.namespace()?;
    Ok((namespace, request.into_inner()))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Headers<'a> = &'a [(&'static str, &'a [u8])];

    fn caller(pairs: Headers<'_>) -> Caller {
        let mut headers = http::HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, http::HeaderValue::from_bytes(value).unwrap());
        }
        Caller::read(&headers)
    }

    #[test]
    fn headers_become_a_scope() {
        let scope =
            caller(&[(NAMESPACE_HEADER, b"new"), (NAMESPACE_HEADER, b"old"), (LEASE_HEADER, b"any text")]).scope();
        let scope = scope.unwrap();
        assert_eq!((scope.namespace.as_str(), scope.lease.as_deref()), ("new", Some("any text")));
        let scope = caller(&[(NAMESPACE_HEADER, b"a"), (LEASE_HEADER, b"")]).scope().unwrap();
        assert_eq!(scope.lease, None);
    }

    #[test]
    fn refused_headers() {
        let long = "x".repeat(5000);
        let cases: [(Headers<'_>, &str); 5] = [
            (&[], "namespace is required: failed precondition"),
            (&[(NAMESPACE_HEADER, b"")], "namespace is required: failed precondition"),
            (
                &[(NAMESPACE_HEADER, b"a b")],
                "namespace validation: identifier \"a b\" must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$: invalid argument",
            ),
            (&[(NAMESPACE_HEADER, b"\xff")], "header containerd-namespace is not text: invalid argument"),
            (
                &[(NAMESPACE_HEADER, b"a"), (LEASE_HEADER, b"\xff")],
                "header containerd-lease is not text: invalid argument",
            ),
        ];
        for (headers, want) in cases {
            let error = caller(headers).scope().unwrap_err();
            assert_eq!(api_grpc::status(&error).message(), want);
        }
        assert!(caller(&[(NAMESPACE_HEADER, long.as_bytes())]).scope().is_err());
        assert!(scope(&Extensions::new()).is_err());
    }
}
