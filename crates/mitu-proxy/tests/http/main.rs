//! HTTP through a running gateway: real sockets, TLS, and backends that do exactly what each test says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bodies;
mod compression;
mod failures;
mod framing;
mod h2;
mod handshakes;
mod harness;
mod headers;
mod lifetime;
mod limits;
mod resilience;
mod tunnel;
mod upgrade;
mod upstream_h2;
