//! Restarts and starts by the means of a VM's owner.
//!
//! | owner | a crashed guest | a QEMU that is gone |
//! |---|---|---|
//! | none that is known | QMP | the configured command |
//! | systemd unit | QMP; `systemctl restart` where there is no QMP | `systemctl start` |
//! | libvirt | `virsh reset`, `virsh resume` | `virsh start` |
//! | Proxmox VE | `qm reset`, `qm resume` | `qm start` |
//! | Ganeti, Incus, KubeVirt, Kata | the configured command, or a refusal that names one | the same |
//!
//! A plan ([`restart_plan`], [`start_plan`]) is complete before anything is touched, and pure. What it does not know
//! is asked by checks that stand in it: that a unit's main process, or a domain's vCPUs, are those of the very QEMU
//! that was convicted. They come first of all, and one that fails ends the plan before anything is touched, written
//! down or counted. A program that runs as root is run by a VM's name only where something [vouches](vouch) for that.
//! A guest that its owner has locked is left alone by every means, and its HA is not worked against ([`proxmox`]).

mod carry_out;
mod checks;
mod choice;
mod context;
mod on_crash;
mod plan;
mod programs;
mod proxmox;
mod replace;
mod steps;
#[cfg(test)]
mod tests;
mod vouch;

pub(crate) use carry_out::{restart, start};
pub(crate) use choice::{chosen, libvirt_uri};
pub(crate) use context::RestartContext;
pub(super) use plan::{ActuatorPlan, ActuatorStep, Check, MonitorSays, Situation, restart_plan};
pub(super) use replace::{is_power_cycle, start_plan};
pub(crate) use vouch::command_refusal;
