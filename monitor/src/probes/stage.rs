//! How far a restarted guest has come: a boot loader reads the disk and a network boot sends packets, but a
//! prompt without an operating system behind it is no recovery.
//!
//! An operating system runs user code, or kernel code in the upper half of the paged address space: Linux, the
//! BSDs and Windows all keep their kernels there. Firmware and boot loaders run without paging (BIOS), or at the
//! identity-mapped addresses below (UEFI). One call a round.

use super::{ProbeContext, Witness};
use flatline_detector::verdict::{Answer, Questions};
use flatline_qemu::qmp::operating_system;

/// The row in the table.
pub(super) const WITNESS: Witness = Witness {
    name: "boot stage",
    looks_for: "an operating system's code, after a restart",
    asked_in: |questions| matches!(questions, Questions::IsItUp | Questions::Recovering),
    only_excuses: false,
    ask: |context, _| Box::pin(ask(context)),
};

async fn ask(context: &ProbeContext) -> Result<Answer, String> {
    let qmp = context.qmp()?;
    context.insight.registers(qmp).await.map_err(|why| why.to_string())?;
    let text = qmp.human("info registers -a").await.map_err(|error| error.to_string())?;
    Ok(match operating_system(&text).map_err(|error| error.to_string())? {
        (true, _) => Answer::Nothing("an operating system's code is running".to_owned()),
        (false, at) => Answer::NotUp(format!("its firmware or boot loader runs, at {at:#x}")),
    })
}
