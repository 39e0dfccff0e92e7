//! The floor of HTTP/3: quinn, and the h3 library, with nothing around them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use h3_quinn::quinn::crypto::rustls::QuicServerConfig;
use h3_quinn::quinn::{Endpoint, Incoming, ServerConfig};
use http::header::CONTENT_TYPE;
use mitu_load::error::LoadError;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::report;
use crate::serve::{JSON, Listening, body};

#[derive(Debug, Args)]
pub struct Arguments {
    /// host:port to listen on
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// PEM file of the certificate's chain
    #[arg(long)]
    certificate: PathBuf,
    /// PEM file of its key
    #[arg(long)]
    key: PathBuf,
    /// Bytes of the response's body
    #[arg(long, default_value = "128")]
    body: usize,
}

/// Serves until it is killed.
pub async fn run(arguments: Arguments) -> Result<(), LoadError> {
    let endpoint = Endpoint::server(config(&arguments)?, arguments.listen)?;
    report::print(&Listening { address: endpoint.local_addr()? })?;
    let body = body(arguments.body)?;
    while let Some(incoming) = endpoint.accept().await {
        // A client that breaks off ends its own connection and nothing else.
        tokio::spawn(connection(incoming, body.clone()));
    }
    Ok(())
}

fn config(arguments: &Arguments) -> Result<ServerConfig, LoadError> {
    let unusable = |error: &dyn std::fmt::Display| LoadError::Usage(format!("no certificate with its key: {error}"));
    let chain = CertificateDer::pem_file_iter(&arguments.certificate).map_err(|error| unusable(&error))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|error| unusable(&error))?;
    let key = PrivateKeyDer::from_pem_file(&arguments.key).map_err(|error| unusable(&error))?;
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_protocol_versions(&[&rustls::version::TLS13])?.with_no_client_auth();
    let mut tls = builder.with_single_cert(chain, key)?;
    tls.alpn_protocols = vec![b"h3".to_vec()];
    Ok(ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).map_err(|error| unusable(&error))?)))
}

async fn connection(incoming: Incoming, body: Bytes) -> Result<(), LoadError> {
    let broken = LoadError::Protocol("an HTTP/3 connection broke off");
    let Ok(quic) = incoming.await else { return Err(broken) };
    let Ok(mut http) = h3::server::Connection::new(h3_quinn::Connection::new(quic)).await else { return Err(broken) };
    while let Ok(Some(request)) = http.accept().await {
        let body = body.clone();
        tokio::spawn(async move {
            let (_, mut stream) = request.resolve_request().await?;
            let mut response = http::Response::new(());
            response.headers_mut().insert(CONTENT_TYPE, JSON);
            stream.send_response(response).await?;
            stream.send_data(body).await?;
            stream.finish().await
        });
    }
    Ok(())
}
