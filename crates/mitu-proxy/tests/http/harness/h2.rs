//! Requests, bodies and backends of HTTP/2.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::{app, backend};

pub type Body = BoxBody<Bytes, Infallible>;

pub fn empty() -> Body {
    Empty::new().boxed()
}

/// A body that is fed by hand.
struct Fed(mpsc::UnboundedReceiver<Frame<Bytes>>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

pub fn fed() -> (mpsc::UnboundedSender<Frame<Bytes>>, Body) {
    let (feed, fed) = mpsc::unbounded_channel();
    (feed, Fed(fed).boxed())
}

pub fn get(path: &str) -> Request<Body> {
    Request::get(format!("https://a.example{path}")).body(empty()).unwrap()
}

/// An HTTP/2 backend in the clear.
pub async fn h2_backend<F, S>(serve: S) -> SocketAddr
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = http::Response<Body>> + Send + 'static,
{
    narrow_h2_backend(200, serve).await
}

/// An HTTP/2 backend that takes so many requests at once on a connection.
pub async fn narrow_h2_backend<F, S>(streams: u32, serve: S) -> SocketAddr
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = http::Response<Body>> + Send + 'static,
{
    backend(move |stream: TcpStream, _| {
        let serve = serve.clone();
        async move {
            let service = service_fn(move |request| {
                let answer = serve(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(streams)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
    .await
}

pub fn app_h2(endpoints: &[SocketAddr]) -> Value {
    let mut upstreams = app(endpoints);
    upstreams[0]["protocol"] = json!("h2");
    upstreams
}
