use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::FutureExt;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::Error;
use crate::request::Caller;

/// Wraps every service: reads the headers that all of them share, catches panics, and logs at level debug.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestLayer;

impl<S> Layer<S> for RequestLayer {
    type Service = RequestService<S>;

    fn layer(&self, inner: S) -> RequestService<S> {
        RequestService { inner }
    }
}

/// A service behind [`RequestLayer`].
#[derive(Clone, Debug)]
pub struct RequestService<S> {
    inner: S,
}

impl<S, B> Service<http::Request<B>> for RequestService<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let caller = Caller::read(request.headers());
        request.extensions_mut().insert(caller);
        let method = request.uri().path().to_owned();
        let started = Instant::now();
        let response = self.inner.call(request);
        Box::pin(async move {
            // A handler's locals die with its panic, and engines uphold their own invariants: unwinding through them
            // is what they are tested for.
            let response = match AssertUnwindSafe(response).catch_unwind().await {
                Ok(response) => response?,
                Err(_) => {
                    tracing::error!(%method, "a request handler panicked");
                    Status::from(Error::Panicked).into_http()
                }
            };
            let response = name_unknown(&method, response);
            if tracing::enabled!(tracing::Level::DEBUG) {
                log(&method, started, &response);
            }
            Ok(response)
        })
    }
}

/// Says which method it is that nobody serves; tonic leaves that empty.
fn name_unknown(method: &str, response: http::Response<Body>) -> http::Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == tonic::Code::Unimplemented && status.message().is_empty() => {
            Status::from(Error::UnknownMethod(method.chars().take(256).collect())).into_http()
        }
        _ => response,
    }
}

fn log(method: &str, started: Instant, response: &http::Response<Body>) {
    let took_us = started.elapsed().as_micros();
    match Status::from_header_map(response.headers()) {
        Some(status) => tracing::debug!(method, took_us, code = ?status.code(), text = status.message(), "refused"),
        None => tracing::debug!(method, took_us, "served"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_answer_is_a_status() {
        let mut service = RequestLayer.layer(tower::service_fn(|request: http::Request<()>| async move {
            let caller = request.extensions().get::<Caller>().cloned();
            assert!(caller.is_some() && request.uri().path() != "/panic");
            let response = match request.uri().path() {
                "/unknown" => Status::unimplemented("").into_http(),
                _ => http::Response::new(Body::empty()),
            };
            Ok::<_, std::convert::Infallible>(response)
        }));
        for (path, want) in [
            ("/panic", Some(Error::Panicked)),
            ("/unknown", Some(Error::UnknownMethod("/unknown".to_owned()))),
            ("/fine", None),
        ] {
            let request = http::Request::builder().uri(path).body(()).unwrap();
            let response = service.call(request).await.unwrap();
            let told = Status::from_header_map(response.headers()).map(|status| status.message().to_owned());
            assert_eq!(told, want.map(|error| api_grpc::status(&error).message().to_owned()));
        }
    }
}
