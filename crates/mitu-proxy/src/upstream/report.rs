//! What an upstream's endpoints have come to, as evidence.

use serde::Serialize;

use super::Upstream;

#[derive(Debug, Serialize)]
pub struct EndpointReport {
    pub address: String,
    pub weight: u64,
    /// Requests and relays in progress.
    pub active: u64,
    /// Seconds for which it is still left alone.
    pub ejected: Option<f64>,
    /// What its last failures were, oldest first.
    pub causes: Vec<String>,
    pub ejections: u64,
    /// What it chose by ALPN when it was last connected to: `h2` or `http/1.1`.
    pub alpn: Option<&'static str>,
    pub successes: u64,
    pub failures: u64,
}

impl Upstream {
    pub fn report(&self) -> Vec<EndpointReport> {
        let endpoints = self.endpoints.load();
        let report = |endpoint: &super::endpoint::Endpoint| {
            let record = endpoint.standing.record();
            EndpointReport {
                address: endpoint.address.to_string(),
                weight: endpoint.weight(),
                active: endpoint.active(),
                ejected: record.ejected_for.map(|milliseconds| milliseconds.get() as f64 / 1000.0),
                causes: record.causes.iter().map(ToString::to_string).collect(),
                ejections: record.ejections,
                alpn: endpoint.alpn(),
                successes: record.successes,
                failures: record.failures,
            }
        };
        endpoints.members().iter().map(|member| report(&member.endpoint)).collect()
    }
}
