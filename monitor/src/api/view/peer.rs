//! View of what else restarts a VM.

use flatline_qemu::discover::Peer;
use serde::{Deserialize, Serialize};

/// Another one that restarts, starts or stops a VM by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerView {
    /// `libvirt`, `nova`, `masakari`, `kubevirt`, `kubelet`, `incus`, `lxd`, `pve-ha-lrm`, `ganeti-watcher` or `systemd`.
    pub peer: String,
    /// What it does, and when.
    pub acts: String,
    /// What flatline does about that.
    pub flatline: String,
    /// What it is told by. Whether it is set up for this VM is not asked.
    pub known_by: String,
}

impl From<Peer> for PeerView {
    fn from(peer: Peer) -> Self {
        let Peer { name, acts, flatline, known_by } = peer;
        let (peer, acts, flatline) = (name.to_owned(), acts.to_owned(), flatline.to_owned());
        Self { peer, acts, flatline, known_by }
    }
}
