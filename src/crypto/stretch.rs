//! `K_mesh`: what the cluster secret becomes before anything is proved with it (protocol 3.3).
//!
//! Stretching costs 64 MiB and a good part of a second by design, so it never lies on the start
//! path: [`MeshKeys::start`] returns at once, handshakes wait for the key they need.

use std::{fmt, sync::Arc, time::SystemTime};

use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::{config::AcceptSecret, drain::Tasks, ids::MeshName};

use super::{secret::Secret, transcript};

/// Memory of one stretch in KiB, passes, lanes (protocol 3.3): the price of one guess.
pub(crate) const MEMORY_KIB: u32 = 65_536;
pub(crate) const PASSES: u32 = 3;
pub(crate) const LANES: u32 = 1;

/// A stretched secret. Whoever holds it can join the mesh.
#[derive(Clone)]
pub struct MeshKey(Zeroizing<[u8; 32]>);

impl MeshKey {
    /// A key that needs no stretching, since its 32 bytes are random already.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for MeshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[mesh key]")
    }
}

/// Argon2id of `secret` under the mesh's name. Slow on purpose: not for the runtime's thread.
///
/// # Panics
/// When the system has no 64 MiB left: a node that cannot stretch its secret can do nothing.
#[must_use]
pub fn stretch(secret: &Secret<String>, mesh: &MeshName) -> MeshKey {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, Some(32)).expect("valid by protocol 3.3");
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(
            secret.reveal().as_bytes(),
            &transcript::mesh_salt(mesh),
            key.as_mut(),
        )
        .expect("stretching the secret needs 64 MiB of memory");
    MeshKey(key)
}

/// A key as it becomes ready.
type Slot = watch::Receiver<Option<Arc<MeshKey>>>;

/// One secret a listener accepts.
#[derive(Debug, Clone)]
struct Accepted {
    key: Slot,
    not_after: Option<SystemTime>,
}

/// The node's stretched secrets. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MeshKeys {
    own: Slot,
    older: Arc<[Accepted]>,
}

/// A secret that is valid now, with its place: 0 = `secret`, n = `acceptSecrets[n-1]`.
#[derive(Debug, Clone)]
pub struct ValidKey {
    /// Its place in the configuration.
    pub index: usize,
    /// The stretched secret.
    pub key: Arc<MeshKey>,
}

impl MeshKeys {
    /// Begins to stretch all secrets, side by side on threads of their own, and returns at once.
    #[must_use]
    pub fn start(
        mesh: &MeshName,
        secret: Secret<String>,
        accept: Vec<AcceptSecret>,
        tasks: &Tasks,
    ) -> Self {
        let begin = |secret: Secret<String>| {
            let (ready, slot) = watch::channel(None);
            let mesh = mesh.clone();
            tasks.spawn(async move {
                let stretched = tokio::task::spawn_blocking(move || stretch(&secret, &mesh)).await;
                if let Ok(key) = stretched {
                    ready.send_replace(Some(Arc::new(key)));
                } else {
                    tracing::error!("the secret could not be stretched; no link can come up");
                }
            });
            slot
        };
        let own = begin(secret);
        let older = accept
            .into_iter()
            .map(|a| Accepted {
                key: begin(a.secret),
                not_after: a.not_after,
            })
            .collect();
        Self { own, older }
    }

    /// Keys that are ready already; the older ones with the end of their validity.
    #[must_use]
    pub fn ready(own: MeshKey, older: Vec<(MeshKey, Option<SystemTime>)>) -> Self {
        let slot = |key| watch::channel(Some(Arc::new(key))).1;
        Self {
            own: slot(own),
            older: older
                .into_iter()
                .map(|(key, not_after)| Accepted {
                    key: slot(key),
                    not_after,
                })
                .collect(),
        }
    }

    /// The key of `secret`: the only one a dialer proves with, so that a failed handshake can never
    /// push it back to an older secret (protocol 2).
    pub async fn own(&self) -> Arc<MeshKey> {
        wait(&self.own).await
    }

    /// Every key a listener takes at wall-clock time `now`, that of `secret` first.
    pub async fn accepted(&self, now: SystemTime) -> Vec<ValidKey> {
        let mut keys = vec![ValidKey {
            index: 0,
            key: self.own().await,
        }];
        for (place, older) in self.older.iter().enumerate() {
            if older.not_after.is_none_or(|end| now <= end) {
                keys.push(ValidKey {
                    index: place + 1,
                    key: wait(&older.key).await,
                });
            }
        }
        keys
    }
}

/// Waits until a key is ready. Waits for ever when its task is gone: the node is stopping, and
/// every handshake has its own time limit.
async fn wait(slot: &Slot) -> Arc<MeshKey> {
    let mut slot = slot.clone();
    loop {
        if let Some(key) = slot.borrow_and_update().clone() {
            return key;
        }
        if slot.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn start_returns_before_the_keys_are_ready() {
        let tasks = Tasks::new();
        let mesh = "demo".parse().unwrap();
        let secret = |text: &str| Secret::new(text.to_owned());
        let older = AcceptSecret {
            secret: secret("an-older-secret-of-ours"),
            not_after: None,
        };
        let keys = MeshKeys::start(
            &mesh,
            secret("correct-horse-battery-staple"),
            vec![older],
            &tasks,
        );
        assert!(keys.own.borrow().is_none());
        let accepted = keys.accepted(SystemTime::now()).await;
        assert_eq!(accepted.len(), 2);
        assert_eq!(accepted[0].key.bytes(), keys.own().await.bytes());
        assert_ne!(accepted[0].key.bytes(), accepted[1].key.bytes());
        assert_eq!(format!("{keys:?}").matches("correct-horse").count(), 0);
    }

    #[tokio::test]
    async fn a_secret_past_its_end_is_not_accepted() {
        let now = SystemTime::now();
        let key = |n| MeshKey::from_bytes([n; 32]);
        let keys = MeshKeys::ready(
            key(1),
            vec![
                (key(2), Some(now - Duration::from_secs(1))),
                (key(3), Some(now + Duration::from_secs(1))),
                (key(4), None),
            ],
        );
        let places: Vec<_> = keys.accepted(now).await.iter().map(|k| k.index).collect();
        assert_eq!(places, [0, 2, 3]);
    }
}
