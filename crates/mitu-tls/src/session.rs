//! TLS over a socket, without a buffer of its own.
//!
//! rustls' buffered connection keeps 4 KiB for what comes next, idle or not, and reads no more than that at once. Here
//! the records of all connections of a thread come into one scratch buffer, are opened where they lie, and go to who
//! asks; the other way, records are sealed into the same scratch buffer and written from there. A connection keeps only
//! what is not whole yet, not taken yet or not sent yet: when it is idle, nothing.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{CommonState, Error, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::early_data::{Confirmation, EarlyData};
use crate::stream::FlightStream;

/// Bytes read at once: the largest record, with its head, is among them.
const READ: usize = 5 + (16 + 2) * 1024;

/// The most of a handshake message that is kept until the rest has come, as rustls has it.
const MAX_HANDSHAKE: usize = 0xffff;

/// Bytes that are sealed at once, and the room that their records take: 29 bytes more for each 16 KiB are the most.
const SEAL: usize = 64 * 1024;
const SEALED: usize = SEAL + 1024;

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { records: Vec::new(), gathered: Vec::new() }) };
}

/// What all connections of a thread use, one at a time.
struct Scratch {
    records: Vec<u8>,
    /// Pieces that are sealed as one.
    gathered: Vec<u8>,
}

impl Scratch {
    fn records(&mut self, room: usize) -> &mut [u8] {
        if self.records.len() < room {
            self.records.resize(room, 0);
        }
        &mut self.records[..room]
    }
}

/// Bytes of which some are gone already.
#[derive(Default)]
struct Rest {
    bytes: Vec<u8>,
    gone: usize,
}

impl Rest {
    fn get(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    /// Gives the memory back with the last byte.
    fn advance(&mut self, count: usize) {
        self.gone += count;
        if self.gone == self.bytes.len() {
            *self = Self::default();
        }
    }
}

/// One connection: rustls' state, the socket, and what waits between them.
pub struct Session {
    pub(crate) io: FlightStream,
    tls: UnbufferedServerConnection,
    /// Come, and not processed yet: a part of a record, or of a handshake message.
    received: Vec<u8>,
    /// Opened, and not taken yet.
    plain: Rest,
    /// Sealed, and not sent yet.
    sealed: Rest,
    /// The client has said `close_notify`.
    ended: bool,
    /// So has this side.
    closed: bool,
    /// Tells when the handshake is done, where data came before that.
    unconfirmed: Option<Confirmation>,
    /// Why nothing is processed any more: rustls itself would go on behind a record that it could not open.
    failed: Option<Error>,
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").field("io", &self.io).finish_non_exhaustive()
    }
}

impl Session {
    /// A connection whose client has sent `hello` so far.
    pub fn new(io: FlightStream, config: Arc<ServerConfig>, hello: Vec<u8>) -> Result<Self, Error> {
        let tls = UnbufferedServerConnection::new(config)?;
        let (plain, sealed) = Default::default();
        Ok(Self {
            io,
            tls,
            received: hello,
            plain,
            sealed,
            ended: false,
            closed: false,
            unconfirmed: None,
            failed: None,
        })
    }

    pub fn tls(&self) -> &CommonState {
        &self.tls
    }

    /// Whether the handshake is done; None: it was before the client had sent anything else.
    pub fn early_data(&self) -> Option<EarlyData> {
        self.unconfirmed.as_ref().map(Confirmation::early_data)
    }

    /// Goes on with the handshake until it is done, there is early data, or it waits for the client.
    pub fn poll_handshake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut hello = std::mem::take(&mut self.received);
        let mut result = self.receive(&mut hello, &mut ReadBuf::new(&mut [])).map_err(invalid);
        loop {
            // What it is held back for, or why it fails: an alert goes the same way.
            ready!(self.poll_send(context))?;
            result?;
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if !self.plain.get().is_empty() {
                self.unconfirmed = Some(Confirmation::default());
                return Poll::Ready(Ok(()));
            }
            result = match ready!(self.poll_receive(context, &mut ReadBuf::new(&mut []))) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                received => received.map(drop),
            };
        }
    }

    /// Reads what the client has sent; nothing, after its `close_notify`.
    pub fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let waiting = self.plain.get();
        if !waiting.is_empty() {
            let count = waiting.len().min(buffer.remaining());
            buffer.put_slice(&waiting[..count]);
            self.plain.advance(count);
            return Poll::Ready(Ok(()));
        }
        while buffer.filled().len() == before && buffer.remaining() > 0 && !self.ended {
            match ready!(self.poll_receive(context, buffer)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                // What rustls answers by itself: a renegotiation that is refused, a key that is renewed.
                Ok(_) => {
                    if let Poll::Ready(sent) = self.poll_send(context) {
                        sent?;
                    }
                }
                Err(error) => {
                    // The alert that says why, as far as the socket takes it at once.
                    let _ = self.poll_send(context);
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Seals some of `slices`, which then count as written, and writes as much of it as the socket takes.
    pub fn poll_write(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(context))?;
        SCRATCH.with_borrow_mut(|scratch| {
            let mut gathered = std::mem::take(&mut scratch.gathered);
            let bytes = gather(slices, &mut gathered);
            let records = scratch.records(SEALED);
            let sealed = self.seal(|traffic| traffic.encrypt(bytes, records));
            let count = bytes.len();
            scratch.gathered = gathered;
            let sealed = sealed?;
            self.send(context, &scratch.records[..sealed])?;
            Poll::Ready(Ok(count))
        })
    }

    /// Writes all that waits.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    /// Waits for the end of a handshake that began with early data, when all is written. On a socket that is closed before
    /// it comes it would be answered by a reset, which overtakes the response.
    pub fn poll_confirmed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unconfirmed.is_some() {
            ready!(self.poll_flush(context))?;
            match ready!(self.poll_receive(context, &mut ReadBuf::new(&mut []))) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Says `close_notify`, and ends this side of the connection.
    pub fn poll_shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            self.closed = true;
            let mut record = [0; 64];
            // On a connection that has failed there is nothing left to say.
            if let Ok(sealed) = self.seal(|traffic| traffic.queue_close_notify(&mut record)) {
                self.sealed.bytes.extend_from_slice(&record[..sealed]);
            }
        }
        ready!(self.poll_send(context))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    /// Reads once, and puts what comes of it into `plain`, the rest aside. Ready(0): the socket has ended.
    fn poll_receive(&mut self, context: &mut Context<'_>, plain: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let kept = self.received.len();
            if kept > MAX_HANDSHAKE {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "message buffer full")));
            }
            let records = scratch.records(kept + READ);
            let mut read = ReadBuf::new(&mut records[kept..]);
            ready!(Pin::new(&mut self.io).poll_read(context, &mut read))?;
            let count = read.filled().len();
            if count > 0 {
                let before = std::mem::take(&mut self.received);
                records[..kept].copy_from_slice(&before);
                self.receive(&mut records[..kept + count], plain).map_err(invalid)?;
            }
            Poll::Ready(Ok(count))
        })
    }

    /// Processes what has come.
    fn receive(&mut self, incoming: &mut [u8], plain: &mut ReadBuf<'_>) -> Result<(), Error> {
        let (used, _) = self.process(incoming, plain, |_| ())?;
        self.received = incoming[used..].to_vec();
        if !self.tls.is_handshaking()
            && let Some(unconfirmed) = self.unconfirmed.take()
        {
            unconfirmed.confirm();
        }
        Ok(())
    }

    /// Has rustls seal something.
    fn seal(
        &mut self,
        seal: impl FnOnce(&mut WriteTraffic<'_, ServerConnectionData>) -> Result<usize, EncryptError>,
    ) -> io::Result<usize> {
        let mut received = std::mem::take(&mut self.received);
        let processed = self.process(&mut received, &mut ReadBuf::new(&mut []), seal);
        let (used, sealed) = processed.map_err(invalid)?;
        received.drain(..used);
        self.received = received;
        match sealed {
            Some(sealed) => sealed.map_err(io::Error::other),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Lets rustls process `incoming`, of which the bytes that are told are done with. What was opened goes to `plain`
    /// or aside, what rustls has to say waits to be sent, and `then` is done where data may be sent.
    fn process<R>(
        &mut self,
        incoming: &mut [u8],
        plain: &mut ReadBuf<'_>,
        then: impl FnOnce(&mut WriteTraffic<'_, ServerConnectionData>) -> R,
    ) -> Result<(usize, Option<R>), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let mut used = 0;
        loop {
            let UnbufferedStatus { discard, state } = self.tls.process_tls_records(&mut incoming[used..]);
            used += discard;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        pass(record?.payload, plain, &mut self.plain);
                    }
                }
                Ok(ConnectionState::ReadEarlyData(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        pass(record?.payload, plain, &mut self.plain);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(|room| data.encode(room), &mut self.sealed.bytes)?;
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.ended = true,
                Ok(ConnectionState::WriteTraffic(mut traffic)) => return Ok((used, Some(then(&mut traffic)))),
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => return Ok((used, None)),
                Ok(state) => return Err(Error::General(format!("{state:?} was not asked for"))),
                Err(error) => {
                    self.failed = Some(error.clone());
                    self.encode_alert()?;
                    return Err(error);
                }
            }
        }
    }

    /// What rustls has to say of its failure is sent as well.
    fn encode_alert(&mut self) -> Result<(), Error> {
        while self.tls.wants_write() {
            match self.tls.process_tls_records(&mut []).state? {
                ConnectionState::EncodeTlsData(mut data) => {
                    encode(|room| data.encode(room), &mut self.sealed.bytes)?;
                }
                state => return Err(Error::General(format!("{state:?} in place of an alert"))),
            }
        }
        Ok(())
    }

    /// Sends what is sealed.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealed.get().is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(context, self.sealed.get()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sealed.advance(sent),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends `records`, and keeps what the socket does not take.
    fn send(&mut self, context: &mut Context<'_>, mut records: &[u8]) -> io::Result<()> {
        while !records.is_empty() {
            match Pin::new(&mut self.io).poll_write(context, records)? {
                Poll::Pending => break,
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(sent) => records = &records[sent..],
            }
        }
        self.sealed.bytes.extend_from_slice(records);
        Ok(())
    }
}

/// Hands out what was opened, and puts aside what there is no room for.
fn pass(opened: &[u8], to: &mut ReadBuf<'_>, aside: &mut Rest) {
    let now = if aside.bytes.is_empty() { opened.len().min(to.remaining()) } else { 0 };
    to.put_slice(&opened[..now]);
    aside.bytes.extend_from_slice(&opened[now..]);
}

/// The first of `slices`, or, where several are small, all of them in one: up to [`SEAL`] bytes.
fn gather<'a>(slices: &'a [IoSlice<'_>], gathered: &'a mut Vec<u8>) -> &'a [u8] {
    let mut left = slices.iter().filter(|slice| !slice.is_empty());
    let first: &[u8] = left.next().map_or(&[], |slice| slice);
    if first.len() >= SEAL || left.next().is_none() {
        return &first[..first.len().min(SEAL)];
    }
    gathered.clear();
    for slice in slices {
        let room = SEAL - gathered.len();
        gathered.extend_from_slice(&slice[..slice.len().min(room)]);
    }
    gathered
}

/// Appends what `encode` makes, which says itself how much room it takes.
fn encode(mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>, to: &mut Vec<u8>) -> Result<(), Error> {
    let before = to.len();
    if let Err(EncodeError::InsufficientSize(size)) = encode(&mut []) {
        to.resize(before + size.required_size, 0);
        encode(&mut to[before..]).map_err(|error| Error::General(error.to_string()))?;
    }
    Ok(())
}

/// As `HandshakeError` and `mitu-proxy` know rustls' errors.
fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
