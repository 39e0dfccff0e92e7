//! A stream that CONNECT has made a connection of (RFC 9220), WebSocket's: what is in its DATA frames is relayed.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::Response;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Shared;
use super::error::{Code, StreamError};
use super::frame::{FrameReader, MAX_HEAD, Piece, put_data_head, put_headers};
use super::qpack;
use super::request::Responder;
use crate::protocol::http::activity::Stream;
use crate::protocol::http::body::ResponseBody;
use crate::protocol::http::upgrade::{self, Upgrade};

pub struct Tunnel<'a> {
    responder: &'a mut Responder,
    frames: FrameReader,
    /// A piece that was looked at before the tunnel was there.
    next: Option<Piece>,
    /// Came, and was not asked for yet.
    input: Bytes,
    /// A frame that QUIC has not taken whole.
    output: Bytes,
    /// This side has said all.
    finished: bool,
    stream: &'a Stream,
}

impl<'a> Tunnel<'a> {
    pub fn new(responder: &'a mut Responder, frames: FrameReader, next: Option<Piece>, stream: &'a Stream) -> Self {
        let (input, output) = Default::default();
        Self { responder, frames, next, input, output, finished: false, stream }
    }

    /// Tells the client that it is accepted, and relays.
    pub async fn run(
        mut self,
        shared: &Shared,
        response: Response<ResponseBody>,
        upgrade: Upgrade,
    ) -> Result<(), StreamError> {
        let (parts, body) = response.into_parts();
        let mut head = BytesMut::with_capacity(512);
        put_headers(&mut head, |to| qpack::encode_head(parts.status, &parts.headers, to));
        self.responder.write(&mut [head.freeze()]).await?;
        let relayed = upgrade::run(
            &mut self,
            |tunnel, context| tunnel.poll_taken_back(context),
            upgrade,
            body.into_account(),
            &shared.downstream.connection,
        );
        if let Err(error) = relayed.await {
            self.frames.stop(Code::REQUEST_CANCELLED);
            // What is not the client's is nobody's fault here.
            let error = error.downcast().unwrap_or(StreamError::Malformed);
            if !self.finished || matches!(error, StreamError::Broken(_)) {
                self.responder.reset(Code::REQUEST_CANCELLED);
                return Err(error);
            }
        }
        // With the connection, all that has not arrived would be lost.
        poll_fn(|context| self.responder.poll_stopped(context)).await;
        Ok(())
    }

    /// Ready: the client does not want to hear any more.
    fn poll_taken_back(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        if self.finished {
            return Poll::Pending;
        }
        self.responder.poll_stopped(context).map(io::Error::other)
    }

    /// Gives QUIC what waits.
    fn poll_output(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let chunks = std::slice::from_mut(&mut self.output);
            let written = pin!(self.responder.send.write_chunks(chunks)).poll(context);
            ready!(written).map_err(|error| io::Error::other(StreamError::from(error)))?;
            self.stream.moved();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Tunnel<'_> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.input.is_empty() {
            let piece = match this.next.take() {
                Some(piece) => piece,
                // No frame is wanted whole here.
                None => ready!(this.frames.poll_piece(context, 0)).map_err(io::Error::other)?,
            };
            this.stream.moved();
            match piece {
                Piece::Data(data) => this.input = data,
                Piece::End => return Poll::Ready(Ok(())),
                Piece::Whole(..) | Piece::TooLarge(_) => {
                    let error = Code::FRAME_UNEXPECTED.broken("a tunnel has frames of DATA alone");
                    return Poll::Ready(Err(io::Error::other(error)));
                }
            }
        }
        let length = this.input.len().min(buffer.remaining());
        buffer.put_slice(&this.input[..length]);
        this.input.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel<'_> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_output(context))?;
        let mut frame = BytesMut::with_capacity(MAX_HEAD + bytes.len());
        put_data_head(bytes.len(), &mut frame);
        frame.put_slice(bytes);
        this.output = frame.freeze();
        // What it does not take at once is next.
        if let Poll::Ready(Err(error)) = this.poll_output(context) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_output(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_output(context))?;
        this.finished = true;
        // The client cannot have reset what is this side's.
        let _ = this.responder.send.finish();
        Poll::Ready(Ok(()))
    }
}
