//! What lives outside of the store for as long as leases and labels keep it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use model::Labels;

/// The keeper of one kind of such things, streams for instance. It keeps them in memory or wherever it likes; the collector
/// asks for them at each run and says which can go.
pub trait Collectible: Send + Sync + fmt::Debug {
    /// The kind as labels name it: `containerd.io/gc.ref.<kind>`, `containerd.io/gc.bref.*` on the thing itself.
    fn kind(&self) -> &'static str;

    /// All that exist now.
    fn members(&self) -> Vec<Member>;

    /// Ends what nothing keeps, by namespace and id. Must not call the metadata.
    fn remove(&self, garbage: &[(String, String)]);
}

/// One thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its namespace.
    pub namespace: String,
    /// Its id, unique among its kind in the namespace.
    pub id: String,
    /// The lease that it was made in. With one it goes when the lease is gone, unless a label keeps it. Without one it is a
    /// root, unless it has back references (`containerd.io/gc.bref.*`): then these alone keep it.
    pub lease: Option<String>,
    /// Its labels.
    pub labels: Labels,
}

/// The keepers that were registered.
#[derive(Debug, Default)]
pub(crate) struct Outside(Mutex<Vec<Arc<dyn Collectible>>>);

impl Outside {
    pub(crate) fn register(&self, keeper: Arc<dyn Collectible>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(keeper);
    }

    fn keepers(&self) -> Vec<Arc<dyn Collectible>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All things with their kinds. Asked for before the records are read, so that a lease which is older than its member
    /// is seen.
    pub(super) fn members(&self) -> Vec<(&'static str, Member)> {
        let kinds = self.keepers().into_iter();
        kinds.flat_map(|keeper| keeper.members().into_iter().map(move |member| (keeper.kind(), member))).collect()
    }

    /// Ends things by kind, namespace and id.
    pub(super) fn remove(&self, garbage: &[(&'static str, String, String)]) {
        for keeper in self.keepers() {
            let mine: Vec<_> = garbage
                .iter()
                .filter(|(kind, ..)| *kind == keeper.kind())
                .map(|(_, namespace, id)| (namespace.clone(), id.clone()))
                .collect();
            if !mine.is_empty() {
                keeper.remove(&mine);
            }
        }
    }
}
