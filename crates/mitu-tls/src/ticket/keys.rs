//! The keys of one scope: those of the epochs from which tickets are still accepted, swapped whole when time moves on.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use aws_lc_rs::aead::{AES_256_GCM_SIV, LessSafeKey, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use aws_lc_rs::{digest, rand};

use super::{TicketScope, VERSION};
use crate::config::TicketsConfig;
use crate::error::{Secrets, TlsConfigError, secret};

/// Bytes, at 8 bits of entropy each as many as the keys have.
const SECRET_MIN: usize = 32;
const KEY_LEN: usize = 32;
const SALT: &[u8] = b"mitu session tickets";
const LABEL: &[u8] = b"mitu ticket v";

/// What all scopes share.
pub struct Settings {
    /// The first seals, all of them open. None: random keys.
    secrets: Vec<Prk>,
    rotation_ms: NonZeroU64,
    pub lifetime_ms: u64,
    /// Of all the above: equal ones are interchangeable.
    digest: digest::Digest,
}

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        self.digest.as_ref() == other.digest.as_ref()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rotation_ms, lifetime_ms, .. } = self;
        let mut shown = formatter.debug_struct("Settings");
        shown.field("rotation_ms", rotation_ms).field("lifetime_ms", lifetime_ms).finish_non_exhaustive()
    }
}

impl Settings {
    pub fn new(config: &TicketsConfig, secrets: &Secrets) -> Result<Self, TlsConfigError> {
        let mut whole = digest::Context::new(&digest::SHA256);
        whole.update(&config.rotation_ms.get().to_be_bytes());
        whole.update(&config.lifetime_ms.to_be_bytes());
        let extract = |id: &String| {
            let secret = secret(secrets, id)?;
            if secret.len() < SECRET_MIN {
                return Err(TlsConfigError::TicketSecret { id: id.clone(), min: SECRET_MIN });
            }
            whole.update(digest::digest(&digest::SHA256, secret).as_ref());
            Ok(Salt::new(HKDF_SHA256, SALT).extract(secret))
        };
        Ok(Self {
            secrets: config.secrets.iter().map(extract).collect::<Result<_, _>>()?,
            rotation_ms: config.rotation_ms,
            lifetime_ms: config.lifetime_ms,
            digest: whole.finish(),
        })
    }

    pub fn epoch(&self, now: u64) -> u64 {
        now / self.rotation_ms
    }

    /// Those in which a ticket that is still good may have been sealed, with the one that a clock ahead of this one is
    /// in already.
    fn epochs(&self, now: u64) -> RangeInclusive<u64> {
        self.epoch(now.saturating_sub(self.lifetime_ms))..=self.epoch(now).saturating_add(1)
    }
}

/// The keys of one scope. Whoever first needs those of a new epoch makes them: nothing runs in the background, and
/// nobody waits.
pub struct ScopeKeys {
    settings: Arc<Settings>,
    scope: [u8; 32],
    window: ArcSwap<Window>,
}

impl ScopeKeys {
    /// Nothing is derived before the first ticket, so a site without visitors costs no keys.
    pub fn new(settings: Arc<Settings>, scope: &TicketScope) -> Self {
        Self { settings, scope: *scope.as_bytes(), window: ArcSwap::default() }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The keys that may be needed at `now`.
    pub fn at(&self, now: u64) -> Option<Guard<Arc<Window>>> {
        let window = self.window.load();
        let current = self.settings.epoch(now);
        // Not only the exact window: threads whose clocks are on either side of a boundary must agree on one.
        if window.keys(current).is_some() && window.keys(current.saturating_add(1)).is_some() {
            return Some(window);
        }
        let rolled = Arc::new(self.roll(&window, self.settings.epochs(now)).ok()?);
        // Random keys of two threads differ: the first to be done has made those that count.
        self.window.compare_and_swap(&window, rolled);
        Some(self.window.load())
    }

    fn roll(&self, before: &Window, epochs: RangeInclusive<u64>) -> Result<Window, Unspecified> {
        let first = *epochs.start();
        let keys = epochs.map(|epoch| before.keys(epoch).map_or_else(|| self.make(epoch), |keys| Ok(keys.clone())));
        Ok(Window { first, keys: keys.collect::<Result<_, _>>()? })
    }

    /// The keys of one epoch, of which the first seals.
    fn make(&self, epoch: u64) -> Result<Arc<[LessSafeKey]>, Unspecified> {
        if self.settings.secrets.is_empty() {
            let mut key = [0; KEY_LEN];
            rand::fill(&mut key)?;
            return Ok(Arc::new([LessSafeKey::new(UnboundKey::new(&AES_256_GCM_SIV, &key)?)]));
        }
        // Every part has a fixed length, so no two inputs look alike.
        let rotation = self.settings.rotation_ms.get().to_be_bytes();
        let epoch = epoch.to_be_bytes();
        let info = [LABEL, &[VERSION], &self.scope, &rotation, &epoch];
        let derive = |secret: &Prk| Ok(LessSafeKey::new(secret.expand(&info, &AES_256_GCM_SIV)?.into()));
        self.settings.secrets.iter().map(derive).collect()
    }
}

/// The keys of consecutive epochs.
#[derive(Default)]
pub struct Window {
    first: u64,
    keys: Vec<Arc<[LessSafeKey]>>,
}

impl Window {
    pub fn keys(&self, epoch: u64) -> Option<&Arc<[LessSafeKey]>> {
        let at = usize::try_from(epoch.checked_sub(self.first)?).ok()?;
        self.keys.get(at)
    }
}
