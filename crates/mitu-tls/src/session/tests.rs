//! The session against rustls' own client, whose records arrive as the test wants them to.

use super::*;
use std::io::{Read, Write};
use std::pin::pin;

use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion, version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::handshake::{self, Clock};
use crate::stream::SecureStream;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

type Pair = (CertificateDer<'static>, PrivateKeyDer<'static>);

fn certificate(names: usize) -> Pair {
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = (0..names).map(|number| format!("name-{number}.test")).collect();
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    (certificate.der().clone(), key.serialize_der().try_into().unwrap())
}

/// rustls' client, record by record.
struct Client {
    tls: ClientConnection,
    tcp: TcpStream,
    plain: Vec<u8>,
}

impl Client {
    /// What TLS has to send, sealed.
    fn take(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records).unwrap();
        }
        records
    }

    fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.tls.writer().write_all(bytes).unwrap();
        self.take()
    }

    async fn send(&mut self, bytes: &[u8]) {
        let records = self.seal(bytes);
        self.tcp.write_all(&records).await.unwrap();
    }

    /// Reads from the socket once, and has TLS process it.
    async fn receive(&mut self) -> Result<usize, Error> {
        let mut bytes = vec![0; 100_000];
        let count = self.tcp.read(&mut bytes).await.unwrap();
        let mut come = &bytes[..count];
        while !come.is_empty() {
            self.tls.read_tls(&mut come).unwrap();
            self.tls.process_new_packets()?;
            // `WouldBlock`: there is no more for now.
            let _ = self.tls.reader().read_to_end(&mut self.plain);
        }
        Ok(count)
    }

    /// Reads `length` bytes, or fewer where the server ends.
    async fn read(&mut self, length: usize) -> Vec<u8> {
        while self.plain.len() < length && self.receive().await.unwrap() > 0 {}
        self.plain.drain(..length.min(self.plain.len())).collect()
    }
}

/// A client, and a server that knows it by `device`, where there is one.
async fn pair(version: &'static SupportedProtocolVersion, device: Option<Pair>) -> (SecureStream, Client) {
    let (chain, key) = certificate(1);
    let provider = Arc::new(default_provider());
    let mut trusted = RootCertStore::empty();
    trusted.add(chain.clone()).unwrap();
    let server = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let client = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&[version]).unwrap();
    let client = client.with_root_certificates(trusted);
    let (server, client) = match device {
        None => (server.with_no_client_auth(), client.with_no_client_auth()),
        Some((chain, key)) => {
            let mut known = RootCertStore::empty();
            known.add(chain.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(known), provider).build().unwrap();
            let client = client.with_client_auth_cert(vec![chain], key).unwrap();
            (server.with_client_cert_verifier(verifier), client)
        }
    };
    let server = Arc::new(server.with_single_cert(vec![chain], key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let name = ServerName::try_from("name-0.test").unwrap();
    let mut client = Client { tls: ClientConnection::new(Arc::new(client), name).unwrap(), tcp, plain: Vec::new() };
    let hello = client.take();
    let (mut crypto, mut client_flight) = Default::default();
    let clock = Clock::start(&mut crypto, &mut client_flight);
    let finished = handshake::run(listener.accept().await.unwrap().0, hello, server, clock);
    let (finished, client) = tokio::join!(finished, async {
        while client.tls.is_handshaking() {
            client.receive().await.unwrap();
            let flight = client.take();
            client.tcp.write_all(&flight).await.unwrap();
        }
        client
    });
    (finished.map_err(|failed| failed.error).unwrap(), client)
}

fn kept(stream: &SecureStream) -> usize {
    let session = stream.session();
    session.received.capacity() + session.plain.bytes.capacity() + session.sealed.bytes.capacity()
}

#[tokio::test]
async fn an_idle_session_keeps_nothing() {
    for version in VERSIONS {
        let (mut server, mut client) = pair(version, None).await;
        assert_eq!(kept(&server), 0);
        client.send(&[b'x'; 3000]).await;
        let mut received = vec![0; 1000];
        server.read_exact(&mut received).await.unwrap();
        assert!(kept(&server) >= 2000);
        server.read_exact(&mut vec![0; 2000]).await.unwrap();
        server.write_all(&[b'y'; 3000]).await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.read(3000).await, [b'y'; 3000]);
        assert_eq!(kept(&server), 0);
    }
}

#[tokio::test]
async fn much_goes_both_ways_at_once() {
    for version in VERSIONS {
        let (server, mut client) = pair(version, None).await;
        let (mut from, mut to) = tokio::io::split(server);
        let echo = tokio::spawn(async move {
            let count = tokio::io::copy(&mut from, &mut to).await.unwrap();
            to.shutdown().await.unwrap();
            count
        });
        let sent: Vec<u8> = (0..1_000_000_u32).map(|number| (number / 251) as u8).collect();
        let mut received = Vec::new();
        for piece in sent.chunks(50_000) {
            client.send(piece).await;
            received.extend(client.read(piece.len()).await);
        }
        assert!(received == sent);
        client.tls.send_close_notify();
        client.send(b"").await;
        assert_eq!(echo.await.unwrap(), 1_000_000);
        assert_eq!(client.read(1).await, b"");
    }
}

#[tokio::test]
async fn pieces_are_sealed_as_one_and_none_is_lost() {
    let (mut server, mut client) = pair(&version::TLS13, None).await;
    let long = vec![b'z'; 100_000];
    let slices = [&b"head"[..], b"", &long, b"tail"].map(IoSlice::new);
    let count = server.write_vectored(&slices).await.unwrap();
    assert_eq!(count, SEAL);
    server.flush().await.unwrap();
    let received = client.read(SEAL).await;
    assert_eq!((&received[..4], &received[4..]), (&b"head"[..], &long[..SEAL - 4]));
    assert_eq!(server.write_vectored(&[IoSlice::new(b"")]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_record_may_come_byte_by_byte_and_answers_go_out_in_between() {
    for version in VERSIONS {
        let (mut server, mut client) = pair(version, None).await;
        let records = client.seal(b"slow");
        let (last, first) = records.split_last().unwrap();
        for byte in first {
            client.tcp.write_all(&[*byte]).await.unwrap();
            let mut none = [0; 4];
            let early = tokio::time::timeout(std::time::Duration::from_millis(1), server.read(&mut none)).await;
            assert!(early.is_err());
            server.write_all(b".").await.unwrap();
        }
        client.tcp.write_all(&[*last]).await.unwrap();
        let mut received = [0; 4];
        server.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"slow");
        assert_eq!(client.read(first.len()).await, vec![b'.'; first.len()]);
    }
}

#[tokio::test]
async fn keys_are_updated_when_the_client_asks() {
    let (mut server, mut client) = pair(&version::TLS13, None).await;
    for round in [b'1', b'2', b'3'] {
        client.tls.refresh_traffic_keys().unwrap();
        client.send(&[round]).await;
        assert_eq!(server.read_u8().await.unwrap(), round);
        server.write_all(&[round]).await.unwrap();
        server.flush().await.unwrap();
        assert_eq!(client.read(1).await, [round]);
    }
}

#[tokio::test]
async fn a_certificate_may_be_longer_than_a_record() {
    for version in VERSIONS {
        let (chain, key) = certificate(3000);
        assert!(chain.len() > 2 * 16 * 1024);
        let (mut server, mut client) = pair(version, Some((chain.clone(), key))).await;
        assert_eq!(server.tls().peer_certificates().unwrap(), [chain]);
        client.send(b"!").await;
        assert_eq!(server.read_u8().await.unwrap(), b'!');
        assert_eq!(kept(&server), 0);
    }
}

#[tokio::test]
async fn what_was_changed_on_its_way_ends_the_connection_with_an_alert() {
    for version in VERSIONS {
        let (mut server, mut client) = pair(version, None).await;
        let mut records = client.seal(b"true");
        *records.last_mut().unwrap() ^= 1;
        client.tcp.write_all(&records).await.unwrap();
        let error = server.read_u8().await.unwrap_err().downcast::<Error>().unwrap();
        assert_eq!(error, Error::DecryptError);
        let alert = loop {
            match client.receive().await {
                // A ticket.
                Ok(count) => assert_ne!(count, 0),
                Err(error) => break error,
            }
        };
        assert_eq!(alert, Error::AlertReceived(AlertDescription::BadRecordMac));
        let again = server.write_all(b"more").await.unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::InvalidData);
        server.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn an_end_is_told_from_a_cut() {
    for version in VERSIONS {
        let (mut server, mut client) = pair(version, None).await;
        client.tls.send_close_notify();
        client.send(b"").await;
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        server.write_all(b"last").await.unwrap();
        server.shutdown().await.unwrap();
        assert!(server.write_all(b"late").await.is_err());
        drop(server);
        assert_eq!(client.read(8).await, b"last");

        let (mut server, mut client) = pair(version, None).await;
        client.send(b"a").await;
        client.tcp.shutdown().await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'a');
        let cut = server.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_writer() {
    let (mut server, _client) = pair(&version::TLS13, None).await;
    let mut written = 0;
    let filled = std::future::poll_fn(|context| {
        loop {
            match Pin::new(&mut server).poll_write(context, &[0; SEAL]) {
                Poll::Ready(count) => written += count.unwrap(),
                Poll::Pending => return Poll::Ready(()),
            }
            assert!(written < 1 << 30);
        }
    });
    pin!(filled).await;
    assert!(kept(&server) <= 2 * SEALED);
}
