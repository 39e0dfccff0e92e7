//! The TLS side of the data plane, stage by stage: [`client_hello`] is read, [`alpn`] and [`server_name`] decide,
//! [`select`] picks the prepared configuration, [`handshake`] runs it and times its stages, and [`stream`] is what is left
//! for the handlers.

pub mod alpn;
pub mod certificate;
pub mod client_hello;
pub mod config;
pub mod early_data;
pub mod error;
pub mod group;
pub mod handshake;
pub mod identity;
#[cfg(not(feature = "fips"))]
pub mod key_schedule;
pub mod policy;
pub mod provider;
pub mod quic;
pub mod select;
pub mod server_name;
pub mod session;
pub mod stream;
pub mod ticket;
