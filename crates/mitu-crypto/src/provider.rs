//! The libraries that do the cryptography.

pub use mitu_tls::config::Provider;
pub use mitu_tls::provider::{AVAILABLE, AWS_LC};

/// The crates that `provider` comes in, with the versions that are linked where this build has it.
pub fn versions(provider: Provider) -> &'static [(&'static str, &'static str)] {
    const RUSTLS: (&str, &str) = ("rustls", env!("MITU_RUSTLS_VERSION"));
    const AWS_LC_RS: (&str, &str) = ("aws-lc-rs", env!("MITU_AWS_LC_RS_VERSION"));
    match provider {
        Provider::AwsLc => &[AWS_LC_RS, ("aws-lc-sys", env!("MITU_AWS_LC_SYS_VERSION")), RUSTLS],
        Provider::AwsLcFips => &[AWS_LC_RS, ("aws-lc-fips-sys", env!("MITU_AWS_LC_FIPS_SYS_VERSION")), RUSTLS],
        Provider::BoringSsl => &[
            ("boring-rustls-provider", env!("MITU_BORING_RUSTLS_PROVIDER_VERSION")),
            ("boring-sys", env!("MITU_BORING_SYS_VERSION")),
            RUSTLS,
        ],
    }
}
