//! `mitu-load`: what the benchmarks drive servers with, and the floors they are held against.
//!
//! One thread, so that it can be pinned to a core of its own. Every command prints one JSON document a line on
//! standard output. Server certificates are not verified: the verifying would be the client's work, and it is the
//! server's CPU that is measured.

mod alpn;
mod crypto;
mod handshake;
mod idle;
mod options;
mod pulse;
mod report;
mod serve;
mod serve_h3;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mitu_load::error::LoadError;
use tokio::runtime::{Builder, Runtime};

#[derive(Debug, Parser)]
#[command(version, about = "Load generator for the benchmarks; prints JSON")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Connect, TLS handshake, one GET, read the response, close: again and again, or at a fixed rate.
    Handshake(handshake::Arguments),
    /// The same over plain TCP: what is left of a connection when TLS costs nothing.
    Plain(handshake::Arguments),
    /// Open connections, make one exchange on each, and hold them until standard input ends.
    Idle(idle::Arguments),
    /// Open connections, and ask on each of them at a fixed rate: how a server treats those it has.
    Pulse(pulse::Arguments),
    /// Answer every GET with the same body, over plain HTTP/1.1 and HTTP/2 (prior knowledge) on one port.
    Serve(serve::Arguments),
    /// The same over HTTP/3: what is left of it when nothing but the protocol is there.
    ServeH3(serve_h3::Arguments),
    /// Time the public-key operations of a handshake, alone.
    Crypto(crypto::Arguments),
    /// Time the ALPN decision, alone.
    Alpn(alpn::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mitu-load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), LoadError> {
    match command {
        Command::Handshake(arguments) => report::print(&runtime()?.block_on(handshake::run(arguments, true))?),
        Command::Plain(arguments) => report::print(&runtime()?.block_on(handshake::run(arguments, false))?),
        Command::Idle(arguments) => runtime()?.block_on(idle::run(arguments)),
        Command::Pulse(arguments) => report::print(&runtime()?.block_on(pulse::run(arguments))?),
        Command::Serve(arguments) => runtime()?.block_on(serve::run(arguments)),
        Command::ServeH3(arguments) => runtime()?.block_on(serve_h3::run(arguments)),
        Command::Crypto(arguments) => report::print(&crypto::run(&arguments)?),
        Command::Alpn(arguments) => report::print(&alpn::run(&arguments)?),
    }
}

fn runtime() -> Result<Runtime, LoadError> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}
