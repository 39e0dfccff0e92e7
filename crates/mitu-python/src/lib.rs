//! The Python binding of the data plane, and nothing but the binding. `src/mitu/_native.pyi` tells Python of it.

use std::collections::HashMap;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use mitu_crypto::operation::CostError;
use mitu_crypto::provider::{AVAILABLE, Provider};
use mitu_crypto::{cpu, operation, provider};
use mitu_load::bench;
use mitu_load::error::LoadError;
use mitu_proxy::server::{self, ServerError};
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;

// Handshakes allocate and free in small pieces on every core: where the allocator shows most.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

create_exception!(
    _native,
    NativeError,
    PyException,
    "The data plane refused a configuration or could not bind a socket; nothing has changed."
);

fn native_error(error: ServerError) -> PyErr {
    NativeError::new_err(error.to_string())
}

/// A running data plane: its worker threads and their sockets.
#[pyclass(frozen, module = "mitu._native")]
struct Server(server::Server);

#[pymethods]
impl Server {
    /// Make `config` live, whole or (NativeError) not at all. Blocks while new sockets are bound. `discovered`: what is
    /// known of its upstreams (JSON), as for `discover`.
    fn reload(
        &self,
        py: Python<'_>,
        config: &str,
        secrets: HashMap<String, Vec<u8>>,
        discovered: &str,
    ) -> PyResult<()> {
        py.detach(|| self.0.reload(config, &secrets, discovered)).map_err(native_error)
    }

    /// Make what is known of the upstreams (JSON) live, for new requests and new handshakes.
    fn discover(&self, py: Python<'_>, discovered: &str) -> PyResult<()> {
        py.detach(|| self.0.discover(discovered)).map_err(native_error)
    }

    /// The bound `host:port` of each listener, by name.
    fn addresses(&self, py: Python<'_>) -> HashMap<String, String> {
        py.detach(|| self.0.addresses()).into_iter().map(|(name, address)| (name, address.to_string())).collect()
    }

    /// Stop accepting, and ask every connection to finish (GOAWAY, `Connection: close`). Returns once those that had
    /// connected already are accepted: after some 100 ms. `within`: seconds until `stop`; relays leave before.
    fn drain(&self, py: Python<'_>, within: f64) {
        // What is no time at all, or more than there is, is no bound.
        let within = Duration::try_from_secs_f64(within.max(0.0)).unwrap_or(Duration::MAX);
        py.detach(|| self.0.drain(within));
    }

    /// Connections that are open now, handshakes included.
    fn active(&self, py: Python<'_>) -> usize {
        py.detach(|| self.0.active())
    }

    /// Handshakes that wait because there are more than there is time for, and those that have been shed so far.
    fn handshakes(&self, py: Python<'_>) -> (usize, u64) {
        py.detach(|| self.0.handshakes())
    }

    /// Listeners that have come to another step of overload since this was last asked: name, step (the action of which it
    /// is the first, or `normal`), and the shares of memory (None: there is no ceiling) and of connections.
    fn overload_changes(&self, py: Python<'_>) -> Vec<(String, &'static str, Option<f64>, f64)> {
        let changes = py.detach(|| self.0.overload_changes()).into_iter();
        changes.map(|one| (one.listener, one.step.as_str(), one.memory, one.connections)).collect()
    }

    /// Close every connection and join the workers.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }

    /// Every metric in Prometheus text format.
    fn metrics(&self, py: Python<'_>) -> PyResult<String> {
        let text = py.detach(|| self.0.metrics()).map_err(native_error)?;
        Ok(String::from_utf8(text)?)
    }

    /// A JSON array of at most `limit` open connections, oldest first.
    fn connections(&self, py: Python<'_>, limit: usize) -> PyResult<String> {
        py.detach(|| self.0.connections(limit)).map_err(native_error)
    }

    /// What is known of the endpoints of each upstream: JSON, by upstream.
    fn endpoints(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| self.0.endpoints()).map_err(native_error)
    }

    /// Open the access log's path anew, after logrotate has moved the file.
    fn reopen_logs(&self, py: Python<'_>) {
        py.detach(|| self.0.reopen_logs());
    }
}

/// A run of the load generator; dropping it ends it.
#[pyclass(frozen, module = "mitu._native")]
struct Bench(bench::Bench);

#[pymethods]
impl Bench {
    /// What it has come to so far, or in the end: JSON.
    fn report(&self, py: Python<'_>) -> PyResult<String> {
        let report = py.detach(|| self.0.report()).map_err(load_error)?;
        serde_json::to_string(&report).map_err(|error| NativeError::new_err(error.to_string()))
    }

    /// Wait for the end, `seconds` at most. Whether it has come.
    fn wait(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        let limit = Duration::try_from_secs_f64(seconds).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(py.detach(|| self.0.wait(limit)))
    }

    /// Begin nothing more, and cut off what is under way.
    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }
}

/// Begin to put load on a server, as `plan` (JSON) says.
#[pyfunction]
fn start_bench(py: Python<'_>, plan: &str) -> PyResult<Bench> {
    py.detach(|| bench::Bench::start(plan)).map(Bench).map_err(load_error)
}

fn load_error(error: LoadError) -> PyErr {
    NativeError::new_err(error.to_string())
}

/// Start the workers for the runtime configuration `config` (JSON).
///
/// `secrets`: PEM by the identifiers that `config` uses. `discovered`: what is known of the upstreams (JSON). `inherited`:
/// listening sockets by listener name, whose file descriptors are taken over.
#[pyfunction]
fn start(
    py: Python<'_>,
    config: &str,
    secrets: HashMap<String, Vec<u8>>,
    discovered: &str,
    inherited: HashMap<String, Vec<RawFd>>,
) -> PyResult<Server> {
    // SAFETY: the caller hands the descriptors over, as the stub's documentation demands; nobody else closes them.
    let adopt = |fd| TcpListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let inherited = inherited.into_iter().map(|(name, fds)| (name, fds.into_iter().map(adopt).collect())).collect();
    py.detach(|| server::Server::start(config, &secrets, discovered, inherited)).map(Server).map_err(native_error)
}

/// Build everything `config` asks for but the sockets; NativeError says what cannot be.
#[pyfunction]
fn validate(py: Python<'_>, config: &str, secrets: HashMap<String, Vec<u8>>) -> PyResult<()> {
    py.detach(|| server::validate(config, &secrets)).map_err(native_error)
}

/// The version of the data plane, which must equal the package's.
#[pyfunction]
fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// The crypto providers of this build, AWS-LC first, and the versions of the crates that each comes in.
#[pyfunction]
fn crypto_providers() -> Vec<(&'static str, HashMap<&'static str, &'static str>)> {
    let told = |one: &Provider| (one.name(), provider::versions(*one).iter().copied().collect());
    AVAILABLE.iter().map(told).collect()
}

/// Extensions of this CPU's instruction set: name, whether it is there, what `provider` uses it for.
#[pyfunction]
fn cpu_features(provider: &str) -> PyResult<Vec<(&'static str, bool, Vec<&'static str>)>> {
    let features = cpu::features(named(provider)?).into_iter();
    Ok(features.map(|feature| (feature.name, feature.found, feature.used_for)).collect())
}

/// What `time_crypto` times: name, and the bytes that one call works through (None for public-key operations).
#[pyfunction]
fn crypto_operations(provider: &str) -> PyResult<Vec<(&'static str, Option<usize>)>> {
    let operations = operation::operations(named(provider)?).map_err(cost_error)?;
    Ok(operations.iter().map(|operation| (operation.name, operation.bytes)).collect())
}

/// Microseconds for one call of a crypto operation: median and fastest of batches, about `seconds` together.
#[pyfunction]
fn time_crypto(py: Python<'_>, provider: &str, operation: &str, seconds: f64) -> PyResult<(f64, f64)> {
    let provider = named(provider)?;
    let budget = Duration::try_from_secs_f64(seconds).map_err(|error| PyValueError::new_err(error.to_string()))?;
    let timed = py.detach(|| operation::measure(provider, operation, budget));
    timed.map(|timed| (timed.median, timed.fastest)).map_err(cost_error)
}

fn named(provider: &str) -> PyResult<Provider> {
    let found = AVAILABLE.iter().find(|known| known.name() == provider);
    found.copied().ok_or_else(|| NativeError::new_err(format!("provider '{provider}' is not in this build")))
}

fn cost_error(error: CostError) -> PyErr {
    NativeError::new_err(error.to_string())
}

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{
        Bench, NativeError, Server, cpu_features, crypto_operations, crypto_providers, start, start_bench,
        time_crypto, validate, version,
    };
}
