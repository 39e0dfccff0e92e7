//! The public-key operations of a handshake, alone: what no server that uses this library can go below.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use mitu_crypto::operation::{measure, operations};
use mitu_crypto::provider::AWS_LC;
use mitu_load::error::LoadError;
use serde::Serialize;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Seconds for each operation; the median over batches of a millisecond is reported
    #[arg(long, default_value = "0.3")]
    seconds: f64,
}

/// Microseconds for one operation, by its name.
#[derive(Debug, Serialize)]
pub struct Costs {
    microseconds: BTreeMap<&'static str, f64>,
}

pub fn run(arguments: &Arguments) -> Result<Costs, LoadError> {
    let budget =
        Duration::try_from_secs_f64(arguments.seconds).map_err(|error| LoadError::Usage(error.to_string()))?;
    let operations = operations(AWS_LC)?;
    let public_key = operations.iter().filter(|operation| operation.bytes.is_none());
    let timed = public_key.map(|operation| Ok((operation.name, measure(AWS_LC, operation.name, budget)?.median)));
    Ok(Costs { microseconds: timed.collect::<Result<_, LoadError>>()? })
}
