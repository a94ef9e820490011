//! KVM's own figures of each vCPU, as QEMU passes them on: `query-stats`, of QEMU 7.1 and newer, on Linux 5.14 and newer.
//!
//! KVM counts them whether they are read or not. To read them, QEMU interrupts each vCPU, as it does to show registers: that
//! is an exit by a signal, and where guest code ran, one more exit. Which figures there are depends on the architecture and the
//! kernel: what QEMU doesn't tell is not known, and never zero.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{QmpError, QmpHandle, commands::MAX_VCPUS};
use crate::text::{MAX_TEXT_CHARS, printable};

/// How long an answer is waited for. A healthy QEMU reads a figure of a vCPU in some microseconds.
const LIMIT: Duration = Duration::from_secs(2);

/// All that is asked for, by KVM's names (`kvm_vcpu_stats_desc` in arch/x86/kvm/x86.c and arch/arm64/kvm/guest.c of Linux
/// 6.12): some 600 bytes a vCPU in an answer.
const FIGURES: [&str; 9] = [
    "exits",
    "halt_exits",
    "halt_wakeup",
    "irq_injections",
    "irq_exits",
    "io_exits",
    "mmio_exits",
    "signal_exits",
    "wfi_exit_stat",
];

/// Figures of one vCPU, since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VcpuStats {
    /// QEMU's path of the vCPU, printable and bounded; empty where QEMU tells none.
    path: String,
    figures: BTreeMap<&'static str, u64>,
}

impl VcpuStats {
    /// The figures of all vCPUs in a reply to `query-stats`; `None` where it is no such reply, or of more vCPUs than a machine
    /// has.
    pub fn of_reply(reply: &Value) -> Option<Vec<Self>> {
        let rows = reply.as_array().filter(|rows| rows.len() <= MAX_VCPUS)?;
        rows.iter().map(vcpu).collect()
    }

    /// The figure by KVM's name, one of those that are asked for; `None` where QEMU didn't tell it.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.figures.get(name).copied()
    }

    /// Whether both are of the same vCPU.
    pub fn is_of_same(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

fn vcpu(row: &Value) -> Option<VcpuStats> {
    let path = row.get("qom-path").and_then(Value::as_str).unwrap_or_default();
    let stats = row.get("stats")?.as_array()?;
    let figure = |stat: &Value| {
        let name = stat.get("name")?.as_str()?;
        let known = FIGURES.into_iter().find(|known| *known == name)?;
        // Histograms are lists, and none of those that are asked for.
        Some((known, stat.get("value")?.as_u64()?))
    };
    let figures = stats.iter().filter_map(figure).collect();
    Some(VcpuStats { path: printable(path, MAX_TEXT_CHARS), figures })
}

impl QmpHandle {
    /// What KVM counted of each of the VM's vCPUs (`query-stats`), within 2 s.
    ///
    /// # Errors
    /// As [`QmpHandle::execute`], and [`QmpError::Malformed`]: it is no list of vCPUs, or one of more than 4,096.
    pub async fn query_vcpu_stats(&self) -> Result<Vec<VcpuStats>, QmpError> {
        let command = "query-stats";
        let providers = json!([{ "provider": "kvm", "names": FIGURES }]);
        let arguments = json!({ "target": "vcpu", "providers": providers });
        let reply = self.execute(command, Some(arguments), LIMIT).await?;
        VcpuStats::of_reply(&reply)
            .ok_or_else(|| QmpError::Malformed { command: command.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU 7.2 answered on Linux 6.18, of two vCPUs of which the firmware started one.
    fn reply() -> Value {
        json!([
            {"provider": "kvm", "qom-path": "/machine/unattached/device[2]", "stats": [
                {"name": "irq_injections", "value": 0}, {"name": "irq_exits", "value": 0},
                {"name": "halt_exits", "value": 1}, {"name": "signal_exits", "value": 28},
                {"name": "mmio_exits", "value": 0}, {"name": "io_exits", "value": 0},
                {"name": "exits", "value": 70}, {"name": "halt_wakeup", "value": 37}]},
            {"provider": "kvm", "qom-path": "/machine/unattached/device[0]", "stats": [
                {"name": "irq_injections", "value": 324}, {"name": "irq_exits", "value": 0},
                {"name": "halt_exits", "value": 323}, {"name": "signal_exits", "value": 27},
                {"name": "mmio_exits", "value": 0}, {"name": "io_exits", "value": 0},
                {"name": "exits", "value": 7306}, {"name": "halt_wakeup", "value": 205}]}
        ])
    }

    #[test]
    fn the_reply_of_qemu_7_2_is_understood_and_what_it_does_not_tell_is_not_zero() {
        let told = VcpuStats::of_reply(&reply()).unwrap();
        assert_eq!(told.len(), 2);
        assert_eq!(
            (told[1].get("halt_exits"), told[0].get("irq_injections")),
            (Some(323), Some(0))
        );
        assert_eq!(told[1].get("wfi_exit_stat"), None);
        assert!(told[0].is_of_same(&told[0]) && !told[0].is_of_same(&told[1]));
    }

    #[test]
    fn what_is_no_list_of_vcpus_is_no_answer_and_odd_figures_are_left_out() {
        for odd in [json!({}), json!([7]), json!([{"provider": "kvm"}]), json!([{"stats": {}}])] {
            assert_eq!(VcpuStats::of_reply(&odd), None, "{odd}");
        }
        assert_eq!(VcpuStats::of_reply(&json!([])), Some(vec![]));
        let stats = json!([7, {}, {"name": "exits"}, {"name": "exits", "value": -1},
            {"name": "exits", "value": [1, 2]}, {"name": "halt_wait_hist", "value": 9},
            {"name": "halt_exits", "value": u64::MAX}]);
        let told =
            VcpuStats::of_reply(&json!([{ "stats": stats, "qom-path": "\u{1b}[2J" }])).unwrap();
        let figures = BTreeMap::from([("halt_exits", u64::MAX)]);
        assert_eq!(told[0].figures, figures);
        assert!(!told[0].path.contains('\u{1b}'));
        let vcpu = json!({ "stats": [] });
        assert!(VcpuStats::of_reply(&vec![vcpu.clone(); MAX_VCPUS].into()).is_some());
        assert_eq!(VcpuStats::of_reply(&vec![vcpu; MAX_VCPUS + 1].into()), None);
    }
}
