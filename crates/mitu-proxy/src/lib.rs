//! The data plane of mitu: from the listening socket to the upstream and back. Start reading at [`gateway`].

pub mod accept;
mod bucket;
pub mod config;
pub mod connection;
pub mod dispatch;
pub mod drain;
pub mod files;
pub mod filter;
pub mod gate;
pub mod gateway;
pub mod listener;
pub mod overload;
pub mod protocol;
pub mod proxy_protocol;
pub mod quic;
pub mod relays;
pub mod respond;
pub mod router;
pub mod server;
pub mod sites;
pub mod socket;
pub mod upstream;
pub mod worker;
