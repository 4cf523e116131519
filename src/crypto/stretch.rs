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

/// Tells the secrets of this process apart, whatever place they have in the configuration: a link or
/// session ends when the secret that it was proved with is gone (protocol 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SecretId(pub u64);

/// One secret in force.
#[derive(Debug, Clone)]
struct Held {
    id: SecretId,
    /// To find it again in another configuration; none for a key that needed no stretching.
    secret: Option<Secret<String>>,
    key: Slot,
    not_after: Option<SystemTime>,
}

impl Held {
    fn is_valid(&self, now: SystemTime) -> bool {
        self.not_after.is_none_or(|end| now <= end)
    }
}

/// The secrets of one configuration: `secret`, then `acceptSecrets`.
#[derive(Debug)]
struct Ring {
    held: Vec<Held>,
    /// Number of the next secret that was not here before.
    next: u64,
}

impl Ring {
    fn own(&self) -> &Held {
        // Made with one, and never changed.
        self.held.first().expect("`secret` is always there")
    }
}

/// The node's stretched secrets. Cheap to clone; a change is seen by all clones.
#[derive(Debug, Clone)]
pub struct MeshKeys {
    ring: Arc<watch::Sender<Arc<Ring>>>,
}

/// A secret that is valid now.
#[derive(Debug, Clone)]
pub struct ValidKey {
    /// Which one it is.
    pub id: SecretId,
    /// The stretched secret.
    pub key: Arc<MeshKey>,
}

/// Begins to stretch a secret on a thread of its own.
fn begin(secret: Secret<String>, mesh: MeshName, tasks: &Tasks) -> Slot {
    let (ready, slot) = watch::channel(None);
    tasks.spawn(async move {
        let stretched = tokio::task::spawn_blocking(move || stretch(&secret, &mesh)).await;
        if let Ok(key) = stretched {
            ready.send_replace(Some(Arc::new(key)));
        } else {
            tracing::error!("the secret could not be stretched; no link can come up");
        }
    });
    slot
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
        let none = Ring {
            held: Vec::new(),
            next: 0,
        };
        Self::with(none.changed(mesh, secret, accept, tasks))
    }

    /// Keys that are ready already; the older ones with the end of their validity.
    #[must_use]
    pub fn ready(own: MeshKey, older: Vec<(MeshKey, Option<SystemTime>)>) -> Self {
        let own = std::iter::once((own, None));
        let held = own
            .chain(older)
            .zip(0..)
            .map(|((key, not_after), id)| Held {
                id: SecretId(id),
                secret: None,
                key: watch::channel(Some(Arc::new(key))).1,
                not_after,
            });
        let held: Vec<Held> = held.collect();
        let next = held.len() as u64;
        Self::with(Ring { held, next })
    }

    fn with(ring: Ring) -> Self {
        Self {
            ring: Arc::new(watch::Sender::new(Arc::new(ring))),
        }
    }

    fn ring(&self) -> Arc<Ring> {
        self.ring.borrow().clone()
    }

    /// Puts the secrets of another configuration in force, and begins to stretch those that were not
    /// here before. One that stays keeps its identity, also from `acceptSecrets` to `secret`. Returns
    /// at once; false when nothing is different.
    pub fn replace(
        &self,
        mesh: &MeshName,
        secret: Secret<String>,
        accept: Vec<AcceptSecret>,
        tasks: &Tasks,
    ) -> bool {
        let before = self.ring();
        let after = before.changed(mesh, secret, accept, tasks);
        self.put(&before, after)
    }

    fn put(&self, before: &Ring, after: Ring) -> bool {
        let terms = |ring: &Ring| -> Vec<_> {
            let terms = ring.held.iter().map(|held| (held.id, held.not_after));
            terms.collect()
        };
        let differs = terms(before) != terms(&after);
        if differs {
            self.ring.send_replace(Arc::new(after));
        }
        differs
    }

    /// Puts keys in force that need no stretching; an equal key stays the same secret.
    #[cfg(test)]
    pub fn replace_ready(&self, own: MeshKey, older: Vec<(MeshKey, Option<SystemTime>)>) {
        let before = self.ring();
        let (mut held, mut next) = (Vec::new(), before.next);
        for (key, not_after) in std::iter::once((own, None)).chain(older) {
            let same = |held: &&Held| {
                let known = held.key.borrow();
                known
                    .as_ref()
                    .is_some_and(|known| known.bytes() == key.bytes())
            };
            held.push(match before.held.iter().find(same) {
                Some(known) => Held {
                    not_after,
                    ..known.clone()
                },
                None => {
                    next += 1;
                    Held {
                        id: SecretId(next - 1),
                        secret: None,
                        key: watch::channel(Some(Arc::new(key))).1,
                        not_after,
                    }
                }
            });
        }
        self.put(&before, Ring { held, next });
    }

    /// Resolves when other secrets are in force than when the receiver was made or last looked.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes(self.ring.subscribe())
    }

    /// Which secret a dialer proves with now.
    #[must_use]
    pub fn own_id(&self) -> SecretId {
        self.ring().own().id
    }

    /// Whether what was proved with this secret may go on at wall-clock time `now`.
    #[must_use]
    pub fn is_valid(&self, id: SecretId, now: SystemTime) -> bool {
        let ring = self.ring();
        let mut same = ring.held.iter().filter(|held| held.id == id);
        same.any(|held| held.is_valid(now))
    }

    /// When the next secret that is valid at `now` ends, if one does.
    #[must_use]
    pub fn next_end(&self, now: SystemTime) -> Option<SystemTime> {
        let ring = self.ring();
        let ends = ring.held.iter().filter_map(|held| held.not_after);
        ends.filter(|end| *end >= now).min()
    }

    /// The key of `secret`: the only one a dialer proves with, so that a failed handshake can never
    /// push it back to an older secret (protocol 2).
    pub async fn own(&self) -> ValidKey {
        let own = self.ring().own().clone();
        ValidKey {
            id: own.id,
            key: wait(&own.key).await,
        }
    }

    /// Every key a listener takes at wall-clock time `now`, that of `secret` first.
    pub async fn accepted(&self, now: SystemTime) -> Vec<ValidKey> {
        let ring = self.ring();
        let mut keys = Vec::with_capacity(ring.held.len());
        for held in ring.held.iter().filter(|held| held.is_valid(now)) {
            keys.push(ValidKey {
                id: held.id,
                key: wait(&held.key).await,
            });
        }
        keys
    }
}

impl Ring {
    /// The ring of another configuration.
    fn changed(
        &self,
        mesh: &MeshName,
        secret: Secret<String>,
        accept: Vec<AcceptSecret>,
        tasks: &Tasks,
    ) -> Self {
        let own = AcceptSecret {
            secret,
            not_after: None,
        };
        let (mut held, mut next): (Vec<Held>, u64) = (Vec::new(), self.next);
        for AcceptSecret { secret, not_after } in std::iter::once(own).chain(accept) {
            let mut known = self.held.iter().chain(&held);
            let known = known.find(|held| held.secret.as_ref() == Some(&secret));
            let (id, key) = match known {
                Some(known) => (known.id, known.key.clone()),
                None => {
                    next += 1;
                    (
                        SecretId(next - 1),
                        begin(secret.clone(), mesh.clone(), tasks),
                    )
                }
            };
            held.push(Held {
                id,
                secret: Some(secret),
                key,
                not_after,
            });
        }
        Self { held, next }
    }
}

/// Sees changes of [`MeshKeys`].
#[derive(Debug)]
pub struct Changes(watch::Receiver<Arc<Ring>>);

impl Changes {
    /// Resolves at the next change; never when the keys are gone.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Forgets changes so far.
    pub fn mark_unchanged(&mut self) {
        self.0.mark_unchanged();
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
        assert!(keys.ring().own().key.borrow().is_none());
        let accepted = keys.accepted(SystemTime::now()).await;
        assert_eq!(accepted.len(), 2);
        assert_eq!(accepted[0].key.bytes(), keys.own().await.key.bytes());
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
        let ids = |keys: &[ValidKey]| keys.iter().map(|key| key.id.0).collect::<Vec<_>>();
        assert_eq!(ids(&keys.accepted(now).await), [0, 2, 3]);
        let valid = |id| keys.is_valid(SecretId(id), now);
        assert_eq!([0, 1, 2, 3, 4].map(valid), [true, false, true, true, false]);
        assert_eq!(keys.next_end(now), Some(now + Duration::from_secs(1)));
    }

    /// A secret that stays is not stretched anew and stays the same secret, wherever it stands.
    #[tokio::test]
    async fn a_change_keeps_what_stays() {
        let tasks = Tasks::new();
        let mesh: MeshName = "demo".parse().unwrap();
        let secret = |text: &str| Secret::new(text.to_owned());
        let older = |text: &str, not_after| AcceptSecret {
            secret: secret(text),
            not_after,
        };
        let (one, two) = ("an-older-secret-of-ours", "correct-horse-battery-staple");
        let keys = MeshKeys::start(&mesh, secret(one), Vec::new(), &tasks);
        let mut changes = keys.changes();
        let first = keys.own().await;
        assert!(!keys.replace(&mesh, secret(one), Vec::new(), &tasks));

        assert!(keys.replace(&mesh, secret(one), vec![older(two, None)], &tasks));
        changes.changed().await;
        let now = SystemTime::now();
        let accepted = keys.accepted(now).await;
        assert!(Arc::ptr_eq(&accepted[0].key, &first.key));
        assert_ne!(accepted[1].id, first.id);

        assert!(keys.replace(&mesh, secret(two), vec![older(one, None)], &tasks));
        let own = keys.own().await;
        assert_eq!(own.id, accepted[1].id);
        assert!(Arc::ptr_eq(&own.key, &accepted[1].key));
        assert!(keys.is_valid(first.id, now));

        assert!(keys.replace(&mesh, secret(two), vec![older(one, Some(now))], &tasks));
        assert!(!keys.is_valid(first.id, now + Duration::from_secs(1)));
        assert!(keys.replace(&mesh, secret(two), Vec::new(), &tasks));
        assert!(!keys.is_valid(first.id, now));
        // Back again, it is another secret: nothing that ended comes back to life.
        assert!(keys.replace(&mesh, secret(one), Vec::new(), &tasks));
        assert_ne!(keys.own().await.id, first.id);
    }
}
