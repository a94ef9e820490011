//! Readability of a guest's registers and memory, which is asked once of each QEMU.
//!
//! Those of a confidential guest can't be read: QEMU shows the registers of a reset for ever, which look like those of a
//! guest whose every vCPU has stopped, and its memory is noise. Nor are the registers of each architecture understood.
//! Where that is so, it is said once, and nothing more is asked.
//!
//! What the command line says is known from the beginning, and where it says that the guest is confidential, nothing is
//! asked at all. Otherwise QEMU has the word, as a command line can be overwritten, and a `-readconfig` hides what is
//! in its file: its machine's `confidential-guest-support` (since QEMU 6.0; before, `memory-encryption`, since 2.12),
//! and `query-target`. Then its registers are read for once, to see whether they are understood. While QEMU doesn't
//! answer, nothing is known, and the registers are not asked for. These questions read, and change nothing; a machine's
//! architecture and its encryption stay what they are for as long as its QEMU runs.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tracing::info;

use flatline_qemu::{
    discover::{Architecture, Encryption, Vm},
    qmp::{QmpError, QmpHandle, parse_arm_registers, parse_registers},
};
use flatline_samples::{MAX_TEXT_CHARS, printable};

/// What a machine calls that which makes its guest confidential: a link to it, or its id.
const REFERENCES: [&str; 2] = ["confidential-guest-support", "memory-encryption"];
/// Where QEMU keeps what has an id.
const OBJECTS: &str = "/objects/";
/// A path of QEMU's that is longer is none.
const MOST_PATH_BYTES: usize = 256;

/// What is known of one VM, shared by all that look at it.
#[derive(Clone, Debug)]
pub(crate) struct Insight(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: String,
    architecture: Architecture,
    told: Encryption,
    learned: OnceCell<Learned>,
}

/// What QEMU told.
#[derive(Debug)]
struct Learned {
    encryption: Encryption,
    registers: Result<Readable, String>,
}

/// Registers that can be read, by the parser that reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readable {
    /// [`parse_registers`].
    X86,
    /// [`parse_arm_registers`].
    Arm {
        /// Whether the machine has what hypervisors need: then registers may be those of a guest's own guest.
        may_nest: bool,
    },
}

/// Why registers can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    /// They never can, of this QEMU.
    #[error("{0}")]
    Ever(String),
    /// QEMU didn't say whether they can.
    #[error(transparent)]
    Now(#[from] QmpError),
}

impl Insight {
    /// What the command line of a VM says.
    pub(crate) fn begin(vm: &Vm) -> Self {
        let shared = Shared {
            name: vm.name.clone(),
            architecture: vm.architecture.clone(),
            told: vm.encryption.clone(),
            learned: OnceCell::new(),
        };
        Self(Arc::new(shared))
    }

    /// How the VM's registers are read.
    ///
    /// # Errors
    /// Why they are not asked for.
    pub(crate) async fn registers(&self, qmp: &QmpHandle) -> Result<Readable, Unreadable> {
        if let Some(why) = self.never() {
            return Err(Unreadable::Ever(why));
        }
        let learned = self.0.learned.get_or_try_init(|| self.learn(qmp)).await?;
        learned.registers.clone().map_err(Unreadable::Ever)
    }

    /// Why the registers can't be read, where that is certain, whether QEMU answers now or not.
    pub(crate) fn never(&self) -> Option<String> {
        match self.0.learned.get() {
            Some(learned) => learned.registers.clone().err(),
            None => self.0.told.registers().err(),
        }
    }

    /// What is encrypted of the guest, as far as that is known or QEMU tells.
    pub(crate) async fn encryption(&self, qmp: &QmpHandle) -> Encryption {
        let told = self.0.told.clone();
        match (self.0.learned.get(), &told) {
            (Some(learned), _) => learned.encryption.clone(),
            (None, Encryption::All(_)) => told,
            (None, _) => told.and(encryption(qmp).await.unwrap_or_default()),
        }
    }

    /// What can't be read, and why; `None` where nothing is known to be so.
    pub(crate) fn lacks(&self) -> Option<String> {
        self.lacks_registers().or_else(|| {
            let learned = self.0.learned.get().map(|learned| &learned.encryption);
            learned.unwrap_or(&self.0.told).memory().err()
        })
    }

    /// Why the registers are not asked for; `None` where they are, as far as is known.
    pub(crate) fn lacks_registers(&self) -> Option<String> {
        match (self.0.learned.get(), &self.0.architecture) {
            // By the name of its executable, until QEMU is asked.
            (None, Architecture::Other(name)) => Some(not_understood(name)),
            _ => self.never(),
        }
    }

    async fn learn(&self, qmp: &QmpHandle) -> Result<Learned, QmpError> {
        let encryption = self.0.told.clone().and(encryption(qmp).await?);
        let registers = match encryption.registers() {
            Err(why) => Err(why),
            Ok(()) => self.understood(qmp).await?,
        };
        let learned = Learned { encryption, registers };
        let why = learned.registers.as_ref().err().cloned();
        let why = why.or_else(|| learned.encryption.memory().err());
        if let Some(why) = why.filter(|why| self.lacks().as_ref() != Some(why)) {
            info!(vm = self.0.name, "not asked for: {why}");
        }
        Ok(learned)
    }

    /// Reads the registers for once.
    async fn understood(&self, qmp: &QmpHandle) -> Result<Result<Readable, String>, QmpError> {
        let architecture = match qmp.reply("query-target", None).await {
            Ok(reply) => reply.get("arch").and_then(Value::as_str).map(Architecture::of_target),
            Err(QmpError::Command { .. }) => None,
            Err(error) => return Err(error),
        };
        let readable = match architecture.as_ref().unwrap_or(&self.0.architecture) {
            Architecture::X86 => Readable::X86,
            Architecture::Arm => Readable::Arm { may_nest: has_virtualization(qmp).await? },
            Architecture::Other(name) => {
                return Ok(Err(not_understood(name)));
            }
        };
        let text = qmp.human("info registers -a").await?;
        let parsed = match readable {
            Readable::X86 => parse_registers(&text).map(drop),
            Readable::Arm { .. } => parse_arm_registers(&text).map(drop),
        };
        Ok(match parsed {
            Ok(()) => Ok(readable),
            Err(error) => Err(format!("its registers are not understood: {error}")),
        })
    }
}

/// Whether an Arm machine has the level of hypervisors (`-machine virt,virtualization=on`); a machine without that property
/// may have it.
async fn has_virtualization(qmp: &QmpHandle) -> Result<bool, QmpError> {
    match property(qmp, "/machine", "virtualization").await {
        Ok(has) => Ok(has.as_bool().unwrap_or(true)),
        Err(QmpError::Command { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

fn not_understood(architecture: &str) -> String {
    format!("the registers of a {architecture} guest are not understood")
}

/// What QEMU says that is encrypted of its guest. Where it doesn't say, all may be.
async fn encryption(qmp: &QmpHandle) -> Result<Encryption, QmpError> {
    for reference in REFERENCES {
        match property(qmp, "/machine", reference).await {
            Ok(Value::Null) => return Ok(Encryption::None),
            Ok(Value::String(referred)) if referred.is_empty() => return Ok(Encryption::None),
            Ok(Value::String(referred)) if referred.len() <= MOST_PATH_BYTES => {
                return of_object(qmp, &referred).await;
            }
            Ok(_) => return Err(QmpError::Malformed { command: "qom-get".to_owned() }),
            // As of a property that an older QEMU doesn't have.
            Err(QmpError::Command { desc, .. }) if desc.contains("not found") => {}
            Err(QmpError::Command { desc, .. }) => {
                return Ok(Encryption::All(format!("perhaps: QEMU says \"{desc}\"")));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Encryption::None)
}

async fn of_object(qmp: &QmpHandle, referred: &str) -> Result<Encryption, QmpError> {
    let path = match referred.strip_prefix('/') {
        Some(_) => referred.to_owned(),
        None => format!("{OBJECTS}{referred}"),
    };
    let known = |property: Result<Value, QmpError>| match property {
        Ok(value) => Ok(Some(value)),
        Err(QmpError::Command { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    let kind = known(property(qmp, &path, "type").await)?;
    let Some(kind) = kind.as_ref().and_then(Value::as_str) else {
        return Ok(Encryption::All("QEMU does not say by what".to_owned()));
    };
    let policy = known(property(qmp, &path, "policy").await)?;
    let policy = policy.as_ref().and_then(Value::as_u64);
    Ok(Encryption::of_object(&printable(kind, MAX_TEXT_CHARS), policy))
}

async fn property(qmp: &QmpHandle, path: &str, name: &str) -> Result<Value, QmpError> {
    qmp.reply("qom-get", Some(json!({ "path": path, "property": name }))).await
}

#[cfg(test)]
mod tests;
