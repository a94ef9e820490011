//! Whether registers are those of an operating system, whichever architecture's text it is. Pure.

use super::{
    RegistersError,
    aarch64::{ArmLevel, parse_arm_registers},
    is_up, parse_registers,
};

/// Whether the text of `info registers -a`, of an x86 or an Arm guest, shows that an operating system runs, and where
/// its first vCPU stands.
///
/// # Errors
/// [`RegistersError`], if it is neither's.
pub fn operating_system(text: &str) -> Result<(bool, u64), RegistersError> {
    match parse_registers(text) {
        Err(RegistersError::NotX86 { .. }) => {}
        vcpus => {
            let vcpus = vcpus?;
            return Ok((is_up(&vcpus), vcpus.first().map_or(0, |vcpu| vcpu.ip)));
        }
    }
    let vcpus = parse_arm_registers(text)?;
    // Firmware has no user code, and runs at the identity-mapped addresses below.
    let is_up = vcpus.iter().any(|vcpu| vcpu.level == ArmLevel::User || vcpu.in_upper_half);
    Ok((is_up, vcpus.first().map_or(0, |vcpu| vcpu.pc)))
}

#[cfg(test)]
mod tests {
    use super::operating_system;

    #[test]
    fn an_operating_system_is_told_from_firmware_on_both_architectures() {
        let x86 = |ip: &str, cr0: &str| {
            format!("CPU#0\nRAX=0\nRIP={ip} RFL=00000246 CPL=0 HLT=0\nCR0={cr0}\n")
        };
        let arm =
            |pc: &str, level: &str| format!("CPU#0\n PC={pc} SP=0\nPSTATE=00000005 ---- {level}\n");
        for (text, expected) in [
            (x86("ffffffff81c0e10f", "80050033"), (true, 0xffff_ffff_81c0_e10f)),
            (x86("000000000000f09a", "00000010"), (false, 0xf09a)),
            (arm("ffff800008ed6c2c", "EL1h"), (true, 0xffff_8000_08ed_6c2c)),
            (arm("0000000000401000", "EL0t"), (true, 0x40_1000)),
            (arm("000000004040c000", "EL1h"), (false, 0x4040_c000)),
        ] {
            assert_eq!(operating_system(&text), Ok(expected), "{text}");
        }
        assert!(operating_system("CPU#0\n pc       0000000080000000\n").is_err());
        assert!(operating_system("").is_err());
    }
}
