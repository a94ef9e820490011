//! How far a restarted guest has come: a boot loader reads the disk and a network boot sends packets, but a
//! prompt without an operating system behind it is no recovery.
//!
//! An operating system runs user code, or kernel code in the upper half of the paged address space: Linux, the
//! BSDs and Windows all keep their kernels there. Firmware and boot loaders run without paging (BIOS), or at the
//! identity-mapped addresses below (UEFI). One call a round.

use std::sync::Arc;

use super::{Asked, Note, ProbeContext, Witness};
use flatline_detector::verdict::{Answer, Questions};
use flatline_qemu::qmp::operating_system;

/// The row in the table.
pub(crate) const WITNESS: Witness = Witness {
    name: "boot stage",
    looks_for: "an operating system's code, after a restart",
    asked_in: |questions| matches!(questions, Questions::IsItUp | Questions::Recovering),
    ask: |scene, note| -> Asked { Box::pin(ask(scene, note)) },
};

async fn ask(scene: Arc<ProbeContext>, note: Note) -> (Answer, Note) {
    let qmp = match &scene.qmp {
        Ok(qmp) => qmp,
        Err(why) => return (Answer::NotAsked(why.clone()), note),
    };
    let text = match scene.insight.registers(qmp).await {
        Err(why) => Err(why.to_string()),
        Ok(_) => qmp.human("info registers -a").await.map_err(|error| error.to_string()),
    };
    (text.map_or_else(Answer::NotAsked, |text| judge(&text)), note)
}

fn judge(text: &str) -> Answer {
    match operating_system(text) {
        Err(error) => Answer::NotAsked(error.to_string()),
        Ok((true, _)) => Answer::Nothing("an operating system's code is running".to_owned()),
        Ok((false, at)) => Answer::NotUp(format!("its firmware or boot loader runs, at {at:#x}")),
    }
}
