//! Hands the versions of the cryptographic crates to the code, from the lock file that they are built by.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

const CRATES: [&str; 6] =
    ["aws-lc-fips-sys", "aws-lc-rs", "aws-lc-sys", "boring-rustls-provider", "boring-sys", "rustls"];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::var("CARGO_MANIFEST_DIR")?;
    let lock = Path::new(&folder).join("../../Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let text = fs::read_to_string(&lock).map_err(|error| format!("{}: {error}", lock.display()))?;
    for name in CRATES {
        let variable = format!("MITU_{}_VERSION", name.to_uppercase().replace('-', "_"));
        println!("cargo::rustc-env={variable}={}", version(&text, name)?);
    }
    Ok(())
}

/// The one version of `name`; two of them would leave open which one is linked where.
fn version<'a>(lock: &'a str, name: &str) -> Result<&'a str, String> {
    let head = format!("[[package]]\nname = \"{name}\"\nversion = \"");
    let mut found = lock.split(&head).skip(1).filter_map(|rest| rest.split('"').next());
    match (found.next(), found.next()) {
        (Some(version), None) => Ok(version),
        (None, _) => Err(format!("no {name} in Cargo.lock")),
        _ => Err(format!("more than one {name} in Cargo.lock")),
    }
}
