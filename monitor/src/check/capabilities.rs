//! The capabilities of this process: all together, as far as the daemon can't do without, and each with what is lost.
//!
//! What is lost was measured, by running the whole job without each (`docs/packages.md`).

use super::facts::{self, Capability};
use super::{Item, Verdict, item, read};

/// How to get one.
const REMEDY: &str = "run as root, or let the service have it: CapabilityBoundingSet= of its unit";

pub(super) fn look() -> Vec<Item> {
    let effective = read("/proc/self/status").and_then(|status| {
        let effective = facts::capability_set(&status, "CapEff:");
        effective.ok_or_else(|| "/proc/self/status has no CapEff".to_owned())
    });
    let initial = read("/proc/self/uid_map").ok().map(|map| facts::is_initial_uid_map(&map));
    let mut items = vec![together(&effective, initial)];
    items.extend(facts::CAPABILITIES.iter().map(|capability| single(capability, &effective)));
    items
}

fn together(effective: &Result<u64, String>, initial: Option<bool>) -> Item {
    let required = facts::CAPABILITIES.iter().filter(|capability| capability.required);
    let needed_for =
        required.map(|capability| format!("{}: {}", capability.name, capability.purpose));
    let needed_for = needed_for.collect::<Vec<_>>().join("; ");
    let (verdict, detail) = match effective {
        Ok(effective) => {
            let missing = facts::missing_capabilities(*effective);
            if !missing.is_empty() {
                let names = missing.join(", ");
                (Verdict::Gap, format!("missing {names}; run as root or grant them to the service"))
            } else if initial == Some(false) {
                let detail = "held in a user namespace only, where the kernel doesn't honour them \
                              for BPF; run in the host's own";
                (Verdict::Gap, detail.to_owned())
            } else {
                (Verdict::Ok, "all held".to_owned())
            }
        }
        Err(error) => (Verdict::Unknown, error.clone()),
    };
    item("capabilities", true, verdict, detail, &needed_for).or_none(REMEDY)
}

fn single(capability: &Capability, effective: &Result<u64, String>) -> Item {
    let Capability { name, required, purpose, without, .. } = capability;
    let (verdict, detail) = match effective {
        Ok(effective) if facts::is_granted(capability, *effective) => {
            (Verdict::Ok, "held".to_owned())
        }
        Ok(_) => (Verdict::Gap, format!("not held; {REMEDY}")),
        Err(error) => (Verdict::Unknown, error.clone()),
    };
    item(*name, *required, verdict, detail, purpose).or_else(without, REMEDY)
}
