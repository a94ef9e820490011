//! What of a guest its host can't read, since the processor encrypts it. Pure.
//!
//! A confidential guest has an object of its technology (`sev-guest`, `tdx-guest`, ..) that its machine refers to
//! (`confidential-guest-support`, before QEMU 6.0 `memory-encryption`). All of these encrypt the guest's memory. All
//! but AMD's first one encrypt its registers as well while it doesn't run: QEMU never sees them, and goes on showing
//! those that it gave the vCPUs at their reset (`kvm_arch_get_registers` in QEMU's target/i386/kvm/kvm.c reads none
//! of a guest whose state is protected).

use serde::{Deserialize, Serialize};

use super::display_text;

/// Objects that make a guest confidential (QEMU 10.1).
const OBJECTS: [&str; 6] =
    ["sev-guest", "sev-snp-guest", "tdx-guest", "pef-guest", "s390-pv-guest", "rme-guest"];
/// SEV's policy has this bit where the registers are encrypted as well, which makes it SEV-ES ("SEV API", 3).
const SEV_POLICY_ES: u64 = 1 << 2;

/// What is encrypted of a guest; where something is, by what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encryption {
    /// Nothing that is known.
    #[default]
    None,
    /// Its memory.
    Memory(String),
    /// Its memory and its registers.
    All(String),
}

impl Encryption {
    /// That of a guest whose machine refers to an object of this type. `policy` is that of an object that has one.
    pub fn of_object(kind: &str, policy: Option<u64>) -> Self {
        match (kind, policy) {
            ("sev-guest", Some(policy)) if policy & SEV_POLICY_ES == 0 => {
                Self::Memory("sev-guest".to_owned())
            }
            ("sev-guest", Some(_)) => Self::All("sev-guest, SEV-ES".to_owned()),
            // Without a policy that can be read, the worst is assumed; so it is of a type that is not known.
            (kind, _) => Self::All(display_text(kind)),
        }
    }

    /// That of the objects on a command line, whether its machine refers to them or not.
    pub(super) fn of_command_line(kind: &str, policy: Option<&str>) -> Self {
        if !OBJECTS.contains(&kind) {
            return Self::None;
        }
        // QEMU's own default is 1.
        Self::of_object(kind, policy.map_or(Some(1), number))
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (&self, &other) {
            (Self::All(_), _) | (Self::Memory(_), Self::None | Self::Memory(_)) => self,
            (Self::None, _) | (Self::Memory(_), Self::All(_)) => other,
        }
    }

    /// Why its memory is nothing to read.
    ///
    /// # Errors
    /// For people, if it is encrypted.
    pub fn memory(&self) -> Result<(), String> {
        match self {
            Self::None => Ok(()),
            Self::Memory(by) | Self::All(by) => Err(format!("its memory is encrypted ({by})")),
        }
    }

    /// Why its registers are nothing to read.
    ///
    /// # Errors
    /// For people, if they are encrypted.
    pub fn registers(&self) -> Result<(), String> {
        match self {
            Self::None | Self::Memory(_) => Ok(()),
            Self::All(by) => Err(format!(
                "its registers are encrypted ({by}), and QEMU shows those of a vCPU's reset"
            )),
        }
    }
}

/// A number as QEMU reads one: decimal, or with `0x` or `0` before it.
fn number(text: &str) -> Option<u64> {
    match (text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")), text.strip_prefix('0')) {
        (Some(digits), _) => u64::from_str_radix(digits, 16).ok(),
        (None, Some(digits)) if !digits.is_empty() => u64::from_str_radix(digits, 8).ok(),
        (None, _) => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::Encryption;

    #[test]
    fn registers_are_hidden_by_all_but_the_first_technology() {
        for (kind, policy) in [
            ("sev-guest", Some("0x5")),
            ("sev-guest", Some("7")),
            ("sev-guest", Some("04")),
            ("sev-guest", Some("all of it")),
            ("sev-snp-guest", Some("0x30000")),
            ("tdx-guest", None),
            ("pef-guest", None),
            ("s390-pv-guest", None),
            ("rme-guest", None),
        ] {
            let encryption = Encryption::of_command_line(kind, policy);
            assert!(encryption.registers().is_err(), "{kind} {policy:?}");
            assert!(encryption.memory().is_err(), "{kind} {policy:?}");
        }
        for policy in [None, Some("0x1"), Some("3"), Some("0")] {
            let encryption = Encryption::of_command_line("sev-guest", policy);
            assert!(encryption.registers().is_ok() && encryption.memory().is_err(), "{policy:?}");
        }
        assert_eq!(Encryption::of_command_line("memory-backend-ram", None), Encryption::None);
    }

    #[test]
    fn of_an_object_that_qemu_names_the_worst_is_assumed() {
        assert!(Encryption::of_object("sev-guest", None).registers().is_err());
        assert!(Encryption::of_object("of-2031-guest", Some(0)).registers().is_err());
        assert!(Encryption::of_object("sev-guest", Some(1)).registers().is_ok());
    }

    #[test]
    fn of_two_the_stronger_one_counts() {
        let (all, memory) = (Encryption::All("a".to_owned()), Encryption::Memory("m".to_owned()));
        assert_eq!(memory.clone().and(all.clone()), all);
        assert_eq!(all.clone().and(memory.clone()), all);
        assert_eq!(Encryption::None.and(memory.clone()), memory);
        assert_eq!(memory.clone().and(Encryption::None), memory);
    }
}
