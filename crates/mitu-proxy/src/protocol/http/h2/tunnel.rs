//! A stream that CONNECT has made a connection of (RFC 8441), WebSocket's, relayed to the upstream's.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::rt::Executor;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::protocol::http::Downstream;
use crate::protocol::http::account::Account;
use crate::protocol::http::activity::{Stream, while_taken};
use crate::protocol::http::upgrade::{self, Upgrade};

tokio::task_local! {
    /// Where a stream's task is to leave what it spawns.
    static WRITER: Cell<Option<oneshot::Sender<JoinHandle<()>>>>;
}

/// Bytes of what hyper has to do for a stream.
const MAX_TASK: usize = 512;

/// Spawns what hyper has to do beside a connection: a task for each stream, and from there one that writes to its tunnel.
/// Of a tunnel hyper shows neither that the client has reset it nor a way to do so; its writer ends with the one, and does
/// the other when it is dropped.
#[derive(Debug, Clone, Copy)]
pub struct Tasks {
    /// For how long a client may leave what a stream has for it.
    pub patience: Duration,
}

impl<F> Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        const { assert!(size_of::<F>() <= MAX_TASK, "it is copied four times until it runs: box what it consists of") }
        match WRITER.try_with(Cell::take) {
            Err(_) => drop(tokio::spawn(WRITER.scope(Cell::new(None), while_taken(future, self.patience)))),
            Ok(None) => drop(tokio::spawn(future)),
            // Nobody waits for it any more: then its end is not of interest either.
            Ok(Some(writer)) => drop(writer.send(tokio::spawn(future))),
        }
    }
}

/// What a request by CONNECT may become.
pub struct Expected {
    pub protocol: Bytes,
    upgraded: OnUpgrade,
}

impl Expected {
    pub fn of(request: &mut Request<Incoming>) -> Option<Self> {
        let protocol = Bytes::copy_from_slice(request.extensions().get::<Protocol>()?.as_ref());
        Some(Self { protocol, upgraded: hyper::upgrade::on(request) })
    }

    /// Relays once hyper has sent the response, which it does next.
    pub fn relay(self, downstream: Arc<Downstream>, upgrade: Upgrade, account: Account, mut stream: Stream) {
        stream.settled();
        let (leave, left) = oneshot::channel();
        // It is a task of `Tasks` that serves a stream.
        let _ = WRITER.try_with(|writer| writer.set(Some(leave)));
        tokio::spawn(async move {
            let (Ok(upgraded), Ok(writer)) = (self.upgraded.await, left.await) else { return };
            let tunnel = Tunnel { io: TokioIo::new(upgraded), writer, finished: false, stream };
            // How it ended is in its account.
            let connection = &downstream.connection;
            let _ = upgrade::run(tunnel, Tunnel::poll_taken_back, upgrade, account, connection).await;
        });
    }
}

struct Tunnel {
    io: TokioIo<Upgraded>,
    writer: JoinHandle<()>,
    /// This side has said all, so that the writer may end.
    finished: bool,
    stream: Stream,
}

impl Tunnel {
    /// Ready: the client has reset the stream. With some codes that looks to a reader as if it had ended it.
    fn poll_taken_back(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if self.finished {
            return Poll::Pending;
        }
        Pin::new(&mut self.writer).poll(context).map(|_| io::ErrorKind::ConnectionReset.into())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.finished {
            // Without its last word: the stream is reset.
            self.writer.abort();
        }
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if read.is_ready() {
            self.stream.moved();
        }
        read
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        if written.is_ready() {
            self.stream.moved();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished = true;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
