//! Restarts and starts by the means of whoever owns a VM.
//!
//! | owner | a crashed guest | a QEMU that is gone |
//! |---|---|---|
//! | nobody that is known | QMP | the configured command |
//! | systemd unit | QMP; `systemctl restart` where there is no QMP | `systemctl start` |
//! | libvirt | `virsh reset`, `virsh resume` | `virsh start` |
//! | Proxmox VE | `qm reset`, `qm resume` | `qm start` |
//! | Ganeti, Incus, KubeVirt, Kata | the configured command, or a refusal that names one | the same |
//!
//! A plan ([`restart_plan`], [`start_plan`]) is complete before anything is touched, and pure. What it does not know
//! is asked by checks that stand in it: that a unit's main process, or a domain's vCPUs, are those of the very QEMU
//! that was convicted. They come first of all, and
//! one that fails ends the plan before anything is touched, written down or counted.

mod carry_out;
mod checks;
mod context;
mod plan;
mod programs;
mod steps;
#[cfg(test)]
mod tests;

pub(crate) use carry_out::{restart, start};
pub(crate) use context::RestartContext;
pub(crate) use plan::{
    ActuatorPlan, ActuatorStep, Check, MonitorSays, Situation, chosen, is_power_cycle, libvirt_uri,
    restart_plan, start_plan,
};
