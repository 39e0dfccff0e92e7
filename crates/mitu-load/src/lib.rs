//! Load, and how it was borne: the library behind `mitu bench` and behind `mitu-load`, the program of the benchmarks.
//!
//! [`target`] and [`tls`] say whom to connect to and how, [`session`] is one connection from connect to close,
//! [`protocol`] what is said on it; [`bench`] makes many of them, on time, and tells what they took.

pub mod bench;
pub mod cpu;
mod delay;
pub mod error;
pub mod protocol;
mod quic;
pub mod session;
pub mod target;
pub mod tls;
