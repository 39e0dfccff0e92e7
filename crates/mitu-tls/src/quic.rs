//! TLS inside QUIC (RFC 9001): a ClientHello is chosen for as it is on TCP, and the messages of the handshake travel in
//! QUIC's packets, whose keys come from it.

mod padding;

use std::any::Any;
use std::fmt;
use std::io::Cursor;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::rand::{self, SystemRandom};
use aws_lc_rs::{error::Unspecified, hmac};
use bytes::BytesMut;
use parking_lot::Mutex;
use quinn_proto::crypto::{
    self, CryptoError, ExportKeyingMaterialError, HandshakeTokenKey, HeaderKey, HmacKey, KeyPair, Keys as PacketKeys,
    PacketKey, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::quic::{self, KeyChange, Secrets, ServerConnection, Suite, Version};
use rustls::{AlertDescription, CipherSuite, HandshakeKind};
use rustls_pki_types::CertificateDer;

use crate::alpn::Terms;
use crate::client_hello::ClientHello;
use crate::handshake::HandshakeError;
use crate::policy::suite_name;
use crate::provider::{AWS_LC, base_provider};
use crate::select::Chosen;

/// The only version that is spoken: that of RFC 9000.
pub const VERSION: u32 = 1;

/// Most that a ClientHello may have: what rustls takes on TCP.
const MAX_HELLO: usize = 0xffff;

const CLIENT_HELLO: u8 = 1;

/// Of a handshake message: its type, and its length in three bytes.
const HEAD: usize = 4;

/// The keys of what this side can tell again without having kept it: the end of connections that it knows nothing of, and
/// addresses that clients have been found at.
#[derive(Clone)]
pub struct Keys {
    pub reset: Arc<dyn HmacKey>,
    pub token: Arc<dyn HandshakeTokenKey>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Keys")
    }
}

impl Keys {
    /// For the life of this process.
    pub fn random() -> Result<Self, Unspecified> {
        let mut secret = [0; 32];
        rand::fill(&mut secret)?;
        Ok(Self {
            reset: Arc::new(hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())?),
            token: Arc::new(Salt::new(HKDF_SHA256, b"mitu quic token").extract(&secret)),
        })
    }
}

/// Who chooses.
pub trait Choose: Send + Sync + 'static {
    fn choose(&self, hello: &ClientHello<'_>) -> Result<Chosen, HandshakeError>;
}

/// One connection's handshake: QUIC is given this as its TLS, and it tells afterwards what came of it.
pub struct Handshake {
    choose: Arc<dyn Choose>,
    outcome: Mutex<Outcome>,
}

/// What is known of a handshake while it goes on.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Choosing, and then this side's computing.
    pub select: Duration,
    pub crypto: Duration,
    /// Why it failed, where TLS is the reason.
    pub error: Option<HandshakeError>,
}

/// What a finished handshake has come to: the `handshake_data` of its connection.
#[derive(Debug)]
pub struct Negotiated {
    pub prepared: usize,
    pub protocol: usize,
    pub terms: Terms,
    /// In lower case.
    pub server_name: Option<Arc<str>>,
    /// The suite's IANA name.
    pub cipher: &'static str,
    pub resumed: bool,
    /// Whether the client may have sent data already.
    pub early_data: bool,
    /// The client's certificate, when one was verified.
    pub leaf: Option<CertificateDer<'static>>,
}

impl Handshake {
    pub fn new(choose: Arc<dyn Choose>) -> Self {
        Self { choose, outcome: Mutex::default() }
    }

    /// Takes out what is known so far.
    pub fn outcome(&self) -> Outcome {
        std::mem::take(&mut self.outcome.lock())
    }
}

/// Initial packets have this suite's keys, made of what everybody can read (RFC 9001, section 5.2), by the quicker key schedule
/// (docs/adr/0008).
fn initial_suite() -> Option<Suite> {
    static SUITE: LazyLock<Option<Suite>> = LazyLock::new(|| {
        let suites = base_provider(AWS_LC).ok()?.cipher_suites.into_iter();
        let mut suites = suites.filter(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
        suites.find_map(|suite| suite.tls13()?.quic_suite())
    });
    *SUITE
}

impl crypto::ServerConfig for Handshake {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<PacketKeys, UnsupportedVersion> {
        let suite = initial_suite().filter(|_| version == VERSION).ok_or(UnsupportedVersion)?;
        Ok(keys(suite.keys(dst_cid, rustls::Side::Server, Version::V1)))
    }

    fn retry_tag(&self, _: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        // The key and the nonce that everybody uses (RFC 9001, section 5.8).
        const KEY: [u8; 16] =
            [0xbe, 0x0c, 0x69, 0x0b, 0x9f, 0x66, 0x57, 0x5a, 0x1d, 0x76, 0x6b, 0x54, 0xe3, 0x68, 0xc8, 0x4e];
        const NONCE: [u8; 12] = [0x46, 0x15, 0x99, 0xd3, 0x5d, 0x63, 0x2b, 0xf2, 0x23, 0x98, 0x25, 0xbb];
        let pseudo = [&[orig_dst_cid.len() as u8], &**orig_dst_cid, packet].concat();
        let sealed = UnboundKey::new(&AES_128_GCM, &KEY).and_then(|key| {
            let nonce = Nonce::assume_unique_for_key(NONCE);
            LessSafeKey::new(key).seal_in_place_separate_tag(nonce, Aad::from(pseudo), &mut [])
        });
        // A client discards a Retry whose tag is wrong.
        sealed.ok().and_then(|tag| tag.as_ref().try_into().ok()).unwrap_or_default()
    }

    fn start_session(self: Arc<Self>, _: u32, params: &TransportParameters) -> Box<dyn crypto::Session> {
        let mut parameters = Vec::new();
        params.write(&mut parameters);
        Box::new(Session { handshake: self, stage: Stage::Hello { received: Vec::new(), parameters }, next: None })
    }
}

/// The TLS of one connection.
struct Session {
    handshake: Arc<Handshake>,
    stage: Stage,
    /// Of the keys after those that are used.
    next: Option<Secrets>,
}

enum Stage {
    /// The ClientHello so far, and what this side has to say of QUIC.
    Hello {
        received: Vec<u8>,
        parameters: Vec<u8>,
    },
    Tls(Box<Tls>),
}

struct Tls {
    connection: ServerConnection,
    prepared: usize,
    protocol: usize,
    terms: Terms,
}

impl Session {
    fn tls(&self) -> Option<&Tls> {
        match &self.stage {
            Stage::Hello { .. } => None,
            Stage::Tls(tls) => Some(tls),
        }
    }

    fn tls_mut(&mut self) -> Option<&mut Tls> {
        match &mut self.stage {
            Stage::Hello { .. } => None,
            Stage::Tls(tls) => Some(tls),
        }
    }

    /// The ClientHello, once it is whole, is chosen for. What follows it is refused: the client waits for an answer first.
    fn hello(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        let Stage::Hello { received, .. } = &mut self.stage else { return Ok(false) };
        received.extend_from_slice(bytes);
        let Some((head, body)) = received.split_first_chunk::<HEAD>() else { return Ok(false) };
        let length = usize::try_from(u32::from_be_bytes([0, head[1], head[2], head[3]])).unwrap_or(usize::MAX);
        if head[0] != CLIENT_HELLO {
            return Err(self.refused(AlertDescription::UnexpectedMessage));
        }
        if length > MAX_HELLO || body.len() > length {
            return Err(self.refused(AlertDescription::DecodeError));
        }
        if body.len() < length {
            return Ok(false);
        }
        let begun = Instant::now();
        let hello = ClientHello::parse(body).ok_or(HandshakeError::Refused(AlertDescription::DecodeError));
        let chosen = hello.and_then(|hello| self.handshake.choose.choose(&hello));
        self.handshake.outcome.lock().select += begun.elapsed();
        let Chosen { prepared, protocol, config, terms, .. } = chosen.map_err(|error| self.unserved(error))?;
        let Stage::Hello { received, parameters } = &mut self.stage else { return Ok(false) };
        let (received, parameters) = (std::mem::take(received), std::mem::take(parameters));
        let connection =
            ServerConnection::new(config, Version::V1, parameters).map_err(|error| self.failed(error, None))?;
        self.stage = Stage::Tls(Box::new(Tls { connection, prepared, protocol, terms }));
        self.read(&received).map(|()| true)
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        let begun = Instant::now();
        let Some(tls) = self.tls_mut() else { return Ok(()) };
        let read = tls.connection.read_hs(bytes).map_err(|error| (error, tls.connection.alert()));
        self.handshake.outcome.lock().crypto += begun.elapsed();
        read.map_err(|(error, alert)| self.failed(error, alert))
    }

    fn refused(&self, alert: AlertDescription) -> TransportError {
        self.unserved(HandshakeError::Refused(alert))
    }

    fn unserved(&self, error: HandshakeError) -> TransportError {
        let alert = error.alert();
        self.end(error, Some(alert))
    }

    fn failed(&self, error: rustls::Error, alert: Option<AlertDescription>) -> TransportError {
        self.end(HandshakeError::Tls(error), alert)
    }

    /// The client is told by QUIC's own means (RFC 9001, section 4.8).
    fn end(&self, error: HandshakeError, alert: Option<AlertDescription>) -> TransportError {
        let alert = alert.unwrap_or(AlertDescription::InternalError);
        let reason = error.to_string();
        self.handshake.outcome.lock().error = Some(error);
        TransportError { code: TransportErrorCode::crypto(alert.into()), frame: None, reason }
    }
}

impl crypto::Session for Session {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> PacketKeys {
        let side = if side.is_server() { rustls::Side::Server } else { rustls::Side::Client };
        #[expect(
            clippy::expect_used,
            reason = "a connection begins with these keys, so that they have been made before"
        )]
        let suite = initial_suite().expect("the suite of Initial packets");
        keys(suite.keys(dst_cid, side, Version::V1))
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let Tls { connection, prepared, protocol, terms } = self.tls()?;
        Some(Box::new(Negotiated {
            prepared: *prepared,
            protocol: *protocol,
            terms: terms.clone(),
            server_name: connection.server_name().map(Arc::from),
            cipher: connection.negotiated_cipher_suite().map_or("", |suite| suite_name(&suite)),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            early_data: connection.zero_rtt_keys().is_some(),
            leaf: connection.peer_certificates().and_then(<[_]>::first).map(|leaf| leaf.clone().into_owned()),
        }))
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        let keys = self.tls()?.connection.zero_rtt_keys()?;
        Some((Box::new(keys.header), Box::new(Opener(keys.packet))))
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.tls().is_none_or(|tls| tls.connection.is_handshaking())
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        match self.stage {
            Stage::Hello { .. } => self.hello(bytes),
            Stage::Tls(_) => self.read(bytes).map(|()| false),
        }
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let parameters = self.tls().and_then(|tls| tls.connection.quic_transport_parameters());
        let read = |bytes| TransportParameters::read(Side::Server, &mut Cursor::new(bytes));
        parameters.map(read).transpose().map_err(TransportError::from)
    }

    fn write_handshake(&mut self, messages: &mut Vec<u8>) -> Option<PacketKeys> {
        let begun = Instant::now();
        let change = self.tls_mut()?.connection.write_hs(messages);
        self.handshake.outcome.lock().crypto += begun.elapsed();
        Some(keys(match change? {
            KeyChange::Handshake { keys } => keys,
            KeyChange::OneRtt { keys, next } => {
                self.next = Some(next);
                keys
            }
        }))
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.next.as_mut()?.next_packet_keys();
        Some(KeyPair { local: Box::new(keys.local), remote: Box::new(Opener(keys.remote)) })
    }

    /// For clients alone.
    fn is_valid_retry(&self, _: &ConnectionId, _: &[u8], _: &[u8]) -> bool {
        false
    }

    /// Nobody asks for any.
    fn export_keying_material(&self, _: &mut [u8], _: &[u8], _: &[u8]) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

/// rustls' keys as quinn takes them.
fn keys(keys: quic::Keys) -> PacketKeys {
    PacketKeys {
        header: KeyPair { local: Box::new(keys.local.header), remote: Box::new(keys.remote.header) },
        packet: KeyPair { local: Box::new(keys.local.packet), remote: Box::new(Opener(keys.remote.packet)) },
    }
}

/// Opens packets, and leaves their padding behind.
struct Opener(Box<dyn quic::PacketKey>);

impl PacketKey for Opener {
    fn encrypt(&self, packet: u64, buffer: &mut [u8], header_len: usize) {
        self.0.encrypt(packet, buffer, header_len);
    }

    fn decrypt(&self, packet: u64, header: &[u8], payload: &mut BytesMut) -> Result<(), CryptoError> {
        self.0.decrypt(packet, header, payload)?;
        let length = padding::close_gaps(payload);
        if length < payload.len() {
            // A copy, since whatever holds on to a part of this holds the whole datagram, which quinn, who counts what is
            // held, would take for as small as what is left of it.
            *payload = BytesMut::from(&payload[..length]);
        }
        Ok(())
    }

    fn tag_len(&self) -> usize {
        PacketKey::tag_len(&self.0)
    }

    fn confidentiality_limit(&self) -> u64 {
        PacketKey::confidentiality_limit(&self.0)
    }

    fn integrity_limit(&self) -> u64 {
        PacketKey::integrity_limit(&self.0)
    }
}
