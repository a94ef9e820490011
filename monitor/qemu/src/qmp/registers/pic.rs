//! The legacy interrupt controller, as `info pic` prints it: hw/intc/i8259_common.c of QEMU 2.9 to 10.0, also where KVM
//! has the controller.

use super::{RegistersError, value};

/// The controller that the processor hears; the second one speaks through its line 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pic {
    /// Lines that want to interrupt and aren't masked, a bit each.
    pub pending: u8,
}

/// Reads `info pic`.
///
/// # Errors
/// [`RegistersError::PicField`] with the first field that is missing: also on a machine without that controller.
pub fn parse_pic(text: &str) -> Result<Pic, RegistersError> {
    let field = "pic0";
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix("pic0:"))
        .ok_or(RegistersError::PicField { field })?;
    let register = |field: &'static str| {
        value(line, field)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or(RegistersError::PicField { field })
    };
    Ok(Pic { pending: register("irr")? & !register("imr")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU 7.2.22, `cli; jmp .`, TCG and KVM alike; the I/O APIC's lines before it are cut to two.
    const CLI_JMP: &str = "ioapic0: ver=0x20 id=0x00 sel=0x00\r\n  IRR      (none)\r\n\
        pic1: irr=00 imr=8e isr=00 hprio=0 irq_base=70 rr_sel=0 elcr=0c fnm=0\r\n\
        pic0: irr=11 imr=b8 isr=00 hprio=0 irq_base=08 rr_sel=0 elcr=00 fnm=0\r\n";

    #[test]
    fn what_is_masked_is_not_pending() {
        assert_eq!(parse_pic(CLI_JMP), Ok(Pic { pending: 0x01 }));
        let masked = CLI_JMP.replace("imr=b8", "imr=ff");
        assert_eq!(parse_pic(&masked), Ok(Pic { pending: 0 }));
    }

    #[test]
    fn a_text_without_the_controller_or_a_field_of_it_is_an_error() {
        let error = |field| Err(RegistersError::PicField { field });
        assert_eq!(parse_pic("ioapic0: ver=0x20\r\n"), error("pic0"));
        assert_eq!(parse_pic(&CLI_JMP.replace("irr=11", "irr=x")), error("irr"));
        assert_eq!(parse_pic(&CLI_JMP.replace("imr=b8", "")), error("imr"));
    }
}
