//! The owner of a QEMU, which started it and may start it again: found out from what is read of the process, never guessed.
//!
//! Two kinds of traces are told apart. The command line is *claimed*: what starts a QEMU writes it, and a QEMU
//! that a guest took over can overwrite it in its own memory. The control group is *certain* where only root can
//! have put a process there: below the slices of the host's own service manager, but not below `user.slice`, whose
//! groups belong to users. A product is named on either, but what is done in its name to something else than this
//! very process (a domain or a unit that is started by its name) needs a certain trace: [`Ownership::is_certain`].
//!
//! A name is kept only if it consists of what its product allows ([`names`]), none begins with `-`, and none ever
//! passes through a shell. A product whose trace bears a name that can't be used is [`Owner::Unclear`]: then no owner
//! is told anything, since the product is there all the same.
//!
//! Everything here is pure but for [`read`].

mod cgroup;
mod claims;
mod names;
mod peers;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use peers::{Peer, peers};

use super::common::Common;

/// How far up parents are looked at. A shim or launcher is the first or second.
const ANCESTORS: usize = 6;

/// The name of a product, which is one of ours.
type Product = &'static str;

/// What started a QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// None that is known: a person, or a script.
    Bare,
    /// A service of the host's systemd.
    SystemdUnit {
        /// Its name, such as `qemu@web.service`.
        unit: String,
    },
    /// libvirt's QEMU driver.
    Libvirt {
        /// The domain's name, for people and for comparing.
        domain: String,
        /// The domain's UUID, by which libvirt is asked for it.
        uuid: String,
        /// Whether the domain belongs to the host (`qemu:///system`) or to the user (`qemu:///session`).
        scope: LibvirtScope,
    },
    /// Proxmox VE.
    Proxmox {
        /// The VM's number.
        vmid: u32,
    },
    /// Ganeti.
    Ganeti {
        /// The instance's name.
        instance: String,
    },
    /// Incus, or LXD from which it came.
    Incus {
        /// `incus` or `lxd`.
        #[serde(deserialize_with = "super::remembered::incus_product")]
        product: Product,
        /// The project that the instance is in.
        project: String,
        /// The instance's name.
        instance: String,
    },
    /// KubeVirt: libvirt within a pod.
    KubeVirt {
        /// The namespace of the virtual machine instance.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Kata Containers: a pod that is a VM.
    Kata {
        /// The sandbox' id.
        sandbox: String,
    },
    /// A product that is known, with a name that can't be used. It is not remembered.
    #[serde(skip)]
    Unclear {
        /// The product.
        product: Product,
        /// What is wrong.
        why: String,
    },
}

/// To which of libvirt's daemons a domain belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LibvirtScope {
    /// The host's: `qemu:///system`.
    System,
    /// The user's that the QEMU runs as: `qemu:///session`.
    Session,
}

impl Owner {
    /// One word for it, as it stands in JSON and in messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::SystemdUnit { .. } => "systemd",
            Self::Libvirt { .. } => "libvirt",
            Self::Proxmox { .. } => "proxmox",
            Self::Ganeti { .. } => "ganeti",
            Self::Incus { product, .. } => product,
            Self::KubeVirt { .. } => "kubevirt",
            Self::Kata { .. } => "kata",
            Self::Unclear { .. } => "unclear",
        }
    }

    /// What the owner calls it; `None` where it has no name for it.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Bare => None,
            Self::SystemdUnit { unit } => Some(unit.clone()),
            Self::Libvirt { domain, .. } => Some(domain.clone()),
            Self::Proxmox { vmid } => Some(vmid.to_string()),
            Self::Ganeti { instance } => Some(instance.clone()),
            Self::Incus { project, instance, .. } => Some(format!("{project}/{instance}")),
            Self::KubeVirt { namespace, name } => Some(format!("{namespace}/{name}")),
            Self::Kata { sandbox } => Some(sandbox.clone()),
            Self::Unclear { product, why } => Some(format!("{product}: {why}")),
        }
    }
}

/// An owner, and how it was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Which.
    pub owner: Owner,
    /// Whether a trace that no QEMU and no user can have left says so.
    pub is_certain: bool,
    /// What it was told by, a sentence each, fit for display.
    pub evidence: Vec<String>,
    /// How it is told that OpenStack's nova has it made; `None`: it isn't.
    #[serde(default)]
    pub openstack: Option<String>,
}

impl Ownership {
    /// None that is known, and no evidence.
    pub fn bare() -> Self {
        Self { owner: Owner::Bare, is_certain: false, evidence: Vec::new(), openstack: None }
    }
}

/// What is read of a process to find out its owner.
#[derive(Debug, Clone, Default)]
pub(super) struct Traces {
    /// `/proc/PID/cgroup`.
    pub(super) cgroups: String,
    /// The command line's options that owners are told by.
    pub(super) told: Told,
    /// Parents, the nearest first, as far as they can be read: pid and executable.
    pub(super) ancestors: Vec<(u32, PathBuf)>,
}

/// Of the command line, what owners are told by. Later options count, as in QEMU.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// `-name`, as it stands there.
    pub(super) name: Option<String>,
    /// The UUID, well formed.
    pub(super) uuid: Option<String>,
    /// `-id`, which only Proxmox' own QEMU knows.
    pub(super) id: Option<String>,
    /// `-pidfile`.
    pub(super) pidfile: Option<String>,
    /// `-readconfig`.
    pub(super) readconfig: Option<String>,
    /// `manufacturer` of `-smbios type=1`.
    pub(super) manufacturer: Option<String>,
    /// `product` of the same.
    pub(super) product: Option<String>,
    /// The path of libvirt's `-object secret,id=masterKey0`.
    pub(super) master_key: Option<String>,
    /// There is a `-chardev socket,id=charmonitor`, as only libvirt calls it.
    pub(super) has_charmonitor: bool,
}

/// The owner of a process in these control groups, where its parent is `parent` and its command line says `told`. What can't be
/// read of its parents is left out: then less is certain.
pub(super) fn read(cgroups: String, parent: u32, told: Told, common: &mut Common) -> Ownership {
    let mut ancestors = Vec::new();
    let mut next = parent;
    while next != 0 && ancestors.len() < ANCESTORS {
        let (executable, parent) = common.parent(next);
        ancestors.push((next, executable));
        next = parent;
    }
    classify(&Traces { cgroups, told, ancestors })
}

/// The owner that left these traces. The first product that fits counts: libvirt in a pod is KubeVirt, and a unit is only asked
/// for where no product has the QEMU.
pub(super) fn classify(traces: &Traces) -> Ownership {
    let groups = cgroup::Groups::parse(&traces.cgroups);
    let products = [
        claims::kata,
        claims::kubevirt,
        claims::libvirt,
        claims::proxmox,
        claims::ganeti,
        claims::incus,
        claims::systemd,
    ];
    let mut ownership = products
        .into_iter()
        .find_map(|claim| claim(traces, &groups))
        .unwrap_or_else(Ownership::bare);
    ownership.openstack = peers::openstack(&traces.told);
    if ownership.owner == Owner::Bare {
        ownership.evidence.extend(claims::circumstances(traces, &groups));
    }
    ownership
}
