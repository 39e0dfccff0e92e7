//! What reads the bytes of strangers, and what has to hold of it whatever they are. A panic is a finding.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use mitu_proxy::config::RuntimeConfig;
use mitu_proxy::protocol::mqtt::{self, Stop};
use mitu_proxy::proxy_protocol;
use mitu_tls::alpn::{AlpnTable, Preference};
use mitu_tls::client_hello::ClientHello;
use rustls::server::Acceptor;

/// One of them. `corpus`: a folder, from the root of the repository, and what the names of its inputs end in.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub run: fn(&[u8]),
    pub corpus: (&'static str, &'static str),
}

pub const CLIENT_HELLO: Target = Target { run: client_hello, corpus: ("fuzz/corpus/client_hello", "") };
pub const PROXY_HEADER: Target = Target { run: proxy_header, corpus: ("fuzz/corpus/proxy_header", "") };
pub const MQTT_CONNECT: Target = Target { run: mqtt_connect, corpus: ("fuzz/corpus/mqtt_connect", "") };
pub const ALPN_LIST: Target = Target { run: alpn_list, corpus: ("fuzz/corpus/alpn_list", "") };
pub const CONFIGURATION: Target = Target { run: configuration, corpus: ("tests/golden/good", ".runtime.json") };

/// The body of a ClientHello: what rustls accepts is read here as well, and says the same.
pub fn client_hello(body: &[u8]) {
    let ours = ClientHello::parse(body);
    let Ok(length) = u16::try_from(body.len() + 4) else { return };
    if length > 1 << 14 {
        return;
    }
    let record = [&[22, 3, 1][..], &length.to_be_bytes(), &[1, 0], &(length - 4).to_be_bytes(), body].concat();
    let mut acceptor = Acceptor::default();
    if acceptor.read_tls(&mut &*record).is_err() {
        return;
    }
    let Ok(Some(accepted)) = acceptor.accept() else { return };
    let theirs = accepted.client_hello();
    let Some(ours) = ours else {
        // What only a renegotiation's says is refused at once here, and by rustls not at all.
        assert!(body.windows(2).any(|kind| kind == [0xff, 0x01]), "rustls accepts it");
        return;
    };
    assert_eq!(ours.server_name.as_deref(), theirs.server_name());
    assert_eq!(ours.alpn().map(Iterator::collect::<Vec<_>>), theirs.alpn().map(Iterator::collect));
    for suite in theirs.cipher_suites() {
        assert!(ours.has_suite(*suite));
    }
    for scheme in theirs.signature_schemes() {
        assert!(ours.has_scheme(*scheme));
    }
    for group in theirs.named_groups().unwrap_or_default() {
        assert!(ours.has_group(*group));
    }
}

/// A PROXY header and what follows it: not a byte more is read than it says it has, and never more than its bound.
pub fn proxy_header(data: &[u8]) {
    const HEAD: usize = 16;
    const MOST: usize = HEAD + 4096;
    let mut rest = data;
    // Bytes are there at once: nothing has to be waited for.
    let read = {
        let mut reading = pin!(proxy_protocol::read(&mut rest));
        reading.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    };
    let used = data.len() - rest.len();
    assert!(used <= MOST);
    assert!(!read.is_pending(), "it waits");
    if let Poll::Ready(Ok(addresses)) = read {
        assert!(data.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
        assert_eq!(used, HEAD + usize::from(u16::from_be_bytes([data[14], data[15]])));
        assert_eq!(addresses.is_none(), data[12] == 0x20);
    }
}

/// What an MQTT client says first: of every part more is wanted until it is decided, and then that stays decided.
pub fn mqtt_connect(data: &[u8]) {
    let whole = mqtt::client_id(data);
    let decided = (0..=data.len()).find(|&length| mqtt::client_id(&data[..length]) != Err(Stop::More));
    assert_eq!(decided.is_none(), whole == Err(Stop::More));
    if let Some(length) = decided {
        assert_eq!(mqtt::client_id(&data[..length]), whole);
    }
    if let Ok(id) = whole {
        assert!(data.starts_with(&[0x10]));
        assert!(id.is_empty() || data.windows(id.len()).any(|part| part == id));
    }
}

/// Which protocols are allowed and which comes first, and a list that a client offers: the decision is the one that a
/// look at each would come to, also when it is remembered.
pub fn alpn_list(data: &[u8]) {
    const NAMES: [&str; 6] = ["h3", "h2", "http/1.1", "mqtt", "private/1", "h"];
    let Some((&bits, mut wire)) = data.split_first() else { return };
    let turned = (0..NAMES.len()).map(|place| (place + usize::from(bits >> 6)) % NAMES.len());
    let order: Vec<usize> = turned.filter(|index| bits & 1 << index != 0).collect();
    let preference = Preference::new(order.iter().copied());
    let mut offered = Vec::new();
    while let Some((&length, rest)) = wire.split_first() {
        let Some((name, rest)) = rest.split_at_checked(usize::from(length)) else { break };
        offered.push(name);
        wire = rest;
    }
    let table = AlpnTable::new(NAMES);
    assert!(table.is_ok());
    let Ok(table) = table else { return };
    let common = |index: &usize| offered.contains(&NAMES[*index].as_bytes());
    let best = order.iter().copied().find(common);
    let expected = best.or_else(|| (0..NAMES.len()).find(common));
    let first = table.decide(&preference, || offered.iter().copied());
    let second = table.decide(&preference, || offered.iter().copied());
    assert_eq!(first.chosen, expected);
    assert_eq!((second.chosen, second.offered), (first.chosen, first.offered));
}

/// The document that the data plane obeys: read, written and read again it stays the same.
pub fn configuration(document: &[u8]) {
    let Ok(read) = serde_json::from_slice::<RuntimeConfig>(document) else { return };
    let written = serde_json::to_vec(&read);
    assert!(written.is_ok());
    let again = written.map(|written| serde_json::from_slice::<RuntimeConfig>(&written).map(|one| format!("{one:?}")));
    assert!(again.is_ok_and(|again| again.is_ok_and(|again| again == format!("{read:?}"))));
}
