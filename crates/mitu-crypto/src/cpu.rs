//! The CPU's instructions, and what the provider does with them.
//!
//! The provider finds them at run time by itself. What it does with which is in its source (AWS-LC:
//! `crypto/fipsmodule/cpucap/internal.h`, BoringSSL: `crypto/internal.h`, and the callers of what is declared there).

use mitu_tls::config::Provider;

/// An extension of the instruction set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// As Rust names it: `avx2`, `sha3`.
    pub name: &'static str,
    pub found: bool,
    /// What the provider does with it here; empty where it, or what has to come with it, is missing.
    pub used_for: Vec<&'static str>,
}

/// A piece of the provider that runs where all its features are found.
struct Path {
    used_for: &'static str,
    needs: &'static [&'static str],
}

/// Every extension that cryptography could use on this architecture, with what `provider` does with it.
pub fn features(provider: Provider) -> Vec<Feature> {
    used(arch::detected(), paths(provider))
}

fn paths(provider: Provider) -> &'static [Path] {
    match provider {
        Provider::AwsLc | Provider::AwsLcFips => arch::AWS_LC,
        Provider::BoringSsl => arch::BORINGSSL,
    }
}

fn used(detected: Vec<(&'static str, bool)>, paths: &[Path]) -> Vec<Feature> {
    let has = |name: &str| detected.iter().any(|(known, found)| *known == name && *found);
    let taken: Vec<_> = paths.iter().filter(|path| path.needs.iter().all(|name| has(name))).collect();
    let used_for = |name| taken.iter().filter(|path| path.needs.contains(&name)).map(|path| path.used_for).collect();
    detected.iter().map(|&(name, found)| Feature { name, found, used_for: used_for(name) }).collect()
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use std::arch::is_x86_feature_detected as has;

    use super::Path;

    pub fn detected() -> Vec<(&'static str, bool)> {
        vec![
            ("aes", has!("aes")),
            ("pclmulqdq", has!("pclmulqdq")),
            ("ssse3", has!("ssse3")),
            ("avx", has!("avx")),
            ("movbe", has!("movbe")),
            ("avx2", has!("avx2")),
            ("bmi1", has!("bmi1")),
            ("bmi2", has!("bmi2")),
            ("adx", has!("adx")),
            ("sha", has!("sha")),
            ("sha512", has!("sha512")),
            ("vaes", has!("vaes")),
            ("vpclmulqdq", has!("vpclmulqdq")),
            ("avx512f", has!("avx512f")),
            ("avx512bw", has!("avx512bw")),
            ("avx512dq", has!("avx512dq")),
            ("avx512vl", has!("avx512vl")),
            ("avx512ifma", has!("avx512ifma")),
            ("avx512vbmi2", has!("avx512vbmi2")),
        ]
    }

    // Neither has code for the SHA-512 instructions of this architecture.
    pub const AWS_LC: &[Path] = &[
        Path { used_for: "AES-GCM", needs: &["aes", "pclmulqdq", "avx", "movbe"] },
        Path {
            used_for: "AES-GCM, 512 bits at once",
            needs: &["vaes", "vpclmulqdq", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vbmi2"],
        },
        Path { used_for: "P-256, P-384, X25519", needs: &["bmi2", "adx"] },
        Path { used_for: "P-256 verification", needs: &["avx"] },
        Path { used_for: "RSA, ChaCha20-Poly1305", needs: &["avx2"] },
        Path { used_for: "RSA, wide multiplication", needs: &["bmi1", "bmi2", "adx"] },
        Path {
            used_for: "RSA, 512 bits at once",
            needs: &["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512ifma"],
        },
        Path { used_for: "ML-KEM", needs: &["avx2", "bmi2"] },
        Path { used_for: "SHA-256", needs: &["sha"] },
        Path { used_for: "SHA-384", needs: &["avx", "ssse3"] },
    ];

    // P-384 is in C alone.
    pub const BORINGSSL: &[Path] = &[
        Path { used_for: "AES-GCM", needs: &["aes", "pclmulqdq", "avx", "movbe"] },
        Path { used_for: "AES-GCM, 256 bits at once", needs: &["vaes", "vpclmulqdq", "avx2"] },
        Path {
            used_for: "AES-GCM, 512 bits at once",
            needs: &["vaes", "vpclmulqdq", "avx2", "avx512bw", "avx512vl", "bmi2"],
        },
        Path { used_for: "P-256", needs: &["bmi2", "adx"] },
        Path { used_for: "P-256 verification", needs: &["avx"] },
        Path { used_for: "X25519", needs: &["bmi1", "bmi2", "adx"] },
        Path { used_for: "RSA", needs: &["avx2"] },
        Path { used_for: "RSA, wide multiplication", needs: &["bmi1", "bmi2", "adx"] },
        Path { used_for: "ChaCha20-Poly1305", needs: &["avx2", "bmi2"] },
        Path { used_for: "ML-KEM", needs: &["avx2"] },
        Path { used_for: "SHA-256", needs: &["sha", "ssse3"] },
        Path { used_for: "SHA-384 on Intel's CPUs", needs: &["avx"] },
    ];
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use std::arch::is_aarch64_feature_detected as has;

    use super::Path;

    pub fn detected() -> Vec<(&'static str, bool)> {
        vec![
            ("neon", has!("neon")),
            ("aes", has!("aes")),
            ("pmull", has!("pmull")),
            ("sha2", has!("sha2")),
            // Rust's name for SHA-512 and SHA-3 together.
            ("sha3", has!("sha3")),
        ]
    }

    pub const AWS_LC: &[Path] = &[
        Path { used_for: "AES-GCM", needs: &["aes", "pmull"] },
        Path { used_for: "ChaCha20-Poly1305, ML-KEM", needs: &["neon"] },
        Path { used_for: "SHA-256", needs: &["sha2"] },
        Path { used_for: "SHA-384", needs: &["sha3"] },
    ];

    pub const BORINGSSL: &[Path] = &[
        Path { used_for: "AES-GCM", needs: &["aes", "pmull"] },
        Path { used_for: "ChaCha20-Poly1305, X25519", needs: &["neon"] },
        Path { used_for: "SHA-256", needs: &["sha2"] },
        Path { used_for: "SHA-384", needs: &["sha3"] },
    ];
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod arch {
    use super::Path;

    pub fn detected() -> Vec<(&'static str, bool)> {
        Vec::new()
    }

    pub const AWS_LC: &[Path] = &[];
    pub const BORINGSSL: &[Path] = &[];
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: Path = Path { used_for: "wide", needs: &["a", "b"] };
    const NARROW: Path = Path { used_for: "narrow", needs: &["a"] };

    #[test]
    fn a_feature_without_its_company_is_not_used() {
        let found = used(vec![("a", true), ("b", false), ("c", true)], &[WIDE, NARROW]);
        let used: Vec<_> = found.iter().map(|one| (one.name, one.found, one.used_for.as_slice())).collect();
        assert_eq!(used, [("a", true, &["narrow"][..]), ("b", false, &[]), ("c", true, &[])]);
    }

    #[test]
    fn every_need_is_looked_for() {
        let known = arch::detected();
        for name in [arch::AWS_LC, arch::BORINGSSL].into_iter().flatten().flat_map(|path| path.needs) {
            assert!(known.iter().any(|(one, _)| one == name), "{name}");
        }
    }
}
