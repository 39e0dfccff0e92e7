//! The library that does the cryptography.

/// Its name in the configuration (`tls.provider`).
pub const NAME: &str = "aws-lc";

/// The crates that it comes in, with the versions that are linked.
pub const VERSIONS: [(&str, &str); 3] = [
    ("aws-lc-rs", env!("MITU_AWS_LC_RS_VERSION")),
    ("aws-lc-sys", env!("MITU_AWS_LC_SYS_VERSION")),
    ("rustls", env!("MITU_RUSTLS_VERSION")),
];
