//! HTTP/1.1 on the wire, the same for both sides: heads ([`head`]), bodies ([`decode`], [`encode`]) and the stream they
//! travel on ([`transport`]). [`server`] is the client's side; the upstream's is `upstream/h1.rs`.

pub mod decode;
pub mod encode;
pub mod head;
pub mod server;
pub mod transport;
